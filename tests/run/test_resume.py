"""A resumed run is the uninterrupted run: batches, weights, rates and the metrics file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.run.toy import BATCH, Toy, engine, opened

torch.set_num_threads(1)
NOT_TIMED = "perf/"


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path) -> list[dict[str, str]]:
    """The metrics, without what a stopwatch says."""
    with open(folder / "metrics.csv") as file:
        return [{name: value for name, value in row.items() if not name.startswith(NOT_TIMED)} for row in csv.DictReader(file)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("crashes", [(5,), (1,), (4,), (11,), (5, 6, 9), (8, 10)])
def test_a_run_that_crashed_ends_bit_for_bit_as_one_that_did_not(tmp_path: Path, accumulate: int, crashes: tuple[int, ...]) -> None:
    whole, *_ = engine(opened(tmp_path / "whole"), accumulate=accumulate)
    seen: dict[int, list[list[int]]] = {}
    for at in crashes:
        crashed = Toy()
        with pytest.raises(KeyError, match="crash"):
            engine(opened(tmp_path / "parts"), accumulate=accumulate, stop_at=at, module=crashed)
        seen |= by_step(crashed.seen)
    resumed, trainer, data = engine(opened(tmp_path / "parts"), accumulate=accumulate)
    seen |= by_step(resumed.seen)
    assert same(weights(resumed), weights(whole))
    assert seen == by_step(whole.seen)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert (trainer.global_step, data.samples_seen) == (12, 12 * BATCH)


def by_step(seen: list[list[int]]) -> dict[int, list[list[int]]]:
    found: dict[int, list[list[int]]] = {}
    for step, *index in seen:
        found.setdefault(step, []).append(index)
    return found


def test_a_run_that_is_done_has_nothing_to_do(tmp_path: Path) -> None:
    whole, *_ = engine(opened(tmp_path))
    before = (tmp_path / "metrics.csv").read_bytes()
    again, trainer, _ = engine(opened(tmp_path))
    assert again.seen == []
    assert trainer.global_step == 12
    assert same(weights(again), weights(whole))
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_longer_total_goes_on_where_the_shorter_ended(tmp_path: Path) -> None:
    engine(opened(tmp_path / "parts"), total=5)
    resumed, *_ = engine(opened(tmp_path / "parts"), total=12)
    assert [step for step, *_ in resumed.seen] == list(range(5, 12))
    assert resumed.seen[0][1] == 5 * BATCH


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 2), (2, 4)])
def test_the_accumulation_may_change_between_two_parts(tmp_path: Path, before: int, after: int) -> None:
    with pytest.raises(KeyError):
        engine(opened(tmp_path), accumulate=before, stop_at=4, every=3)
    resumed, trainer, _ = engine(opened(tmp_path), accumulate=after, every=3)
    assert trainer.global_step == 12
    size = BATCH // after
    assert by_step(resumed.seen) == {
        step: [list(range(start, start + size)) for start in range(step * BATCH, (step + 1) * BATCH, size)] for step in range(3, 12)
    }
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("at", [5, 11])
def test_a_loader_that_knows_how_much_remains_is_served_as_well(tmp_path: Path, at: int) -> None:
    whole, *_ = engine(opened(tmp_path / "whole"), accumulate=2, sized=True)
    with pytest.raises(KeyError):
        engine(opened(tmp_path / "parts"), accumulate=2, stop_at=at, sized=True)
    resumed, *_ = engine(opened(tmp_path / "parts"), accumulate=2, sized=True)
    assert same(weights(resumed), weights(whole))
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_changed_rate_takes_effect_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine(opened(tmp_path), total=4)
    engine(opened(tmp_path), total=6, module=Toy(lr=5e-3))
    rates = {int(row["step"]): float(row["train/lr"]) for row in rows(tmp_path)}
    assert rates[4] == pytest.approx(1e-2 / 1.3)
    assert rates[5] == pytest.approx(5e-3 / 1.4)
    assert "initial_lr is 0.005 from here on (the checkpoint has 0.01)" in caplog.text


def test_an_older_checkpoint_file_may_be_chosen_and_later_ones_are_set_aside(tmp_path: Path) -> None:
    whole, *_ = engine(opened(tmp_path), keep=3)
    run = opened(tmp_path, resume=str(tmp_path / "checkpoints" / "step_00000004.ckpt"))
    assert (run.folder, run.step) == (tmp_path, 4)
    again, *_ = engine(run, keep=3)
    assert [step for step, *_ in again.seen] == list(range(4, 12))
    assert same(weights(again), weights(whole))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.superseded")) == [
        "last.ckpt.superseded", "step_00000008.ckpt.superseded", "step_00000012.ckpt.superseded",
    ]  # fmt: skip


def test_evaluation_leaves_training_alone(tmp_path: Path) -> None:
    often, *_ = engine(opened(tmp_path / "often"), eval_every=1)
    never, *_ = engine(opened(tmp_path / "never"), eval_every=None)
    assert same(weights(often), weights(never))
    assert [row["val/toy/norm"] != "" for row in rows(tmp_path / "never")] == [False] * 11 + [True]
    assert all(row["val/toy/norm"] for row in rows(tmp_path / "often"))
