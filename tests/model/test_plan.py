"""Which objectives at which step: pure in seed and step, by the chances that were named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from vlpkit.errors import AssemblyError
from vlpkit.plan import One

SOURCES = {"itm": "pairs", "wpa": "pairs", "mlm": "pairs"}
TURNS = [{"ask": {"pairs": ["itm", "wpa"]}, "chance": 3}, {"ask": {"pairs": ["mlm"]}}]


def one(turns: Any = TURNS, *, seed: int = 0) -> One:
    return One(sources=SOURCES, seed=seed, turns=turns)


def asked(plan: One, steps: int) -> list[tuple[str, ...]]:
    return [plan(step).ask["pairs"] for step in range(steps)]


def test_turns_come_by_their_chances() -> None:
    counts = Counter(asked(one(), 4000))
    assert set(counts) == {("itm", "wpa"), ("mlm",)}
    assert abs(counts["itm", "wpa"] / 4000 - 0.75) < 0.035   # five standard deviations


def test_a_step_has_the_same_turn_for_everyone_who_asks_in_any_order() -> None:
    there = asked(one(), 50)
    again = one()
    assert [again(step).ask["pairs"] for step in reversed(range(50))] == there[::-1]
    assert asked(one(seed=1), 50) != there


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "turns is empty"),
        ([{"ask": {"pairs": ["itn"]}}], r"turns\[0\]\.ask asks for 'itn', but there is itm, wpa, mlm\. Did you mean"),
        ([{"ask": {"images": ["itm"]}}], r"asks for 'itm' on 'images', but it reads 'pairs'"),
        ([{"ask": {"pairs": ["itm", "wpa"]}}], r"no turn asks for the objective 'mlm'"),
        ([{"ask": {"pairs": ["itm", "wpa", "mlm"]}, "chance": 0}], r"turns\[0\]\.chance is 0"),
        ([{"ask": {"pairs": ["itm"]}, "odds": 2}], r"turns\[0\] has the key 'odds'"),
        ([{"chance": 2}], r"turns\[0\]\.ask is None"),
    ],
)
def test_turns_that_mean_nothing_are_refused(turns: Any, message: str) -> None:
    with pytest.raises(AssemblyError, match=message):
        one(turns)
