"""Where in the image is what a phrase names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vlpkit.layers.heads import BoxHead
from vlpkit.maths.boxes import centred, corners, extended, overlap
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Dims, Loss


class Box(Objective):
    """Regression of a box from the whole image and a phrase, by distance and overlap (Zeng et al. 2022, X-VLM, eq. 5): the first token of the
    fused text gives centre, width and height. A phrase whose box has no extent does not count.

    Args:
        target: (B, 4) corners of each text's box as fractions of the image, all 0 where none is asked for.
        image: image input.
        text: text input.
        by: the fusion.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, target: str = "box", image: str = "clean", text: str = "phrase", by: str = "fusion", head: str = "box",
        on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.target, self.image, self.text, self.by, self.name = target, image, text, by, head

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A box head."""
        return {self.name: BoxHead(dims[f"{self.by}.w"])}

    def forward(self, s: Streams) -> Loss:
        """Sum of the absolute differences of the four numbers, plus 1 - generalised IoU, over the boxes of this rank; 0 when there is none.
        Logs both, and `acc`, the share of the boxes found with an IoU of at least 0.5."""
        wanted = s.target(self.target).float()
        found = s.head(self.name, s.fused(self.image, self.text, by=self.by).w).float().sigmoid()
        iou, giou = overlap(corners(found), wanted)
        apart = (found - centred(wanted)).abs().sum(-1)
        real = extended(wanted)
        count = real.sum().clamp(min=1)

        l1, outside = apart.masked_fill(~real, 0).sum() / count, (1 - giou).masked_fill(~real, 0).sum() / count
        right = ((iou.detach() >= 0.5) & real).sum() / count
        return Loss(l1 + outside, {"l1": l1.detach(), "giou": outside.detach(), "acc": right.float()})
