"""The samples of one shard as a compact table, and its cache file: some 35 bytes a sample, valid while the shard's size and
time stamp stay the same. A cache that cannot be believed is made anew, silently: it holds nothing that the shard does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlpkit.data import place
from vlpkit.data.tarscan import BLOCK, Flaw, Member, Scan, scan_open

_MAGIC = b"vlpkit shard table 1\n"
_KEYED = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)  # webdataset's rule: up to the first dot of the base name, folder kept
_META = re.compile(r"__[^/]*__($|/)")  # members about the shard, which webdataset passes over


@dataclass(frozen=True)
class Shard:
    """What is known of a shard without its table.

    Args:
        path: absolute path, or the address of a remote shard.
        size: bytes of the file.
        mtime_ns: time stamp of the file; 0 of a remote one.
        samples: number of keys.
        digest: sha256 over base name, size and keys.
        flaws: why it is a damaged shard; empty for a whole one.
        notes: oddities that lose nothing.
        crc: of the table's bytes in the cache.
        sha256: of a remote shard's bytes, which every download is held against; "" of a local one.
        version: of a remote shard, as its server calls it; "" when it says nothing.
    """

    path: str
    size: int
    mtime_ns: int
    samples: int
    digest: str
    flaws: tuple[Flaw, ...] = ()
    notes: tuple[str, ...] = ()
    crc: int = 0
    sha256: str = ""
    version: str = ""

    def __hash__(self) -> int:  # asked for at each read; text remembers its own
        return hash(self.path)

    @property
    def shown(self) -> str:
        """Where it is, as messages may say it."""
        return place.shown(self.path)


@dataclass(frozen=True)
class Table:
    """Where the members of a shard's samples lie.

    Args:
        keys: S sample keys in order of appearance.
        extensions: names that `ext` counts.
        starts: (S + 1,) uint32, first member of each sample.
        ext: (M,) uint16 extension of each member.
        block: (M,) uint32 offset of the payload in units of 512 bytes.
        size: (M,) uint32 bytes of the payload.
    """

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    starts: NDArray[np.uint32]
    ext: NDArray[np.uint16]
    block: NDArray[np.uint32]
    size: NDArray[np.uint32]

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """Extension to (byte offset, byte size) for one sample."""
        span = slice(*self.starts[row : row + 2].tolist())
        found = zip(self.ext[span].tolist(), self.block[span].tolist(), self.size[span].tolist())
        return {self.extensions[ext]: (block * BLOCK, size) for ext, block, size in found}

    def pack(self) -> bytes:
        """The table as bytes, read back by `unpack`."""
        names = [word.encode("utf-8", "surrogateescape") for word in (*self.extensions, *self.keys)]
        head = np.array([len(self.keys), len(self.ext), len(self.extensions)], dtype="<u4")
        arrays = (self.starts.astype("<u4"), self.block.astype("<u4"), self.size.astype("<u4"), self.ext.astype("<u2"))
        return b"".join([head.tobytes(), *(a.tobytes() for a in arrays), b"\0".join(names)])

    @staticmethod
    def unpack(body: bytes) -> Table:
        """What `pack` wrote."""
        samples, members, extensions = (int(n) for n in np.frombuffer(body, "<u4", 3))
        lengths = [("<u4", samples + 1), ("<u4", members), ("<u4", members), ("<u2", members)]
        at, arrays = 12, []
        for kind, length in lengths:
            arrays.append(np.frombuffer(body, kind, length, at))
            at += arrays[-1].nbytes
        names = tuple(word.decode("utf-8", "surrogateescape") for word in body[at:].split(b"\0")) if samples else ()
        return Table(names[extensions:], names[:extensions], arrays[0], arrays[3], arrays[1], arrays[2])


def load_shard(path: str, *, folder: Path | None) -> tuple[Shard, bytes | None]:
    """A shard from its cache file in `folder`, else from the tar itself, whose table is then cached.

    Returns:
        The shard, and its packed table when no file holds it (no folder, or one that cannot be written).

    Raises:
        OSError: the shard cannot be read.
    """
    stat = os.stat(path)
    cached = read_head(path, folder)
    if cached is not None and (cached.size, cached.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return cached, None
    shard, table = index_shard(path)
    return shard, keep_table(shard, table.pack(), folder)


def read_table(shard: Shard, folder: Path | None) -> Table | None:
    """The table of a shard from its cache file; None when that is gone or another one."""
    if folder is None:
        return None
    try:
        text = _cache_file(shard.path, folder).read_bytes()
    except OSError:
        return None
    body = text.partition(b"}\n")[2]
    return Table.unpack(body) if body and zlib.crc32(body) == shard.crc else None


def load_table(shard: Shard, *, folder: Path | None) -> Table | None:
    """The table of a local shard from its cache file, or from the tar when that is gone; None when the shard itself has changed since."""
    cached = read_table(shard, folder)
    if cached is not None:
        return cached
    try:
        again, table = index_shard(shard.path)
    except OSError:
        return None
    return table if again.digest == shard.digest and again.mtime_ns == shard.mtime_ns else None


def index_shard(path: str) -> tuple[Shard, Table]:
    """Scan one tar and group its members by key. Raises OSError when it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return index_open(descriptor, path)
    finally:
        os.close(descriptor)


def index_open(descriptor: int, path: str) -> tuple[Shard, Table]:
    """Likewise for an open tar, which may be the copy of the one that `path` names."""
    stat = os.fstat(descriptor)
    found = scan_open(descriptor)
    table, flaws = _group(found)
    keys = "\0".join(table.keys).encode("utf-8", "surrogateescape")
    name = place.name(path).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(b"%s\0%d\0%s" % (name, stat.st_size, keys)).hexdigest()
    notes = tuple(f"{note} ({count} times)" if count > 1 else note for note, count in Counter(found.notes).items())
    return Shard(path, stat.st_size, stat.st_mtime_ns, len(table.keys), digest, tuple(flaws), notes, zlib.crc32(table.pack())), table


def unreadable(path: str, error: OSError) -> Shard:
    """What is known of a shard that cannot be read: the reason."""
    return Shard(path, 0, 0, 0, "", flaws=(Flaw("unreadable", error.strerror or str(error)),))


def _group(found: Scan) -> tuple[Table, list[Flaw]]:
    rows: dict[str, dict[str, Member]] = {}
    twice: dict[str, None] = {}
    apart: dict[str, None] = {}
    last = None
    for member in found.members:
        match = _KEYED.match(member.name)
        if match is None or _META.match(member.name) or "\0" in member.name:
            continue
        key, ext = match[1], match[2].lower()
        if key in rows and key != last:
            apart[key] = None
        last, row = key, rows.setdefault(key, {})
        if ext in row:
            twice[key] = None
        else:
            row[ext] = member
    flaws = list(found.flaws)
    scattered = [key for key in apart if key not in twice]
    if twice:
        flaws.append(Flaw("duplicate_key", _named(list(twice)) + "; the first of each is kept"))
    if scattered:
        flaws.append(Flaw("scattered_key", _named(scattered) + "; the members of a sample must follow one another"))
    if not found.closed and not flaws:
        flaws += _cut_between(rows)
    if not rows and not flaws:
        flaws.append(Flaw("empty_tar", "no member is named KEY.EXTENSION"))
    return _table(rows), flaws


def _cut_between(rows: dict[str, dict[str, Member]]) -> list[Flaw]:
    """A tar cut exactly between two members shows in its last sample, which lacks what all others have."""
    *others, last = rows or [""]
    lacking = sorted(set.intersection(*(set(rows[key]) for key in others)) - set(rows[last])) if others else []
    return [Flaw("truncated", f"no end marker, and the last sample {last!r} lacks {', '.join(lacking)}")] if lacking else []


def _named(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' * (len(keys) > 1)}, the first {keys[0]!r}"


def _table(rows: dict[str, dict[str, Member]]) -> Table:
    extensions = list(dict.fromkeys(ext for row in rows.values() for ext in row))
    number = {ext: n for n, ext in enumerate(extensions)}
    members = [member for row in rows.values() for member in row.values()]
    return Table(
        keys=tuple(rows),
        extensions=tuple(extensions),
        starts=np.cumsum([0, *(len(row) for row in rows.values())]).astype(np.uint32),
        ext=np.array([number[ext] for row in rows.values() for ext in row], dtype=np.uint16),
        block=np.array([member.offset // BLOCK for member in members], dtype=np.uint32),
        size=np.array([member.size for member in members], dtype=np.uint32),
    )


def _cache_file(path: str, folder: Path) -> Path:
    return folder / (place.digest(path) + ".table")


def read_head(path: str, folder: Path | None) -> Shard | None:
    """What the cache knows of a shard, of whatever size and time it was; None when it knows nothing."""
    if folder is None:
        return None
    try:
        with _cache_file(path, folder).open("rb") as stream:
            if stream.readline() != _MAGIC:
                return None
            shard = from_head(json.loads(stream.readline()), path)
            whole = os.fstat(stream.fileno()).st_size >= stream.tell()
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut short or of another version: the tar knows better
        return None
    return shard if whole else None


def to_head(shard: Shard) -> dict[str, Any]:
    """A shard as JSON can hold it, its place without secrets."""
    return {**asdict(shard), "path": shard.shown}


def from_head(head: dict[str, Any], path: str) -> Shard:
    """What `to_head` gave, at `path`. Raises KeyError, TypeError or ValueError when it makes no sense."""
    return Shard(**{**head, "path": path, "flaws": tuple(Flaw(*flaw) for flaw in head["flaws"]), "notes": tuple(head["notes"])})


def keep_table(shard: Shard, body: bytes, folder: Path | None) -> bytes | None:
    """Cache a packed table; gives it back when no file could hold it."""
    return None if folder is not None and _write(_cache_file(shard.path, folder), shard, body) else body


def _write(file: Path, shard: Shard, body: bytes) -> bool:
    """Temporary file in the same folder, then replace: readers see all of it or nothing. False when the folder cannot be written."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".table-", delete=False) as stream:
            temporary = stream.name
            stream.write(_MAGIC + json.dumps(to_head(shard), ensure_ascii=True).encode() + b"\n" + body)
        os.replace(temporary, file)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
