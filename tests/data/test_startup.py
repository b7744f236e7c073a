"""A start reads what its first batches need: no shard is walked again, a window of tables is unpacked, and what is held open stays bounded."""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shards import module, write_shards

from vlpkit.bench.made import many
from vlpkit.bench.startup import _START, first_batch
from vlpkit.data.index import build_index
from vlpkit.data.reader import Reader
from vlpkit.data.table import Table

_opened: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(args[0]))


@functools.cache
def watch() -> None:
    """Once: an audit hook can never be taken away again."""
    sys.addaudithook(_hook)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Paths of all files that are opened meanwhile."""
    global _opened
    watch()
    _opened = []
    yield _opened
    _opened = None


def kinds(paths: list[str]) -> Counter[str]:
    return Counter(os.path.splitext(path)[1] for path in paths)


def test_a_start_in_the_middle_opens_the_shards_of_its_window_alone(tmp_path: Path, opened: list[str]) -> None:
    many(tmp_path, shards=40, samples=16)
    settings: dict[str, Any] = {"shards": "*.tar", "val_shards": None, "batch": 16, "window": 4}
    stream = iter(module(tmp_path, **settings).train_dataloader())
    keys = [next(stream)["pairs"].keys for _ in range(30)]  # type: ignore[union-attr]
    opened.clear()
    data = module(tmp_path, **settings)
    data.load_state_dict({**data.state_dict(), "samples_seen": 25 * 16})
    again = iter(data.train_dataloader())
    assert [next(again)["pairs"].keys for _ in range(3)] == keys[25:28]  # type: ignore[union-attr]
    found = kinds(opened)
    assert found[".tar"] <= 4  # to read samples; none to index it
    assert found[".table"] <= 40 + 4  # the head of each, and those of the window


def test_open_files_and_tables_stay_bounded_over_an_epoch(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2] * 90)
    index = build_index(paths, cache=tmp_path / "cache")
    reader = Reader(index)
    gc.collect()
    tables = sum(isinstance(thing, Table) for thing in gc.get_objects())
    files = len(os.listdir("/proc/self/fd"))
    counts = []
    for _ in range(3):
        for number in range(len(index)):
            reader.read(number)
        gc.collect()
        counts.append((len(os.listdir("/proc/self/fd")) - files, sum(isinstance(thing, Table) for thing in gc.get_objects()) - tables))
    assert counts[0] == counts[1] == counts[2]
    assert 0 < counts[0][0] <= 32
    assert 0 < counts[0][1] <= 64


def test_the_start_that_is_measured_is_the_start_of_a_run(tmp_path: Path) -> None:
    many(tmp_path, shards=4, samples=200)
    whole, middle = first_batch(str(tmp_path), 0), first_batch(str(tmp_path), 256)
    assert whole["samples"] == middle["samples"] == 800
    run = subprocess.run(
        [sys.executable, "-c", _START, str(tmp_path), "256"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found["first_key"] == middle["first_key"] != whole["first_key"]
    assert found["processor_s"] > 0
