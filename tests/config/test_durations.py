"""Durations: what people write, exactly, and the steps that it comes to."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vlpkit.durations import Clock, parse, total
from vlpkit.errors import ConfigError

CLOCK = Clock(batch=8, samples_per_epoch=100, total_steps=300)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (300, 300, "steps"), ("300", 300, "steps"), ("10_000_steps", 10_000, "steps"), ("1_step", 1, "steps"), ("2M_samples", 2_000_000, "samples"),
        ("1.5M_samples", 1_500_000, "samples"), ("12k_samples", 12_000, "samples"), ("13B_samples", 13_000_000_000, "samples"),
        ("0.5_epochs", Fraction(1, 2), "epochs"), ("1_epoch", 1, "epochs"), ("0.1_percent", Fraction(1, 10), "percent"),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_and_a_unit(text: str | int, amount: Fraction, unit: str) -> None:
    assert parse(text) == (amount, unit)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("7_steps", 7), ("800_samples", 100), ("801_samples", 101), ("2_epochs", 25), ("1_epochs", 13), ("10_percent", 30), ("0.1_percent", 1), ("0_steps", 0)],
)
def test_steps_last_at_least_as_long_as_what_was_asked(text: str, steps: int) -> None:
    assert CLOCK.steps(text) == steps


def test_a_tenth_is_exact() -> None:
    """0.1 * 30 is 3.0000000000000004 in floating point, which would round up to 4."""
    assert Clock(batch=1, samples_per_epoch=30).steps("0.1_epochs") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soon", "optim.warmup: 'soon' is no duration (write 2000_steps, 2_epochs, 1.5M_samples or 10_percent)."),
        ("2_epochs_3_steps", "optim.warmup: '2_epochs_3_steps' is no duration (write 2000_steps, 2_epochs, 1.5M_samples or 10_percent)."),
        ("-3_steps", "optim.warmup: '-3_steps' is no duration (write 2000_steps, 2_epochs, 1.5M_samples or 10_percent)."),
        ("3_epoks", "optim.warmup: '3_epoks' has no unit that is known (units: steps, samples, epochs, percent). Did you mean 3_epochs?"),
        ("3_weeks", "optim.warmup: '3_weeks' has no unit that is known (units: steps, samples, epochs, percent)."),
        ("101_percent", "optim.warmup: '101_percent' is more than the whole run (0 to 100 percent)."),
        (True, "optim.warmup: True is no duration (write 2000_steps, 2_epochs, 1.5M_samples or 10_percent)."),
    ],
)
def test_what_is_no_duration_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        CLOCK.steps(text, place="optim.warmup")
    assert str(error.value) == message


def test_a_share_of_the_run_cannot_set_the_length_of_the_run() -> None:
    with pytest.raises(ConfigError) as error:
        total("10_percent", Clock(batch=8, samples_per_epoch=100))
    assert str(error.value) == "total: '10_percent' is a share of the whole run, whose length this sets (write steps, samples or epochs)."


def test_epochs_need_a_length_of_the_data() -> None:
    with pytest.raises(ConfigError, match="'2_epochs' counts epochs, but the length of the data is not known"):
        Clock(batch=8).steps("2_epochs")


def test_the_total_completes_the_clock_and_is_at_least_one_step() -> None:
    assert total("2_epochs", Clock(batch=8, samples_per_epoch=100)).steps("50_percent") == 13
    with pytest.raises(ConfigError, match="total: '0_steps' is no training at all"):
        total("0_steps", Clock(batch=8))
