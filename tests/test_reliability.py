"""docs/reliability.md promises nothing without a test, and no test that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| G\d+ ", line)]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    defined = {node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert name in defined


def test_every_goal_names_a_test() -> None:
    assert len(ROWS) >= 20
    assert [row for row in ROWS if "`tests/" not in row] == []


def test_every_command_that_is_named_exists_and_has_a_dated_result() -> None:
    commands = set(re.findall(r"`python (scripts/\w+\.py) (\w+)`", TEXT))
    assert commands
    for script, goal in commands:
        assert f'"{goal}": ' in (ROOT / script).read_text(encoding="utf-8")
    goals = {re.match(r"\| (G\d+) ", row)[1] for row in ROWS if "`python scripts/" in row}  # type: ignore[index]
    results = TEXT.partition("## What the commands said last")[2]
    for goal in goals:
        assert re.search(rf"\d{{4}}-\d\d-\d\d.*\b{goal}\b|\b{goal}\b.*\d{{4}}-\d\d-\d\d", results), goal
