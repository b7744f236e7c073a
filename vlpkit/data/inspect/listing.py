"""Names for what was found twice: a row a copy, with the keys and the shards on both sides, in a file that another program can read.
Such a file is a suggestion of what to leave out; nothing is removed from shards."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.inspect.duplicates import Copies, Shared, copies_in, copies_within, shared_captions, take_prints
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.opened import open_shard
from vlpkit.data.inspect.prints import Prints, caption_hash
from vlpkit.data.inspect.said import captions_in
from vlpkit.data.inspect.tables import shard_names
from vlpkit.data.reader import TEXTS
from vlpkit.errors import DataError
from vlpkit.sidecar import replacing

SUFFIXES = (".csv", ".jsonl")


class Row(NamedTuple):
    """One copy.

    Args:
        shard, key: of the copy: what would be left out.
        why: `copy` of an image of the same shards, or `evaluation`: it is in the evaluation set, too.
        exact: the bytes are the same.
        distance: bits of 256 by which the looks differ.
        of_shard, of_key: of the image that stays, or of the evaluation's.
    """

    shard: str
    key: str
    why: str
    exact: bool
    distance: int
    of_shard: str
    of_key: str


class Places:
    """Where the samples of a set are.

    Args:
        paths: S shards.
        starts: (S + 1,) number of the first sample of each.
    """

    def __init__(self, paths: Sequence[str], starts: NDArray[np.int64]) -> None:
        self.paths, self.starts = paths, starts
        names = shard_names(paths)
        self.names = [names[path] for path in paths]

    def shard(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the shard of each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def keys(self, samples: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
        """Name of the shard and key by sample; every shard concerned is opened once."""
        wanted, found = np.unique(samples), {}
        shards = self.shard(wanted)
        for shard in np.unique(shards):
            keys = open_shard(self.paths[shard]).table.keys
            for sample in wanted[shards == shard].tolist():
                row = sample - int(self.starts[shard])
                found[sample] = (self.names[shard], keys[row] if row < len(keys) else "?")  # the shard was written anew since
        return found


def report(
    paths: Sequence[str], against: Sequence[str], out: Path | None, *, limit: int, top: int, processes: int
) -> dict[str, Any]:
    """Everything `duplicates` finds, as JSON has it; the rows of all copies go to `out`.

    Args:
        paths: shards.
        against: shards of an evaluation set; none: the set is compared with itself alone.
        out: a .csv or .jsonl; None: nothing is written.
        limit: bits of 256 by which the looks of two images may differ.
        top: rows and captions that are named.

    Raises:
        DataError: `out` cannot be written, a shard is on both sides, or a worker process was killed.
    """
    if twice := sorted(set(paths) & set(against)):
        raise DataError(f"--against names {twice[0]}, which is one of the shards that are looked at; an evaluation set must be another")
    prints, starts = take_prints(paths, processes=processes)
    places = Places(paths, starts)
    copies = copies_within(prints, limit=limit)
    found, evaluation = rows(copies, prints, places, prints, places, why="copy"), None
    listed, shared = found, shared_captions(prints, top=top)
    if against:
        theirs, their_starts = take_prints(against, processes=processes, doing="looked at, of the evaluation set")
        hits = copies_in(prints, theirs, limit=limit)
        also = rows(hits, prints, places, theirs, Places(against, their_starts), why="evaluation")
        evaluation = {"images": len(theirs.rows), "left_out": theirs.left_out.plain(), **_counts(also, top)}
        listed = [*found, *also]
    if out is not None:
        write_rows(out, listed)
    return {
        "shards": len(paths), "samples": prints.samples, "images": len(prints.rows), "even": int(prints.flat.sum()), "left_out": prints.left_out.plain(),
        "copies": _counts(found, top), "captions": {**shared._asdict(), "top": name_shared(shared, places)}, "against": evaluation,
        "list": None if out is None else str(out),
    }  # fmt: skip


def _counts(found: Sequence[Row], top: int) -> dict[str, Any]:
    exact = sum(row.exact for row in found)
    return {"exact": exact, "near": len(found) - exact, "first": [row._asdict() for row in found[:top]]}


def rows(copies: Copies, prints: Prints, places: Places, other: Prints, others: Places, *, why: str) -> list[Row]:
    """A row for each copy, in the order of the shards; `other` and `others` are where the originals are."""
    at = np.flatnonzero(copies.of >= 0)
    mine, theirs = prints.rows[at], other.rows[copies.of[at]]
    keys, of = places.keys(mine), others.keys(theirs)
    facts = zip(mine.tolist(), copies.exact[at].tolist(), copies.distance[at].tolist(), theirs.tolist())
    return [Row(*keys[sample], why, exact, distance, *of[original]) for sample, exact, distance, original in facts]


def write_rows(path: Path, found: Iterable[Row]) -> None:
    """Write a .csv with a header line or a .jsonl, whole or not at all. Raises DataError."""
    text = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([*row[:3], str(row.exact).lower(), *row[4:]] for row in found)
    else:
        text.writelines(json.dumps(row._asdict()) + "\n" for row in found)
    try:
        with replacing(path) as file:
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DataError(f"--out: cannot write {path}: {error.strerror or error}") from None


def name_shared(shared: Shared, places: Places) -> list[tuple[int, str]]:
    """(samples that have it, caption) of the most shared captions, read again from one of these samples."""
    named = []
    for count, hashed, sample in shared.top:
        shard = int(places.shard(np.array([sample]))[0])
        row = sample - int(places.starts[shard])
        for _, _, found in open_shard(places.paths[shard]).samples(Findings(), only=TEXTS, rows=[row]):
            texts = [text for text in captions_in(found) if int.from_bytes(caption_hash(text), "little") == hashed]
            named += [(count, text) for text in texts[:1]]
    return named
