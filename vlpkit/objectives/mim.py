"""Masked image modelling: which code stood where a patch is hidden."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vlpkit.layers.heads import CodesHead
from vlpkit.maths.contrastive import hits
from vlpkit.maths.masking import mean_tokens, pick
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Dims, Loss


class MaskedCodes(Objective):
    """Cross-entropy over the codebook at hidden patches; the head runs on those alone (Bao et al. 2022, eq. 2; Wang et al. 2022, section 2.2).

    Args:
        codes: K, size of the codebook.
        image: image with hidden patches.
        labels: codes of what is hidden.
        text: text that is read beside it.
        pairing: rows to fuse.
        by: the fusion, or `vision` for the image alone.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, codes: int, image: str = "hole.image", labels: str = "hole.labels", text: str = "clean", pairing: str = "aligned", by: str = "fusion",
        head: str = "mim", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.codes, self.image, self.labels, self.text, self.pairing, self.by, self.name = codes, image, labels, text, pairing, by, head

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A linear layer over the codes."""
        return {self.name: CodesHead(dims.of(self.by, "v"), codes=self.codes)}

    def forward(self, s: Streams) -> Loss:
        """Mean over the hidden patches of this rank, in nats; about log K before training."""
        patches = s.side("v", self.image, self.text, self.pairing, by=self.by).part("v")
        states, asked = pick(patches.x, s.labels(self.labels))
        logits = s.head(self.name, states)
        return Loss(mean_tokens(logits, asked), {"acc": hits(logits, asked)})
