"""Remote shards that the coming samples need, fetched while the present ones are read: one window ahead, in the order of need.
Every reading process asks for all of them, and the locks of the cache see to it that each is fetched once."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.index import Index
from vlpkit.data.place import digest, is_remote
from vlpkit.data.reader import LocalStore
from vlpkit.data.remote import Remote
from vlpkit.data.shardcache import NoRoom
from vlpkit.data.table import Shard
from vlpkit.errors import VlpError

log = logging.getLogger(__name__)

_LOOKS = 8  # within a window


class Positions(Protocol):
    """Which sample stands at which position."""

    def samples(self, start: int, stop: int) -> NDArray[np.int64]: ...


class Ahead:
    """Told where reading stands, it has the shards of the coming samples fetched by a thread of this process; without remote shards it rests.

    Args:
        remote: fetches.
        store: reads; descriptors of shards that are done with are closed.
        index: of the samples.
        order: of the samples.
        span: samples looked ahead, at least 1; those of one window.
    """

    def __init__(self, remote: Remote, store: LocalStore, index: Index, order: Positions, *, span: int) -> None:
        self.remote, self.store, self.index, self.order, self.span = remote, store, index, order, span
        self._away = any(is_remote(shard.path) for shard in index.shards)
        self._process, self._looked = os.getpid(), -1
        self._fetching: _Fetching | None = None

    def __call__(self, position: int) -> None:
        """Reading goes on at this position."""
        if not self._away:
            return
        if self._process != os.getpid():  # the thread stayed behind in the process that was forked
            self._process, self._looked, self._fetching = os.getpid(), -1, None
        if self._looked <= position < self._looked + max(1, self.span // _LOOKS) and self._looked >= 0:
            return
        self._looked = position
        shards = [self.index.shards[at] for at in self.index.shards_of(self.order.samples(position, position + self.span)[:, 1])]
        self.remote.keep = frozenset(digest(shard.path) for shard in shards)
        self.store.only(shards)
        if self._fetching is None:
            self._fetching = _Fetching(self.remote)
        self._fetching.want([shard for shard in shards if is_remote(shard.path)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetching": None, "_looked": -1}


class _Fetching:
    """A thread that fetches what is wanted last, in its order."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._wanted: list[Shard] = []
        self._news = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def want(self, shards: Collection[Shard]) -> None:
        """Forget what was wanted before, and fetch these."""
        with self._news:
            self._wanted = list(shards)
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._wanted:
                    self._news.wait()
                shard = self._wanted.pop(0)
            try:
                self._remote.ahead(shard)
            except NoRoom:
                with self._news:
                    self._wanted.clear()  # until reading has gone on
            except (OSError, VlpError) as error:  # whoever needs it will meet the same, and say so
                log.debug("%s: not fetched ahead: %s", shard.shown, error)
