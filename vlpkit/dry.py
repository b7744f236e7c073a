"""The dry step: a recipe assembled on the meta device and taken through every turn once, so that what cannot work is refused in a moment.
It costs no memory and reads no data."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vlpkit.assemble import Assembly, assemble, at, detections, image_size
from vlpkit.data.tokenize import Words
from vlpkit.data.wishes import PAIRS
from vlpkit.durations import Clock
from vlpkit.errors import AssemblyError, no_source
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput, TextInput


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Keeps torch's compiler out of a process that only looks at shapes: the first element-wise operation on the meta device would import it,
    for longer than all the rest takes, and all it is asked for is to stay away from that operation."""
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    vars(stand_in)["disable"] = lambda fn, *_, **__: fn
    sys.modules[name] = stand_in
    torch._dynamo = stand_in
    try:
        yield
    finally:
        del sys.modules[name], torch._dynamo


class _Unfilled(TorchFunctionMode):
    """Leaves meta tensors as they are where random numbers would fill them: asking would load half of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.Tensor.normal_ or func in vars(nn.init).values():
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def dry_step(cfg: Mapping[str, Any], *, words: Words, clock: Clock) -> tuple[Assembly, dict[str, Counter[str]]]:
    """Build on the meta device and run every turn there, forward and backward: no memory, no data, a second at most.

    Returns:
        The assembly on the meta device, and the passes of each source's student and teacher (`teacher.NAME`) in one step; of several
        turns, the most that any makes.

    Raises:
        AssemblyError: what would have failed in the first step, and parameters that no objective of any turn reaches.
    """
    with torch.device("meta"), _Unfilled():
        made = assemble(cfg, words=words, clock=clock)
    with _without_compiler():
        counts = _passes(made, cfg, words)
    dead = [name for name, p in made.model.named_parameters() if p.requires_grad and p.grad is None]
    if dead:
        shown = "\n".join(f"    {name}" for name in dead[:8]) + (f"\n    ... and {len(dead) - 8} more" if len(dead) > 8 else "")
        raise AssemblyError(
            f"model: {len(dead)} parameters of {cfg['name']!r} are reached by no objective ({', '.join(made.objectives)}):\n{shown}\n"
            "  Add an objective that reads them, drop the part, or freeze them (model.freeze=[ADDRESS])."
        )
    return made, counts


def _passes(made: Assembly, cfg: Mapping[str, Any], words: Words) -> dict[str, Counter[str]]:
    """Every turn forward and backward; the passes of each source."""
    counts: dict[str, Counter[str]] = {}
    for turn in made.plan.turns:
        for source, names in turn.ask.items():
            with at(f"objectives.{names[0]}"):
                blank = _blank(cfg, words, source)
            s = Streams(made.model, blank, draws=made.draws, teacher=None if made.teacher is None else made.teacher.model)
            total: list[torch.Tensor] = []
            for name in names:
                with at(f"objectives.{name}"):
                    total.append(made.objectives[name](s).value)
                    made.objectives[name].after_batch(s)
            torch.stack(total).sum().backward()
            spent = s.counts + Counter({f"teacher.{k}": n for k, n in (s._teacher.counts if s._teacher else Counter[str]()).items()})
            counts[source] = counts.get(source, Counter()) | spent  # of several turns, the most that any makes
    return counts


def _blank(cfg: Mapping[str, Any], words: Words, source: str) -> Batch:
    """A batch of zeros with what the vision part reads and the source holds. Raises AssemblyError when the data have no such source."""
    beside = {name: node for name, node in (cfg["data"].get("sources") or {}).items() if node is not None}
    if source != PAIRS and source not in beside:
        raise AssemblyError(no_source(source, [PAIRS, *beside]))
    size, rows = image_size(cfg), 4
    with torch.device("meta"):
        ids = torch.zeros(rows, min(words.length, 16), dtype=torch.int64)
        mask = torch.ones(ids.shape, dtype=torch.bool)  # not ones_like: on the meta device that loads a symbolic algebra system
        if size is None:
            image, targets = detections(cfg).blank(rows)
        else:
            image, targets = ImageInput(torch.zeros(rows, 3, size, size)), {}
        if cfg["data"].get("questions") is not None:
            targets["answer"] = torch.zeros(rows, dtype=torch.int64)
        if cfg["data"].get("phrases") is not None:
            targets["box"] = torch.zeros(rows, 4)
        held = beside[source].get("holds") if source in beside else None
        if held == "texts":
            return Batch({}, {"clean": TextInput(ids, mask)}, {}, torch.zeros(rows, dtype=torch.int64))
        if held == "images":
            return Batch({"clean": image}, {}, targets, torch.zeros(rows, dtype=torch.int64))
        more = [name for name, key in (("second", "second"), ("phrase", "phrases")) if cfg["data"].get(key)]
        texts = {name: TextInput(ids, mask) for name in ("clean", *more)}
        return Batch({"clean": image}, texts, targets, torch.zeros(rows, dtype=torch.int64))
