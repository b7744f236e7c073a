"""Which images are in the shards twice, or in an evaluation set, too: the same bytes, or nearly the same look.
Of each group of copies the first in the order of the shards is kept; the others are what a list may leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.inspect.near import Near, blocks, popcount
from vlpkit.data.inspect.pool import Progress, each
from vlpkit.data.inspect.prints import CONTRAST, Prints, joined, prints_of_shard

LIMIT = 64  # of 256 bits by which two images may differ
MOST = 80  # beyond it unrelated images are as near as copies
COLOUR = 4 * CONTRAST // 3  # by which the colours of two copies may differ in one place: one and a third standard deviations
_NONE = -1
_SLICE = 1 << 16  # pairs whose colours are compared at a time


class Copies(NamedTuple):
    """For each of N images the one that it is a copy of.

    Args:
        of: (N,) int64 number of that image, of the same set or of the evaluation set; -1: of none.
        distance: (N,) int16 bits of 256 that differ; 0 where it is a copy of none.
        exact: (N,) bool, the bytes are the same.
    """

    of: NDArray[np.int64]
    distance: NDArray[np.int16]
    exact: NDArray[np.bool_]


def take_prints(paths: Sequence[str], *, processes: int, doing: str = "looked at") -> tuple[Prints, NDArray[np.int64]]:
    """The prints of all shards, and (S + 1,) where the samples of each begin. Raises DataError when a worker was killed."""
    parts = list(each(prints_of_shard, paths, processes=processes, doing=doing))
    return joined(parts), np.cumsum([0, *(part.samples for part in parts)])


def copies_within(prints: Prints, *, limit: int = LIMIT) -> Copies:
    """Copies among the images of one set; every one named is itself no copy, and at most `limit` bits away."""
    first, member = _looks(prints)
    copy_of, distance = _greedy(prints, first, limit)
    of = first[copy_of[member]]
    of[of == np.arange(len(of))] = _NONE
    near = np.where(of == _NONE, 0, distance[member]).astype(np.int16)
    return Copies(of, near, (of != _NONE) & (prints.exact == prints.exact[of]).all(1))


def copies_in(prints: Prints, other: Prints, *, limit: int = LIMIT) -> Copies:
    """For each image of one set the nearest image of the other, at most `limit` bits away."""
    mine, member = _looks(prints)
    theirs, _ = _looks(other)
    known = {key.tobytes(): int(at) for key, at in zip(other.exact[theirs], theirs)}
    best = np.array([known.get(key.tobytes(), _NONE) for key in prints.exact[mine]], np.int64).reshape(-1)
    least, exact = np.zeros(len(mine), np.int16), best != _NONE
    asked, there = np.flatnonzero(~prints.flat[mine] & ~exact), theirs[~other.flat[theirs]]
    near, progress = Near(other.coarse[there]), Progress(len(asked), "compared", unit="images")
    for start, stop in blocks(len(asked)):
        rows = asked[start:stop]
        found = near.search(prints.coarse[mine[rows]])
        looks, others = rows[found.query], there[found.found]
        alike, bits = _alike(prints, mine[looks], other, others, limit)
        for at in np.lexsort((-others[alike], -bits)):  # the nearest, and of those the first, is written last
            best[looks[alike[at]]], least[looks[alike[at]]] = others[alike[at]], bits[at]
        progress.tick(stop - start)
    return Copies(best[member], least[member], exact[member])


class Shared(NamedTuple):
    """Captions that several samples have.

    Args:
        captions, distinct: how many there are, and how many different ones.
        samples: samples that have a caption, and those of them whose every caption another sample has, too.
        top: the most shared, as (samples that have it, hash, one of these samples).
    """

    captions: int
    distinct: int
    samples: int
    all_shared: int
    top: list[tuple[int, int, int]]


def shared_captions(prints: Prints, *, top: int = 10) -> Shared:
    """Equal captions of different samples, whatever their case."""
    if not len(prints.captions):
        return Shared(0, 0, 0, 0, [])
    distinct, first, which, counts = np.unique(prints.captions, return_index=True, return_inverse=True, return_counts=True)
    alone = np.unique(prints.owners[counts[which] == 1])
    samples = len(np.unique(prints.owners))
    ranked = np.argsort(-counts, kind="stable")[:top]
    return Shared(
        len(which), len(distinct), samples, samples - len(alone),
        [(int(counts[at]), int(distinct[at]), int(prints.owners[first[at]])) for at in ranked if counts[at] > 1],
    )  # fmt: skip


def _looks(prints: Prints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(U,) first image of each different file, in order, and (N,) which of these each image is."""
    _, first, member = np.unique(np.ascontiguousarray(prints.exact).view("V16").ravel(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[member.ravel()]


def _greedy(prints: Prints, first: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """(U,) for each file the kept one that it copies, itself when it is kept, and (U,) the bits between them."""
    of, distance = np.arange(len(first)), np.zeros(len(first), np.int16)
    rows = np.flatnonzero(~prints.flat[first])  # even images are copies of equal bytes alone
    coarse = prints.coarse[first[rows]]
    near, kept, progress = Near(coarse), np.ones(len(rows), bool), Progress(len(rows), "compared", unit="images")
    for start, stop in blocks(len(rows)):
        found = near.search(coarse[start:stop], alive=kept, before=start)
        later, earlier = found.query + start, found.found
        alike, bits = _alike(prints, first[rows[later]], prints, first[rows[earlier]], limit)
        later, earlier = later[alike], earlier[alike]
        for at in np.lexsort((earlier, bits, later)):  # one file after another, its nearest first
            if kept[later[at]] and kept[earlier[at]]:
                kept[later[at]] = False
                of[rows[later[at]]], distance[rows[later[at]]] = rows[earlier[at]], bits[at]
        progress.tick(stop - start)
    return of, distance


def _alike(
    prints: Prints, images: NDArray[np.int64], other: Prints, others: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Of P pairs those that pass for copies: their places in the list, and the bits by which they differ."""
    bits = popcount(prints.fine[images] ^ other.fine[others]).sum(-1, dtype=np.int16)
    passed = np.flatnonzero(bits <= limit)
    parts = [np.zeros(0, np.int64)]
    for start in range(0, len(passed), _SLICE):
        at = passed[start : start + _SLICE]
        apart = np.abs(prints.colours[images[at]].astype(np.int16) - other.colours[others[at]]).max(-1)
        parts.append(at[apart <= COLOUR])
    alike = np.concatenate(parts)
    return alike, bits[alike]
