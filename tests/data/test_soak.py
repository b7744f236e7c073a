"""A loader keeps nothing that it should let go, a damaged shard hangs and crashes nothing, and what measures both would notice."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from shards import module

import train
from tests.builders import CONF
from vlpkit.compose import run_hydra
from vlpkit.data.fuzz import fuzz, mutate, survey, valid_shard
from vlpkit.errors import DataError
from vlpkit.program import check
from vlpkit.soak import Endured, Reading, endure, weigh, write_faulty

torch.set_num_threads(1)


def test_the_scales_see_memory_and_files() -> None:
    before = weigh(0)
    held = np.ones(50 << 20, dtype=np.uint8)
    with open(os.devnull, "rb"):
        after = weigh(0)
    assert 49 < after.megabytes - before.megabytes < 60
    assert after.files == before.files + 1
    del held
    assert weigh(0).megabytes < before.megabytes + 5


def test_growth_is_the_slope_after_the_start() -> None:
    readings = tuple(Reading(step, 100 + 0.003 * step + (50 if step > 1000 else 0), 7 + (step == 1000)) for step in range(500, 10_001, 500))
    found = Endured(readings, 1.0)
    assert found.growth(after=2000) == pytest.approx(3.0)
    assert found.growth(after=0) > 5
    assert (found.files(after=2000), found.files(after=0)) == ({7}, {7, 8})


def test_hundreds_of_batches_with_faults_leave_memory_and_files_as_they_were(tmp_path: Path) -> None:
    bad = write_faulty(tmp_path, samples=400, bad_share=0.01, seed=1)
    data = module(tmp_path, batch=8, max_bad_share=0.05)
    stream = iter(data.train_dataloader())
    assert bad == 4
    list(islice(stream, 100))
    before = weigh(0)
    list(islice(stream, 300))
    after = weigh(0)
    assert sum(data.report()["train"]["replaced"].values()) == 8 * bad  # epochs
    assert after.megabytes - before.megabytes < 4
    assert after.files == before.files
    del stream, data
    assert weigh(0).files <= before.files - 4  # one a shard: a loader that is let go closes them


def test_an_evaluation_leaves_no_file_open(tmp_path: Path) -> None:
    write_faulty(tmp_path, samples=40, bad_share=0.0, seed=1)
    data = module(tmp_path, val_shards="train-*.tar")
    counts = set()
    for _ in range(5):
        list(data.eval_batches(batch=16))
        counts.add(weigh(0).files)
    assert len(counts) == 1


def test_a_run_that_stops_and_goes_on_in_one_process_is_weighed_each_time(tmp_path: Path) -> None:
    def command(argv: list[str]) -> int:
        torch.set_num_threads(1)
        return run_hydra(train.train, conf=CONF, check=lambda cfg: check(cfg, conf=CONF), argv=argv)

    found = endure(command, tmp_path, steps=30, every=10, samples=200, seed=1)
    assert [reading.step for reading in found.readings] == [10, 20, 30]
    assert len(found.files(after=10)) == 1
    assert (tmp_path / "run" / "checkpoints" / "step_00000030.ckpt").is_file()
    with pytest.raises(DataError, match="the run ended with code 2 in the part up to step 10"):
        endure(command, tmp_path / "again", steps=10, every=10, samples=200, overrides=["size.dim=x"])


# -- fuzz -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shard_that_nobody_damaged_is_delivered_whole(tmp_path: Path, seed: int) -> None:
    (tmp_path / "whole.tar").write_bytes(valid_shard(seed))
    assert survey(tmp_path / "whole.tar") == {"delivered": 11}


def test_damage_depends_on_the_seed_alone() -> None:
    whole = valid_shard(0)
    first, again, other = (mutate(whole, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_damaged_shards_end_in_pixels_a_refusal_or_an_error_that_was_declared(tmp_path: Path) -> None:
    found = fuzz(tmp_path, mutations=120, seed=5)
    assert [trial.number for trial in found.trials] == list(range(120))
    assert (found.lost, found.undeclared) == ([], {})
    assert found.slowest <= 1
    assert {"delivered", "shard_refused", "missing_caption", "broken_regions"} <= set(found.outcomes)


def _kills(number: int) -> bytes:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return valid_shard(number)


def test_a_trial_that_kills_its_process_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    found = fuzz(tmp_path, mutations=12, seed=0, shard=_kills)
    assert found.lost == [3, 10]
    assert [trial.number for trial in found.trials] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]
