"""Where a shard is: a path of this machine or the address of another, taken apart, joined, and shown without what is secret in it.
Standard library only, as the cheap checks ask first."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from vlpkit.identity import HIDDEN, signs

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_PIPE = "pipe:"
_LAST_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$", re.DOTALL)
_MOST = 3  # places named in a message


def scheme(place: str) -> str:
    """`https` of an address, in small letters, `pipe` of a command; "" for a path of this machine."""
    if is_pipe(place):
        return "pipe"
    found = _SCHEME.match(place)
    return "" if found is None else found[1].lower()


def is_remote(place: str) -> bool:
    """Whether it is an address and no path of this machine."""
    return scheme(place) != ""


def is_pipe(place: str) -> bool:
    """Whether it is a shell command whose output is the file."""
    return place.startswith(_PIPE)


def command(place: str) -> str:
    """What the shell is asked to run."""
    return place.removeprefix(_PIPE).strip()


def is_http(place: str) -> bool:
    """Whether a web server is asked; only there `?` begins a query."""
    return scheme(place) in ("http", "https")


def shown(place: str) -> str:
    """As messages and logs may say it: no user, no password, nothing of a query."""
    if is_pipe(place):
        return f"{_PIPE}{command(place).partition(' ')[0]} ... {name(place)}"
    if not is_remote(place):
        return place
    parts = _parts(place)
    return _joined(parts, HIDDEN if parts.query else "")


def identity(place: str) -> str:
    """What names the file for good: an address without user and without what signs it for a while. Not to be shown."""
    if is_pipe(place) or not is_remote(place):
        return place
    parts = _parts(place)
    return _joined(parts, _lasting(parts))


def digest(place: str) -> str:
    """32 hexadecimal digits that stand for the place in names of cache files."""
    return hashlib.sha256(identity(place).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def real(place: str) -> str:
    """The same words for the same file: links resolved, signatures left out."""
    return identity(place) if is_remote(place) else os.path.realpath(place)


def name(place: str) -> str:
    """Base name, the same for a file and for an address that serves it, or a command that names either."""
    if is_pipe(place):
        words = [word.strip("'\"<>|&;()") for word in command(place).split()]
        return next((name(word) for word in reversed(words) if ".tar" in word), words[-1] if words else "")
    if not is_http(place):
        return os.path.basename(place)
    parts = _parts(place)
    lasting = _lasting(parts)
    return unquote(os.path.basename(parts.path)) + (f"?{lasting}" if lasting else "")


def folder(place: str) -> str:
    """What the base name stands in; of an address without its query."""
    if is_pipe(place):
        return _PIPE
    if not is_http(place):
        return os.path.dirname(place)
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc}{os.path.dirname(parts.path)}"


def beside(place: str, name: str) -> str:
    """Another file of the same folder, under the same signature."""
    query = urlsplit(place).query if is_http(place) else ""
    return f"{folder(place).rstrip('/')}/{name}" + (f"?{query}" if query else "")


def folded(places: Sequence[str]) -> str:
    """Places as messages name them: the first few, runs of numbers as brace ranges, `x-{003..005}.tar`."""
    runs: list[tuple[str, str, str, str]] = []  # what stands before the last number, first and last number of the run, what follows
    for text in map(shown, places):
        found = _LAST_NUMBER.match(text)
        before, number, after = (text, "", "") if found is None else found.groups()
        if runs and number and (runs[-1][0], runs[-1][3]) == (before, after) and int(number) == int(runs[-1][2]) + 1 and _alike(runs[-1][2], number):
            runs[-1] = (before, runs[-1][1], number, after)
        else:
            runs.append((before, number, number, after))
    words = [before + (first if first == last else f"{{{first}..{last}}}") + after for before, first, last, after in runs]
    return ", ".join(words[:_MOST]) + (f" and {len(words) - _MOST} more" if len(words) > _MOST else "")


def _alike(one: str, other: str) -> bool:
    """Whether two numbers are written by one brace range."""
    return len(one) == len(other) or not one.startswith("0")


def _parts(place: str) -> SplitResult:
    """Of addresses that are no web addresses, everything behind the host is the path."""
    if is_http(place):
        return urlsplit(place)
    found, _, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    return SplitResult(found, host, slash + path, "", "")


def _joined(parts: SplitResult, query: str) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (f"?{query}" if query else "")


def _lasting(parts: SplitResult) -> str:
    return urlencode([(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not signs(key)])
