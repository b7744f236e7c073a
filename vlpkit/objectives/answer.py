"""Question answering as one of a list of answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import nn

from vlpkit.layers.heads import AnswerHead
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Dims, Loss


class Answer(Objective):
    """Cross-entropy over a list of answers, from the first token of the fused text (Tan and Bansal 2019, image question answering).

    A text without an answer does not count, nor one that stands beside another image.

    Args:
        classes: C, length of the list.
        target: (B,) answer of each text, IGNORE where it is no question.
        pairing: rows to fuse.
        image: image input.
        text: text input.
        by: the fusion.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, classes: int, target: str = "answer", pairing: str = "aligned", image: str = "clean", text: str = "clean", by: str = "fusion",
        head: str = "answer", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.classes, self.target, self.pairing, self.image, self.text, self.by, self.name = classes, target, pairing, image, text, by, head

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """An answer head."""
        return {self.name: AnswerHead(dims[f"{self.by}.w"], classes=self.classes)}

    def forward(self, s: Streams) -> Loss:
        """Mean over the questions of this rank, in nats; 0 when there is none."""
        labels = s.target(self.target)
        if self.pairing != "aligned":
            pairs = s.pairing(self.pairing)
            labels = labels[pairs.text].masked_fill(pairs.match == 0, IGNORE)
        logits = s.head(self.name, s.fused(self.image, self.text, self.pairing, by=self.by).w).float()
        count = (labels != IGNORE).sum().clamp(min=1)
        right = ((logits.detach().argmax(-1) == labels).sum() / count).float()
        return Loss(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count, {"acc": right})
