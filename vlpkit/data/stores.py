"""Bytes of files in every store that fsspec reads (s3, gs, ...), one try at a time, in the words of OSError.
Each question is asked in a thread that can be left, since not every store can be told how long to wait."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, TypeVar

from vlpkit.data.place import scheme, shown
from vlpkit.data.web import CHUNK, Stat
from vlpkit.errors import DataError, MissingExtra, did_you_mean

_BLOCK = 4 * CHUNK  # of one request to the store
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
_VERSIONS = ("ETag", "etag", "generation", "md5", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "modified", "created")
T = TypeVar("T")


def check(place: str, *, where: str) -> None:
    """Whether anything here reads such addresses, without importing it. Raises MissingExtra or DataError, which begin with `where`."""
    import fsspec

    kind = scheme(place)
    if kind in _EXTRAS and find_spec(_EXTRAS[kind][0]) is None:
        raise MissingExtra(f"{where}: {kind}://", *_EXTRAS[kind])
    known = {*fsspec.available_protocols(), *fsspec.registry}
    if kind not in known:
        guess = did_you_mean(kind, sorted(known))
        raise DataError(f"{where}: nothing is known that reads {kind}:// addresses. {guess}".rstrip())


def stat(place: str, timeout: float) -> Stat:
    """Size and version of a file. Raises FileNotFoundError, PermissionError, an OSError that may pass, and what `_store` raises."""
    return _asked(lambda: _stat(place), timeout, place)


def listed(pattern: str, timeout: float) -> list[str]:
    """Addresses of the files that match, in order of name. Raises as `stat`."""
    return _asked(lambda: _listed(pattern), timeout, pattern)


def stream(place: str, start: int, size: int | None, version: str, timeout: float) -> Iterator[tuple[int, bytes]]:
    """As `wire.stream`."""
    chunks: queue.Queue[tuple[bytes, BaseException | None]] = queue.Queue(maxsize=2)
    left = threading.Event()

    def read() -> None:
        try:
            store, path = _store(place)
            with store.open(path, "rb", block_size=_BLOCK) as file:
                file.seek(start)
                while not left.is_set() and (chunk := file.read(CHUNK)):
                    chunks.put((chunk, None))
            if not left.is_set():
                chunks.put((b"", None))
        except BaseException as error:  # whatever it is, it is raised where the bytes are awaited
            chunks.put((b"", error))

    threading.Thread(target=read, daemon=True).start()
    at = start
    try:
        while chunk := _given(chunks, timeout, place):
            yield at, chunk
            at += len(chunk)
    finally:
        left.set()
        with suppress(queue.Empty):
            while True:
                chunks.get_nowait()


def _store(place: str) -> tuple[Any, str]:
    """The file system behind an address, and the path there. Raises MissingExtra, or DataError where nobody knows one."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(place)  # fsspec keeps one of each, and makes new ones in a forked process
    except (ImportError, ValueError) as error:
        check(place, where=shown(place))
        raise DataError(f"{shown(place)}: {scheme(place)}:// addresses cannot be read here: {error}") from None


def _stat(place: str) -> Stat:
    store, path = _store(place)
    found = store.info(path)
    if found.get("type") == "directory" or found.get("size") is None:
        raise FileNotFoundError(errno.ENOENT, "not a file")
    return Stat(int(found["size"]), str(next((found[word] for word in _VERSIONS if found.get(word)), "")))


def _listed(pattern: str) -> list[str]:
    store, path = _store(pattern)
    return sorted(store.unstrip_protocol(one) for one, about in store.glob(path, detail=True).items() if about["type"] == "file")


def _asked(ask: Callable[[], T], timeout: float, place: str) -> T:
    """One question, in a thread that can be left."""
    answer: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answer.put((ask(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    found: T = _given(answer, timeout, place)
    return found


def _given(answer: queue.Queue[tuple[Any, BaseException | None]], timeout: float, place: str) -> Any:
    try:
        found, trouble = answer.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing in {timeout:g} seconds") from None
    if trouble is not None:
        raise _plain(trouble, place)
    return found


def _plain(error: BaseException, place: str) -> BaseException:
    """Errors of stores come in all classes; they become an OSError without the address."""
    if isinstance(error, (MissingExtra, DataError)):
        return error
    words = str(error).replace(place, shown(place)) or type(error).__name__
    kind = next((kind for kind in (FileNotFoundError, PermissionError, TimeoutError) if isinstance(error, kind)), OSError)
    return kind(error.errno if isinstance(error, OSError) and error.errno else errno.EIO, words)
