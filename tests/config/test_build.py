"""From blocks to objects: nested blocks, offers, durations, and errors that name the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config import parts
from vlpkit.build import build
from vlpkit.durations import Clock
from vlpkit.errors import AssemblyError, ConfigError

P = "tests.config.parts"
CLOCK = Clock(batch=8, samples_per_epoch=80, total_steps=200)


def test_nested_blocks_are_built_first_and_offers_reach_every_one() -> None:
    made = build({"_target_": f"{P}.Encoder", "trunk": {"_target_": f"{P}.Trunk", "depth": 2}}, dim=16)
    assert isinstance(made, parts.Encoder)
    assert isinstance(made.trunk, parts.Trunk)
    assert (made.dim, made.trunk.dim, made.trunk.depth) == (16, 16, 2)


def test_what_the_block_says_wins_over_what_is_offered() -> None:
    assert build({"_target_": f"{P}.Trunk", "dim": 4, "depth": 0}, dim=16).dim == 4


def test_an_offer_that_nothing_takes_is_left() -> None:
    assert build({"_target_": f"{P}.Quiet"}, dim=16, words=object()).weight == 1.0


def test_values_become_what_the_annotation_says() -> None:
    made = build({"_target_": f"{P}.Trunk", "depth": 1, "ratio": 2, "block": ["self", "cross"]}, dim=4)
    assert (made.ratio, type(made.ratio), made.block) == (2.0, float, ("self", "cross"))
    optim = build({"_target_": f"{P}.Optim", "lr": 1, "warmup": "10_percent", "folder": "runs/a", "betas": [0, 1]}, CLOCK)
    assert (optim.lr, optim.warmup, optim.folder, optim.betas) == (1.0, 20, Path("runs/a"), (0.0, 1.0))


@pytest.mark.parametrize(("ramp", "steps"), [("2_epochs", 20), ("64_samples", 8), (7, 7), (None, None)])
def test_durations_become_steps(ramp: Any, steps: int | None) -> None:
    assert build({"_target_": f"{P}.MomentumContrast", "queue": 4, "ramp": ramp}, CLOCK, space=2).ramp == steps


def test_without_a_clock_only_steps_can_be_read() -> None:
    assert build({"_target_": f"{P}.Optim", "lr": 1, "warmup": "5_steps"}).warmup == 5
    with pytest.raises(ConfigError) as error:
        build({"_target_": f"{P}.Optim", "lr": 1, "warmup": "1_epochs"}, where="optim")
    assert str(error.value) == "optim.warmup: '1_epochs' cannot be turned into steps here (write a number of steps)."


def test_objects_that_are_built_already_stay_what_they_are() -> None:
    trunk = parts.Trunk(4, depth=1)
    assert build({"_target_": f"{P}.Encoder", "trunk": trunk}, dim=4).trunk is trunk


def test_functions_and_methods_are_called() -> None:
    assert build({"_target_": f"{P}.Anything.small", "second": 2}).rest == {"second": 2}
    assert build({"_target_": f"{P}.teacher", "momentum": 0.5}, model="m") == ("m", 0.5)


def test_a_value_that_the_constructor_refuses_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError) as error:
        build({"_target_": f"{P}.Encoder", "trunk": {"_target_": f"{P}.Trunk", "depth": -1}}, where="model.vision", dim=4)
    assert str(error.value) == "model.vision.trunk: Trunk refused this: depth -1 is negative"


def test_our_own_errors_pass_as_they_are() -> None:
    with pytest.raises(AssemblyError, match=r"^no words$"):
        build({"_target_": f"{P}.refuse", "why": "no words"})


def test_a_block_is_checked_against_what_is_really_offered() -> None:
    with pytest.raises(ConfigError) as error:
        build({"_target_": f"{P}.Encoder", "trunk": {"_target_": f"{P}.Trunk", "depth": 1, "dpth": 2}}, where="model.vision")
    assert str(error.value) == "model.vision.dim: Encoder needs 'dim', and nothing gives it.\n  Write model.vision.dim=..."


def test_what_is_not_trusted_is_not_built() -> None:
    with pytest.raises(ConfigError, match=r"model.vision._target_: 'os.system' may not be named here"):
        build({"_target_": "os.system", "command": "true"}, where="model.vision")
