"""A crash at any step costs nothing but time: every one of thirty steps is where a run is killed once, and what it learns is the same to the bit.
All sixty: python -m pytest tests/recipes/test_crash_anywhere.py -m 'slow or not slow'"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.recipes.runs import in_child, keys, rows

STEPS = 30
LENGTH = (f"total={STEPS}_steps", "trainer.checkpoint_every=4_steps", "seed=3", "data.augment={scale: [0.5, 1.0], flip: 0.5, randaugment: [2, 5]}", "data.safe={min_crop: 0.0, mirror: true, randaugment: true}")
SETUPS = {"clip": ("model=clip",), "meter": ("model=meter",)}   # contrast; masked words and matching; both with dropout and every augmentation
SOON = (("clip", 0), ("clip", 14), ("clip", 29))   # that every run of the suite tries
HOOKS = ("on_train_batch_start", "on_after_backward", "on_before_zero_grad")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs that nobody disturbs, each made when it is first asked for."""
    return tmp_path_factory.mktemp("whole")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("name", "step"), [pytest.param(name, step, marks=() if (name, step) in SOON else pytest.mark.slow) for name in SETUPS for step in range(STEPS)]
)
def test_a_run_killed_at_a_step_ends_as_one_that_was_not(name: str, step: int, whole: Path, cache: Path, tmp_path: Path) -> None:
    command = (*SETUPS[name], *LENGTH)
    if not (whole / name).exists():
        assert in_child(whole / name, cache, *command) == 0, (whole / f"{name}.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *command, die=(HOOKS[step % len(HOOKS)], step)) == -9, (tmp_path / "run.log").read_text()[-3000:]
    assert in_child(tmp_path / "run", cache, *command, "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert list(keys(whole / name)) == list(range(1, STEPS + 1))
    assert sorted(keys(tmp_path / "run").items()) == sorted(keys(whole / name).items())
    assert rows(tmp_path / "run") == rows(whole / name)
    ours, theirs = weights(tmp_path / "run"), weights(whole / name)
    assert max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in theirs if theirs[key].numel()) == 0.0
    assert ours.keys() == theirs.keys()
