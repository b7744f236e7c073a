"""The reader gives exactly the bytes that were indexed, or says which trouble it met."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from shards import jpeg, never, write_shards

from vlpkit.data.decode import Refused
from vlpkit.data.index import build_index
from vlpkit.data.reader import LocalStore, Reader
from vlpkit.data.table import Shard


class Flaky(LocalStore):
    """Fails the first `times` reads, as a network file system may."""

    def __init__(self, times: int, *, short: bool = False) -> None:
        super().__init__()
        self.times, self.short, self.calls = times, short, 0

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        self.calls += 1
        if self.calls > self.times:
            return super().read(shard, offset, size)
        if self.short:
            return super().read(shard, offset, size)[:-1]
        raise OSError(5, "Input/output error")


def reader(folder: Path, *, sizes: tuple[int, ...] = (3, 2), times: int = 0, short: bool = False) -> Reader:
    paths = write_shards(folder, sizes)
    return Reader(build_index(paths, cache=folder / "cache"), store=Flaky(times, short=short), sleep=never)


def test_each_number_gives_its_own_members(tmp_path: Path) -> None:
    found = reader(tmp_path)
    for number in (4, 0, 2, 3, 1):
        assert found.read(number) == {"jpg": jpeg(number), "txt": b"a picture of number %d" % number}
    assert found.read(1, only=["txt"]) == {"txt": b"a picture of number 1"}


@pytest.mark.parametrize("short", [False, True])
def test_passing_trouble_is_read_again(tmp_path: Path, short: bool) -> None:
    assert reader(tmp_path, times=3, short=short).read(0, only=["jpg"]) == {"jpg": jpeg(0)}


@pytest.mark.parametrize(("short", "reason"), [(False, "read_error"), (True, "short_read")])
def test_lasting_trouble_is_refused_after_a_few_tries(tmp_path: Path, short: bool, reason: str) -> None:
    found = reader(tmp_path, times=10_000, short=short)
    with pytest.raises(Refused) as refused:
        found.read(0)
    assert refused.value.reason == reason
    assert found._store.calls == 4  # type: ignore[attr-defined]


def test_a_vanished_shard_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    found = reader(tmp_path)
    os.unlink(tmp_path / "train-001.tar")
    with pytest.raises(Refused) as refused:
        found.read(4)
    assert refused.value.reason == "shard_missing"
    assert found.read(0)["jpg"] == jpeg(0)


@pytest.mark.parametrize("cached", [True, False])
def test_a_shard_that_changed_since_the_index_is_refused(tmp_path: Path, cached: bool) -> None:
    found = reader(tmp_path)
    with open(tmp_path / "train-001.tar", "ab") as stream:
        stream.write(bytes(512))
    if not cached:
        for file in (tmp_path / "cache" / "index").iterdir():
            file.unlink()
    with pytest.raises(Refused) as refused:
        found.read(4)
    assert refused.value.reason == "shard_changed"


def test_open_files_are_bounded(tmp_path: Path) -> None:
    found = reader(tmp_path, sizes=(1,) * 100)
    for number in range(100):
        found.read(number)
    assert len(found._store._files) == 32  # type: ignore[attr-defined]


def _read_apart(found: Reader, answers: multiprocessing.SimpleQueue[object]) -> None:
    inherited = list(found._store._files._held.values())  # type: ignore[attr-defined]
    first = found.read(4)["jpg"] == jpeg(4)
    alone = len(found._store._files) == 1  # type: ignore[attr-defined]  # what was inherited is closed, not used
    answers.put((first, alone, len(inherited), [found.read(number)["jpg"] == jpeg(number) for number in range(5)]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_opens_files_of_its_own(tmp_path: Path, method: str) -> None:
    found = reader(tmp_path)
    for number in range(5):
        found.read(number)
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=_read_apart, args=(found, answers))
    child.start()
    child.join()
    assert answers.get() == (True, True, 2 if method == "fork" else 0, [True] * 5)
    assert found.read(3)["jpg"] == jpeg(3)


def test_a_reader_travels_without_its_open_files(tmp_path: Path) -> None:
    found = reader(tmp_path)
    found.read(0)
    again = pickle.loads(pickle.dumps(Reader(found.index)))
    assert again.read(4)["jpg"] == jpeg(4)
