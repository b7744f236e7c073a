"""Copies of remote shards in one folder of bounded size, which any number of processes and runs may share.

A copy is written to PLACE.part, which only the process that holds its lock writes, and takes its name when it is whole: PLACE is a hash of
the address, and the name ends in the sha256 of the bytes, so nothing else is ever read for it. Locks are flock's, which die with their
process: what a killed one leaves is neither read nor waited for, and goes away at the next look. A copy that is removed while it is read
stays readable through the open descriptor (POSIX), and its space is free when that is closed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vlpkit.errors import DataError
from vlpkit.sidecar import sync_folder

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system that cannot do what is asked of it
_MARGIN, _MARGIN_SHARE = 1 << 30, 50  # bytes of the disk that are left to checkpoints and to others; of a small disk a fiftieth
_PAUSE = 0.05  # seconds between two looks at what others are doing
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


class NoRoom(Exception):
    """The cache holds nothing that may go."""


class Fetched(NamedTuple):
    """An open copy: its descriptor, which the caller closes, and the sha256 of its bytes."""

    descriptor: int
    sha256: str


class _Held(NamedTuple):
    used: int  # mtime, nanoseconds
    size: int
    path: str


class ShardCache:
    """Copies by place and sha256; the least recently opened ones go when there is no room.

    Args:
        folder: made when absent.
        limit: bytes that all copies together may take.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._pushed = 0

    def find(self, place: str, sha256: str, size: int) -> int | None:
        """A descriptor of a copy that is there and has its size. Raises DataError when it may not be opened."""
        path = self._path(place, sha256)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.utime(path)  # now: what is opened last goes last
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        self._flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size == size:
            return descriptor
        os.close(descriptor)  # cut by other hands
        path.unlink(missing_ok=True)
        return None

    def has(self, place: str, sha256: str) -> bool:
        """Whether a copy is there."""
        return self._path(place, sha256).exists()

    def sweep(self) -> None:
        """Remove what processes that are no more have left unfinished."""
        if self.folder.is_dir():
            self._look()

    def open(
        self, place: str, sha256: str, size: int, fill: Callable[[int], str], *, keep: Collection[str] = (), urgent: bool = True
    ) -> Fetched:
        """A copy, fetched when it is not there; of several processes that ask at once one fetches, and the others wait for it.

        Args:
            place: 32 hexadecimal digits, of `place.digest`.
            sha256: of the copy; "" when that is not known yet, and then it is fetched.
            size: bytes.
            fill: writes them to a descriptor and returns their sha256; what it raises passes through, and nothing is kept.
            keep: places that are needed soon and go last.
            urgent: whether copies that are needed soon or still open may go; if not, and there is no other room, NoRoom is raised.

        Raises:
            DataError: the disk is full, the folder cannot be used, or the shard is larger than the limit.
        """
        while True:
            found = self.find(place, sha256, size) if sha256 else None
            if found is not None:
                return Fetched(found, sha256)
            descriptor = self._lock(place)
            if descriptor is None:
                continue
            if not (sha256 and self.has(place, sha256)):  # or another process has fetched it between the two looks
                return self._fetch(descriptor, place, size, fill, keep, urgent)
            self._drop(descriptor, place)

    def _fetch(self, descriptor: int, place: str, size: int, fill: Callable[[int], str], keep: Collection[str], urgent: bool) -> Fetched:
        try:
            self._reserve(descriptor, size, keep, urgent)
            sha256 = fill(descriptor)
            os.fsync(descriptor)
            with self._alone():  # nobody counts a file under both of its names, or under neither
                os.replace(self._part(place), self._path(place, sha256))
            sync_folder(self.folder)
        except OSError as error:
            self._drop(descriptor, place)
            if error.errno in FULL:
                raise self._full(size) from error
            raise
        except BaseException:
            self._drop(descriptor, place)
            raise
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return Fetched(descriptor, sha256)

    def _lock(self, place: str) -> int | None:
        """The descriptor of PLACE.part, locked and empty; None when another process has finished or removed it meanwhile."""
        path = self._part(place)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from error
        while _same(descriptor, path):
            # asked again and again, as the file that is waited for will be another one: a copy, whose readers hold its lock as long as they like
            if self._flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if not _same(descriptor, path):
                    break
                os.ftruncate(descriptor, 0)
                return descriptor
            time.sleep(_PAUSE)
        os.close(descriptor)
        return None

    def _flock(self, descriptor: int, how: int) -> bool:
        """Whether the lock was to be had. Raises DataError, the file being closed, where there are no locks."""
        try:
            fcntl.flock(descriptor, how)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(descriptor)
            raise self._unusable(error) from error

    def _drop(self, descriptor: int, place: str) -> None:
        """Give up PLACE.part. Unlocked in words: a process that was forked meanwhile has the descriptor, too, and would keep the lock."""
        self._part(place).unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def _reserve(self, descriptor: int, size: int, keep: Collection[str], urgent: bool) -> None:
        """Take the room for a copy before its first byte comes. Others count it from now on."""
        if size > self.limit:
            raise DataError(f"{self.folder}: a shard has {size} bytes, more than the whole cache may hold. Raise data.cache_bytes={self.limit}.")
        while True:
            with self._alone():
                if self._make_room(size, keep, urgent):
                    _allocate(descriptor, size)
                    return
            time.sleep(_PAUSE)  # others are fetching, and what they fetch may go when it is there

    def _make_room(self, size: int, keep: Collection[str], urgent: bool) -> bool:
        """Remove copies until there is room; False when only what others are fetching now is in the way. Raises NoRoom and DataError as `open`."""
        held, used = self._look()
        disk = shutil.disk_usage(self.folder)
        least = max(used + size - self.limit, size - disk.free)
        wished = max(least, size + min(_MARGIN, disk.total // _MARGIN_SHARE) - disk.free)
        freed = 0
        for short, open_too, spare in ((wished, False, keep), (least, False, ()), (least, True, ()))[: 3 if urgent else 1]:
            for one in held:
                if freed < short and os.path.basename(one.path)[:32] not in spare and os.path.exists(one.path) and _remove(one.path, open_too=open_too):
                    freed += one.size
                    self._pushed += open_too
                    if open_too and self._pushed & (self._pushed - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                        log.warning("%s: %d times a shard in use gave way to another, to be fetched again. Raise data.cache_bytes=%d.", self.folder, self._pushed, self.limit)
        if not urgent and freed < least:
            raise NoRoom
        if size > shutil.disk_usage(self.folder).free:
            raise self._full(size)
        return freed >= used + size - self.limit

    def _look(self) -> tuple[list[_Held], int]:
        """Copies, the least recently opened first, and all bytes that are taken; what dead processes left is removed."""
        held: list[_Held] = []
        used = 0
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
                if entry.name.endswith(".tar"):
                    held.append(_Held(stat.st_mtime_ns, stat.st_size, entry.path))
                    used += stat.st_size
                elif entry.name.endswith(".part") and not _remove(entry.path):
                    used += stat.st_size
            except FileNotFoundError:
                continue
        return sorted(held), used

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time counts what is there, makes room, and gives a copy its name."""
        with open(self.folder / "room.lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # as in `_drop`

    def _path(self, place: str, sha256: str) -> Path:
        return self.folder / f"{place}-{sha256[:32]}.tar"

    def _part(self, place: str) -> Path:
        return self.folder / f"{place}.part"

    def _full(self, size: int) -> DataError:
        disk, (_, used) = shutil.disk_usage(self.folder), self._look()
        return DataError(
            f"{self.folder}: the disk is full: {size} bytes are needed for one more shard, {disk.free} are free, and the cache holds {used} of "
            f"data.cache_bytes={self.limit}. Make room, or set paths.cache to a folder on a larger disk; a run that stopped goes on with resume=auto."
        )

    def _unusable(self, error: OSError) -> DataError:
        if error.errno in _UNKNOWN:
            return DataError(
                f"{self.folder}: the file system there has no locks ({error.strerror}), without which processes that share a cache would read what others "
                f"have not finished. Set paths.cache to a folder on a disk of this machine."
            )
        return DataError(f"{self.folder}: shards cannot be cached there ({error.strerror}). Set paths.cache to a folder that this user may write, on a disk with room.")


def parse_bytes(words: str | int, *, key: str) -> int:
    """`64GB`, `500MiB` or a number to bytes. Raises DataError for anything else."""
    text = str(words).strip().upper().removesuffix("B")
    number = text.rstrip("KMGTI ")
    unit = text[len(number) :].strip()
    try:
        found = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        found = 0
    if found < 1:
        raise DataError(f"{key} is {words!r}; it is a size such as 64GB, 500MB or 20GiB, or a number of bytes")
    return found


def _allocate(descriptor: int, size: int) -> None:
    """Let a file have its bytes before they come, so that a disk cannot fill up on the way."""
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        os.ftruncate(descriptor, size)  # this file system cannot promise; the size is counted all the same


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: str, *, open_too: bool = False) -> bool:
    """Remove a file that nobody holds a lock on, or any. False when somebody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not open_too:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(descriptor, Path(path)):
            os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
