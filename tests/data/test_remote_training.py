"""Training on shards of another machine sees what training on the files here sees, waits for them no longer than it must, and bears their loss."""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import module, write_shards
from test_module import batches, global_batches, rows
from webserver import Server, busy, flipped, slow

from vlpkit.errors import DataError

torch.set_num_threads(1)
SIZES = [13, 1, 17, 9, 10, 12]
SHARDS = "train-{000..005}.tar"
TARS = [f"/train-{number:03d}.tar" for number in range(len(SIZES))]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "served", SIZES, captions=3)
    write_shards(tmp_path / "served", [6, 4], prefix="val", captions=2)
    with Server(tmp_path / "served") as found:
        yield found
        found.close()


def away(server: Server, **changes: Any) -> dict[str, Any]:
    """Settings of a module over the server's shards."""
    return {"shards": f"{server.url}/{SHARDS}", "val_shards": f"{server.url}/val-{{000..001}}.tar", "tries": 2, "timeout": 5.0, **changes}


def indexed(server: Server, folder: Path, **changes: Any) -> int:
    """Make the index, and forget the copies that this took; returns the bytes of the largest shard."""
    index = module(folder, **away(server, **changes)).index
    for path in (folder / "cache" / "shards").glob("*.tar"):
        path.unlink()
    server.fetched.clear()
    return max(shard.size for shard in index.shards)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_global_batches_are_those_of_the_same_files_here(server: Server, tmp_path: Path, world: int, workers: int) -> None:
    here = global_batches(server.folder, 16, shards=SHARDS)
    indexed(server, tmp_path)
    assert global_batches(tmp_path, 16, world=world, workers=workers, **away(server)) == here
    assert server.fetched == dict.fromkeys(TARS, 1)  # by whichever process came first


def test_a_cache_of_little_more_than_a_window_gives_the_same_batches_and_keeps_its_bound(server: Server, tmp_path: Path) -> None:
    here = global_batches(server.folder, 24, shards=SHARDS)  # three epochs
    limit = 3 * indexed(server, tmp_path)
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").glob("*.tar") if path.exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert global_batches(tmp_path, 24, **away(server, cache_bytes=limit)) == here
    over.set()
    watcher.join()
    assert 0 < most <= limit
    assert max(server.fetched.values()) <= 4  # once an epoch, and ahead for the fourth


def test_validation_and_captions_are_read_from_afar(server: Server, tmp_path: Path) -> None:
    here, there = module(server.folder), module(tmp_path, **away(server))
    assert list(there.captions()) == list(here.captions())
    for one, other in zip(here.eval_batches(batch=4), there.eval_batches(batch=4), strict=True):
        assert (one.keys, one.captions) == (other.keys, other.captions)
        assert torch.equal(one.images.pixels, other.images.pixels)  # type: ignore[arg-type]


def test_a_state_of_local_shards_goes_on_with_the_same_shards_elsewhere(server: Server, tmp_path: Path) -> None:
    here = module(server.folder, shards=SHARDS)
    expected = [rows(batch) for batch in batches(here, 9)]
    here.samples_seen = 40
    there = module(tmp_path, **away(server))
    there.load_state_dict(here.state_dict())
    assert [rows(batch) for batch in batches(there, 4)] == expected[5:]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_window_is_fetched_while_the_present_one_is_read(server: Server, tmp_path: Path, workers: int) -> None:
    indexed(server, tmp_path)
    data = module(tmp_path, **away(server, batch=1, workers=workers))
    order = data.order.samples(0, len(data))[:, 1]
    in_turn = [f"/train-{shard:03d}.tar" for shard in data.index.shards_of(order)]
    lengths = [SIZES[int(name[7:10])] for name in in_turn]
    stream = iter(data.train_dataloader())
    list(islice(stream, sum(lengths[:2]) - 3))  # all but the end of the first window
    for _ in range(500):
        if set(in_turn[:4]) <= server.fetched.keys():
            break
        time.sleep(0.01)
    assert server.fetched == dict.fromkeys(in_turn[:4], 1)  # this window and the next, and nothing further away


def test_a_slow_server_is_waited_for_once_and_not_once_a_window(server: Server, tmp_path: Path) -> None:
    indexed(server, tmp_path, window=1)
    server.spoilt = dict.fromkeys(TARS, slow(0.15))
    stream, waits = iter(module(tmp_path, **away(server, window=1, batch=1)).train_dataloader()), []
    for _ in range(sum(SIZES)):
        then = time.monotonic()
        next(stream)
        waits.append(time.monotonic() - then)
        time.sleep(0.03)  # a step of training, of which a shard takes ten
    assert waits[0] > 0.15
    assert sum(wait > 0.1 for wait in waits) <= 3  # the first shard, and what follows the one of a single sample


def test_a_shard_that_stays_away_is_replaced_where_it_stood_and_counted(server: Server, tmp_path: Path) -> None:
    here = global_batches(server.folder, 7, shards=SHARDS)
    indexed(server, tmp_path)
    server.spoilt["/train-002.tar"] = flipped
    lost = {f"{number:06d}" for number in range(14, 31)}
    data = module(tmp_path, **away(server, max_bad_share=1.0))
    found = [rows(batch) for batch in batches(data, 7)]
    assert [[mine == theirs for mine, theirs in zip(*pair)] for pair in zip(found, here)] == [[key not in lost for key, _, _ in step] for step in here]
    replaced = sum(key in lost for step in here for key, _, _ in step)
    assert data.ledger.report().replaced == {"shard_altered": replaced}
    again = module(tmp_path, **away(server, max_bad_share=1.0, workers=2))
    assert [rows(batch) for batch in batches(again, 7)] == found


def test_shards_that_stay_away_end_a_run_by_its_budget(server: Server, tmp_path: Path) -> None:
    indexed(server, tmp_path)
    server.spoilt["/train-002.tar"] = busy
    with pytest.raises(DataError, match=r"data\.max_bad_share(.|\n)*shard_unreachable +\d+ +\d{6} in http://127(.|\n)*train-002\.tar"):
        batches(module(tmp_path, **away(server, max_bad_share=0.0)), 20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_is_full_ends_a_run_in_its_own_words(server: Server, tmp_path: Path, workers: int) -> None:
    indexed(server, tmp_path)
    data = module(tmp_path, **away(server, workers=workers))
    assert len(data.index) == sum(SIZES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        with pytest.raises(DataError) as stopped:
            batches(data, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(stopped.value).startswith(f"{tmp_path / 'cache' / 'shards'}: the disk is full: ")
    assert "Traceback" not in str(stopped.value)
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))


def _run(folder: Path, settings: dict[str, Any], answers: multiprocessing.SimpleQueue[list[tuple[str, ...]]]) -> None:
    answers.put([batch.keys for batch in batches(module(folder, **settings), 14)])


def test_two_runs_that_share_a_cache_fetch_each_shard_once(server: Server, tmp_path: Path) -> None:
    server.spoilt = dict.fromkeys(TARS, slow(0.05))
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[list[tuple[str, ...]]] = context.SimpleQueue()
    runs = [context.Process(target=_run, args=(tmp_path, away(server, workers=workers), answers)) for workers in (0, 1)]
    for run in runs:
        run.start()
    found = [answers.get() for _ in runs]
    for run in runs:
        run.join()
    assert found[0] == found[1] == [batch.keys for batch in batches(module(server.folder, shards=SHARDS), 14)]
    assert {name: server.fetched[name] for name in TARS} == dict.fromkeys(TARS, 1)
