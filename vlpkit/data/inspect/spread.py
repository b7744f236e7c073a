"""Streams of numbers and of texts in bounded memory: quantiles and histograms of the ones, the most common of the others.
Small numbers are kept exactly, large ones to 1 part in 2048; frequent texts are found for certain (Misra and Gries 1982)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BITS = 12  # significant binary digits of a kept number
_BINS = 24  # of a histogram that names its values one by one


@dataclass
class Spread:
    """How often each whole number of at least 0 occurred: below 4096 exactly, above it rounded down to 12 binary digits."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    least: int | None = None
    most: int | None = None

    def add(self, value: int) -> None:
        """Count one number."""
        shift = max(0, value.bit_length() - _BITS)
        self.counts[value >> shift << shift] += 1
        self.total += value
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)

    def merge(self, other: Spread) -> None:
        """Count all that another has counted."""
        self.counts.update(other.counts)
        self.total += other.total
        self.least = min((v for v in (self.least, other.least) if v is not None), default=None)
        self.most = max((v for v in (self.most, other.most) if v is not None), default=None)

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float:
        """Arithmetic mean, exact; NaN of nothing."""
        return self.total / len(self) if len(self) else math.nan

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all does not exceed; 0 of nothing."""
        needed, seen = math.ceil(share * len(self)), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= needed:
                return value
        return 0

    def above(self, limit: int) -> int:
        """How many exceed `limit`, which is below 4096."""
        return sum(count for value, count in self.counts.items() if value > limit)

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, to, count): the values themselves when they are few, else bins of half an octave; `to` is not included."""
        if len(self.counts) <= _BINS:
            return [(value, value + 1, self.counts[value]) for value in sorted(self.counts)]
        bins: Counter[tuple[int, int]] = Counter()
        for value, count in self.counts.items():
            low = 1 << max(0, value.bit_length() - 1)
            half = low + low // 2
            bins[(0, 1) if value == 0 else (low, half) if value < half else (half, 2 * low)] += count
        return [(low, high, count) for (low, high), count in sorted(bins.items())]

    def plain(self) -> dict[str, object]:
        """As JSON has it."""
        quantiles = {f"{share:g}": self.quantile(share) for share in QUANTILES}
        mean = self.mean if len(self) else None
        return {"count": len(self), "min": self.least, "mean": mean, "max": self.most, "quantiles": quantiles, "histogram": self.histogram()}


@dataclass
class Common:
    """The texts that occur most, among any number of texts.

    Args:
        limit: texts kept; every text that makes up more than 1 / limit of all is among them.
        missed: how many occurrences of one text may not be counted; 0 as long as all texts were kept.
    """

    limit: int = 20_000
    counts: Counter[str] = field(default_factory=Counter)
    missed: int = 0

    def add(self, text: str, count: int = 1) -> None:
        """Count a text."""
        self.counts[text] += count
        if len(self.counts) >= 2 * self.limit:
            self._shrink()

    def merge(self, other: Common) -> None:
        """Count all that another has counted."""
        for text, count in other.counts.items():
            self.add(text, count)
        self.missed += other.missed

    def top(self, count: int) -> list[tuple[str, int]]:
        """The most common texts that were seen more than once, with the least number of their occurrences."""
        ranked = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(text, times) for text, times in ranked[:count] if times > 1]

    @property
    def repeated(self) -> int:
        """Occurrences, at least, of texts that were seen more than once."""
        return sum(times for times in self.counts.values() if times > 1)

    def _shrink(self) -> None:
        """Takes so much off every count that half of the texts vanish."""
        cut = sorted(self.counts.values(), reverse=True)[self.limit]
        self.missed += cut
        self.counts = Counter({text: times - cut for text, times in self.counts.items() if times > cut})
