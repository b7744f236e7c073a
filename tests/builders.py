"""Small real things for tests: a composed recipe, its tokenizer, a model at tiny width, a batch, the streams of one step."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from torch import Tensor

from vlpkit.assemble import Assembly, assemble
from vlpkit.check import settle
from vlpkit.data.regions import Found, pad
from vlpkit.data.tokenize import Words, load_words
from vlpkit.durations import Clock
from vlpkit.schema import register
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Batch, ImageInput

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
RECIPES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
CLOCK = Clock(batch=8, samples_per_epoch=80, total_steps=20)

NARROW = ("size.dim=32", "size.heads=2", "size.depth=2", "size.half=1", "size.late=1", "size.narrow.dim=32", "size.narrow.heads=2", "size.space=16",
          "size.image=32", "size.queue=24", "size.words=24")  # fmt: skip

CAPTIONS = [
    "a large red circle to the left of a small blue square", "two green triangles and a yellow star", "a small blue square above a large red circle",
    "one striped purple hexagon below a white cross", "three black dots in a row", "a yellow star inside a green ring",
    "a tiny orange heart right of two grey bars", "four small circles on a dark background",
]


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved, checked configuration of a command line, as plain containers."""
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base=None):
        cfg = hydra_compose(config_name="train", overrides=list(overrides))
    return settle(cfg, conf=CONF)[0]


@cache
def _trained(kind: str, length: int, template: str, add: tuple[str, ...], clean: str) -> Words:
    return load_words(name="", kind=kind, size=300, length=length, template=template, add=add, clean=clean, captions=lambda: CAPTIONS)  # type: ignore[arg-type]


def tiny_words(cfg: dict[str, Any]) -> Words:
    """The recipe's tokenizer, trained on a handful of captions."""
    node = cfg["model"]["text"]["words"]
    return _trained(node["kind"], node["length"], node.get("template", "[cls] {caption} [sep]"), tuple(node.get("add", ())), node.get("clean", "none"))


def tiny_model(*overrides: str, seed: int = 0) -> tuple[Assembly, Words]:
    """A recipe at narrow width, assembled with random weights that depend on `seed` alone."""
    cfg = composed(*NARROW, *overrides)
    words = tiny_words(cfg)
    torch.manual_seed(seed)
    return assemble(cfg, words=words, clock=CLOCK), words


def tiny_batch(words: Words, *, rows: int = 4, size: int = 32, seed: int = 0) -> Batch:
    """Random pictures and regions, of which a recipe reads one or the other, beside real captions."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 3, size, size), generator=rng, dtype=torch.uint8)
    start = int(torch.randint(len(CAPTIONS), (), generator=rng))
    texts = words.encode([CAPTIONS[(start + i) % len(CAPTIONS)] for i in range(rows)])
    regions, targets = tiny_regions(rows, rng)
    image = replace(regions, pixels=pixels)
    targets["answer"] = torch.where(torch.arange(rows) % 4 == 0, IGNORE, torch.randint(33, (rows,), generator=rng))
    second = words.encode([CAPTIONS[(start + i + 1) % len(CAPTIONS)] for i in range(rows)])
    targets["box"] = torch.rand(rows, 2, 2, generator=rng).sort(1).values.flatten(1) * (torch.arange(rows) % 4 != 1)[:, None]
    phrase = words.encode([" ".join(CAPTIONS[(start + i) % len(CAPTIONS)].split()[:4]) for i in range(rows)])
    return Batch({"clean": image}, {"clean": texts, "second": second, "phrase": phrase}, targets, torch.arange(rows), tuple(f"sample{i}" for i in range(rows)))


def tiny_regions(rows: int, rng: torch.Generator) -> tuple[ImageInput, dict[str, Tensor]]:
    """Regions as the embedded world has them at size=tiny, three to six an image, with all the targets there are."""
    found = []
    for row in range(rows):
        many = 3 + row % 4
        corners = torch.rand(many, 2, 2, generator=rng).sort(1).values.flatten(1)
        targets = {
            "class": torch.randint(1, 9, (many,), generator=rng), "confidence": torch.rand(many, generator=rng),
            "soft": torch.rand(many, 9, generator=rng).softmax(-1), "attribute": torch.randint(9, (many,), generator=rng),
            "attribute_confidence": torch.rand(many, generator=rng),
        }  # fmt: skip
        found.append(Found(torch.rand(many, 64, generator=rng).half(), corners, {f"region_{name}": t for name, t in targets.items()}))
    return pad(found)


def tiny_streams(assembly: Assembly, batch: Batch, *, step: int = 0, seed: tuple[int | str, ...] = (0,)) -> Streams:
    """The streams of one step."""
    return Streams(
        assembly.model, batch, draws=assembly.draws, step=step, seed=seed, teacher=None if assembly.teacher is None else assembly.teacher.model
    )
