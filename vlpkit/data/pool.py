"""The sets of pairs of a run: their indexes as one, the order over all of them, and what a run that goes on must find unchanged in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from vlpkit.data.index import Index, join
from vlpkit.data.mixture import Mixture, Sequenced, counted
from vlpkit.data.order import Order, seed_beside
from vlpkit.data.pairsets import PairSet
from vlpkit.data.place import real, shown
from vlpkit.data.shardlist import expand
from vlpkit.data.state import told_of
from vlpkit.errors import DataError, VlpError


class Pool:
    """One set, or several that are mixed.

    Args:
        sets: by name.
        mixed: whether `data.mix` names them.
        build: an index of shard paths under a configuration key.
        window: shards of a set whose samples mix.
    """

    def __init__(self, sets: Mapping[str, PairSet], *, mixed: bool, build: Callable[[Sequence[str], str], Index], window: int) -> None:
        self.sets, self.mixed, self._build, self._window = sets, mixed, build, window

    @property
    def key(self) -> str:
        """Configuration key of the whole, named in messages."""
        return "data.mix" if self.mixed else "data.shards"

    @cached_property
    def indexes(self) -> dict[str, Index]:
        """Of every set. Raises DataError for missing shards, damaged ones, none, or one in two sets."""
        paths = {name: expand(one.shards, one.root, key=one.key, root_key=one.place("root")) for name, one in self.sets.items()}
        owners: dict[str, str] = {}
        for name, found in paths.items():
            for path in found:
                if (other := owners.setdefault(real(path), name)) != name:  # two samples that are one would be each other's negatives
                    raise DataError(f"data.mix: {shown(path)} stands in {other} and in {name}. Leave it to one of them; a greater weight reads a set more often")
        return {name: self._build(paths[name], one.key) for name, one in self.sets.items()}

    @cached_property
    def index(self) -> Index:
        """All samples; raises as `indexes` does."""
        return join(list(self.indexes.values()))

    def paths(self) -> list[str]:
        """Shards of all sets, as far as they are here: an evaluation does without."""
        found: list[str] = []
        for one in self.sets.values():
            with suppress(VlpError):
                found += expand(one.shards, one.root)
        return found

    def order(self, seed: int, limit: int | None) -> Sequenced:
        """The pairs in the order of a seed; of a mixture, the first `limit` samples of each set at most."""
        if not self.mixed:
            return Order(self.index.first(limit), seed=seed, window=self._window)
        orders = [
            Order(self.indexes[name].first(_least(one.limit, limit)), seed=seed_beside(seed, name), window=self._window) for name, one in self.sets.items()
        ]
        lengths = [len(index) for index in self.indexes.values()]
        return Mixture(orders, lengths=lengths, counts=self._counts([len(order) for order in orders]), seed=seed)

    def account(self, samples: int) -> list[str]:
        """Of a mixture, a line a set: its share of the samples, and how often an epoch and how often so many samples pass over it."""
        lengths = [int(self.indexes[name].first(one.limit).sum()) for name, one in self.sets.items()] if self.mixed else []
        counts = self._counts(lengths)
        return [
            f"{name}: {100 * count / sum(counts):.1f} % of the samples, {count / length:.2f} passes an epoch, {samples * count / sum(counts) / length:.2f} in the run"
            for name, length, count in zip(self.sets, lengths, counts)
        ]

    def state(self) -> dict[str, Any]:
        """What tells these samples and this mixture from others, as plain types."""
        mix = {name: {"weight": str(one), "limit": one.limit, **told_of(self.indexes[name])} for name, one in self.sets.items()} if self.mixed else {}
        return told_of(self.index) | ({"mix": mix} if mix else {})

    def _counts(self, lengths: Sequence[int]) -> list[int]:
        sets = list(self.sets.values())
        return counted([one.weight for one in sets], lengths, percent=sets[0].percent)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
