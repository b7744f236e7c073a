"""One pass over a tar's headers: which members lie where, and every way in which the file is not a whole tar.
Reads ustar, GNU long names and pax headers; the payload of a regular member is never touched."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 512
NO_END = "no end marker: whole as far as the headers tell, or cut exactly between two members"  # the note of a tar that just stops
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0", b"7")
_GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_SPARSE = b"L", b"K", b"S"
_PAX, _PAX_GLOBAL, _PAX_SOLARIS = b"x", b"g", b"X"
_META_LIMIT = 1 << 20  # bytes of a name or pax payload; longer is no shard of samples
_MEMBER_LIMIT = 1 << 32  # bytes; sizes are kept in 32 bits
_ZEROS_LIMIT = 1 << 20  # bytes of zeros behind the end marker that padding explains; more is a preallocated, unfinished file


class Member(NamedTuple):
    """A regular file inside the tar."""

    name: str
    offset: int  # of the payload, bytes; always a multiple of 512
    size: int  # bytes


class Flaw(NamedTuple):
    """Why a shard is not whole."""

    reason: str  # short_snake_case, counted
    detail: str  # for people


@dataclass
class Scan:
    """What one pass found.

    Args:
        members: whole regular members in file order.
        flaws: what makes the shard a damaged one.
        notes: oddities that lose nothing.
        closed: an end marker was seen.
    """

    members: list[Member] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    closed: bool = False


def scan(path: str) -> Scan:
    """Walk the headers of the tar at `path`. Raises OSError when it cannot be read; everything else is a flaw."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return scan_open(descriptor)
    finally:
        os.close(descriptor)


def scan_open(descriptor: int) -> Scan:
    """Likewise for an open tar."""
    walk = _Walk(descriptor)
    walk.run()
    return walk.found


class _BadHeader(Exception):
    """Raised inside the walk only."""


class _Walk:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.end = os.fstat(descriptor).st_size
        self.at = 0
        self.long_name: str | None = None
        self.pax: dict[str, str] = {}
        self.everywhere: dict[str, str] = {}
        self.found = Scan()

    def run(self) -> None:
        if self.end == 0:
            self.flaw("empty_file", "0 bytes")
            return
        while self.step():
            pass
        if not self.found.members and not self.found.flaws:
            self.flaw("empty_tar", "no regular member" if self.found.closed else "no member and no end marker")

    def step(self) -> bool:
        """One header; False at the end of the walk."""
        header = os.pread(self.descriptor, BLOCK, self.at) if self.at < self.end else b""
        if len(header) < BLOCK:
            return self.open_end(header)
        if not header.strip(b"\0"):
            self.found.closed = True
            self.check_rest()
            return False
        try:
            self.member(header)
        except _BadHeader as bad:
            if self.at == 0:
                self.flaw(*_what_is_it(header))
            else:
                self.flaw("bad_header", f"{bad} at byte {self.at}; {len(self.found.members)} members before it are whole")
            return False
        return not self.found.flaws or self.found.flaws[-1].reason != "truncated"

    def open_end(self, rest: bytes) -> bool:
        if self.at == 0:
            self.flaw(*_what_is_it(rest))
        elif rest.strip(b"\0"):
            self.flaw("truncated", f"ends inside the member header at byte {self.at}")
        elif self.long_name is not None or self.pax:
            self.flaw("truncated", f"ends at byte {self.end} after a name header without its member")
        else:
            self.found.notes.append(NO_END)
        return False

    def member(self, header: bytes) -> None:
        if _number(header[_CHECKSUM], "checksum") != _byte_sum(header) - _byte_sum(header[_CHECKSUM]) + 8 * 32:
            raise _BadHeader("header checksum does not match")
        kind = header[156:157]
        pax = {**self.everywhere, **self.pax}
        size = _number(header[124:136], "size")
        if kind not in (_PAX, _PAX_GLOBAL, _PAX_SOLARIS, _GNU_LONG_NAME, _GNU_LONG_LINK) and "size" in pax:
            size = _decimal(pax["size"])
        start, self.at = self.at, self.at + BLOCK
        offset, following = self.at, self.at + (size + BLOCK - 1) // BLOCK * BLOCK
        if offset + size > self.end:
            name = _name(header, self.long_name, pax)
            self.flaw("truncated", f"member {name!r} needs {size} bytes from byte {offset}, the file has {self.end - offset}")
            return
        if kind in (_PAX, _PAX_GLOBAL, _PAX_SOLARIS, _GNU_LONG_NAME, _GNU_LONG_LINK):
            self.at = start  # so that a fault names this header
            self.meta(kind, os.pread(self.descriptor, min(size, _META_LIMIT + 1), offset))
        else:
            name = _name(header, self.long_name, pax)
            self.payload(kind, name, offset, size, sparse=any(word.startswith("GNU.sparse") for word in pax))
            self.long_name, self.pax = None, {}
        self.at = min(following, self.end)

    def meta(self, kind: bytes, text: bytes) -> None:
        if len(text) > _META_LIMIT:
            raise _BadHeader(f"name header of more than {_META_LIMIT} bytes")
        if kind == _GNU_LONG_NAME:
            self.long_name = _text(text)
        elif kind == _PAX_GLOBAL:
            self.everywhere.update(_records(text))
        elif kind in (_PAX, _PAX_SOLARIS):
            self.pax = _records(text)

    def payload(self, kind: bytes, name: str, offset: int, size: int, *, sparse: bool) -> None:
        if kind == _GNU_SPARSE or sparse or size >= _MEMBER_LIMIT:
            self.flaw("unsupported_member", f"{name!r} is sparse or larger than 4 GiB")
        elif kind in _REGULAR and not (kind != b"7" and name.endswith("/")):  # old tars mark a folder by its slash alone
            self.found.members.append(Member(name, offset, size))
        elif kind in (b"1", b"2"):
            self.found.notes.append(f"link {name!r} left out: only regular members are read")

    def check_rest(self) -> None:
        """Behind the end marker there is nothing but some padding."""
        at = self.at
        while at < self.end:
            chunk = os.pread(self.descriptor, _ZEROS_LIMIT, at)
            if not chunk:
                return
            if chunk.strip(b"\0"):
                self.flaw("data_after_end", f"more data behind the end marker at byte {self.at}: tars joined end to end, or zeroed in the middle")
                return
            at += len(chunk)
        if self.end - self.at > _ZEROS_LIMIT:
            self.flaw("zero_filled", f"the last {self.end - self.at} of {self.end} bytes are zero: a download that never finished")

    def flaw(self, reason: str, detail: str) -> None:
        self.found.flaws.append(Flaw(reason, detail))


def _byte_sum(octets: bytes) -> int:
    """Sum of at most 512 bytes. The lower half of Adler's checksum is one more than the sum below 65,521, which 256 bytes cannot reach; it takes
    a tenth of the time of adding them up."""
    return (zlib.adler32(octets[:256]) & 0xFFFF) + (zlib.adler32(octets[256:]) & 0xFFFF) - 2


def _number(field_: bytes, what: str) -> int:
    if field_[0] & 0x80:  # GNU base-256, for sizes of 8 GiB and more
        return int.from_bytes(bytes([field_[0] & 0x7F]) + field_[1:], "big")
    try:
        return int(field_.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise _BadHeader(f"{what} field is no number") from None


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise _BadHeader("pax size is no number")
    return int(text)


def _text(field_: bytes) -> str:
    return field_.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes, long_name: str | None, pax: dict[str, str]) -> str:
    if "path" in pax:
        return pax["path"]
    if long_name is not None:
        return long_name
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _records(text: bytes) -> dict[str, str]:
    """`length key=value\\n` records of a pax header."""
    records: dict[str, str] = {}
    at = 0
    while at < len(text) and text[at]:
        space = text.find(b" ", at, at + 20)
        length = text[at:space] if space > 0 else b""
        if not length.isdigit() or at + int(length) > len(text) or int(length) < len(length) + 3:
            raise _BadHeader("pax record is malformed")
        word, _, value = text[space + 1 : at + int(length) - 1].partition(b"=")
        records[_text(word)] = _text(value)
        at += int(length)
    return records


def _what_is_it(head: bytes) -> Flaw:
    """The first bytes of a file that does not start with a tar header."""
    start = head[:64].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return Flaw("html_page", "a web page in place of a tar: the download was answered with an error or a login page")
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return Flaw("compressed", "a compressed tar cannot be read at an offset: unpack it to a plain .tar")
    if head.startswith(b"version https://git-lfs"):
        return Flaw("not_a_tar", "a pointer of large-file storage in place of the file itself")
    return Flaw("not_a_tar", "the first 512 bytes are no tar header")
