"""The bytes of one sample, by its number: the only file that reads payloads.
Where a shard is does not matter here: a `LocalStore` is told how to open one, and `remote` opens the local copies of remote ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from vlpkit.data.decode import LIMITS, Refused
from vlpkit.data.recent import Recent
from vlpkit.data.table import Shard

if TYPE_CHECKING:  # which reads remote shards through what opens them here
    from vlpkit.data.index import Index

IMAGES = ("jpg", "jpeg", "png", "webp")  # extensions of an image, the preferred first
TEXTS = ("txt", "json")
_OPEN_FILES = 32  # per process; a window of shards and some substitutes
_TRIES = 4
_PAUSE = 0.05  # seconds before the second try, doubled each time


class Store(Protocol):
    """Bytes of a shard at an offset. Raises OSError when worth another try, Refused when not."""

    def read(self, shard: Shard, offset: int, size: int) -> bytes: ...

    def forget(self, shard: Shard) -> None: ...


def open_local(shard: Shard) -> int:
    """A descriptor of a shard on this machine. Raises Refused("shard_missing") or Refused("shard_changed"), and OSError."""
    try:
        descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused("shard_missing", shard.path) from None
    stat = os.fstat(descriptor)
    if (stat.st_size, stat.st_mtime_ns) != (shard.size, shard.mtime_ns):
        os.close(descriptor)
        raise Refused("shard_changed", f"{shard.path}: {stat.st_size} bytes now, {shard.size} when indexed, or written since")
    return descriptor


class LocalStore:
    """Files of this machine by `pread`, on a bounded number of descriptors opened by the process that uses them.

    Args:
        open_shard: gives a descriptor, which belongs to the store.
    """

    def __init__(self, open_shard: Callable[[Shard], int] = open_local) -> None:
        self._process = os.getpid()
        self._files: Recent[Shard, int] = Recent(open_shard, limit=_OPEN_FILES, drop=os.close)

    def __del__(self) -> None:
        self._files.clear()

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer when the file ends before."""
        self._own()
        return os.pread(self._files.get(shard), size, offset)

    def forget(self, shard: Shard) -> None:
        """Close the shard, so that another read opens it anew."""
        self._own()
        self._files.discard(shard)

    def only(self, shards: Collection[Shard]) -> None:
        """Close all others: the disk gets back the room of a removed copy only then."""
        self._own()
        for shard in self._files.keys() - set(shards):
            self._files.discard(shard)

    def _own(self) -> None:
        """After a fork: close this process's copies of the parent's descriptors and open our own, as files may have been replaced."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._files.clear()


class Reader:
    """Members of samples, length checked and read again after passing trouble.

    Args:
        index: numbers the samples.
        store: where shards are.
        sleep: waits between tries; tests hand in another clock.
    """

    def __init__(self, index: Index, *, store: Store | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.index = index
        self._store = store if store is not None else LocalStore()
        self._sleep = sleep

    def read(self, number: int, *, only: Collection[str] | None = None) -> dict[str, bytes]:
        """Extension to bytes for one sample.

        Args:
            number: global sample number.
            only: the extensions wanted; None: all.

        Raises:
            Refused: shard_missing, shard_changed, short_read, read_error, or too_many_bytes for a member larger than any reader takes.
        """
        entry = self.index.entry(number)
        if entry is None:
            raise Refused("shard_changed", "not the file that was indexed")
        wanted = (ext for ext in entry.members if only is None or ext in only)
        return {ext: self._member(entry.shard, *entry.members[ext]) for ext in wanted}

    def pair(self, number: int) -> tuple[bytes, bytes | None, bytes | None]:
        """Image, txt and json of one sample. Raises Refused as `read` does, or with missing_image."""
        found = self.read(number, only=(*IMAGES, *TEXTS))
        return image_of(found), found.get("txt"), found.get("json")

    def _member(self, shard: Shard, offset: int, size: int) -> bytes:
        if size > LIMITS.bytes:
            raise Refused("too_many_bytes", f"a member of {size} bytes, at most {LIMITS.bytes}")
        problem: Refused | None = None
        for attempt in range(_TRIES):
            if attempt:
                self._store.forget(shard)
                self._sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                payload = self._store.read(shard, offset, size)
            except OSError as error:
                problem = Refused("read_error", f"{shard.shown}: {error.strerror or error}")
                continue
            if len(payload) == size:
                return payload
            problem = Refused("short_read", f"{shard.shown}: {len(payload)} of {size} bytes at byte {offset}")
        raise problem or Refused("read_error")


def image_of(found: Mapping[str, bytes]) -> bytes:
    """The image among the members of a sample. Raises Refused("missing_image")."""
    image = next((found[ext] for ext in IMAGES if ext in found), None)
    if image is None:
        raise Refused("missing_image", f"none of {', '.join(IMAGES)}")
    return image
