"""Image-text matching: does this text belong to this image? Two classes over a drawn pairing."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.layers.heads import Classifier
from vlpkit.maths.contrastive import hits
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Dims, Loss, Pairing


class Match(Objective):
    """Cross-entropy of the fused first token(s) over a drawn pairing (Li et al. 2021, section 3.2).

    Args:
        pairing: drawn rows and their labels.
        image: image input.
        text: text input.
        by: the fusion.
        sides: whose first tokens are read and in which order, such as w, vw or wv.
        pooled: whether the first tokens go through a dense layer and tanh before they are classified.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, pairing: str = "hard.pairing", image: str = "clean", text: str = "clean", by: str = "fusion", sides: str = "w", pooled: bool = False,
        head: str = "itm", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.pairing, self.image, self.text, self.by, self.sides, self.name = pairing, image, text, by, sides, head
        self.pooled = pooled

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A classifier of two classes, 1 = belongs together."""
        return {self.name: Classifier([dims[f"{self.by}.{side}"] for side in self.sides], classes=2, pooled=self.pooled)}

    def logits(self, s: Streams, pairing: str | Pairing) -> Tensor:
        """(P, 2) fp32 logits of a pairing, drawn or the caller's own; column 1 is "belongs together"."""
        fused = s.fused(self.image, self.text, pairing, by=self.by)
        logits: Tensor = s.head(self.name, *[fused.v if side == "v" else fused.w for side in self.sides]).float()
        return logits

    def forward(self, s: Streams) -> Loss:
        """Mean over the P rows, in nats; log 2 when the head knows nothing and classes are even."""
        logits, match = self.logits(s, self.pairing), s.pairing(self.pairing).match
        return Loss(F.cross_entropy(logits, match), {"acc": hits(logits, match)})
