"""Bytes of files on web servers, one try at a time, in the words of OSError.

The standard library does it: the client that fsspec has for web servers runs an event loop which a forked reading process cannot share,
knows no `If-Range`, and cannot be told how long a silent server is waited for.
"""

from __future__ import annotations

import base64
import errno
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from vlpkit import __version__

CHUNK = 1 << 20  # bytes asked for at a time
_GONE = (404, 410)
_DENIED = (401, 403, 407)
_SAFE_PATH, _SAFE_QUERY = "/%:=&$!*'()+,;@~", "=&%/:+,;@~*'()!$?"


class Stat(NamedTuple):
    """What a store says of a file: bytes, and what it calls this state of it ("" when nothing)."""

    size: int
    version: str


class Busy(OSError):
    """The server asks for patience: so many seconds, 0 when it does not say."""

    def __init__(self, words: str, wait: float = 0.0) -> None:
        super().__init__(errno.EAGAIN, words)
        self.wait = wait


class Unlike(OSError):
    """The answer is another file than the one asked for: of another length, or a web page."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.EBADMSG, words)


def stat(place: str, timeout: float) -> Stat:
    """Size and version of a file. Raises FileNotFoundError, PermissionError, Unlike, or an OSError that may pass."""
    # a single byte and not HEAD, which addresses signed for reading do not permit
    with _answer(place, timeout=timeout, headers={"Range": "bytes=0-0"}) as found:
        if _is_page(found):
            raise Unlike("a web page is sent in place of the file")
        version = found.headers.get("ETag") or found.headers.get("Last-Modified") or ""
        if found.status != 206:
            return Stat(_length(found.headers.get("Content-Length")), version)
        return Stat(_length((found.headers.get("Content-Range") or "").rpartition("/")[2]), version)


def stream(place: str, start: int, size: int | None, version: str, timeout: float) -> Iterator[tuple[int, bytes]]:
    """As `wire.stream`."""
    headers = {"Range": f"bytes={start}-", **({"If-Range": version} if version else {})} if start else {}
    with _answer(place, timeout=timeout, headers=headers) as found:
        at = start if found.status == 206 else 0
        if size is not None and (length := at + _length(found.headers.get("Content-Length"))) != size:
            page = " of a web page" if _is_page(found) else ""
            raise Unlike(f"{length} bytes{page} are sent in place of {size}")
        while True:
            try:
                chunk = found.read1(CHUNK)
            except http.client.HTTPException as error:
                raise OSError(errno.EIO, f"the answer breaks off ({type(error).__name__})") from None
            if not chunk:
                return
            yield at, chunk
            at += len(chunk)


def _answer(place: str, *, timeout: float, headers: dict[str, str]) -> Any:
    """An open response; errors are told in our words, which hold no address."""
    parts = urlsplit(place)
    user, at, host = parts.netloc.rpartition("@")
    plain = urlunsplit((parts.scheme, host, quote(parts.path, safe=_SAFE_PATH), quote(parts.query, safe=_SAFE_QUERY), ""))
    request = urllib.request.Request(plain, headers={"Accept-Encoding": "identity", "User-Agent": f"vlpkit/{__version__}", **headers})
    if at:  # not sent on to whom the server redirects to
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(unquote(user).encode()).decode())
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and (error.headers.get("Content-Range") or "").endswith("/0"):
            raise Unlike("the file has 0 bytes") from None
        raise _status(error.code, error.headers.get("Retry-After") or "") from None
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else OSError(errno.EIO, str(error.reason)) from None
    except http.client.HTTPException as error:
        raise OSError(errno.EIO, f"no sensible answer ({type(error).__name__})") from None


def _status(code: int, after: str) -> OSError:
    words = f"the server answers {code}" + (f" {http.client.responses[code]}" if code in http.client.responses else "")
    if code in _GONE:
        return FileNotFoundError(errno.ENOENT, words)
    if code in _DENIED:
        return PermissionError(errno.EACCES, words)
    return Busy(words, float(after) if after.isdigit() else 0.0)


def _is_page(found: Any) -> bool:
    return "html" in (found.headers.get("Content-Type") or "")


def _length(words: str | None) -> int:
    if words is None or not words.isdigit():
        raise Unlike("the server does not tell the length of the file")
    return int(words)
