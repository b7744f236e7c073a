"""Evaluations over two gloo processes give the digits of one process, whatever way the samples divide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders import tiny_model
from tests.evals.runs import VAL, Model, data_of, world
from tests.run.test_dist import two
from vlpkit import dist
from vlpkit.evals.base import Evaluator
from vlpkit.evals.caption import Captions
from vlpkit.evals.pairs import HardPairs
from vlpkit.evals.retrieval import Retrieval

torch.set_num_threads(1)


def tasks() -> list[Evaluator]:
    """Batches that divide unevenly, and one batch for both ranks: the second rank has no row then."""
    return [
        Retrieval(name="five", batch=5, k_test=10), Retrieval(name="one", batch=VAL), HardPairs(name="pairs", batch=4),
        HardPairs(name="few", batch=4, limit=3), Captions(name="caption", batch=6, length=6),
    ]  # fmt: skip


def measured(folder: Path) -> dict[str, Any]:
    assembly, words = tiny_model("model=blip")
    for number, p in enumerate(assembly.model.parameters()):
        p.data.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    model, data, found = Model(assembly), data_of(folder / "world", words), dict[str, Any]()
    for task in tasks():
        found[task.name] = {"metrics": dict(task(model, data)), "facts": task.facts, "predictions": task.predictions}
    return found


def _work(rank: int, folder: Path) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(measured(folder)))
    dist.barrier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("ranks")
    world(where)
    two(_work, where)
    return where


def test_two_ranks_report_the_digits_of_one(folder: Path) -> None:
    alone = json.loads(json.dumps(measured(folder)))
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    for name, found in alone.items():
        assert both[0][name] == found, name
        assert both[1][name]["metrics"] == found["metrics"], name
    assert len(alone["caption"]["predictions"]) == VAL
