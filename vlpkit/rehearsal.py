"""Gate 3 before anything heavy: assembly and a dry step with a stand-in tokenizer, so that a recipe that cannot work is refused at once.
Imports torch and the parts that the recipe names, but no Lightning and no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vlpkit.build import build
from vlpkit.data.tokenize import Words, load_words
from vlpkit.dry import dry_step
from vlpkit.durations import Clock, total
from vlpkit.fits import demand_cuda
from vlpkit.optim import Optim


def rehearse(settings: Mapping[str, Any], *, weights: Any = None) -> None:
    """Build on the meta device, take every turn once and sort its parameters into groups; lay outside weights beside it.

    Args:
        settings: of the run.
        weights: what the model is to start from, as `settings` may name it.

    Raises:
        AssemblyError: a missing part, draw or tie, widths that differ, a parameter that no objective reaches.
        ConfigError: an optimiser group that matches no parameter, a CUDA device that is asked for and is not there.
        WeightsError: a file that cannot be read, or keys and shapes that do not fit.
    """
    demand_cuda(settings["trainer"], there=torch.cuda.is_available)
    batch = int(settings["data"]["batch"])
    clock = total(settings["total"], Clock(batch=batch, samples_per_epoch=100 * batch))
    words = stand_in(settings["model"]["text"].get("words") or {})
    made, _ = dry_step(settings, words=words, clock=clock)
    optim: Optim = build(settings["optim"], clock, where="optim", total=clock.total_steps)
    optim.split(made.model)
    if weights is not None:
        from vlpkit.start import start

        start(made.model, weights, words=words, rehearsal=True)


def stand_in(node: Mapping[str, Any]) -> Words:
    """A tokenizer with the special tokens of the real one and hardly a word: enough to know what fits together."""
    told = {key: node[key] for key in ("template", "add", "length") if key in node}
    return load_words(name="", kind="wordpiece", size=100, captions=lambda: ["a b c"], **{"length": 64, **told})
