"""The recipe's own objectives on data it was not trained on: what masked words, masked patches and matching are worth without another task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch

from vlpkit import dist
from vlpkit.data.collate import boxes_of, texts_of
from vlpkit.data.module import DataModule
from vlpkit.errors import DataError
from vlpkit.evals.base import Evaluator, Subject, words_of
from vlpkit.evals.gallery import batches
from vlpkit.streams import Streams
from vlpkit.types import Batch


class HeldOut(Evaluator):
    """Every objective over the validation split, each image with its first caption; where the recipe reads questions, half of them with one of these,
    and where it reads phrases, each with the first of these.

    Gives `<objective>_loss`, in nats, and `<objective>_acc`, in percent, where the objective counts hits; and `count`, the number of pairs.
    Draws are seeded by the number of the batch, so a model is always asked the same. Contrast and matching depend on `batch`.

    Args:
        name: of the task.
        batch: pairs of one pass.
        limit: the first so many samples of the split; None: all.
    """

    protocol = "held-out-objectives@1"

    def __init__(self, *, name: str = "heldout", batch: int = 100, limit: int | None = None) -> None:
        super().__init__(name=name)
        if batch < 2 or (limit is not None and limit < 1):
            raise ValueError(f"batch={batch} must be at least 2, and limit={limit} at least 1 or null")
        self.batch, self.limit = batch, limit

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """Means over the pairs of all ranks."""
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for number, batch in enumerate(batches(data, batch=self.batch, limit=self.limit)):
            texts, targets = batch.told()
            given = texts_of(texts, batch.seconds(), batch.parts, words=words_of(data))
            pairs = Batch({"clean": batch.images}, given, {**targets, **boxes_of(batch.parts)}, batch.index).to(module.device)
            for name, value in self._values(module, pairs, number, data).items():
                sums[name] += value * len(pairs)
            count += len(pairs)
        parts = dist.gather_object((dict(sums), count))
        total = sum(n for _, n in parts)
        if not total:
            raise DataError("data.val_shards: there is no usable sample to evaluate on")
        return {name: sum(part.get(name, 0.0) for part, _ in parts) / total for name in sums} | {"count": float(total)}

    @staticmethod
    def _values(module: Subject, pairs: Batch, number: int, data: DataModule) -> dict[str, float]:
        assembly = module.assembly
        teacher = None if assembly.teacher is None else assembly.teacher.model
        asked: dict[str, set[str]] = defaultdict(set)
        for turn in assembly.plan.turns:
            for source, names in turn.ask.items():
                asked[source] |= set(names)
        found: dict[str, float] = {}
        for source in asked:
            # A source of one side alone is the same pairs without the other.
            held = data.holds(source)
            given = replace(pairs, images={}) if held == "texts" else replace(pairs, texts={}) if held == "images" else pairs
            s = Streams(assembly.model, given, draws=assembly.draws, seed=("evaluation", number, source), teacher=teacher)
            for name in sorted(asked[source]):
                loss = assembly.objectives[name](s)
                found[f"{name}_loss"] = float(loss.value)
                if "acc" in loss.logs:
                    found[f"{name}_acc"] = 100.0 * float(torch.as_tensor(loss.logs["acc"]))
        return found
