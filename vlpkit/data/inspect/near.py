"""All pairs of 64-bit words that differ in few bits, among millions, and none missed.
Two words within 8 bits agree to within 2 in one of three parts (pigeonhole), so only such are compared (Norouzi et al. 2012, arXiv:1307.2982)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RADIUS = 8  # bits
_PARTS = ((0, 22), (22, 21), (43, 21))  # first bit and number of bits
_REACH = RADIUS // len(_PARTS)
_CHUNK = 1 << 20  # pairs compared at a time
_BLOCK = 8192  # words asked for at a time


class Pairs(NamedTuple):
    """Pairs of words: (P,) int64 numbers of the one that was asked for, and of the one that was found."""

    query: NDArray[np.int64]
    found: NDArray[np.int64]


class Near:
    """Finds the words near to others.

    Args:
        words: (B,) uint64.
    """

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.words = words
        self._tables = [_Bucketed(_part(words, first, bits), bits) for first, bits in _PARTS]
        self._masks = [_masks(bits) for _, bits in _PARTS]

    def search(self, words: NDArray[np.uint64], *, alive: NDArray[np.bool_] | None = None, before: int | None = None) -> Pairs:
        """Every pair within RADIUS bits, each once.

        Args:
            words: (Q,) uint64, asked for.
            alive: (B,) words that may be found; None: all.
            before: the words asked for are those of this object from this number on, and only smaller numbers are found; None: all are.
        """
        queries, founds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for turn, (first, bits) in enumerate(_PARTS):
            part = _part(words, first, bits)
            for mask in self._masks[turn]:
                for query, found in self._tables[turn].pairs(part ^ mask):
                    kept = np.ones(len(query), bool) if before is None else found < query + before
                    if alive is not None:
                        kept &= alive[found]
                    query, found = query[kept], found[kept]
                    differ = words[query] ^ self.words[found]
                    kept = popcount(differ) <= RADIUS
                    for earlier, many in _PARTS[:turn]:  # such a pair was found already
                        kept &= popcount(_part(differ, earlier, many).astype(np.uint64)) > _REACH
                    queries.append(query[kept])
                    founds.append(found[kept])
        return Pairs(np.concatenate(queries), np.concatenate(founds))


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """0 to `count` in pieces that a search takes at a time."""
    for start in range(0, count, _BLOCK):
        yield start, min(count, start + _BLOCK)


def popcount(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bits set in each word."""
    return np.bitwise_count(words) if hasattr(np, "bitwise_count") else popcount_by_table(words)


def popcount_by_table(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The same before numpy 2."""
    return _ONES[np.ascontiguousarray(words).view(np.uint16)].reshape(*words.shape, 4).sum(-1, dtype=np.uint8)


class _Bucketed:
    """Words by their value in one part."""

    def __init__(self, values: NDArray[np.int64], bits: int) -> None:
        self._order = np.argsort(values, kind="stable").astype(np.int32)
        self._ends = np.zeros((1 << bits) + 1, np.int32)
        np.cumsum(np.bincount(values, minlength=1 << bits), out=self._ends[1:])

    def pairs(self, values: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """All (query, word) with equal values, in chunks."""
        starts = self._ends[values]
        counts = (self._ends[values + 1] - starts).astype(np.int64)
        busy = np.flatnonzero(counts)
        upto = np.cumsum(counts[busy])
        at = 0
        while at < len(busy):
            done = int(upto[at - 1]) if at else 0
            stop = max(at + 1, int(np.searchsorted(upto, done + _CHUNK, side="right")))
            queries, many = busy[at:stop], counts[busy[at:stop]]
            shift = np.repeat(starts[queries] - (np.cumsum(many) - many), many)
            yield np.repeat(queries, many), self._order[shift + np.arange(len(shift))].astype(np.int64)
            at = stop


def _part(words: NDArray[np.uint64], first: int, bits: int) -> NDArray[np.int64]:
    return ((words >> np.uint64(first)) & np.uint64((1 << bits) - 1)).astype(np.int64)


def _masks(bits: int) -> list[int]:
    """All words of `bits` bits with at most _REACH of them set, the fewest first."""
    return [sum(1 << place for place in places) for count in range(_REACH + 1) for places in combinations(range(bits), count)]


_ONES = np.array([bin(word).count("1") for word in range(1 << 16)], np.uint8)
