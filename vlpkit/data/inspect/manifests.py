"""What others wrote down about shards: the manifest.json of their folder, and the NAME_stats.json that img2dataset leaves beside each.
Held against what is there; a name in a manifest is compared with names of files and opens nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlpkit.data.durable import read_json
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.packing import MANIFEST
from vlpkit.sidecar import digest


@dataclass(frozen=True)
class Listed:
    """What is written down of one shard; None: nothing."""

    name: str
    split: str | None = None
    samples: int | None = None
    size: int | None = None
    sha256: str | None = None

    def compare(self, path: str, *, samples: int, size: int, findings: Findings, hashed: bool) -> None:
        """Book what differs; the hash, which reads the file, only when `hashed`."""
        if self.samples is not None and self.samples != samples:
            findings.add("manifest_disagrees", f"{samples} samples, listed are {self.samples}")
        if self.size is not None and self.size != size:
            findings.add("manifest_disagrees", f"{size} bytes, listed are {self.size}")
        elif hashed and self.sha256 is not None and (found := digest(Path(path))) != self.sha256:
            findings.add("altered", f"sha256 is {found[:12]}..., listed is {self.sha256[:12]}...")


@dataclass
class Manifest:
    """The manifest of a folder, and the hash of keys as it grows.

    Args:
        listed: shards by name.
        keys_sha256: of all keys in that order; None: not written down.
        files: sha256 of other files by name, such as lists of answers.
    """

    path: Path
    listed: dict[str, Listed]
    keys_sha256: str | None
    files: dict[str, str] = field(default_factory=dict)
    _digest: Any = field(default_factory=hashlib.sha256)
    _seen: int = 0

    def keys(self, name: str, keys: bytes) -> None:
        """Take the keys of a shard, each followed by a line feed; shards come in the order of the manifest."""
        if name in self.listed:
            self._digest.update(keys)
            self._seen += 1

    def judge(self, names: Sequence[str], findings: Findings) -> list[str]:
        """Book what concerns the folder as a whole, once all shards have been seen; returns what could not be checked.

        Args:
            names: base names of the shards that were looked at in this folder.
        """
        splits = {self.listed[name].split for name in names if name in self.listed}
        missing = [one.name for one in self.listed.values() if one.split in splits and not (self.path.parent / one.name).is_file()]
        if missing:
            findings.add("missing_shard", f"{missing[0]} is listed and not there", count=len(missing))
        if extra := [name for name in names if name not in self.listed]:
            findings.add("unlisted_shard", f"{extra[0]} is there and not listed", count=len(extra))
        for name, sha256 in self.files.items():
            file = self.path.parent / name
            if not file.is_file():
                findings.add("missing_file", f"{name} is listed and not there")
                continue
            try:
                if digest(file) != sha256:
                    findings.add("altered", f"{name} is not the listed file")
            except OSError as error:
                findings.add("unreadable", f"{name}: {error.strerror or error}")
        if self.keys_sha256 is None or missing:
            return []
        if self._seen < len(self.listed):
            return [f"{self.path}: the hash of all keys was not checked, since {self._seen} of its {len(self.listed)} shards were looked at"]
        if self._digest.hexdigest() != self.keys_sha256:
            findings.add("keys_differ", "the sha256 of all keys is not the listed one: another set or another order of samples")
        return []


def read_manifests(paths: Sequence[str]) -> tuple[dict[Path, Manifest], Findings]:
    """The manifests of the folders that hold `paths`, by folder; one that cannot be read is booked."""
    found, findings = {}, Findings()
    for folder in dict.fromkeys(Path(path).parent for path in paths):
        file = folder / MANIFEST
        if not file.is_file():
            continue
        content = read_json(file)
        shards = None if content is None else content.get("shards")
        if content is None or not isinstance(shards, list) or not all(map(_is_entry, shards)):
            findings.add("bad_manifest", f"{file}: no JSON object with a list `shards` of objects with a `name`")
            continue
        keys = content.get("keys_sha256")
        files = content.get("files")
        named = {name: sha for name, sha in files.items() if name == Path(name).name and isinstance(sha, str)} if isinstance(files, Mapping) else {}
        found[folder] = Manifest(file, {entry["name"]: _listed(entry) for entry in shards}, keys if isinstance(keys, str) else None, named)
    return found, findings


def arranged(paths: Sequence[str], manifests: Mapping[Path, Manifest]) -> list[str]:
    """Folders in the order of `paths`, in each the shards as its manifest lists them, then those that it does not."""
    by_folder: dict[Path, list[str]] = {}
    for path in paths:
        by_folder.setdefault(Path(path).parent, []).append(path)
    ordered: list[str] = []
    for folder, inside in by_folder.items():
        listed = manifests[folder].listed if folder in manifests else {}
        ranks = {name: rank for rank, name in enumerate(listed)}
        ordered += sorted(inside, key=lambda path, ranks=ranks: ranks.get(Path(path).name, len(ranks)))  # type: ignore[misc]
    return ordered


def written_down(paths: Iterable[str], manifests: Mapping[Path, Manifest]) -> dict[str, Listed]:
    """By path what a manifest, else a NAME_stats.json, says of a shard."""
    found = {}
    for path in map(Path, paths):
        manifest = manifests.get(path.parent)
        if manifest is not None and path.name in manifest.listed:
            found[str(path)] = manifest.listed[path.name]
        elif (stats := read_json(path.with_name(f"{path.stem}_stats.json"))) is not None and isinstance(stats.get("successes"), int):
            found[str(path)] = Listed(path.name, samples=stats["successes"])
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(name := entry.get("name"), str) and name == Path(name).name


def _listed(entry: Mapping[str, Any]) -> Listed:
    split, samples, size, sha256 = (entry.get(key) for key in ("split", "samples", "bytes", "sha256"))
    return Listed(
        entry["name"], split if isinstance(split, str) else None, samples if isinstance(samples, int) else None,
        size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None,
    )  # fmt: skip
