"""A list of image addresses into shards: img2dataset fetches, each shard is checked and packed as soon as it is there, and every line is accounted for.
The work can be stopped at any time, however roughly; the same call goes on after the last finished shard."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlpkit.data.addresses import KIND, AddressList
from vlpkit.data.arrivals import STATISTICS, WORK, pack_part
from vlpkit.data.durable import read_json
from vlpkit.data.img2dataset import Fetching, Program, environment
from vlpkit.data.packing import State, begin, write_manifest
from vlpkit.data.parts import Part, Plan, draw_up
from vlpkit.data.prepare import Packing
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

LOG = "img2dataset.log"
POLL = 0.25  # seconds between looks at what img2dataset has finished
PATIENCE = 10.0  # seconds between lines of progress


def download(
    addresses: AddressList,
    out: Path,
    packing: Packing,
    fetching: Fetching,
    *,
    cache: Path,
    own: Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes val-*.tar, train-*.tar and manifest.json to `out`, or goes on, or finds them finished; returns the manifest.

    Its `rows` sum to the lines of the list, and `images` to the rows that are `used`: lines with an address of their own.

    Args:
        cache: folder for the environment of img2dataset.
        own: folder of an environment with img2dataset to use instead.
        processes: of img2dataset, and as many threads that pack.
        overwrite: remove shards of another list or of other settings first.

    Raises:
        DataError: the list has no usable line, `out` holds something else or cannot be written, img2dataset cannot be had or fails,
            or not one address gives a usable image.
    """
    if re.search(r"[*?\[\]{}]|::", str(out.absolute())):
        raise DataError(f"{out.absolute()} holds one of *?[]{{}} or '::', which img2dataset takes for patterns; choose another folder")
    plan = draw_up(addresses, packing)
    work = out / WORK
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            state = begin(out, plan.fingerprint, overwrite)
            if isinstance(state, dict):
                shutil.rmtree(work, ignore_errors=True)
                return state
            plan.write_lists(addresses, work)
            _work(plan, out, packing, fetching, cache, own, processes)
            return _finish(plan, out, packing, fetching, state)
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Make room or choose another folder; the same command then goes on where it stopped"
        ) from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else works in `out`; the system lets go when this process ends, however it ends."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is at work in {out}; wait for it, or stop it first") from None
        yield
    finally:
        os.close(descriptor)


def _work(plan: Plan, out: Path, packing: Packing, fetching: Fetching, cache: Path, own: Path | None, processes: int) -> None:
    """Until each part has its receipt."""
    work = out / WORK
    for name in ("raw", "done"):
        (work / name).mkdir(exist_ok=True)
    ahead = _Ahead(plan, out, packing)
    if not ahead.parts:
        return
    if ahead.tally.total():
        log.info("going on after %d of %d addresses", ahead.tally.total(), plan.total)
    python = environment(cache, own)
    log.info("img2dataset fetches %d addresses; what it says is in %s", plan.total - ahead.tally.total(), work / LOG)
    program = Program(
        python,
        lists=work / "lists",
        out=work / "raw",
        log=work / LOG,
        samples_per_shard=packing.samples_per_shard,
        fetching=fetching,
        processes=min(processes, len(ahead.parts)),
    )
    # Threads: decoding, reducing and hashing let go of the interpreter, and nothing is left over when this process is killed.
    with ThreadPoolExecutor(processes) as pool, program:
        try:
            running = True
            while running or ahead.packing:
                running = program.running  # asked before looking, so that nothing finished in between is missed
                ahead.look(pool)
                time.sleep(POLL if running or ahead.packing else 0)
            if ahead.parts:
                raise DataError(
                    f"img2dataset left {len(ahead.parts)} of {len(plan.parts)} shards undone ({program.last_words()}). "
                    f"The same command tries them again; all it said is in {program.log}"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Ahead:
    """What is still to be done, and the line of progress.

    Args:
        parts: without a receipt, by name.
        packing: parts that a thread packs now.
    """

    def __init__(self, plan: Plan, out: Path, settings: Packing) -> None:
        self._plan, self._out, self._settings, self._work = plan, out, settings, out / WORK
        self.parts: dict[str, Part] = {}
        self.packing: dict[Future[dict[str, Any] | None], Part] = {}
        self.tally: Counter[str] = Counter()
        for part in plan.parts:
            receipt = read_json(self._work / "done" / f"{part.name}.json")
            if receipt is not None and _present(out, receipt):
                self.tally.update(receipt["outcomes"])
                self._packed(part)
                continue
            self.parts[part.name] = part
            if not (self._work / "raw" / f"{part.name}.tar").is_file() or read_json(self._statistics(part)) is None:
                self._again(part)
        self._start, self._began, self._shown = self.tally.total(), time.monotonic(), time.monotonic()

    def look(self, pool: ThreadPoolExecutor) -> None:
        """Hands finished downloads to the pool and books what it has packed."""
        busy = {part.name for part in self.packing.values()}
        for name in os.listdir(self._work / "raw"):
            part = self.parts.get(name.removesuffix(STATISTICS)) if name.endswith(STATISTICS) else None
            # The statistics are written last, but not in one step.
            if part is not None and part.name not in busy and read_json(self._statistics(part)) is not None:
                self.packing[pool.submit(pack_part, part, self._out, self._settings)] = part
        for future in [future for future in self.packing if future.done()]:
            part, receipt = self.packing.pop(future), future.result()
            if receipt is None:
                self._again(part)
                continue
            del self.parts[part.name]
            self.tally.update(receipt["outcomes"])
            self._packed(part)
        if time.monotonic() - self._shown >= PATIENCE:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        done = self.tally.total()
        lost = ", ".join(f"{word} {count}" for word, count in self.tally.most_common(5) if word != "written")
        speed = (done - self._start) / (self._shown - self._began)
        log.info("%d of %d addresses, %.1f a second, %d images written%s", done, self._plan.total, speed, self.tally["written"], f" ({lost})" if lost else "")

    def _statistics(self, part: Part) -> Path:
        return self._work / "raw" / f"{part.name}{STATISTICS}"

    def _again(self, part: Part) -> None:
        """What is there of a part is not whole: without statistics img2dataset does it anew."""
        self._statistics(part).unlink(missing_ok=True)

    def _packed(self, part: Part) -> None:
        """The statistics stay: they tell img2dataset that the part is done."""
        for kind in ("tar", "parquet"):
            (self._work / "raw" / f"{part.name}.{kind}").unlink(missing_ok=True)


def _present(out: Path, receipt: dict[str, Any]) -> bool:
    shard = receipt["shard"]
    return shard is None or ((out / shard["name"]).is_file() and (out / shard["name"]).stat().st_size == shard["bytes"])


def _finish(plan: Plan, out: Path, packing: Packing, fetching: Fetching, state: State) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for part in plan.parts:
        receipt = read_json(out / WORK / "done" / f"{part.name}.json")
        assert receipt is not None
        outcomes.update(receipt["outcomes"])
        if receipt["shard"] is not None:
            state.shards.append(receipt["shard"])
    state.position, state.outcomes = plan.total, dict(sorted(outcomes.items()))
    if not state.samples("train"):
        for name in ("done", "raw"):
            shutil.rmtree(out / WORK / name)  # perhaps the network was down: the next call starts anew
        table = ", ".join(f"{word} {count}" for word, count in state.outcomes.items())
        raise DataError(f"not one of {plan.total} addresses gave an image to train on ({table}); see whether the network works, and try one address by hand. What img2dataset said is in {out / WORK / LOG}")
    manifest = write_manifest(out, packing, state, rows=plan.rows, kind=KIND, timeout=fetching.timeout, retries=fetching.retries)
    shutil.rmtree(out / WORK)
    return manifest
