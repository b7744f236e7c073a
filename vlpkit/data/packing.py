"""Images and captions into WebDataset shards: checked as training will check them, counted by outcome, written whole or not at all.
The work can be stopped at any time; the same call continues after the last finished shard and ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vlpkit.data.decode import LIMITS, Refused, decode, read_header
from vlpkit.data.durable import ShardFile, read_json, write_json
from vlpkit.data.sources import Candidate, Listing
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
SLICE = 256  # images that one round of the worker processes looks at
OURS = re.compile(r"((train|val)-\d{6}\.tar|manifest\.json|progress\.json)(\.tmp)?")


@dataclass(frozen=True)
class Packing:
    """How shards are made; everything here and the listing decide their bytes.

    Args:
        samples_per_shard: most samples of a shard.
        val: validation samples wanted; they are the first usable ones in the order of a hash of seed and key.
        seed: of that order.
        short_side, max_side: pixels to which larger images are reduced, keeping their ratio; 0 copies the bytes.
        quality: of the JPEG then written.
    """

    samples_per_shard: int = 1000
    val: int = 0
    seed: int = 0
    short_side: int = 0
    max_side: int = 0
    quality: int = 90

    def __post_init__(self) -> None:
        for name, low, high in (("samples_per_shard", 1, 10**6), ("val", 0, 10**9), ("short_side", 0, 10**5), ("max_side", 0, 10**5), ("quality", 1, 100)):
            if not low <= (found := getattr(self, name)) <= high:
                raise DataError(f"--{name.replace('_', '-')} is {found}; it can be {low} to {high}")


@dataclass(frozen=True)
class Sample:
    """A checked image: what its two members will hold, or the reason there will be none."""

    suffix: str = ""
    payload: bytes = b""
    width: int = 0
    height: int = 0
    refused: str = ""


@dataclass
class State:
    """What is finished: enough to continue with the next candidate.

    Args:
        position: candidates already decided upon, in the order of `arranged`.
        outcomes: of those candidates, `written` or a reason.
        shards: name, split, samples, captions, bytes and sha256 of each finished shard.
    """

    fingerprint: str
    position: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)

    def samples(self, split: str) -> int:
        return sum(shard["samples"] for shard in self.shards if shard["split"] == split)


def arranged(listing: Listing, seed: int) -> list[Candidate]:
    """The candidates in the order of a hash of seed and key: shuffled, yet where one stands does not depend on the rest."""
    return sorted(listing.candidates, key=lambda one: (hashlib.sha256(f"{seed}:{one.key}".encode()).digest(), one.key))


def prepare(one: Candidate, packing: Packing) -> Sample:
    """Reads, checks and if asked reduces one image; refused reasons are those of `decode`."""
    try:
        if one.refused:
            raise Refused(one.refused)
        try:
            if (size := os.path.getsize(one.path)) > LIMITS.bytes:
                raise Refused("too_many_bytes", f"{size} bytes")
            payload = Path(one.path).read_bytes()
        except (OSError, ValueError) as error:
            raise Refused("missing_image", str(error)) from None
        return examine(payload, packing)
    except Refused as refused:
        log.debug("%s: %s", one.path, refused)
        return Sample(refused=refused.reason)


def examine(payload: bytes, packing: Packing) -> Sample:
    """Checks and if asked reduces the bytes of one image. Raises Refused."""
    header = read_header(payload)
    target = _reduced(header.width, header.height, packing)
    if target is None:
        decode(payload, header, width=1, height=1)  # all of it is parsed, little of it is computed
        return Sample(SUFFIX[header.format], payload, header.width, header.height)
    pixels = Image.fromarray(decode(payload, header, width=2 * target[0], height=2 * target[1]))
    small = simplejpeg.encode_jpeg(np.asarray(pixels.resize(target, Image.Resampling.BICUBIC)), packing.quality, "RGB", "420")
    return Sample("jpg", small, *target)


def pack(listing: Listing, out: Path, packing: Packing, *, processes: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Writes val-*.tar, train-*.tar and manifest.json to `out`, or continues, or finds them finished; returns the manifest.

    Args:
        processes: that read and check images; the result does not depend on it.
        overwrite: remove shards of another source or of other settings first.

    Raises:
        DataError: `out` holds something else or cannot be written, or not one image is usable.
    """
    candidates = arranged(listing, packing.seed)
    if packing.val >= len(candidates):
        raise DataError(f"--val {packing.val} leaves nothing to train on: there are {len(candidates)} images")
    fingerprint = _fingerprint(candidates, packing)
    try:
        out.mkdir(parents=True, exist_ok=True)
        state = begin(out, fingerprint, overwrite)
        if isinstance(state, dict):
            return state
        clock = _Clock(len(candidates), state.position)
        with _Workers(partial(prepare, packing=packing), processes) as workers:
            for split, wanted in (("val", packing.val), ("train", len(candidates))):
                _write_split(split, wanted, candidates, out, packing, state, workers, clock)
        return _finish(out, listing, packing, state)
    except BrokenProcessPool:
        raise DataError("a worker process ended unexpectedly, perhaps for want of memory; try fewer --processes, the same command then continues") from None
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Make room or choose another folder; the same command then continues where it stopped"
        ) from error


def _write_split(
    split: str, wanted: int, candidates: Sequence[Candidate], out: Path, packing: Packing, state: State, workers: _Workers, clock: _Clock
) -> None:
    while (room := wanted - state.samples(split)) > 0 and state.position < len(candidates):
        number = sum(shard["split"] == split for shard in state.shards)
        shard = ShardFile(out / f"{split}-{number:06d}.tar")
        outcomes, captions, position = Counter(state.outcomes), 0, state.position
        for one, sample in workers.run(candidates, position):
            position += 1
            outcomes[sample.refused or "written"] += 1
            clock.tick(position)
            if not sample.refused:
                shard.add(one.key, {sample.suffix: sample.payload, "json": record(one, sample)})
                captions += len(one.captions)
            if shard.samples == min(packing.samples_per_shard, room):
                break
        state.position, state.outcomes = position, dict(sorted(outcomes.items()))
        if shard.samples:
            state.shards.append({**shard.close(), "split": split, "captions": captions})
        write_json(out / PROGRESS, asdict(state))


def record(one: Candidate, sample: Sample) -> bytes:
    """The KEY.json of a sample."""
    digest = hashlib.sha256(sample.payload).hexdigest()
    return json.dumps({**one.fields, "captions": one.captions, "width": sample.width, "height": sample.height, "sha256": digest}).encode()


class _Workers:
    """Prepares candidates in their order, in this process or in several."""

    def __init__(self, work: Callable[[Candidate], Sample], processes: int) -> None:
        self._work = work
        self._pool = ProcessPoolExecutor(processes) if processes > 1 else None
        self._ahead: dict[int, Sample] = {}

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, candidates: Sequence[Candidate], start: int) -> Iterator[tuple[Candidate, Sample]]:
        for at in range(start, len(candidates)):
            if self._pool is None:
                yield candidates[at], self._work(candidates[at])
                continue
            if at not in self._ahead:
                batch = candidates[at : at + SLICE]
                self._ahead = dict(enumerate(self._pool.map(self._work, batch, chunksize=16), at))
            yield candidates[at], self._ahead.pop(at)


class _Clock:
    """A line of progress every ten seconds."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.start = total, start
        self.began = self.shown = time.monotonic()

    def tick(self, position: int) -> None:
        now = time.monotonic()
        if now - self.shown >= 10:
            self.shown = now
            log.info("%d of %d images, %.0f a second", position, self.total, (position - self.start) / (now - self.began))


def _reduced(width: int, height: int, packing: Packing) -> tuple[int, int] | None:
    shares = [1.0]
    if packing.short_side:
        shares.append(packing.short_side / min(width, height))
    if packing.max_side:
        shares.append(packing.max_side / max(width, height))
    share = min(shares)
    return None if share == 1 else (max(1, round(width * share)), max(1, round(height * share)))


def _fingerprint(candidates: Sequence[Candidate], packing: Packing) -> str:
    """sha256 of the settings and of every candidate's key, captions, fields and file size; where the files lie is not in it."""
    digest = hashlib.sha256(json.dumps([FORMAT, asdict(packing)], sort_keys=True).encode())
    for one in candidates:
        size = -1
        with suppress(OSError, ValueError):
            size = os.stat(one.path).st_size
        digest.update(json.dumps([one.key, one.captions, dict(one.fields), one.refused, size], sort_keys=True).encode())
    return digest.hexdigest()


def begin(out: Path, fingerprint: str, overwrite: bool) -> State | dict[str, Any]:
    """The state to continue from, or the manifest of work that is finished already. Raises DataError when `out` holds other shards."""
    ours = sorted(path for path in out.iterdir() if OURS.fullmatch(path.name))
    for name in (MANIFEST, PROGRESS):
        found = read_json(out / name)
        if found is None or found.get("fingerprint") != fingerprint or not _present(out, found.get("shards", ())):
            continue
        for path in ours:
            if path.suffix == ".tmp":
                path.unlink()
        if name == MANIFEST:
            (out / PROGRESS).unlink(missing_ok=True)
            log.info("%s is already complete", out)
            return found
        if found["shards"]:
            log.info("continuing after %d shards", len(found["shards"]))
        return State(**found)
    kept = [path.name for path in ours if path.suffix == ".tar" or path.name == MANIFEST]
    if kept and not overwrite:
        raise DataError(f"{out} holds {kept[-1]} of another source, of other settings, or damaged since. Choose another folder, or add --overwrite")
    for path in ours:
        path.unlink()
    state = State(fingerprint)
    write_json(out / PROGRESS, asdict(state))
    return state


def _present(out: Path, shards: Sequence[dict[str, Any]]) -> bool:
    return all((out / s["name"]).is_file() and (out / s["name"]).stat().st_size == s["bytes"] for s in shards)


def _finish(out: Path, listing: Listing, packing: Packing, state: State) -> dict[str, Any]:
    if not state.outcomes.get("written"):
        table = ", ".join(f"{reason} {count}" for reason, count in state.outcomes.items())
        raise DataError(f"not one of {len(listing.candidates)} images can be used ({table}); check --images and the list")
    if not state.samples("train"):
        raise DataError(f"all {state.outcomes['written']} usable images went to validation; ask for fewer than --val {packing.val}")
    return write_manifest(out, packing, state, rows=listing.rows)


def write_manifest(out: Path, packing: Packing, state: State, *, rows: Mapping[str, int], **settings: Any) -> dict[str, Any]:
    """Ends the work: manifest.json takes the place of progress.json.

    Args:
        rows: counts of the list's lines by outcome.
        settings: what beside `packing` decided what the shards hold.
    """
    digest = hashlib.sha256()
    for shard in state.shards:
        with tarfile.open(out / shard["name"]) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    digest.update(f"{name[:-5]}\n".encode())
    manifest = {
        "format": FORMAT,
        "fingerprint": state.fingerprint,
        "settings": asdict(packing) | settings,
        "samples": {split: state.samples(split) for split in ("train", "val")},
        "captions": sum(shard["captions"] for shard in state.shards),
        "images": state.outcomes,
        "rows": dict(sorted(rows.items())),
        "keys_sha256": digest.hexdigest(),  # of the keys in the order of `shards`, each followed by a line feed
        "shards": state.shards,
    }
    write_json(out / MANIFEST, manifest)
    (out / PROGRESS).unlink(missing_ok=True)
    return manifest
