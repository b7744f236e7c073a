"""The index of remote shards, before the first step: from the cache where it still holds, else from the `shards.index` beside them, else from
one pass that fetches every shard once. What a server says of a file takes the place of the time stamp of a local one."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlpkit.data import wire
from vlpkit.data.place import beside, folded, folder, is_pipe, name, shown
from vlpkit.data.published import INDEX, MANIFEST, Claim, read_index, read_manifest, shard_of
from vlpkit.data.remote import Remote, reason, said
from vlpkit.data.table import Shard, Table, keep_table, read_head
from vlpkit.data.tarscan import Flaw
from vlpkit.data.web import Stat
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

_ASKING = 16  # questions at a time
_FETCHING = 4  # shards at a time
_FIRST = 3  # shards of a folder asked for before all others
_PATIENCE = 10.0  # seconds between lines of progress


@dataclass
class _Pass:
    """One round over addresses, in which each finds its shard."""

    remote: Remote
    tables: Path | None
    key: str
    found: dict[str, Shard] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict)

    def take(self, shard: Shard, body: bytes) -> None:
        """A shard, and its table for the cache."""
        self.found[shard.path] = shard
        rest = keep_table(shard, body, self.tables)
        if rest is not None:
            self.held[shard.path] = rest

    def damaged(self, path: str, flaw: Flaw) -> None:
        """A shard of which nothing is read."""
        self.found[path] = Shard(path, 0, 0, 0, "", flaws=(flaw,))


def load_remote(places: Sequence[str], *, tables: Path | None, remote: Remote, key: str) -> dict[str, tuple[Shard, bytes | None]]:
    """By address, each shard and its packed table where no file holds that.

    Args:
        tables: folder of cached tables; None: nowhere.
        remote: fetches.
        key: configuration key named in messages.

    Raises:
        DataError: shards are missing, a server cannot be reached, or the cache is too small for the window.
        MissingExtra: the package that speaks to a store is absent.
    """
    work = _Pass(remote, tables, key)
    stats = _ask(work, places)
    remote.check_limit([stat.size for stat in stats.values()], key=key)
    remote.cache.sweep()
    _from_cache(work, stats)
    left = [place for place in stats if place not in work.found]
    if left:
        claims = _claims(work, left)
        _from_claims(work, stats, claims)
        left = [place for place in left if place not in work.found]
    if left:
        _from_shards(work, stats, {place: claims[place] for place in left if place in claims})
    return {place: (shard, work.held.get(place)) for place, shard in work.found.items()}


def table_again(shard: Shard, remote: Remote) -> Table | None:
    """The table of a remote shard whose cache file is gone; None when the shard does not come."""
    try:
        again, table = remote.index(shard.path, Stat(shard.size, shard.version), shard.sha256)
    except OSError:
        return None
    return table if again.digest == shard.digest else None


def _ask(work: _Pass, places: Sequence[str]) -> dict[str, Stat]:
    """What the servers say of each; those that do not answer are booked as damaged."""
    remote, missing = work.remote, set[str]()
    stats: dict[str, Stat] = {}

    def one(place: str) -> OSError | None:
        if is_pipe(place) and (known := read_head(place, work.tables)) is not None and known.sha256:
            stats[place] = Stat(known.size, known.version)  # to ask a command is to run it; that it sends the same bytes is checked when it is read
            return None
        try:
            stats[place] = remote.patiently(lambda: wire.stat(place, timeout=remote.timeout))
        except FileNotFoundError:
            missing.add(place)
        except OSError as error:
            return error
        return None

    with ThreadPoolExecutor(_ASKING) as pool:
        for where in dict.fromkeys(map(folder, places)):
            here = [place for place in places if folder(place) == where]
            first = list(pool.map(one, here[:_FIRST]))
            troubles = [error for error in first if error is not None]
            if len(troubles) == len(first):  # a server that is not there is waited for once, and not once a shard
                raise DataError(f"{work.key}: {shown(here[0])} cannot be read: {said(troubles[0])}. Look at the address, the network and the credentials.")
            asked = zip(here, [*first, *_progress(work, pool.map(one, here[_FIRST:]), len(here) - len(first), "asked for")])
            for place, error in asked:
                if error is not None:
                    work.damaged(place, Flaw(reason(error), said(error)))
    if missing:
        gone = [place for place in places if place in missing]
        raise DataError(f"{work.key}: {len(gone)} of {len(places)} shards are missing: {folded(gone)}. Put them there, or leave them out of {work.key}.")
    return {place: stats[place] for place in places if place in stats}


def _from_cache(work: _Pass, stats: Mapping[str, Stat]) -> None:
    for place, stat in stats.items():
        shard = read_head(place, work.tables)
        if shard is not None and shard.sha256 and shard.size == stat.size and (shard.version == stat.version or not shard.version or not stat.version):
            work.found[place] = shard


def _claims(work: _Pass, places: Sequence[str]) -> dict[str, Claim]:
    """What the files beside the shards say, by address."""
    claims: dict[str, Claim] = {}
    for where in dict.fromkeys(folder(place) for place in places if not is_pipe(place)):
        here = [place for place in places if folder(place) == where]
        said_of = _read(work, beside(here[0], INDEX), read_index) or _read(work, beside(here[0], MANIFEST), read_manifest)
        claims |= {place: said_of[name(place)] for place in here if name(place) in said_of}
    return claims


def _read(work: _Pass, place: str, parse: Callable[[bytes], dict[str, Claim]]) -> dict[str, Claim]:
    """A small file beside the shards; nothing where it is absent, may not be read, or is not whole."""
    try:
        return parse(work.remote.patiently(lambda: wire.whole(place, timeout=work.remote.timeout)))
    except (FileNotFoundError, PermissionError):
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: %s is left aside: %s", work.key, shown(place), said(error) if isinstance(error, OSError) else error)
        return {}


def _from_claims(work: _Pass, stats: Mapping[str, Stat], claims: Mapping[str, Claim]) -> None:
    """Shards whose tables are published, and those of which something else is published than what is there."""
    for place, claim in claims.items():
        if (flaw := claim.disagreement(stats[place].size)) is not None:
            work.damaged(place, flaw)
        elif claim.head is not None:
            try:
                work.take(*shard_of(claim, place, stats[place].version))
            except ValueError as error:
                log.warning("%s: what %s says of %s is left aside: %s", work.key, INDEX, shown(place), error)


def _from_shards(work: _Pass, stats: Mapping[str, Stat], claims: Mapping[str, Claim]) -> None:
    """Fetch what is left, a few at a time, and keep as much of it as the cache holds. One process of a machine does, the others then find the tables."""
    with _alone(work):
        _from_cache(work, {place: stat for place, stat in stats.items() if place not in work.found})
        left = [place for place in stats if place not in work.found]
        if not left:
            return
        size = sum(stats[place].size for place in left)
        log.info("%s: %d remote shards (%.1f GB) have no index yet, so each is fetched once. A %s beside them saves that: docs/data.md", work.key, len(left), size / 1e9, INDEX)

        def one(place: str) -> tuple[Shard, bytes] | OSError:
            claim = claims.get(place)
            try:
                shard, table = work.remote.index(place, stats[place], "" if claim is None else claim.sha256)
            except OSError as error:
                return error
            return shard, table.pack()

        with ThreadPoolExecutor(_FETCHING) as pool:
            for place, found in zip(left, _progress(work, pool.map(one, left), len(left), "fetched and indexed")):
                if isinstance(found, OSError):
                    work.damaged(place, Flaw(reason(found), said(found)))
                else:
                    work.take(*found)


@contextmanager
def _alone(work: _Pass) -> Iterator[None]:
    """The lock of the folder of tables, which dies with its process. Where tables cannot be kept, every process works for itself."""
    if work.tables is None or not _writable(work.tables):
        yield
        return
    with open(work.tables / "remote.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.info("%s: another process indexes remote shards; waiting for it", work.key)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _progress(work: _Pass, steps: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    then = time.monotonic()
    for number, step in enumerate(steps, 1):
        yield step
        if time.monotonic() - then > _PATIENCE:
            log.info("%s: %s %d of %d remote shards", work.key, what, number, total)
            then = time.monotonic()
