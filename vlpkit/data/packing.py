"""Images and what is said about them into WebDataset shards: counted by outcome, written whole or not at all.
The work can be stopped at any time; the same call continues after the last finished shard and ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vlpkit.data.durable import ShardFile, read_json, write_json, write_text
from vlpkit.data.prepare import Crew, Packing, prepare
from vlpkit.data.sources.listing import SPLITS, Candidate, Listing
from vlpkit.errors import DataError

__all__ = ["MANIFEST", "PROGRESS", "Packing", "State", "arranged", "begin", "pack", "write_manifest"]

log = logging.getLogger(__name__)

FORMAT = 2
MANIFEST, PROGRESS = "manifest.json", "progress.json"
OURS = re.compile(rf"(({'|'.join(SPLITS)})-\d{{6}}\.tar|manifest\.json|progress\.json|(answers|classes|attributes)\.txt)(\.tmp)?")


class Turn(NamedTuple):
    """Shards of one split: at most `wanted` samples of the candidates up to position `end`."""

    split: str
    wanted: int
    end: int


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


def arranged(listing: Listing, packing: Packing) -> tuple[list[Candidate], list[Turn]]:
    """The candidates in the order in which they are looked at, and the splits they go to.

    Within a split that is the order of a hash of seed and key, or of what belongs together: shuffled, yet where one stands does not depend on
    the rest. A source without published splits, or of one alone, may be divided by `packing.val`.

    Raises:
        DataError: nothing is left to train on, or there are published splits already.
    """
    published = [split for split in ("", *SPLITS) if any(one.split == split for one in listing.candidates if not one.refused)]
    many = len(listing.candidates)
    if packing.val and len(published) > 1:
        named = ", ".join(split or "none" for split in published)
        raise DataError(f"--val {packing.val} would draw from several published splits ({named}). Leave it away, or choose one with --split")
    if packing.val >= many:
        raise DataError(f"--val {packing.val} leaves nothing to train on: there are {many} images")
    rank = {"": 0} if packing.val else {split: number for number, split in enumerate(reversed(published))}
    candidates = sorted(
        listing.candidates,
        key=lambda one: (rank.get(one.split, 0), hashlib.sha256(f"{packing.seed}:{one.group or one.key}".encode()).digest(), one.key),
    )
    if packing.val or published in ([], [""]):
        return candidates, [Turn("val", packing.val, many), Turn("train", sys.maxsize, many)]
    turns = [Turn(split or "train", sys.maxsize, sum(rank.get(one.split, 0) <= rank[split] for one in candidates)) for split in reversed(published)]
    return candidates, turns


def pack(listing: Listing, out: Path, packing: Packing, *, processes: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Writes val-*.tar, train-*.tar or those of published splits, and manifest.json to `out`, or continues, or finds them finished.

    Args:
        processes: that read and check images; the result does not depend on it.
        overwrite: remove shards of another source or of other settings first.

    Returns:
        the manifest.

    Raises:
        DataError: `out` holds something else or cannot be written, or not one image is usable.
    """
    candidates, turns = arranged(listing, packing)
    fingerprint = _fingerprint(candidates, listing, packing)
    try:
        out.mkdir(parents=True, exist_ok=True)
        state = begin(out, fingerprint, overwrite)
        if isinstance(state, dict):
            return state
        clock = _Clock(len(candidates), state.position)
        with Crew(partial(prepare, packing=packing), processes) as crew:
            for turn in turns:
                _write_split(turn, candidates, out, packing, state, crew, clock)
        return _finish(out, listing, packing, state, turns)
    except BrokenProcessPool:
        raise DataError("a worker process ended unexpectedly, perhaps for want of memory; try fewer --processes, the same command then continues") from None
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Make room or choose another folder; the same command then continues where it stopped"
        ) from error


def _write_split(turn: Turn, candidates: Sequence[Candidate], out: Path, packing: Packing, state: State, crew: Crew, clock: _Clock) -> None:
    while state.position < turn.end and ((room := turn.wanted - state.samples(turn.split)) > 0 or _unfinished(candidates, turn, state)):
        number = sum(shard["split"] == turn.split for shard in state.shards)
        shard = ShardFile(out / f"{turn.split}-{number:06d}.tar")
        outcomes, captions, position = Counter(state.outcomes), 0, state.position
        for one, sample in crew.run(candidates, range(position, turn.end)):
            position += 1
            outcomes[sample.refused or "written"] += 1
            clock.tick(position)
            if not sample.refused:
                shard.add(one.key, sample.members)
                captions += len(one.captions)
            if shard.samples >= packing.samples_per_shard or (shard.samples >= room and not _parted(candidates, position)):
                break
        state.position, state.outcomes = position, dict(sorted(outcomes.items()))
        if shard.samples:
            state.shards.append({**shard.close(), "split": turn.split, "captions": captions})
        write_json(out / PROGRESS, asdict(state))


def _unfinished(candidates: Sequence[Candidate], turn: Turn, state: State) -> bool:
    """Whether a split has as many samples as it wants, but not all that go with the last."""
    return bool(state.shards) and state.shards[-1]["split"] == turn.split and _parted(candidates, state.position)


def _parted(candidates: Sequence[Candidate], position: int) -> bool:
    """Whether two candidates that belong together stand on the two sides of a position."""
    return 0 < position < len(candidates) and candidates[position].group == candidates[position - 1].group != ""


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


def _fingerprint(candidates: Sequence[Candidate], listing: Listing, packing: Packing) -> str:
    """sha256 of the settings and of all that is known of every candidate, and of its file's size; where the files lie is not in it."""
    digest = hashlib.sha256(json.dumps([FORMAT, asdict(packing), dict(listing.files)], sort_keys=True).encode())
    for one in candidates:
        sizes = [-1 if one.span is None else one.span[1], -1]
        for number, path in enumerate((one.path if one.span is None else "", one.right)):
            with suppress(OSError, ValueError):
                if path:
                    sizes[number] = os.stat(path).st_size
        things = None if one.things is None else [getattr(one.things, name) for name in ("shape", "boxes", "classes", "attributes", "traits", "known")]
        digest.update(json.dumps([one.key, one.captions, one.fields, one.refused, sizes, one.split, one.group, things], sort_keys=True).encode())
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


def _finish(out: Path, listing: Listing, packing: Packing, state: State, turns: Sequence[Turn]) -> dict[str, Any]:
    if not state.outcomes.get("written"):
        table = ", ".join(f"{reason} {count}" for reason, count in state.outcomes.items())
        raise DataError(f"not one of {len(listing.candidates)} images can be used ({table}); check --images and the list")
    if packing.val and not state.samples("train"):
        raise DataError(f"all {state.outcomes['written']} usable images went to validation; ask for fewer than --val {packing.val}")
    splits = [turn.split for turn in turns]
    return write_manifest(out, packing, state, rows=listing.rows, kind=listing.kind, files=listing.files, splits=splits)


def write_manifest(
    out: Path, packing: Packing, state: State, *, rows: Mapping[str, int], kind: str, files: Mapping[str, str] | None = None, splits: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Ends the work: manifest.json takes the place of progress.json.

    Args:
        rows: counts of the source's lines by outcome.
        kind: of the source.
        files: texts that belong beside the shards, by file name.
        splits: that were wanted, beside train and val.
        settings: what beside `packing` decided what the shards hold.
    """
    digest, files = hashlib.sha256(), dict(sorted((files or {}).items()))
    for shard in state.shards:
        with tarfile.open(out / shard["name"]) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    digest.update(f"{name[:-5]}\n".encode())
    for name, text in files.items():
        write_text(out / name, text)
    manifest = {
        "format": FORMAT,
        "fingerprint": state.fingerprint,
        "kind": kind,
        "settings": asdict(packing) | settings,
        "samples": {split: state.samples(split) for split in dict.fromkeys(("train", "val", *splits))},
        "captions": sum(shard["captions"] for shard in state.shards),
        "images": state.outcomes,
        "rows": dict(sorted(rows.items())),
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
        "keys_sha256": digest.hexdigest(),  # of the keys in the order of `shards`, each followed by a line feed
        "shards": state.shards,
    }
    write_json(out / MANIFEST, manifest)
    (out / PROGRESS).unlink(missing_ok=True)
    return manifest
