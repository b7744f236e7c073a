"""A run that is killed and continued is the run that was never interrupted: same samples, same numbers, same weights, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.recipes.runs import in_child, keys, rows

STEPS, EVERY = 11, 3
LENGTH = (f"total={STEPS}_steps", f"trainer.checkpoint_every={EVERY}_steps", "seed=7", "data.limit=112")   # an epoch ends with the seventh step
SETUPS = {"albef": ("model=albef",), "blip": ("model=blip", "trainer.micro_batch=8")}  # BLIP with two micro-batches a step


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Path]:
    """The uninterrupted runs."""
    folder, runs = tmp_path_factory.mktemp("whole"), {}
    for name, setup in SETUPS.items():
        runs[name] = folder / name
        assert in_child(runs[name], cache, *setup, *LENGTH) == 0, (folder / f"{name}.log").read_text()[-3000:]
    return runs


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("albef", [("on_train_batch_start", 5)]),                                        # between two checkpoints
        # in one epoch before the first, between two and right after one, and once more at the epoch's end
        ("albef", [("on_before_optimizer_step", 1), ("on_after_backward", 4), ("on_after_backward", 6), ("on_train_batch_end", 7)]),
        ("blip", [("on_after_backward", 4), ("on_before_zero_grad", 7)]),
    ],
)
def test_a_killed_run_continues_as_if_nothing_had_happened(name: str, kills: list[tuple[str, int]], whole: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for kill in kills:
        assert in_child(run, cache, *SETUPS[name], *LENGTH, "resume=auto", die=kill) == -9, (tmp_path / "run.log").read_text()[-3000:]
    assert in_child(run, cache, *SETUPS[name], *LENGTH, "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert keys(run) == keys(whole[name])
    assert rows(run) == rows(whole[name])
    ours, theirs = weights(run), weights(whole[name])
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("teacher.") for key in ours)
    assert any("queue" in key for key in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_same_seed_writes_the_same_numbers_and_another_seed_does_not(whole: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    assert in_child(tmp_path / "same", cache, *SETUPS["albef"], *LENGTH) == 0
    assert in_child(tmp_path / "other", cache, *SETUPS["albef"], *LENGTH, "seed=8") == 0
    assert rows(tmp_path / "same") == rows(whole["albef"])
    assert rows(tmp_path / "other")[0] != rows(whole["albef"])[0]


def test_a_finished_run_has_nothing_left_to_do(whole: dict[str, Path], cache: Path) -> None:
    before = rows(whole["albef"])
    assert in_child(whole["albef"], cache, *SETUPS["albef"], *LENGTH, "resume=auto") == 0
    assert rows(whole["albef"]) == before


def test_metrics_are_complete(whole: dict[str, Path]) -> None:
    table = rows(whole["blip"])
    assert [int(row["step"]) for row in table] == list(range(1, STEPS + 1))
    for column in ("train/loss", "train/itc/loss", "train/itm/loss", "train/lm/loss", "train/lr", "train/grad_norm", "train/samples_seen", "data/bad_share"):
        assert all(torch.isfinite(torch.tensor(float(row[column]))) for row in table), column
    assert float(table[-1]["train/samples_seen"]) == STEPS * 16


def test_a_run_of_two_sources_continues_with_both(cache: Path, tmp_path: Path) -> None:
    setup = ("model=simvlm", "trainer.micro_batch=8", "trainer.log_every=1", *LENGTH)   # two micro-batches a step, of 8 pairs and one text
    assert in_child(tmp_path / "whole", cache, *setup) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *setup, die=("on_after_backward", 5)) == -9, (tmp_path / "run.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *setup, "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert keys(tmp_path / "run") == keys(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert float(rows(tmp_path / "run")[-1]["train/samples_seen"]) == STEPS * 16   # pairs alone are counted
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_of_two_kinds_of_optimiser_continues_with_both(cache: Path, tmp_path: Path) -> None:
    setup = ("model=clip", "optim.groups=[{match: vision, kind: sgd, lr: 0.1, decay: 5.0e-4}]", *LENGTH)
    assert in_child(tmp_path / "whole", cache, *setup) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *setup, die=("on_after_backward", 5)) == -9, (tmp_path / "run.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *setup, "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_tells_loaded_parameters_from_fresh_ones_goes_on_without_the_file(cache: Path, tmp_path: Path) -> None:
    assert in_child(tmp_path / "first", cache, "model=clip", "total=2_steps", "trainer.checkpoint_every=2_steps") == 0, (tmp_path / "first.log").read_text()[-3000:]
    groups = "optim.groups=[{match: norm, lr_scale: 1.0}, {match: loaded, lr_scale: 0.1}, {match: fresh, lr_scale: 5.0}]"
    setup = ("model=clip", f"weights={{vision: {tmp_path / 'first'}}}", groups, *LENGTH)
    assert in_child(tmp_path / "whole", cache, *setup) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *setup, die=("on_after_backward", 5)) == -9, (tmp_path / "run.log").read_text()[-3000:]
    shutil.rmtree(tmp_path / "first")
    assert in_child(tmp_path / "run", cache, *setup, "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    loaded = checkpoint["vlpkit"]["loaded"]
    assert loaded
    assert all(name.startswith("vision.") for name in loaded)
    (state,) = checkpoint["optimizer_states"]
    counts = {scale: sum(len(group["params"]) for group in state["param_groups"] if group["scale"] == scale) for scale in (0.1, 1.0, 5.0)}
    assert counts[0.1] == sum(not name.rpartition(".")[0].endswith("norm") for name in loaded)
    assert min(counts.values()) > 5
