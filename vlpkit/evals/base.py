"""What every evaluator is, and the record it leaves: numbers, the protocol they follow, how much was evaluated, predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vlpkit.assemble import Assembly
from vlpkit.data.module import DataModule
from vlpkit.data.tokenize import Words
from vlpkit.errors import AssemblyError, ConfigError
from vlpkit.objectives.itm import Match
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput, Pairing, TextInput

log = logging.getLogger(__name__)


class Subject(Protocol):
    """What is evaluated: a training module, or a model restored from a checkpoint."""

    @property
    def assembly(self) -> Assembly: ...

    @property
    def device(self) -> torch.device: ...


class Evaluator:
    """One task. Called on all ranks with the model in eval mode; every rank gets the same values.

    Args:
        name: of the task: metrics are `val/<name>/<metric>`, the record is `eval/<name>.json`.

    Attributes:
        protocol: what the numbers mean, with a version; numbers of different protocols are not comparable.
        facts: after a call: number of items, ties and the like, as plain types.
        predictions: after a call, on the first rank: one plain record an item; empty when the task makes none.
    """

    protocol = ""

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self.predictions: list[dict[str, Any]] = []

    def lacks(self, assembly: Assembly) -> str | None:
        """What the model is missing for this task at all, as a sentence; None when it can be evaluated."""
        return None

    def check(self, assembly: Assembly) -> None:
        """Raises AssemblyError when the model cannot do the task, or not in the way that the settings ask for."""
        missing = self.lacks(assembly)
        if missing is not None:
            raise AssemblyError(f"evals.{self.name}: {missing}.")

    def __call__(self, module: Subject, data: DataModule) -> Iterator[tuple[str, float]]:
        """Names and values.

        Raises:
            AssemblyError: the model lacks a part.
            DataError: there is no validation data.
        """
        self.check(module.assembly)
        self.facts, self.predictions = {}, []
        parts = module.assembly.model
        modes = {part: part.training for part in parts.modules()}
        try:
            parts.eval()
            with torch.no_grad():
                # Computed before the first value is handed out: a generator would leak its no_grad into whoever reads it.
                found = self.measure(module, data)
        finally:
            for part, mode in modes.items():
                part.training = mode
        return iter(found.items())

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """The values, without gradient and in eval mode."""
        raise NotImplementedError


def fitting(evaluators: Sequence[Evaluator], assembly: Assembly) -> list[Evaluator]:
    """The evaluators whose task the model can do; the others are named in the log. A recipe's list outlives the parts that were taken from it.

    Raises:
        AssemblyError: a task that the model can do, but not in the way that its settings ask for.
    """
    kept = []
    for evaluator in evaluators:
        missing = evaluator.lacks(assembly)
        if missing is None:
            evaluator.check(assembly)
            kept.append(evaluator)
        else:
            log.info("evals.%s is left out: %s", evaluator.name, missing)
    return kept


def matcher(assembly: Assembly, name: str) -> Match | None:
    """The objective that scores a pair with the fusion, if the model was built with one under that name."""
    found = assembly.objectives.get(name)
    return found if isinstance(found, Match) else None


def streams(module: Subject, *, images: ImageInput | None = None, texts: TextInput | None = None) -> Streams:
    """Passes over R images and B texts, which need not be pairs; inputs that are drawn come out as in training, but nothing is hidden."""
    given = images if texts is None else texts
    batch = Batch(
        {} if images is None else {"clean": images}, {} if texts is None else {"clean": texts}, {}, torch.arange(0 if given is None else len(given))
    )
    return Streams(module.assembly.model, batch.to(module.device), draws=module.assembly.draws, seed=("evaluation",), corrupt=False)


def match_logits(s: Streams, match: Match, image: Tensor, text: Tensor, size: int) -> Tensor:
    """(P, 2) logits of pairs of rows, `size` at a time; images and texts are encoded once for all of them.

    Args:
        s: passes over R images and B texts.
        match: the objective whose fusion and head score a pair.
        image: (P,) rows of the images.
        text: (P,) rows of the texts.
        size: pairs of one pass.
    """
    parts = (Pairing(image[part], text[part], torch.ones_like(image[part])) for part in chunks(len(image), size))
    return torch.cat([match.logits(s, pairing) for pairing in parts])


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..length."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def words_of(data: DataModule) -> Words:
    """The tokenizer that the data carry."""
    if data.words is None:
        raise ConfigError("data has no tokenizer yet: attach that of the model (data.words = ...) before an evaluation")
    return data.words
