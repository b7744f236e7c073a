"""All samples of all shards under one stable number each: number to (shard, key, where its members lie).
Made before training, so that the length is known and a bad shard is named while there is still time to mend it."""

from __future__ import annotations

import hashlib
import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.manifest import compare
from vlpkit.data.place import is_remote
from vlpkit.data.recent import Recent
from vlpkit.data.remote import Remote
from vlpkit.data.remoteindex import load_remote, table_again
from vlpkit.data.table import Shard, Table, load_shard, load_table, read_table, unreadable
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

_TABLES = 64  # shards whose tables are held at a time
_PATIENCE = 10.0  # seconds between lines of progress
_NAMED = 10  # damaged shards named in a message


class Entry(NamedTuple):
    """One sample.

    `members` maps extension to (byte offset, byte size) within the shard.
    """

    shard: Shard
    key: str
    members: dict[str, tuple[int, int]]


class Index:
    """Samples 0..n-1 in shard order, then in file order.

    Args:
        shards: S shards.
        folder: where their tables are cached; None: nowhere.
        held: packed tables that no file holds, by path.
        remote: opens remote shards; None: there are none.
    """

    def __init__(self, shards: Sequence[Shard], *, folder: Path | None, held: dict[str, bytes] | None = None, remote: Remote | None = None) -> None:
        self.shards = tuple(shards)
        self.sizes: NDArray[np.int64] = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        self._ends: list[int] = np.cumsum(self.sizes).tolist()
        self._folder, self._held, self._remote = folder, held or {}, remote
        self._tables: Recent[int, Table | None] = Recent(self._load, limit=_TABLES)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """sha256 over base names, sizes and key lists of the shards, in order: equal when every sample has the same number."""
        return hashlib.sha256("\n".join(shard.digest for shard in self.shards).encode()).hexdigest()

    @property
    def flaws(self) -> Counter[str]:
        """Damaged shards by reason."""
        return Counter(flaw.reason for shard in self.shards for flaw in shard.flaws)

    def shard_of(self, number: int) -> tuple[int, int]:
        """(shard, row within it) of a global sample number. Raises IndexError outside [0, len)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} is outside an index of {len(self)}")
        shard = bisect_right(self._ends, number)  # on a list: a search by numpy for one number takes ten times as long
        return shard, number - (self._ends[shard - 1] if shard else 0)

    def shards_of(self, numbers: NDArray[np.int64]) -> list[int]:
        """The shards of these samples, each once, in the order in which they come up."""
        found, first = np.unique(np.searchsorted(self._ends, numbers, side="right"), return_index=True)
        return [int(shard) for shard in found[np.argsort(first)]]

    def first(self, limit: int | None) -> NDArray[np.int64]:
        """(S,) samples of each shard when only the first `limit` count; None: all."""
        return self.sizes if limit is None else np.diff(np.minimum(self._ends, limit), prepend=0)

    def key(self, number: int) -> str:
        """Key of a sample, for reports; "?" when its shard is no longer the indexed one."""
        at, row = self.shard_of(number)
        table = self._tables.get(at)
        return "?" if table is None else table.keys[row]

    def entry(self, number: int) -> Entry | None:
        """The sample with this global number; None when its shard has changed or gone since the index was made."""
        at, row = self.shard_of(number)
        table = self._tables.get(at)
        return None if table is None else Entry(self.shards[at], table.keys[row], table.members(row))

    def _load(self, at: int) -> Table | None:
        shard = self.shards[at]
        if shard.path in self._held:
            return Table.unpack(self._held[shard.path])
        if self._remote is not None and is_remote(shard.path):
            return read_table(shard, self._folder) or table_again(shard, self._remote)
        return load_table(shard, folder=self._folder)


def join(parts: Sequence[Index]) -> Index:
    """Indexes over the same folder as one, whose samples count on from part to part."""
    if len(parts) == 1:
        return parts[0]
    held = {path: body for part in parts for path, body in part._held.items()}
    return Index([shard for part in parts for shard in part.shards], folder=parts[0]._folder, held=held, remote=parts[0]._remote)


def build_index(
    shards: Sequence[str], *, cache: Path | None, max_bad_share: float = 0.0, verify: bool = False, key: str = "data.shards", remote: Remote | None = None
) -> Index:
    """Index shards, from the cache where it still holds.

    Args:
        shards: paths, as `shardlist.expand` gives them.
        cache: folder for tables, made when absent; None: nothing is cached.
        max_bad_share: share of the shards that may be damaged; their readable samples are kept and the damage is counted.
        verify: compare the sha256 of each shard with that of the manifest beside it.
        key: configuration key named in refusals.
        remote: opens remote shards; None: one with its own defaults, in `cache`.

    Raises:
        DataError: more shards are damaged than that, each named with its reason, or no sample is left.
    """
    folder = None if cache is None else Path(cache) / "index"
    found: list[Shard] = []
    held: dict[str, bytes] = {}
    then = time.monotonic()
    away = [path for path in shards if is_remote(path)]
    remote = _remote(cache, key) if away and remote is None else remote
    there = load_remote(away, tables=folder, remote=remote, key=key) if away and remote is not None else {}
    for number, path in enumerate(shards):
        try:
            shard, body = there[path] if path in there else load_shard(path, folder=folder)
        except OSError as error:
            shard, body = unreadable(path, error), None
        found.append(shard)
        if body is not None:
            held[path] = body
        if time.monotonic() - then > _PATIENCE:
            log.info("%s: indexed %d of %d shards", key, number + 1, len(shards))
            then = time.monotonic()
    if held and folder is not None:
        log.warning("%s: %s cannot be written, so the index is made anew at every start. Set paths.cache to a writable folder.", key, folder)
    found = compare(found, folder=folder, verify=verify, key=key)
    _judge(found, max_bad_share, key)
    return Index(found, folder=folder, held=held, remote=remote)


def _remote(cache: Path | None, key: str) -> Remote:
    if cache is None:
        raise DataError(f"{key}: remote shards are read through a cache, and there is no folder for one.")
    return Remote(cache)


def _judge(shards: Sequence[Shard], max_bad_share: float, key: str) -> None:
    for shard in shards:
        for note in shard.notes:
            log.warning("%s: %s: %s", key, shard.shown, note)
    bad = [shard for shard in shards if shard.flaws]
    lines = [f"  {shard.shown}: " + "; ".join(f"{flaw.reason} ({flaw.detail})" for flaw in shard.flaws) for shard in bad]
    shown = "\n".join(lines[:_NAMED] + [f"  and {len(lines) - _NAMED} more"] * (len(lines) > _NAMED))
    if not sum(shard.samples for shard in shards):
        raise DataError(f"{key}: {len(shards)} shards hold no sample.\n{shown}\nFetch them again, or name others.")
    if not bad:
        return
    share = len(bad) / len(shards)
    if share > max_bad_share:
        needed = -(-len(bad) * 1000 // len(shards)) / 1000
        raise DataError(
            f"{key}: {len(bad)} of {len(shards)} shards are damaged, and data.max_bad_share={max_bad_share:g} permits {int(max_bad_share * len(shards))}.\n{shown}\n"
            f"Fetch them again or leave them out of {key}; data.max_bad_share={needed:g} would train on what is readable in them."
        )
    log.warning("%s: %d of %d shards are damaged; their readable samples are used (data.max_bad_share=%g):\n%s", key, len(bad), len(shards), max_bad_share, shown)
