"""Rates and ramps at the points where they can be read off."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vlpkit.maths.schedule import learning_rate, ramp

COMMON = {"peak": 1e-3, "total": 100, "warmup": 10, "warmup_from": 1e-5, "end": 1e-6}


def test_a_ramp_goes_from_zero_to_the_top_and_stays() -> None:
    assert [ramp(step, 4, 0.4) for step in (0, 1, 2, 4, 400)] == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])


def test_a_ramp_over_nothing_is_at_the_top_at_once() -> None:
    assert ramp(0, 0, 0.4) == 0.4


def test_warm_up_ends_at_the_peak() -> None:
    rates = [learning_rate(step, shape="cosine", **COMMON) for step in range(11)]  # type: ignore[arg-type]
    assert rates[9] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[0] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 10)
    assert all(a < b for a, b in pairwise(rates[:10]))


def test_cosine_is_half_way_in_the_middle_and_at_its_end_at_the_end() -> None:
    assert learning_rate(55, shape="cosine", **COMMON) == pytest.approx((1e-3 + 1e-6) / 2)  # type: ignore[arg-type]
    assert learning_rate(100, shape="cosine", **COMMON) == pytest.approx(1e-6)  # type: ignore[arg-type]
    assert learning_rate(500, shape="cosine", **COMMON) == pytest.approx(1e-6)  # type: ignore[arg-type]
    quarter = 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi / 3))
    assert learning_rate(40, shape="cosine", **COMMON) == pytest.approx(quarter)  # type: ignore[arg-type]


def test_linear_falls_by_the_same_amount_each_step_and_stays_at_its_end() -> None:
    found = [learning_rate(step, shape="linear", **COMMON) for step in (10, 55, 100, 500)]  # type: ignore[arg-type]
    assert found == pytest.approx([1e-3, (1e-3 + 1e-6) / 2, 1e-6, 1e-6])


def test_constant_stays_at_the_peak() -> None:
    assert learning_rate(99, shape="constant", **COMMON) == 1e-3  # type: ignore[arg-type]


def test_steps_drop_by_the_factor_and_stop_at_the_end() -> None:
    rates = [learning_rate(step, shape="step", period=20, factor=0.1, **COMMON) for step in (10, 19, 20, 40, 60, 80)]  # type: ignore[arg-type]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, peak=1.0, total=10, warmup=0, warmup_from=0.0, end=0.0, shape="cosine") == 1.0
