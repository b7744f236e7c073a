"""A bounded store of the last things used: index tables, order windows and open files all outgrow memory or limits without one.
Each process fills its own; nothing in it is ever state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps the `limit` most recently used values that `make` produced; `drop` is told of what leaves."""

    def __init__(self, make: Callable[[K], V], *, limit: int, drop: Callable[[V], None] | None = None) -> None:
        self._make, self._limit, self._drop = make, limit, drop
        self._held: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V:
        """The value for `key`, made when it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = self._held[key] = self._make(key)
        if len(self._held) > self._limit:
            self._forget(next(iter(self._held)))
        return value

    def keys(self) -> set[K]:
        """What is held."""
        return set(self._held)

    def discard(self, key: K) -> None:
        """Forget one value, if held."""
        if key in self._held:
            self._forget(key)

    def clear(self) -> None:
        """Forget everything."""
        while self._held:
            self._forget(next(iter(self._held)))

    def __len__(self) -> int:
        return len(self._held)

    def __getstate__(self) -> dict[str, object]:
        # what is held belongs to this process: open files mean nothing in another, tables are read again
        return {**self.__dict__, "_held": OrderedDict()}

    def _forget(self, key: K) -> None:
        value = self._held.pop(key)
        if self._drop is not None:
            self._drop(value)
