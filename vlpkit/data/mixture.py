"""Several sets of pairs in one order: at every position one set in exact proportion, and of that set the next sample of its own order.
Whole-number arithmetic on positions and nothing drawn, so that any position is reached in a few divisions and resuming is seeking."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.order import Order


class Sequenced(Protocol):
    """Which sample stands at which position: one source's `Order`, or a `Mixture` of several."""

    seed: int

    def __len__(self) -> int: ...

    def samples(self, start: int, stop: int) -> NDArray[np.int64]: ...

    def substitute(self, position: int, attempt: int) -> int: ...

    def sets(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def numbers(self) -> Iterator[int]: ...


@dataclass(frozen=True)
class _Node:
    """A set, or two nodes whose places are divided in proportion to their counts."""

    count: int
    at: int = -1  # the set
    both: tuple[_Node, _Node] | None = None


class Interleaving:
    """Which of m sets stands at each place of an endless sequence, in a period of as many places as the counts add up to.

    A binary tree, the smallest counts joined first: of the first t places of a node with c + d places a period, its first child has
    t * c / (c + d), rounded. So a set with the share p of the places has p * t of the first t, give or take less than 2, and give or take 1/2
    where there are two sets; whole periods are exact.

    Args:
        counts: places of each set in a period, at least 1.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        if not counts or min(counts) < 1:
            raise ValueError(f"counts {list(counts)}: each set needs a place")
        heap = [(count, at, _Node(count, at)) for at, count in enumerate(counts)]
        heapq.heapify(heap)
        while len(heap) > 1:
            (a, at, first), (b, _, second) = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (a + b, at, _Node(a + b, both=(first, second))))
        self._root, self._sets = heap[0][2], len(counts)

    def places(self, start: int, stop: int) -> tuple[NDArray[np.int64], list[int]]:
        """(stop - start,) the set at each place of [start, stop), and how many places each of the m sets has before `start`."""
        before = [0] * self._sets
        return self._divide(self._root, start, stop - start, before), before

    def _divide(self, node: _Node, start: int, length: int, before: list[int]) -> NDArray[np.int64]:
        if node.both is None:
            before[node.at] = start
            return np.full(length, node.at, dtype=np.int64)
        first, second = node.both
        # (2 * place * count + all) // (2 * all) is place * count / all rounded; the large part in Python's unbounded whole numbers
        past, rest = divmod(2 * start * first.count + node.count, 2 * node.count)
        taken = (rest + 2 * first.count * np.arange(length + 1)) // (2 * node.count)
        mine = np.diff(taken) == 1
        found = np.empty(length, dtype=np.int64)
        found[mine] = self._divide(first, past, int(mine.sum()), before)
        found[~mine] = self._divide(second, start - past, int((~mine).sum()), before)
        return found


class Mixture:
    """Orders mixed position by position. Every set walks through its own order, shuffled and windowed as without the others, epoch after epoch.

    Sample numbers count on from set to set. An epoch of the mixture is a period of its counts; those of the sets progress on their own.

    Args:
        orders: of the sets.
        lengths: samples each set's index has, which may be more than its order uses.
        counts: samples of each set in one epoch of the mixture.
        seed: of the run.
    """

    def __init__(self, orders: Sequence[Order], *, lengths: Sequence[int], counts: Sequence[int], seed: int) -> None:
        self.orders, self.counts, self.seed = list(orders), list(counts), seed
        self._between = Interleaving(counts)
        self._ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        self._starts = self._ends - np.asarray(lengths, dtype=np.int64)

    def __len__(self) -> int:
        """Samples of one epoch of the mixture."""
        return sum(self.counts)

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start, 2) rows of (epoch of the mixture, sample number) for positions [start, stop)."""
        if start < 0:
            raise IndexError(f"position {start} is before the first")
        sets, before = self._between.places(start, max(start, stop))
        rows = np.empty((len(sets), 2), dtype=np.int64)
        rows[:, 0] = start // len(self) + (start % len(self) + np.arange(len(sets))) // len(self)
        for at in np.unique(sets).tolist():
            mine = sets == at
            rows[mine, 1] = self._starts[at] + self.orders[at].samples(before[at], before[at] + int(mine.sum()))[:, 1]
        return rows

    def substitute(self, position: int, attempt: int) -> int:
        """As `Order.substitute`, out of the set that stands at the position."""
        (at,), before = self._between.places(position, position + 1)
        return int(self._starts[at]) + self.orders[at].substitute(before[at], attempt)

    def sets(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the set that each sample number belongs to."""
        return np.searchsorted(self._ends, numbers, side="right")

    def numbers(self) -> Iterator[int]:
        """Every sample once, each set in the order of its index: in the proportions of the mixture for an epoch, then the sets that are left."""
        left = [order.numbers() for order in self.orders]
        sets = chain.from_iterable(self._between.places(start, start + 4096)[0].tolist() for start in range(0, len(self), 4096))
        for at in chain(sets, *(repeat(at, len(order)) for at, order in enumerate(self.orders))):
            number = next(left[at], None)
            if number is not None:
                yield int(self._starts[at]) + number


def counted(weights: Sequence[float], lengths: Sequence[int], *, percent: bool) -> list[int]:
    """Samples of each set in one epoch of a mixture, at least 1.

    Args:
        weights: how often an epoch passes over each set (1: every sample once, 0.5: half of them, the other half in the next epoch), or,
            with `percent`, how many of a hundred samples are of it; an epoch then has as many samples as the sets have together.
        lengths: samples of each set.
    """
    wanted = [sum(lengths) * weight / 100 if percent else length * weight for weight, length in zip(weights, lengths)]
    return [max(1, int(count + 0.5)) for count in wanted]
