"""However many ranks and workers read, together they read the same: fewer shards than readers, uneven and empty ones, and the draws of each sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import jpeg, pair, write_shards
from worlds import global_batches

torch.set_num_threads(1)
WHOLE: dict[str, Any] = {"batch": 10, "max_bad_share": 0.25}
WORLDS = [(1, 0), (1, 2), (2, 1), (2, 2)]
# fewer shards than the four readers of two ranks with two workers; a shard of one sample, and one of none, which counts as damaged
SHARDS = {"two": [12, 8], "one": [20], "uneven": [1, 5, 0, 14]}


@pytest.mark.parametrize(("world", "workers"), WORLDS)
@pytest.mark.parametrize("sizes", SHARDS.values(), ids=SHARDS)
def test_any_readers_read_any_shards_in_the_one_order(tmp_path: Path, sizes: list[int], world: int, workers: int) -> None:
    write_shards(tmp_path, sizes, captions=3)
    found = global_batches(tmp_path, 7, world=world, workers=workers, **WHOLE)
    assert found == global_batches(tmp_path, 7, **WHOLE)
    for epoch in (found[:2], found[2:4], found[4:6]):
        assert sorted(key for step in epoch for key, _, _ in step) == [f"{number:06d}" for number in range(20)]   # each once, by one reader
    assert found[5:] == global_batches(tmp_path, 2, world=world, workers=workers, seen=50, **WHOLE)


@pytest.mark.parametrize(("world", "workers"), WORLDS)
def test_every_sample_draws_for_itself_anew_each_epoch_and_alike_in_every_world(tmp_path: Path, world: int, workers: int) -> None:
    """Forty samples of one picture and one set of captions: what differs between two of them was drawn."""
    record = dict(pair(0, captions=5))["000000.json"]
    write_shards(tmp_path, [20, 20], odd={number: [(f"{number:06d}.jpg", jpeg(0)), (f"{number:06d}.json", record)] for number in range(40)})
    found = global_batches(tmp_path, 12, batch=10, world=world, workers=workers)
    views = Counter(pixels for step in found for _, pixels, _ in step)
    assert len(views) > 110   # of 120 in three epochs; a generator shared by workers, or begun anew each epoch, would repeat itself
    told = [[ids for _, _, ids in step] for step in found]
    assert all(len(set(step)) > 1 for step in told)
    assert told[:4] != told[4:8]
    assert found == global_batches(tmp_path, 12, batch=10)
