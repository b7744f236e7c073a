"""A run goes on with other processes: killed on one, continued on two and on one again, it sees the global batches of the run that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.runs import in_child, keys, on_ranks, rows

STEPS = 9
LENGTH = ("model=clip", f"total={STEPS}_steps", "trainer.checkpoint_every=1_steps", "seed=7")
MIX = ("++data.mix={shapes: 1.0, held: {shards: val-*.tar, weight: 2.5}}",)   # 120 and 40 samples an epoch: it ends in the eighth step
SETUPS = {"one set": (), "a mixture": MIX}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_run_continues_on_two_processes_and_on_one_again(setup: tuple[str, ...], cache: Path, tmp_path: Path) -> None:
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "run.log"
    command = (*LENGTH, *setup)
    assert in_child(whole, cache, *command) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert in_child(run, cache, *command, die=("on_after_backward", 2)) == -9, log.read_text()[-3000:]
    assert 0 not in on_ranks(run, cache, *command, "resume=auto", "data.workers=1", "trainer.micro_batch=4", world=2, die=("on_train_batch_start", 5)), log.read_text()[-3000:]
    assert on_ranks(run, cache, *command, "resume=auto", "data.workers=2", "total=7_steps", world=2) == [0, 0], log.read_text()[-3000:]
    assert in_child(run, cache, *command, "resume=auto", "data.workers=2") == 0, log.read_text()[-3000:]
    starts = sorted({path.name.split("_", 1)[1] for path in run.glob("keys_*.txt")})
    assert starts == ["0_0_of_1.txt", "1_0_of_2.txt", "1_1_of_2.txt", "2_0_of_2.txt", "2_1_of_2.txt", "3_0_of_1.txt"]
    assert list(keys(whole)) == list(range(1, STEPS + 1))
    assert sorted(keys(run).items()) == sorted(keys(whole).items())
    assert [row["train/samples_seen"] for row in rows(run)] == [row["train/samples_seen"] for row in rows(whole)]
