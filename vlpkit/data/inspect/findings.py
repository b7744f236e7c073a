"""What was found wrong: counts by reason, each with the first example, of one shard or of many.
The words are those of the index (truncated, duplicate_key, ...) and of the decoder (missing_caption, ...), and a few of this package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vlpkit.data.decode import Refused
from vlpkit.data.tarscan import Flaw

_WIDEST = 160  # characters of an example


@dataclass
class Findings:
    """Counts by reason, and the first example of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, reason: str, example: str, *, count: int = 1) -> None:
        """Book `count` findings of one reason."""
        self.counts[reason] += count
        self.examples.setdefault(reason, printable(example))

    def refuse(self, key: str, refused: Refused) -> None:
        """Book a sample that training would not take."""
        self.add(refused.reason, f"{key}: {refused.detail}" if refused.detail else key)

    def flaws(self, flaws: Iterable[Flaw]) -> None:
        """Book what makes a shard a damaged one."""
        for flaw in flaws:
            self.add(flaw.reason, flaw.detail)

    def merge(self, other: Findings, *, place: str = "") -> None:
        """Add the findings of another shard or source, `place` in front of its examples."""
        for reason, count in other.counts.items():
            self.add(reason, place + other.examples[reason], count=count)

    def plain(self) -> dict[str, dict[str, object]]:
        """By reason, the most frequent first: count and example."""
        return {reason: {"count": count, "example": self.examples[reason]} for reason, count in self.counts.most_common()}


def printable(text: str) -> str:
    """One line that no terminal misreads: names and captions come from strangers."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..."
