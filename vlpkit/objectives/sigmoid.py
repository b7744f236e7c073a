"""Image-text contrast without a softmax: every pair of the batch is a question of its own."""

from __future__ import annotations

import torch

from vlpkit import dist
from vlpkit.maths.contrastive import hits, pairwise_sigmoid, similarity
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Loss


class PairwiseSigmoid(Objective):
    """Binary cross-entropy of every image with every text (Zhai et al. 2023, algorithm 1).

    Each rank asks about its own images and the texts of all ranks, gathered with gradient: under averaged gradients that is
    exactly the loss and the gradient of one process on the whole batch.

    Args:
        image: image input.
        text: text input.
        by: the shared space; without a learned bias the many mismatches outweigh the pairs at the start.
        gather: whether texts of other ranks count.
        chunk: images at a time, which bounds the memory of the logits; None: all at once.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, image: str = "clean", text: str = "clean", by: str = "align", gather: bool = True, chunk: int | None = None, on: str = "pairs",
        weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; it counts images, at least 1 (or null for all at once)")
        self.image, self.text, self.by, self.gather, self.chunk = image, text, by, gather, chunk

    def forward(self, s: Streams) -> Loss:
        """Sum over texts, mean over images, in nats; G*B log 2 when every logit is 0."""
        z = s.aligned(self.image, self.text, by=self.by)
        w, start = z.w, 0
        if self.gather:
            w, start = dist.gather_grad(z.w, equal=True), dist.offset(len(z.v), equal=True)
        positive = start + torch.arange(len(z.v), device=z.v.device)
        loss = pairwise_sigmoid(z.v, w, positive, z.scale, z.bias, chunk=self.chunk)
        with torch.no_grad():
            logs = {"i2t_acc": hits(similarity(z.v, w, z.scale), positive), "scale": z.scale.detach(), "bias": z.bias.detach()}
        return Loss(loss, logs)
