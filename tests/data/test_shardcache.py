"""The cache of remote shards: whole copies or none, one fetch for all who ask, never more bytes than allowed, whatever dies on the way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vlpkit.data.shardcache import Fetched, NoRoom, ShardCache, parse_bytes
from vlpkit.errors import DataError

SIZE = 10_000
fork = multiprocessing.get_context("fork")


def body(number: int) -> bytes:
    return bytes([number]) * SIZE


def place(number: int) -> str:
    return f"{number:032x}"


def sha(number: int) -> str:
    return hashlib.sha256(body(number)).hexdigest()


def writes(number: int, *, note: Path | None = None, wait: float = 0.0) -> Callable[[int], str]:
    """Fills a copy as a download does, and notes that it was asked to."""

    def fill(descriptor: int) -> str:
        if note is not None:
            with note.open("a") as file:
                file.write(f"{number}\n")
        os.pwrite(descriptor, body(number)[: SIZE // 2], 0)
        time.sleep(wait)
        os.pwrite(descriptor, body(number)[SIZE // 2 :], SIZE // 2)
        return sha(number)

    return fill


def fetch(cache: ShardCache, number: int, *, fill: Callable[[int], str] | None = None, keep: tuple[int, ...] = (), urgent: bool = True) -> int:
    """The descriptor of a copy that holds what it should."""
    found = cache.open(place(number), sha(number), SIZE, fill or writes(number), keep=[place(one) for one in keep], urgent=urgent)
    assert found == Fetched(found.descriptor, sha(number))
    assert os.pread(found.descriptor, SIZE + 1, 0) == body(number)
    return found.descriptor


def hold(cache: ShardCache, *numbers: int) -> None:
    """Fetch and close, one after another."""
    for number in numbers:
        os.close(fetch(cache, number))
        time.sleep(0.002)  # so that the order of use can be told by the clock of the file system


def held(cache: ShardCache) -> set[int]:
    return {int(path.name[:32], 16) for path in cache.folder.glob("*.tar")}


def unfinished(cache: ShardCache) -> list[str]:
    return [path.name for path in cache.folder.glob("*.part")]


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "shards", limit=3 * SIZE)


@contextmanager
def child(target: Callable[..., None], *args: object) -> Iterator[multiprocessing.Process]:
    """A process that is gone at the end of the block."""
    process = fork.Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_a_copy_is_fetched_once_and_found_again(cache: ShardCache, tmp_path: Path) -> None:
    for _ in range(3):
        os.close(fetch(cache, 1, fill=writes(1, note=tmp_path / "note")))
    assert (tmp_path / "note").read_text() == "1\n"
    assert (held(cache), unfinished(cache)) == ({1}, [])


def test_a_copy_of_unknown_content_is_fetched_and_then_known_by_its_hash(cache: ShardCache) -> None:
    found = cache.open(place(1), "", SIZE, writes(1))
    os.close(found.descriptor)
    assert found.sha256 == sha(1)
    assert cache.has(place(1), sha(1))
    assert not cache.has(place(1), sha(2))  # the same place with other bytes is another copy


def _asks(cache: ShardCache, note: Path, done: multiprocessing.SimpleQueue[bool]) -> None:
    os.close(fetch(cache, 1, fill=writes(1, note=note, wait=0.2)))
    done.put(True)


def test_of_many_processes_and_threads_that_ask_at_once_one_fetches(cache: ShardCache, tmp_path: Path) -> None:
    done: multiprocessing.SimpleQueue[bool] = fork.SimpleQueue()
    processes = [fork.Process(target=_asks, args=(cache, tmp_path / "note", done)) for _ in range(4)]
    threads = [threading.Thread(target=_asks, args=(cache, tmp_path / "note", done)) for _ in range(3)]
    for one in [*processes, *threads]:
        one.start()
    assert [done.get() for _ in range(7)] == [True] * 7
    for one in [*processes, *threads]:
        one.join()
    assert (tmp_path / "note").read_text() == "1\n"


def _dies(cache: ShardCache, begun: Path) -> None:
    def fill(descriptor: int) -> str:
        os.pwrite(descriptor, body(1)[:100], 0)
        begun.touch()
        time.sleep(60)
        return sha(1)

    cache.open(place(1), sha(1), SIZE, fill)


def _wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def test_what_a_killed_process_left_is_never_read_and_stops_nobody(cache: ShardCache, tmp_path: Path) -> None:
    with child(_dies, cache, tmp_path / "begun") as process:
        _wait_for(tmp_path / "begun")
        waiting = threading.Thread(target=lambda: os.close(fetch(cache, 1)))
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()
        assert not held(cache)
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        waiting.join(10)
        assert not waiting.is_alive()
    assert (held(cache), unfinished(cache)) == ({1}, [])


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(cache: ShardCache, tmp_path: Path) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / f"{place(7)}.part").write_bytes(b"half a shard")
    with child(_dies, cache, tmp_path / "begun"):
        _wait_for(tmp_path / "begun")
        cache.sweep()
        assert unfinished(cache) == [f"{place(1)}.part"]
    cache.sweep()
    assert unfinished(cache) == []


def test_the_least_recently_opened_copy_goes_first(cache: ShardCache) -> None:
    hold(cache, 1, 2, 3)
    os.close(cache.find(place(1), sha(1), SIZE))  # type: ignore[arg-type]
    hold(cache, 4)
    assert held(cache) == {1, 3, 4}


def test_what_is_needed_soon_goes_last(cache: ShardCache) -> None:
    hold(cache, 1, 2, 3)
    os.close(fetch(cache, 4, keep=(1, 2)))
    assert held(cache) == {1, 2, 4}
    os.close(fetch(cache, 5, keep=(1, 2, 4)))
    assert 5 in held(cache)
    assert len(held(cache)) == 3


def test_fetching_ahead_takes_no_room_from_what_is_needed_or_open(cache: ShardCache) -> None:
    hold(cache, 1, 2)
    descriptor = fetch(cache, 3)
    with pytest.raises(NoRoom):
        fetch(cache, 4, keep=(1, 2), urgent=False)
    assert (held(cache), unfinished(cache)) == ({1, 2, 3}, [])
    os.close(fetch(cache, 4, keep=(1,), urgent=False))
    assert held(cache) == {1, 3, 4}
    os.close(descriptor)


def _reads(cache: ShardCache, open_: Path, go: Path, answers: multiprocessing.SimpleQueue[bytes]) -> None:
    descriptor = fetch(cache, 1)
    open_.touch()
    _wait_for(go)
    answers.put(os.pread(descriptor, SIZE, 0))


def test_a_copy_that_another_process_reads_goes_last_and_is_read_to_its_end_even_then(cache: ShardCache, tmp_path: Path) -> None:
    answers: multiprocessing.SimpleQueue[bytes] = fork.SimpleQueue()
    with child(_reads, cache, tmp_path / "open", tmp_path / "go", answers):
        _wait_for(tmp_path / "open")
        hold(cache, 2, 3, 4, 5)
        assert held(cache) == {1, 4, 5}  # the oldest, and in use
        descriptors = [fetch(cache, number) for number in (6, 7, 8)]
        assert held(cache) == {6, 7, 8}  # all in use, so the longest unused one had to go
        (tmp_path / "go").touch()
        assert answers.get() == body(1)
        for descriptor in descriptors:
            os.close(descriptor)


def test_a_fetch_that_fails_leaves_nothing(cache: ShardCache) -> None:
    def fails(descriptor: int) -> str:
        os.pwrite(descriptor, body(1)[:100], 0)
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        fetch(cache, 1, fill=fails)
    assert (held(cache), unfinished(cache)) == (set(), [])
    os.close(fetch(cache, 1))


def test_a_copy_that_other_hands_have_cut_is_fetched_again(cache: ShardCache) -> None:
    hold(cache, 1)
    (path,) = cache.folder.glob("*.tar")
    os.truncate(path, 100)
    os.close(fetch(cache, 1))


def _wanders(cache: ShardCache, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in rng.integers(1, 12, 40).tolist():
        os.close(fetch(cache, number, fill=writes(number, wait=0.003)))


def test_however_many_processes_fetch_the_folder_keeps_its_bound(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "shards", limit=4 * SIZE)
    processes = [fork.Process(target=_wanders, args=(cache, seed)) for seed in range(5)]
    for one in processes:
        one.start()
    most = 0
    while any(one.is_alive() for one in processes):
        if cache.folder.is_dir():
            with cache._alone():  # the moment at which it is counted
                most = max(most, cache._look()[1])
        time.sleep(0.002)
    assert [one.exitcode for one in processes] == [0] * 5
    assert SIZE < most <= 4 * SIZE
    assert unfinished(cache) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow larger: the system refuses, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_with_what_is_needed_and_leaves_nothing_half_written(cache: ShardCache) -> None:
    hold(cache, 1)
    with (
        pytest.raises(DataError, match=rf"{cache.folder}: the disk is full: {SIZE} bytes are needed .* \d+ are free, and the cache holds \d+ .*paths\.cache.*resume=auto"),
        files_of_at_most(SIZE // 2),
    ):
        fetch(cache, 2)
    assert (held(cache), unfinished(cache)) == ({1}, [])


def test_a_disk_that_fills_up_while_bytes_come_is_no_trouble_of_the_server(cache: ShardCache) -> None:
    def fills_up(descriptor: int) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="the disk is full"):
        fetch(cache, 1, fill=fills_up)
    assert (held(cache), unfinished(cache)) == (set(), [])


def test_copies_give_way_when_the_disk_is_short_before_the_bound_is_reached(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(cache, 1, 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 * SIZE, 0, (3 - len(held(cache))) * SIZE))
    hold(cache, 3)
    assert held(cache) == {2, 3}  # there was room for it, but some is left to others
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 * SIZE, 0, SIZE - 1))
    with pytest.raises(DataError, match="the disk is full"):
        fetch(cache, 4)


def test_a_shard_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{SIZE} bytes, more than the whole cache may hold\. Raise data\.cache_bytes=500"):
        fetch(ShardCache(tmp_path, limit=500), 1)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/shards: shards cannot be cached there \(Not a directory\)\. Set paths\.cache"):
        fetch(ShardCache(tmp_path / "file" / "shards", limit=SIZE), 1)

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(DataError, match=r"has no locks \(No locks available\), .*Set paths\.cache to a folder on a disk of this machine"):
        fetch(cache, 1)


@pytest.mark.parametrize(("words", "size"), [("64GB", 64 * 10**9), ("1.5 MB", 1_500_000), ("20GiB", 20 << 30), ("2k", 2000), (12345, 12345), ("7b", 7)])
def test_sizes_are_read_with_their_units(words: str | int, size: int) -> None:
    assert parse_bytes(words, key="data.cache_bytes") == size


@pytest.mark.parametrize("words", ["", "much", "0", "-5GB", "5XB", "1e999GB", "nan"])
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.cache_bytes is '{words}'; it is a size such as 64GB"):
        parse_bytes(words, key="data.cache_bytes")
