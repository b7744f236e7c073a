"""Files on other machines, whatever speaks to them: what they are, their bytes, and which of them match a pattern.
No try waits longer than it is told to; how often one tries is decided by who asks."""

from __future__ import annotations

import errno
import glob
import random
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import TypeVar
from urllib.parse import quote, urlsplit

from vlpkit.data import pipes, stores, web
from vlpkit.data.place import beside, folder, is_http, is_pipe, name
from vlpkit.data.published import INDEX, names_of
from vlpkit.data.web import Busy, Stat

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds between tries
_SLOWEST = 1024  # bytes a second, below which a server is taken for one that stalls


def stat(place: str, *, timeout: float) -> Stat:
    """Size and version of a file.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        OSError: anything that may pass, TimeoutError and Busy among it.
        MissingExtra, DataError: the package that speaks to this store is absent, or there is none.
    """
    if is_pipe(place):
        return pipes.stat(place, timeout)
    return (web if is_http(place) else stores).stat(place, timeout)


def stream(place: str, start: int, *, size: int | None, version: str, timeout: float) -> Iterator[tuple[int, bytes]]:
    """The file from byte `start` on, as (offset, bytes); offsets begin at 0 again when a server cannot continue.

    Args:
        size: bytes that the whole file has; a server that announces another length is refused. None: whatever comes.
        version: as `stat` told; a file that changed since is sent from its start.
        timeout: seconds without a byte, or with hardly any, after which the try is over.

    Raises:
        As `stat`, and Unlike.
    """
    then, since = time.monotonic(), 0
    parts = pipes.stream(place, timeout) if is_pipe(place) else (web if is_http(place) else stores).stream(place, start, size, version, timeout)
    for at, chunk in parts:
        yield at, chunk
        since += len(chunk)
        if (now := time.monotonic()) - then > timeout:
            if since < _SLOWEST * (now - then):
                raise TimeoutError(errno.ETIMEDOUT, f"only {since} bytes in {now - then:.0f} seconds")
            then, since = now, 0


def whole(place: str, *, timeout: float) -> bytes:
    """All of a small file. Raises as `stat`."""
    return b"".join(chunk for _, chunk in stream(place, 0, size=None, version="", timeout=timeout))


def patiently(ask: Callable[[], T], *, tries: int, sleep: Callable[[float], None] = time.sleep) -> T:
    """An answer, after so many tries at most. Raises the last OSError, or at once one that will not pass."""
    attempt = 1
    while True:
        try:
            return ask()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if attempt >= tries:
                raise
            sleep(pause(attempt, error))
            attempt += 1


def pause(attempt: int, error: OSError) -> float:
    """Seconds before the next try: twice as many each time, by chance up to half of them less, so that many readers do not come back at once."""
    asked = error.wait if isinstance(error, Busy) else 0.0
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
    return max(random.SystemRandom().uniform(longest / 2, longest), min(asked, _LONGEST_PAUSE))


def has_magic(place: str) -> bool:
    """Whether an address is a pattern; the brackets of a host and the query of a web address are none."""
    return glob.has_magic(urlsplit(place).path if is_http(place) else place.partition("://")[2])


def listed(pattern: str, *, timeout: float) -> list[str]:
    """Addresses that match a pattern, in order of name; a web server cannot be asked, but a `shards.index` that it serves can.

    Raises:
        As `stat`; FileNotFoundError where a web server has no such index.
    """
    if not is_http(pattern):
        return stores.listed(pattern, timeout)
    if glob.has_magic(urlsplit(folder(pattern)).path):
        raise FileNotFoundError(errno.ENOENT, "the folders of a web server cannot be listed")
    try:
        names = _published(beside(pattern, INDEX), timeout)
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from None
    return sorted(beside(pattern, quote(one)) for one in names if fnmatchcase(one, name(pattern)))


def _published(place: str, timeout: float) -> list[str]:
    """The names at the head of a `shards.index`, whose tables are left on the server."""
    start = b""
    for _, chunk in stream(place, 0, size=None, version="", timeout=timeout):
        start += chunk
        if (names := names_of(start)) is not None:
            return names
    raise ValueError("cut short")
