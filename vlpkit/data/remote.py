"""Remote shards as local files: fetched whole into the cache when they are first read, held against length and sha256, and tried again
with growing pauses while a server has trouble. A shard that does not come is refused for a while, and its samples are replaced."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vlpkit.data import wire
from vlpkit.data.decode import Refused
from vlpkit.data.place import digest, is_http, is_remote, shown
from vlpkit.data.reader import open_local
from vlpkit.data.shardcache import FULL, Fetched, ShardCache, parse_bytes
from vlpkit.data.table import Shard, Table, index_open
from vlpkit.data.web import CHUNK, Stat, Unlike
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

_REST = 300.0  # seconds for which a shard that did not come is not asked for again
T = TypeVar("T")


class Altered(OSError):
    """All bytes came, and they are not those of the shard."""


class Remote:
    """What opens shards, wherever they are.

    Args:
        cache: folder of caches; copies lie in its `shards`.
        limit: bytes that all copies together may take, as a number or as `64GB`.
        timeout: seconds for which a server may be silent.
        tries: how often in a row a server may fail without sending anything new.
        window: shards that are read at a time.
        sleep: waits between tries; tests hand in another clock.
    """

    def __init__(
        self, cache: Path, *, limit: str | int = "64GB", timeout: float = 60.0, tries: int = 6, window: int = 1, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.cache = ShardCache(cache / "shards", limit=parse_bytes(limit, key="data.cache_bytes"))
        self.timeout, self.tries, self.window = timeout, tries, window
        self.keep: frozenset[str] = frozenset()  # places of shards that are needed soon
        self._sleep = sleep
        self._resting: dict[str, tuple[float, str, str]] = {}

    def open(self, shard: Shard) -> int:
        """A descriptor, for a `LocalStore`. Raises Refused where the shard does not come, DataError where it cannot be kept."""
        if not is_remote(shard.path):
            return open_local(shard)
        until, why, detail = self._resting.get(shard.path, (0.0, "", ""))
        if time.monotonic() < until:
            raise Refused(why, detail)
        try:
            return self.fetch(shard.path, Stat(shard.size, shard.version), shard.sha256).descriptor
        except OSError as error:
            why, detail = reason(error), f"{shard.shown}: {said(error)}"
            self._resting[shard.path] = (time.monotonic() + _REST, why, detail)
            raise Refused(why, detail) from None

    def ahead(self, shard: Shard) -> None:
        """Have a remote shard fetched before it is read. Raises NoRoom when the cache is full of what is needed sooner, OSError and DataError."""
        if not self.cache.has(digest(shard.path), shard.sha256):
            os.close(self.fetch(shard.path, Stat(shard.size, shard.version), shard.sha256, urgent=False).descriptor)

    def fetch(self, place: str, stat: Stat, sha256: str, *, urgent: bool = True) -> Fetched:
        """The open copy of an address; with `sha256` "", whatever comes. Raises OSError, NoRoom and DataError."""

        def fill(descriptor: int) -> str:
            return self._fill(_Download(place, stat, sha256, descriptor, self.timeout))

        return self.cache.open(digest(place), sha256, stat.size, fill, keep=self.keep, urgent=urgent)

    def index(self, place: str, stat: Stat, sha256: str) -> tuple[Shard, Table]:
        """What is in a shard, which is fetched for it. Raises OSError and DataError."""
        fetched = self.fetch(place, stat, sha256)
        try:
            shard, table = index_open(fetched.descriptor, place)
        finally:
            os.close(fetched.descriptor)
        return replace(shard, mtime_ns=0, sha256=fetched.sha256, version=stat.version), table

    def patiently(self, ask: Callable[[], T]) -> T:
        """As `wire.patiently`, as often as this one tries."""
        return wire.patiently(ask, tries=self.tries, sleep=self._sleep)

    def check_limit(self, sizes: Sequence[int], *, key: str) -> None:
        """Refuse a cache that cannot hold the shards read at a time and one more: DataError."""
        largest = sorted(sizes, reverse=True)[: self.window + 1]
        if sum(largest) > self.cache.limit:
            raise DataError(
                f"data.cache_bytes={self.cache.limit} is too small for {key}: data.window={self.window} shards are read at a time while the next one comes, and the "
                f"{len(largest)} largest have {sum(largest)} bytes. Set data.cache_bytes to that or more (twice as much lets a whole window come ahead), or lower data.window."
            )

    def _fill(self, download: _Download) -> str:
        failures = 0
        while True:
            furthest = download.furthest
            try:
                return download.run()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                if error.errno in FULL:
                    raise
                failures = 1 if download.furthest >= furthest + CHUNK else failures + 1
                if failures >= self.tries:
                    raise
                log.info("%s: %s; trying again", shown(download.place), said(error))
                self._sleep(wire.pause(failures, error))


class _Download:
    """One address on its way into a file: a try goes on where the one before broke off."""

    def __init__(self, place: str, stat: Stat, sha256: str, descriptor: int, timeout: float) -> None:
        self.place, self.stat, self.sha256, self.descriptor, self.timeout = place, stat, sha256, descriptor, timeout
        self.furthest = 0  # bytes that one try or several in a row brought
        self._at, self._hash = 0, hashlib.sha256()
        # two halves make a whole only where a hash or the server itself vouches that they are of one file
        self._joins = sha256 != "" or (is_http(place) and stat.version != "")

    def run(self) -> str:
        """One try; the sha256 of the bytes when all are there. Raises OSError."""
        if not self._joins:
            self._again()
        for at, chunk in wire.stream(self.place, self._at, size=self.stat.size, version=self.stat.version, timeout=self.timeout):
            if at != self._at:
                self._again()
            if at + len(chunk) > self.stat.size:
                raise Unlike(f"more than its {self.stat.size} bytes are sent")
            _write(self.descriptor, chunk, at)
            self._hash.update(chunk)
            self._at += len(chunk)
            self.furthest = max(self.furthest, self._at)
        if self._at < self.stat.size:
            raise OSError(errno.EIO, f"{self._at} of {self.stat.size} bytes came")
        found = self._hash.hexdigest()
        if self.sha256 and found != self.sha256:
            self._again()
            raise Altered(errno.EBADMSG, f"its sha256 is {found[:12]}... instead of {self.sha256[:12]}...")
        return found

    def _again(self) -> None:
        self._at, self._hash = 0, hashlib.sha256()


def said(error: OSError) -> str:
    """What went wrong, in words without an address."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no answer in time"
    return error.strerror or type(error).__name__


def _write(descriptor: int, chunk: bytes, at: int) -> None:
    rest = memoryview(chunk)
    while rest:
        done = os.pwrite(descriptor, rest, at)
        rest, at = rest[done:], at + done


def reason(error: OSError) -> str:
    """Under which word the ledger counts it."""
    if isinstance(error, FileNotFoundError):
        return "shard_missing"
    if isinstance(error, Altered):
        return "shard_altered"
    return "shard_changed" if isinstance(error, Unlike) else "shard_unreachable"
