"""VLMo in three stages by one command: what a stage freezes is what the stage before had made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.builders import ROOT
from tests.recipes.runs import NARROW


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [text for text in NARROW if text != "evals=[]"]
    return subprocess.run(
        [sys.executable, "train.py", "experiment=vlmo_stages", *words, "total=2_steps", f"run_dir={folder / 'run'}", f"paths.cache={folder / 'cache'}", *more],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_three_stages_run_in_order_and_hand_on_what_they_learned(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    vision, language, pairs = (weights(tmp_path / "run" / name) for name in ("vision", "language", "pairs"))
    block = "model.vision.trunk.blocks.0"
    frozen = [name for name in language if name.startswith((f"{block}.self", f"{block}.ffn.body.v.", f"{block}.ffn.norm.v."))]
    assert len(frozen) > 5
    assert all(torch.equal(vision[name], language[name]) for name in frozen)
    learned = [name for name in language if name.startswith(f"{block}.ffn.body.w.") and name.endswith("weight")]
    assert learned
    assert not any(torch.equal(vision[name], language[name]) for name in learned)
    assert not any(torch.equal(language[name], pairs[name]) for name in learned)
    account = (tmp_path / "run" / "pairs" / "weights.txt").read_text()
    assert f"weights: heads.mlm from {tmp_path / 'run' / 'language'} (vlpkit)\n" in account
    assert "  heads.mlm.dense.weight -> heads.mlm.dense.weight\n" in account
    again = command(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]   # all three are complete
    assert all(torch.equal(pairs[name], tensor) for name, tensor in weights(tmp_path / "run" / "pairs").items())


def test_an_experiment_in_stages_is_not_swept(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "seed=1,2")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("experiment: its runs follow one another, so it is not swept")
