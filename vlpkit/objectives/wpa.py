"""Word-region alignment: true pairs should be cheap to carry over into each other, false ones dear."""

from __future__ import annotations

import torch
from torch import Tensor

from vlpkit.maths.transport import cosine_cost, transport_distance, transport_plan
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Loss, Stream


def inner_words(mask: Tensor) -> Tensor:
    """(P, N) the real tokens without the first and the last of them."""
    return mask & (mask.cumsum(-1) > 1) & (mask.flip(-1).cumsum(-1).flip(-1) > 1)


def without_class(s: Stream) -> Tensor:
    """(P, M) the real tokens without the class token."""
    classes = torch.tensor([name.endswith("_cls") for name, length in s.parts for _ in range(length)])
    return s.mask & ~classes.to(s.mask.device)


class WordRegion(Objective):
    """Optimal transport between the fused words and regions, or patches, of a drawn pairing (Chen et al. 2020, section 3.2, WRA).

    Shares the pass of the matching objective that reads the same pairing.

    Args:
        pairing: drawn rows and their labels.
        image: image input.
        text: text input.
        by: the fusion.
        ends: whether all real tokens take part (UNITER), or neither the first and the last word nor the image's class token (ViLT).
        beta: step of the proximal iterations.
        steps: number of them.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, pairing: str = "mix.pairing", image: str = "clean", text: str = "clean", by: str = "fusion", ends: bool = True, beta: float = 0.5,
        steps: int = 50, on: str = "pairs", weight: float = 0.1,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.pairing, self.image, self.text, self.by, self.ends, self.beta, self.steps = pairing, image, text, by, ends, beta, steps

    def forward(self, s: Streams) -> Loss:
        """Distances of true pairs less those of false ones, over all P rows; in [-2, 2]."""
        match = s.pairing(self.pairing).match.float()
        fused = s.fused(self.image, self.text, self.pairing, by=self.by)
        w, v = (fused.w.mask, fused.v.mask) if self.ends else (inner_words(fused.w.mask), without_class(fused.v))
        cost = cosine_cost(fused.w.x, fused.v.x, w, v)
        distance = transport_distance(cost, transport_plan(cost, w, v, beta=self.beta, steps=self.steps))
        signed = distance * (2 * match - 1)
        logs = {name: (distance.detach() * of).sum() / of.sum().clamp(min=1) for name, of in (("true", match), ("false", 1 - match))}
        return Loss(signed.mean(), logs)
