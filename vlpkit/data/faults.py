"""The book of refused samples: counts by reason, lines that do not flood the log, and the budget above which a run stops.
Every position served is either read as the order says or replaced; `audit` holds the sum against what was due."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vlpkit.errors import DataError

log = logging.getLogger(__name__)

WINDOW = 10_000  # samples the share of bad ones is taken over
LEAST = 200  # samples seen before the share means anything
_CHANCE = 3.0  # standard deviations by which a share over fewer samples than the window must exceed the budget


class Fault(NamedTuple):
    """One refusal of one sample."""

    position: int  # in the global order, or the sample number of an evaluation
    attempt: int  # 0: the sample of that position; above: a substitute was refused too
    reason: str
    key: str
    shard: str
    detail: str


class Report(NamedTuple):
    """Totals since the run or this part of it began."""

    served: int
    read: int
    replaced: Mapping[str, int]  # positions by the first reason
    refused: Mapping[str, int]  # refusals by reason, substitutes included


class Ledger:
    """Counts of one rank, kept in its main process.

    Args:
        max_bad_share: share of replaced positions that is still borne; 0: none is.
        key: configuration key of the shards, named in messages.
    """

    def __init__(self, *, max_bad_share: float, key: str = "data.shards") -> None:
        self.max_bad_share, self.key = max_bad_share, key
        self.read = 0
        self.replaced: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._recent: deque[tuple[int, int]] = deque()
        self._seen = self._bad = 0
        self._examples: dict[str, Fault] = {}

    def add(self, read: int, faults: Sequence[Fault]) -> None:
        """Book `read` positions whose own sample arrived, and what was refused on the way. Raises DataError when the budget is spent."""
        for fault in faults:
            self._note(fault)
        first = [fault for fault in faults if fault.attempt == 0]
        self.replaced.update(fault.reason for fault in first)
        served = read + len(first)
        self.read += read
        self._recent.append((served, len(first)))
        self._seen, self._bad = self._seen + served, self._bad + len(first)
        while self._seen - self._recent[0][0] >= WINDOW:
            gone = self._recent.popleft()
            self._seen, self._bad = self._seen - gone[0], self._bad - gone[1]
        if self._spent():
            raise DataError(
                f"{self.key}: {self._bad} of the last {self._seen} samples could not be used, "
                f"{100 * self._bad / self._seen:.2f} % where data.max_bad_share={self.max_bad_share:g} permits {100 * self.max_bad_share:g} %.\n{self.table()}\n"
                f"Mend or leave out these shards, or raise data.max_bad_share."
            )

    def give_up(self, position: int, faults: Sequence[Fault]) -> None:
        """Raise DataError: no substitute was found for a position."""
        for fault in faults:
            self._note(fault)
        raise DataError(
            f"{self.key}: no usable sample for position {position}: it and {len(faults) - 1} substitutes were refused.\n{self.table()}\n"
            f"The data is not what the run expects; look at the shards named here."
        )

    @property
    def bad_share(self) -> float:
        """Share of replaced positions over the last 10,000, in [0, 1]."""
        return self._bad / max(1, self._seen)

    def report(self) -> Report:
        """Totals; `read + sum(replaced) == served`."""
        return Report(self.read + sum(self.replaced.values()), self.read, dict(self.replaced), dict(self.refused))

    def line(self) -> str:
        """The totals in one line, for logs."""
        found = self.report()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.replaced.most_common())
        return f"{found.served} samples served: {found.read} read, {found.served - found.read} replaced" + (f" ({reasons})" if reasons else "")

    def table(self) -> str:
        """Refusals by reason, the most frequent first, each with an example."""
        rows = [("reason", "refused", "for example")]
        for reason, count in self.refused.most_common():
            example = self._examples[reason]
            rows.append((reason, str(count), f"{example.key} in {example.shard}"))
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {row[0]:<{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]}" for row in rows)

    def _gather(self, other: Ledger) -> None:
        self.read += other.read
        self._seen, self._bad = self._seen + other._seen, self._bad + other._bad
        self.replaced.update(other.replaced)
        self.refused.update(other.refused)
        self._examples = other._examples | self._examples

    def _note(self, fault: Fault) -> None:
        self.refused[fault.reason] += 1
        self._examples.setdefault(fault.reason, fault)
        count = self.refused[fault.reason]
        if count & (count - 1) == 0:  # 1st, 2nd, 4th, 8th ...: a bad shard cannot flood the log
            detail = f" ({fault.detail})" if fault.detail else ""
            log.warning("%s: sample %s of %s refused: %s%s; %d so far for this reason", self.key, fault.key, fault.shard, fault.reason, detail, count)

    def _spent(self) -> bool:
        if self._bad == 0:
            return False
        if self.max_bad_share == 0:
            return True
        bearable = self.max_bad_share * self._seen
        if self._seen < WINDOW:  # early on, a few bad samples in a row are no proof
            bearable += _CHANCE * math.sqrt(bearable)
        return self._seen >= LEAST and self._bad > bearable


def together(ledgers: Sequence[Ledger]) -> Ledger:
    """The books of several sets as one, to be read; a single one is itself."""
    if len(ledgers) == 1:
        return ledgers[0]
    whole = Ledger(max_bad_share=max(ledger.max_bad_share for ledger in ledgers))
    for ledger in ledgers:
        whole._gather(ledger)
    return whole
