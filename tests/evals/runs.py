"""A small world on disk, a data module over it, and a checkpoint of a tiny model with random weights in a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.builders import NARROW, composed, tiny_model
from vlpkit.assemble import Assembly
from vlpkit.build import build
from vlpkit.checkpoint import SafeCheckpointIO
from vlpkit.data.module import DataModule
from vlpkit.data.shapes.write import write_world
from vlpkit.data.tokenize import Words
from vlpkit.lit import PretrainModule

VAL = 23  # samples for validation: divides by nothing that the tests divide by


@dataclass(frozen=True)
class Model:
    """What evaluators read of a training module."""

    assembly: Assembly
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def world(folder: Path, *, val: int = VAL) -> Path:
    """20 scenes for training and `val` for validation, 32 pixels a side."""
    return write_world(folder / "world", seed=1, train=20, val=val, image_size=32, noise=0.0, samples_per_shard=10)


def settings(where: Path) -> dict[str, Any]:
    """The data block of a configuration."""
    return {
        "_target_": "vlpkit.data.module.DataModule", "name": "tiny", "shards": "train-*.tar", "val_shards": "val-*.tar", "batch": 8,
        "augment": {"scale": [0.9, 1.0], "flip": 0.0, "randaugment": None}, "safe": {"min_crop": 0.9, "mirror": False, "randaugment": False},
        "eval_resize": "squash", "root": str(where), "cache": str(where.parent / "cache"),
    }  # fmt: skip


def data_of(where: Path, words: Words, **changes: Any) -> DataModule:
    """The data module over a world."""
    made: DataModule = build({**settings(where), **changes}, where="data", image_size=32, seed=0, words=words)
    return made


def saved(folder: Path, where: Path, *overrides: str) -> tuple[Model, Words]:
    """A run folder with one checkpoint, step 7, of a tiny model; the same model in memory."""
    assembly, words = tiny_model(*overrides)
    config = composed(*NARROW, *overrides) | {"data": settings(where)}
    module = PretrainModule(assembly, optim=None, seed=0, record={"config": config, "words": words.to_state(), "card": ""})  # type: ignore[arg-type]
    for number, p in enumerate(module.model.parameters()):  # away from the seed, so that only the file can tell
        p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 7}
    module.samples_seen = 56
    module.on_save_checkpoint(checkpoint)
    SafeCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "step_00000007.ckpt")
    return Model(assembly), words
