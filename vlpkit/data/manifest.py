"""Shards beside what the manifest.json of their folder says of them: bytes and samples always, contents when asked.
A flipped bit in an image decodes like any other; only a hash that was taken when the shard was written can tell."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlpkit.data.durable import read_json, write_json
from vlpkit.data.table import Shard
from vlpkit.data.tarscan import Flaw
from vlpkit.errors import DataError
from vlpkit.sidecar import digest

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PATIENCE = 10.0  # seconds between lines of progress


def compare(shards: Sequence[Shard], *, folder: Path | None, verify: bool, key: str) -> list[Shard]:
    """The shards, those that are not what their manifest says with a flaw: manifest_disagrees or altered.

    A manifest is an object whose `shards` list `name`, and any of `bytes`, `samples` and `sha256`, as scripts/build_shards.py writes it; any
    other file of that name is passed over.

    Args:
        folder: where hashes are kept while a shard's size and time stamp stay the same; None: nowhere.
        verify: hash each shard and compare.
        key: configuration key of the shards, named in refusals.

    Raises:
        DataError: a shard is to be verified, and no manifest holds its sha256.
    """
    said: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for where in dict.fromkeys(os.path.dirname(shard.path) for shard in shards):
        said[where] = _entries(where)
    pairs = [(shard, said[os.path.dirname(shard.path)].get(os.path.basename(shard.path), {})) for shard in shards]
    unknown = [shard.path for shard, entry in pairs if not isinstance(entry.get("sha256"), str)]
    if verify and unknown:
        raise DataError(
            f"{key}: data.verify=true, but no {MANIFEST} beside the shards holds the sha256 of {len(unknown)} of {len(shards)}, the first: {unknown[0]}. "
            f"Shards of scripts/build_shards.py have one; for others use data.verify=false."
        )
    found, then = [], time.monotonic()
    for number, (shard, entry) in enumerate(pairs):
        found.append(_compared(shard, entry, lambda shard: _digest(shard, folder) if verify else None))
        if time.monotonic() - then > _PATIENCE:
            log.info("%s: verified %d of %d shards", key, number + 1, len(shards))
            then = time.monotonic()
    return found


def _entries(where: str) -> Mapping[str, Mapping[str, Any]]:
    """What is said of the shards of a folder, by name; shards that are said to be there and are not, are warned of."""
    listed = (read_json(Path(where, MANIFEST)) or {}).get("shards")
    if not isinstance(listed, list):
        return {}
    entries = {entry["name"]: entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("name"), str)}
    gone = sorted(name for name in entries if not os.path.isfile(os.path.join(where, os.path.basename(name))))
    if gone:
        log.warning("%s: %d of the %d shards in its %s are not there, the first: %s", where, len(gone), len(entries), MANIFEST, gone[0])
    return entries


def _compared(shard: Shard, entry: Mapping[str, Any], hashed: Callable[[Shard], str | None]) -> Shard:
    found = {"bytes": shard.size, "samples": shard.samples}
    wrong = [f"{value} {word}, where {MANIFEST} says {entry[word]}" for word, value in found.items() if entry.get(word, value) != value]
    if any(flaw.reason == "unreadable" for flaw in shard.flaws):
        return shard
    if wrong:
        return replace(shard, flaws=(*shard.flaws, Flaw("manifest_disagrees", "; ".join(wrong))))
    seen = hashed(shard)
    if seen is not None and seen != entry["sha256"]:
        return replace(shard, flaws=(*shard.flaws, Flaw("altered", f"its sha256 is {seen[:12]}..., where {MANIFEST} says {entry['sha256'][:12]}...")))
    return shard


def _digest(shard: Shard, folder: Path | None) -> str:
    """sha256 of a shard's bytes, taken once for as long as it stays the same file. Raises OSError."""
    facts = {"path": shard.path, "size": shard.size, "mtime_ns": shard.mtime_ns}
    kept = None if folder is None else folder / (hashlib.sha256(os.fsencode(shard.path)).hexdigest()[:32] + ".sha256.json")
    known = {} if kept is None else read_json(kept) or {}
    if all(known.get(word) == fact for word, fact in facts.items()) and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    found = digest(Path(shard.path))
    if kept is not None:
        with suppress(OSError):  # a cache that cannot be written is told of by the index
            write_json(kept, {**facts, "sha256": found})
    return found
