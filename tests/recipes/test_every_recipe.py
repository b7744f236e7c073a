"""Every recipe, by existing: it trains on the embedded world through the functions of train.py, measures what it names, and leaves no parameter behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.builders import RECIPES, composed, tiny_batch, tiny_model, tiny_streams
from tests.recipes.runs import in_child, rows
from vlpkit.assemble import Assembly


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def turns(made: Assembly) -> list[list[str]]:
    """The objectives of each turn of the plan, whatever their source."""
    return [[name for names in turn.ask.values() for name in names] for turn in made.plan.turns]


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_on_the_embedded_world_and_takes_its_own_evaluations(recipe: str, cache: Path, tmp_path: Path) -> None:
    tasks = [*composed(f"model={recipe}")["evals"]]
    code = in_child(tmp_path / "run", cache, f"model={recipe}", "total=2_steps", "seed=3", f"evals=[{','.join(tasks)}]")
    assert code == 0, (tmp_path / "run.log").read_text()[-3000:]
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "run") if row.get("train/loss")]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    found = {path.stem: json.loads(path.read_text())["metrics"] for path in (tmp_path / "run" / "eval").glob("*.json")}
    assert sorted(found) == sorted(tasks)
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_of_each_turn_reaches_every_parameter(recipe: str) -> None:
    torch.set_num_threads(1)
    made, words = tiny_model(f"model={recipe}")
    made.model.train()
    for step, names in enumerate(turns(made)):
        s = tiny_streams(made, tiny_batch(words), step=step)
        value = torch.stack([made.objectives[name].weight * made.objectives[name](s).value for name in names]).sum()
        assert value.isfinite()
        value.backward()
    learned = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert [name for name, p in learned.items() if p.grad is None] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
