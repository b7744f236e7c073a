"""Holds what one rank was served against the order: at each epoch's end `read + sum(replaced)` is what was due, or the run stops.
The two sides are counted apart: what arrived in the training process, and arithmetic on positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from vlpkit.data.faults import Fault
from vlpkit.data.mixture import Sequenced
from vlpkit.data.share import Share


@dataclass
class Tally:
    """One rank's part of one epoch."""

    due: int = 0  # positions of the epoch that fall to this rank, from where it began
    read: int = 0  # positions at which their own sample arrived
    replaced: Counter[str] = field(default_factory=Counter)  # by the first reason

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.replaced.most_common())
        return f"{self.due} samples due: {self.read} read, {sum(self.replaced.values())} replaced" + (f" ({reasons})" if reasons else "")


class Audit:
    """Books micro-batches in the order in which they arrive.

    Args:
        order: which sample stands at which position.
        share: the rank's part of the positions.
        turn: its first micro-batch.
        key: configuration key of the shards, named in messages.
    """

    def __init__(self, order: Sequenced, share: Share, *, turn: int, key: str) -> None:
        self.order, self.share, self.key = order, share, key
        self._turn, self._first = turn, share.start(turn)
        self._open: dict[int, Tally] = {}

    def book(self, position: int, numbers: Tensor, faults: Sequence[Fault]) -> dict[int, tuple[int, list[Fault]]]:
        """By set: how many of the samples that arrived are those that were due at their positions, and what was refused; the others are replaced.

        Args:
            position: of the first sample.
            numbers: (M,) sample numbers that arrived.
            faults: what was refused on the way.

        Raises:
            RuntimeError: a sample is neither its position's own nor a reported substitute, or a micro-batch is missing.
        """
        if position != self.share.start(self._turn):
            raise RuntimeError(f"{self.key}: the micro-batch of position {position} arrived where that of {self.share.start(self._turn)} was due")
        self._turn += 1
        due = self.order.samples(position, position + len(numbers))
        first = {fault.position - position: fault.reason for fault in faults if fault.attempt == 0}
        own = due[:, 1] == numbers.numpy()
        own[list(first)] = False
        if int(own.sum()) + len(first) != len(numbers):
            raise RuntimeError(f"{self.key}: of the samples at positions {position} to {position + len(numbers) - 1} some are neither those of the order nor reported substitutes")
        for epoch in np.unique(due[:, 0]).tolist():
            tally = self._open.setdefault(epoch, Tally())
            tally.read += int((own & (due[:, 0] == epoch)).sum())
        for row, reason in first.items():
            self._open[int(due[row, 0])].replaced[reason] += 1
        sets = self.order.sets(due[:, 1])
        return {at: (int(own[sets == at].sum()), [fault for fault in faults if sets[fault.position - position] == at]) for at in np.unique(sets).tolist()}

    def closed(self) -> dict[int, Tally]:
        """Epochs that ended since the last call, by number.

        Raises:
            RuntimeError: what arrived of one is not what was due.
        """
        length = len(self.order)
        ended = [epoch for epoch in self._open if (epoch + 1) * length <= self.share.start(self._turn)]
        found = {epoch: self._open.pop(epoch) for epoch in ended}
        for epoch, tally in found.items():
            tally.due = self.share.below((epoch + 1) * length) - self.share.below(max(epoch * length, self._first))
            if tally.read + sum(tally.replaced.values()) != tally.due:
                raise RuntimeError(f"{self.key}: epoch {epoch} does not add up: {tally}")
        return found
