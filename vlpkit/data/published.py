"""What stands beside shards and speaks of them: `shards.index`, which holds their tables, sizes and hashes, so that nobody who reads them from
afar must fetch them all before the first step, and the manifest of build_shards, which holds sizes and hashes alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlpkit.data.table import Shard, from_head, index_shard, to_head
from vlpkit.data.tarscan import Flaw
from vlpkit.errors import DataError
from vlpkit.sidecar import digest, replacing

log = logging.getLogger(__name__)

INDEX, MANIFEST = "shards.index", "manifest.json"
_MAGIC = b"vlpkit shards 1 "  # then the sha256 of all that follows its line: a line of JSON, then one packed table after another


@dataclass(frozen=True)
class Claim:
    """What is said of one shard by a file beside it.

    Args:
        said_by: base name of that file.
        size: bytes.
        sha256: of its bytes; "" when it does not say.
        head: the shard as `to_head` writes it; None where only a manifest speaks.
        body: its packed table, compressed.
    """

    said_by: str
    size: int
    sha256: str = ""
    head: dict[str, Any] | None = None
    body: bytes = b""

    def table(self) -> bytes:
        """The packed table. Raises ValueError where there is none."""
        try:
            return zlib.decompress(self.body)
        except zlib.error as error:
            raise ValueError(str(error)) from error

    def disagreement(self, size: int) -> Flaw | None:
        """What is wrong when the shard has so many bytes."""
        if size == self.size:
            return None
        words = f"{self.size} bytes in {self.said_by}, {size} in the shard: one of the two is of another time. {_REMEDY[self.said_by]}"
        return Flaw("index_disagrees" if self.said_by == INDEX else "manifest_disagrees", words)


_REMEDY = {
    INDEX: "Write the index anew where the shards are: python scripts/inspect_shards.py index 'FOLDER/*.tar'",
    MANIFEST: "Fetch the shard again, or remove the manifest if the shards were changed on purpose",
}


def write_index(paths: Sequence[str]) -> Path:
    """Write `shards.index` beside local shards, whole or not at all; each shard is read once from end to end.

    Args:
        paths: every shard of one folder that somebody shall read from afar.

    Raises:
        DataError: they lie in several folders, one cannot be read, or the folder cannot be written.
    """
    folders = sorted({os.path.dirname(path) for path in paths})
    if len(folders) != 1:
        raise DataError(f"{INDEX} speaks of the shards of one folder, and these lie in {len(folders)}: {', '.join(folders[:3])}. Write one for each.")
    folder = Path(folders[0])
    heads: list[dict[str, Any]] = []
    bodies: list[bytes] = []
    try:
        for path in paths:
            shard, table = index_shard(path)
            for flaw in shard.flaws:
                log.warning("%s: %s (%s)", path, flaw.reason, flaw.detail)
            bodies.append(zlib.compress(table.pack()))
            shard = replace(shard, path=os.path.basename(path), mtime_ns=0, sha256=digest(Path(path)))
            heads.append({**to_head(shard), "table": len(bodies[-1])})
        rest = b"".join([json.dumps(heads).encode(), b"\n", *bodies])
        with replacing(folder / INDEX) as file:
            file.write(_MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error
    return folder / INDEX


def read_index(body: bytes) -> dict[str, Claim]:
    """What a `shards.index` says, by base name. Raises ValueError when it is not whole or none at all."""
    first, _, rest = body.partition(b"\n")
    if not first.startswith(_MAGIC):
        raise ValueError("no index of this format")
    if hashlib.sha256(rest).hexdigest().encode() != first[len(_MAGIC) :]:
        raise ValueError("its sha256 is not the one it names: cut short or altered")
    at = rest.index(b"\n") + 1
    claims: dict[str, Claim] = {}
    for head in json.loads(rest[:at]):
        length = head.pop("table")
        claims[head["path"]] = Claim(INDEX, head["size"], head["sha256"], head, rest[at : at + length])
        at += length
    return claims


def names_of(start: bytes) -> list[str] | None:
    """Base names in a `shards.index` of which only the start is there; None when its second line is not complete. Raises ValueError for something else."""
    if not start.startswith(_MAGIC[: len(start)]):
        raise ValueError("no index of this format")
    lines = start.split(b"\n", 2)
    return None if len(lines) < 3 else [head["path"] for head in json.loads(lines[1])]


def read_manifest(body: bytes) -> dict[str, Claim]:
    """What a `manifest.json` says, by base name; of other files of that name, nothing."""
    try:
        shards: Sequence[dict[str, Any]] = json.loads(body)["shards"]
        return {one["name"]: Claim(MANIFEST, int(one["bytes"]), str(one.get("sha256", ""))) for one in shards}
    except (ValueError, KeyError, TypeError):
        return {}


def shard_of(claim: Claim, path: str, version: str) -> tuple[Shard, bytes]:
    """The shard at `path` as `shards.index` describes it, and its packed table. Raises ValueError when the description makes no sense."""
    try:
        body = claim.table()
        shard = from_head(dict(claim.head or {}), path)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    if zlib.crc32(body) != shard.crc:
        raise ValueError("a table is not the one it was")
    return replace(shard, version=version), body
