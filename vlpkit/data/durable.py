"""Files that are there whole or not at all: a shard or a JSON file is written under a temporary name, made durable, then renamed.
What a crash leaves behind ends in .tmp and is never read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlpkit.sidecar import sync_folder


class ShardFile:
    """One WebDataset tar, begun by its first sample; equal samples give equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.samples = path, 0
        self._tmp = path.with_name(f"{path.name}.tmp")
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Appends the members of one sample, by suffix without the dot."""
        if self._tar is None:
            self._tar = tarfile.open(self._tmp, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by `close`
        for suffix, payload in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(payload)
            self._tar.addfile(member, io.BytesIO(payload))
        self.samples += 1

    def close(self) -> dict[str, Any]:
        """Puts the shard at its place; returns its name, samples, bytes and sha256. Raises ValueError for an empty one."""
        if self._tar is None:
            raise ValueError(f"{self.path} has no sample")
        self._tar.close()
        digest = hashlib.sha256()
        with self._tmp.open("rb+") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            os.fsync(file.fileno())
        os.replace(self._tmp, self.path)
        sync_folder(self.path.parent)
        return {"name": self.path.name, "samples": self.samples, "bytes": self.path.stat().st_size, "sha256": digest.hexdigest()}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no such file or no such object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    write_text(path, json.dumps(dict(content), indent=1))


def write_text(path: Path, content: str) -> None:
    """Replaces a file in one step; the temporary name is always the same, so a kill leaves nothing that the next run does not clear."""
    tmp = path.with_name(f"{path.name}.tmp")
    with tmp.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)
    sync_folder(path.parent)
