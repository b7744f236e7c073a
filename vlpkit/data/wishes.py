"""What `data.sources` asks for beside the pairs, read and checked without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vlpkit.data.share import Share, divide
from vlpkit.errors import ConfigError, did_you_mean

Holds = Literal["pairs", "texts", "images"]
PAIRS = "pairs"  # the source that every data set has; the others stand beside it
_KEYS = ("holds", "share", "shards", "limit")


@dataclass(frozen=True)
class Wish:
    """What `data.sources.NAME` asks for.

    Args:
        name: of the source; objectives name it, and batches carry it.
        holds: what is read of a sample: both sides, its captions alone, or its image alone, which then needs no caption.
        share: samples of it in each step, as a share of data.batch.
        shards: as data.shards; None: the shards of the pairs, in an order of their own.
        limit: the first so many samples only; None: all.
    """

    name: str
    holds: Holds
    share: float
    shards: str | Sequence[str] | None = None
    limit: int | None = None

    @property
    def key(self) -> str:
        """Where it stands in the configuration."""
        return f"data.sources.{self.name}"

    def batch(self, pairs: int) -> int:
        """Samples of one step over all ranks, beside so many pairs. Raises ConfigError when that is no whole number."""
        found = round(pairs * self.share)
        if found < 1 or abs(found - pairs * self.share) > 1e-6 * pairs:
            raise ConfigError(f"{self.key}.share is {self.share}; of data.batch={pairs} that is {pairs * self.share:g} samples, and it must be a whole number")
        return found

    def divided(self, pairs: Share) -> Share:
        """What a rank takes of each step: as many micro-batches as of the pairs. Raises ConfigError when it does not divide."""
        batch, parts = self.batch(pairs.batch), pairs.world * pairs.accumulation
        if batch % parts:
            raise ConfigError(
                f"{self.key}.share is {self.share}, {batch} samples of each step, which {pairs.world} devices cannot take in {pairs.accumulation} micro-batches "
                f"each: it must come to a multiple of {parts}"
            )
        return divide(batch, world=pairs.world, micro=batch // parts, rank=pairs.rank)


def read_wishes(sources: Mapping[str, Mapping[str, Any] | None] | None) -> dict[str, Wish]:
    """The setting `data.sources`, checked. Raises ConfigError with the place."""
    wishes: dict[str, Wish] = {}
    for name, node in (sources or {}).items():
        if node is None:
            continue
        key = f"data.sources.{name}"
        if name == PAIRS:
            raise ConfigError(f"{key}: the pairs are data.shards themselves; give the source that stands beside them another name")
        for word in node:
            if word not in _KEYS:
                raise ConfigError(f"{key}: no key {word!r} (there are: {', '.join(_KEYS)}). {did_you_mean(word, _KEYS)}".rstrip())
        holds, share, limit = node.get("holds", PAIRS), node.get("share", 1.0), node.get("limit")
        if holds not in get_args(Holds):
            raise ConfigError(f"{key}.holds is {holds!r}; it can be {', '.join(get_args(Holds))}. {did_you_mean(str(holds), get_args(Holds))}".rstrip())
        if not isinstance(share, int | float) or not share > 0:
            raise ConfigError(f"{key}.share is {share!r}; it is a share of data.batch, above 0")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"{key}.limit is {limit!r}; it must be at least 1, or null for all")
        wishes[name] = Wish(name, holds, float(share), node.get("shards"), limit)
    return wishes
