"""Image-text contrast: among the pairs of all ranks, or against a momentum teacher and a queue."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlpkit import dist
from vlpkit.maths.contrastive import hits, info_nce, similarity, soft_cross_entropy, soft_targets
from vlpkit.maths.schedule import ramp
from vlpkit.objectives.base import Objective
from vlpkit.queue import Field, Queue
from vlpkit.streams import Streams
from vlpkit.types import Loss, Steps


class Contrast(Objective):
    """Symmetric cross-entropy over the similarities of all pairs (Radford et al. 2021, figure 3).

    Each rank scores its own rows against the keys of all ranks, gathered with gradient: under averaged gradients that is
    exactly the loss and the gradient of one process on the whole batch.

    Args:
        image: image input.
        text: text input.
        by: the shared space.
        gather: whether keys of other ranks count.
        smoothing: label smoothing in [0, 1).
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, image: str = "clean", text: str = "clean", by: str = "align", gather: bool = True, smoothing: float = 0.0, on: str = "pairs",
        weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.image, self.text, self.by, self.gather, self.smoothing = image, text, by, gather, smoothing

    def forward(self, s: Streams) -> Loss:
        """Mean of both directions, in nats; log(G*B) when all points are equal."""
        z = s.aligned(self.image, self.text, by=self.by)
        v, w, start = z.v, z.w, 0
        if self.gather:
            v, w, start = dist.gather_grad(z.v, equal=True), dist.gather_grad(z.w, equal=True), dist.offset(len(z.v), equal=True)
        positive = start + torch.arange(len(z.v), device=z.v.device)
        loss = (info_nce(z.v, w, positive, z.scale, smoothing=self.smoothing) + info_nce(z.w, v, positive, z.scale, smoothing=self.smoothing)) / 2
        with torch.no_grad():
            logs = {"i2t_acc": hits(similarity(z.v, w, z.scale), positive), "t2i_acc": hits(similarity(z.w, v, z.scale), positive)}
        return Loss(loss, logs | {"scale": z.scale.detach()})


class MomentumContrast(Objective):
    """Contrast against the teacher's points of this rank and a queue of past ones, with soft targets (Li et al. 2021, section 3.2).

    Buffers: `queue`, with fields v and w (K, E).

    Args:
        space: E, width of the shared space.
        queue: K, number of past pairs.
        alpha: weight of the teacher's targets at the end of the ramp.
        ramp: steps over which alpha grows linearly from 0.
        start: whether an unwritten row of the queue is left out (empty) or counts as a random point (random, as released).
        image: image input.
        text: text input.
        by: the shared space's name.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, space: int, *, queue: int, alpha: float = 0.4, ramp: Steps = Steps(0), start: Literal["empty", "random"] = "empty",  # noqa: B008
        image: str = "clean", text: str = "clean", by: str = "align", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.alpha, self.ramp, self.image, self.text, self.by = alpha, ramp, image, text, by
        self.queue = Queue(length=queue, fields={"v": Field((space,)), "w": Field((space,))}, start=start)

    def forward(self, s: Streams) -> Loss:
        """Mean of both directions, in nats."""
        teacher = s.teacher  # asked for before any pass, so that a recipe without one is refused at once
        z, t = s.aligned(self.image, self.text, by=self.by), teacher.aligned(self.image, self.text, by=self.by)
        past = self.queue.keys()
        positive = torch.arange(len(z.v), device=z.v.device)
        valid = torch.cat([torch.ones_like(positive, dtype=torch.bool), past["valid"]]) if self.queue.start == "empty" else None
        alpha = ramp(s.step, self.ramp, self.alpha)
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {"scale": z.scale.detach()}
        for name, query, soft, keys in (
            ("i2t", z.v, t.v, torch.cat([t.w, past["w"]])),
            ("t2i", z.w, t.w, torch.cat([t.v, past["v"]])),
        ):
            logits = similarity(query, keys, z.scale, valid)
            losses.append(soft_cross_entropy(logits, soft_targets(soft, keys, positive, z.scale, alpha, valid=valid)))
            logs[f"{name}_acc"] = hits(logits, positive)
        return Loss((losses[0] + losses[1]) / 2, logs)

    @torch.no_grad()
    def after_batch(self, s: Streams) -> None:
        """Put the teacher's points of all ranks into the queue."""
        t = s.teacher.aligned(self.image, self.text, by=self.by)
        self.queue.push({"v": t.v, "w": t.w})
