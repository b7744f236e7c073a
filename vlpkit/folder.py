"""A trained model as a folder that needs no checkpoint: config.yaml, model.safetensors with each shared tensor once, tokenizer/,
preprocessing.json, card.txt. `evaluate.py run=FOLDER` and `weights=FOLDER` read it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import Tensor

from vlpkit import __version__
from vlpkit.assemble import image_size
from vlpkit.data.tokenize import Words
from vlpkit.errors import ConfigError
from vlpkit.identity import redact
from vlpkit.layers.embed import Normalise
from vlpkit.model import VLModel
from vlpkit.source import CONFIG, TOKENIZER, WEIGHTS
from vlpkit.weights import canonical, everything

PREPROCESSING, CARD = "preprocessing.json", "card.txt"


def check_new(out: Path) -> None:
    """Raises ConfigError when a folder is there already and holds something."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and not empty. Choose another name, or remove it first.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the name `out` when the block ends well, and leaves no trace otherwise. Raises ConfigError as `check_new` does."""
    check_new(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    part.mkdir(parents=True)
    try:
        yield part
        if out.is_dir():
            out.rmdir()
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def own_tensors(model: VLModel) -> dict[str, Tensor]:
    """Every tensor of a model once, under its first address."""
    held = everything(model)
    return {name: held[name] for name, first in canonical(held).items() if name == first}


def save(tensors: Mapping[str, Tensor], path: Path, key: str, value: str) -> None:
    """A safetensors file with one word about it (several would stand in any order); a tensor that has several names is written under each."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path, metadata={key: value})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One key a line."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def preprocessing(model: VLModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """How an image becomes what the vision part reads.

    Returns:
        image_size (pixels a side), resize (squash, or crop: short side, then the centre), interpolation, mean and std of channels in [0, 1];
        or regions (which of a detector's), where no pixels are read.
    """
    if image_size(config) is None:
        return {"regions": {key: value for key, value in config["data"]["regions"].items() if key != "_target_"}}
    normalise = next(module for module in model.part("vision").modules() if isinstance(module, Normalise))
    mean, std = ([round(value, 8) for value in tensor.flatten().tolist()] for tensor in (normalise.mean, normalise.std))
    return {"image_size": image_size(config), "resize": config["data"]["eval_resize"], "interpolation": "bicubic", "mean": mean, "std": std}


def write(out: Path, *, model: VLModel, words: Words, config: Mapping[str, Any], card: str, step: int = 0, samples_seen: int = 0) -> None:
    """Write the folder, whole or not at all.

    Args:
        out: its name; nothing may be there.
        model: parts and heads; queues, teacher and optimiser stay behind.
        words: the tokenizer.
        config: the resolved configuration.
        card: a page of text.
        step: optimiser steps done.
        samples_seen: pairs consumed by them.
    """
    with new_folder(out) as folder:
        save(own_tensors(model), folder / WEIGHTS, "vlpkit", json.dumps({"version": __version__, "step": step, "samples_seen": samples_seen}))
        (folder / CONFIG).write_text(yaml.safe_dump(redact(config), sort_keys=False, width=120), encoding="utf-8")
        words.save(folder / TOKENIZER)
        write_json(folder / PREPROCESSING, preprocessing(model, config))
        (folder / CARD).write_text(card.rstrip("\n") + "\n", encoding="utf-8")
