"""Hard caption pairs: same words, attributes swapped. A bag of words is at chance here, whatever its retrieval numbers.
A sample's record holds `hard: [[true, false], ...]` and may name the kind of each in `hard_kinds`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlpkit import dist
from vlpkit.assemble import Assembly
from vlpkit.data.feed import EvalBatch
from vlpkit.data.module import DataModule
from vlpkit.errors import DataError
from vlpkit.evals.base import Evaluator, Subject, chunks, match_logits, matcher, streams, words_of
from vlpkit.evals.gallery import batches
from vlpkit.evals.metrics import pair_accuracy

log = logging.getLogger(__name__)

_PAIR_BATCHES = 4  # pairs of a group, in batches: the images of a batch are encoded once a group


class HardPair(NamedTuple):
    """One pair of one image of a batch.

    Args:
        row: of the image in its batch.
        true: the caption that holds.
        false: the one that does not.
        kind: what was swapped; "" when the record does not say.
    """

    row: int
    true: str
    false: str
    kind: str


def hard_pairs(batch: EvalBatch) -> list[HardPair]:
    """The pairs of a batch, in order. Raises DataError for a record that holds something else."""
    found = []
    for row, (record, key) in enumerate(zip(batch.records, batch.keys)):
        pairs = record.get("hard", [])
        kinds = record.get("hard_kinds", [""] * len(pairs) if isinstance(pairs, list) else [])
        if not _is_pairs(pairs) or not isinstance(kinds, list) or len(kinds) != len(pairs):
            raise DataError(f"data.val_shards: the record of {key} has no proper `hard`; it is a list of [true caption, false caption], found {pairs!r:.80}")
        found += [HardPair(row, true, false, str(kind)) for (true, false), kind in zip(pairs, kinds)]
    return found


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value)


class HardPairs(Evaluator):
    """Percent of pairs in which the true caption scores higher than the false one; chance is 50, a tie is wrong.

    Gives `dual_acc` by the similarity, `fusion_acc` by the log-odds of the matching head where the model has one, and
    `count`, the number of pairs.

    Args:
        name: of the task.
        batch: images of one pass.
        limit: the first so many samples of the split; None: all.
        match: name of the objective whose fusion and head score a pair; without it there is no `fusion_acc`.
        by: the shared space; without it there is no `dual_acc`.
        image: image input.
        text: text input of the similarity.
    """

    protocol = "hard-pairs-strict@1"

    def __init__(
        self, *, name: str = "pairs", batch: int = 128, limit: int | None = None, match: str = "itm", by: str = "align", image: str = "clean",
        text: str = "clean",
    ) -> None:
        super().__init__(name=name)
        if batch < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch={batch} and limit={limit} must each be at least 1 (or null for no limit)")
        self.batch, self.limit, self.match, self.by, self.image, self.text = batch, limit, match, by, image, text

    def lacks(self, assembly: Assembly) -> str | None:
        """A shared space or a matching objective."""
        model = assembly.model
        if self.by in model.names or matcher(assembly, self.match) is not None:
            return None
        return f"a caption is scored by the shared space {self.by!r} or the objective {self.match!r}, but {model.name!r} has {', '.join((*model.names, *assembly.objectives))}"

    def measure(self, module: Subject, data: DataModule) -> Mapping[str, float]:
        """The accuracies; `count` alone, with a line in the log, when the split holds no such pair."""
        rows: list[tuple[str, dict[str, tuple[float, float]]]] = []
        for batch in batches(data, batch=self.batch, limit=self.limit):
            pairs = hard_pairs(batch)
            scores = self._scores(module, data, batch, pairs) if pairs else {}
            rows += [(pair.kind, {word: (both[0][i], both[1][i]) for word, both in scores.items()}) for i, pair in enumerate(pairs)]
        everything = [row for part in dist.gather_object(rows) for row in part]
        if not everything:
            log.info("evals.%s: no sample of data.val_shards has hard pairs (a record with `hard`), so there is nothing to measure", self.name)
        return self._numbers(everything)

    def _scores(self, module: Subject, data: DataModule, batch: EvalBatch, pairs: Sequence[HardPair]) -> dict[str, tuple[list[float], list[float]]]:
        """Scores of the true and of the false captions of a batch, by the name of what scored."""
        match, words = matcher(module.assembly, self.match), words_of(data)
        found: dict[str, list[Tensor]] = defaultdict(list)
        for part in chunks(len(pairs), _PAIR_BATCHES * self.batch):
            # both captions of a pair share one pass, so that padding cannot tell them apart
            texts = words.encode([text for pair in pairs[part] for text in (pair.true, pair.false)])
            s = streams(module, images=batch.images, texts=texts)
            image = torch.tensor([pair.row for pair in pairs[part] for _ in range(2)], device=module.device)
            if self.by in module.assembly.model.names:
                v, w = (s.point("v", self.image, by=self.by), s.point("w", self.text, by=self.by))
                found["dual"].append((v.float()[image] * w.float()).sum(-1))
            if match is not None:
                logits = match_logits(s, match, image, torch.arange(len(image), device=image.device), self.batch)
                found["fusion"].append(logits[:, 1] - logits[:, 0])
        scores = {word: torch.cat(values).cpu() for word, values in found.items()}
        return {word: (values[::2].tolist(), values[1::2].tolist()) for word, values in scores.items()}

    def _numbers(self, rows: Sequence[tuple[str, Mapping[str, tuple[float, float]]]]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        kinds = sorted({kind for kind, _ in rows})
        self.facts = {"pairs": len(rows), "ties": {}, "by_kind": {}}
        for word in sorted({word for _, scores in rows for word in scores}):
            verdict = pair_accuracy(*_columns([scores[word] for _, scores in rows]))
            numbers[f"{word}_acc"] = verdict.accuracy
            self.facts["ties"][word] = verdict.ties
            for kind in kinds:
                part = pair_accuracy(*_columns([scores[word] for name, scores in rows if name == kind]))
                self.facts["by_kind"].setdefault(kind, {"count": part.pairs})[f"{word}_acc"] = part.accuracy
        return numbers | {"count": float(len(rows))}


def _columns(scores: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    both = torch.tensor(scores, dtype=torch.float32).reshape(-1, 2)
    return both[:, 0], both[:, 1]
