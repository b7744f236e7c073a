"""Captioning: each word from the image and the words before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from vlpkit.layers.heads import WordsHead
from vlpkit.maths.contrastive import hits
from vlpkit.maths.masking import mean_tokens, pick
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Dims, Loss


class NextWord(Objective):
    """Cross-entropy of the next word, with label smoothing (Li et al. 2022, section 3.2).

    Args:
        text: ordered text.
        labels: its words, IGNORE where none is asked; position i is predicted from position i - 1. None: every word of the text itself,
            as it stands (CoCa: one pass over the clean text serves contrast and captions).
        image: image input.
        pairing: rows to fuse.
        given: the text that stands behind another fusion in what `by` reads, such as a prefix; None: `text`, too.
        by: the fusion that decodes.
        smoothing: label smoothing in [0, 1).
        smooth: who shares the smoothed mass: all words, or all but the right one (GIT's code; its divergence has the same gradient).
        transform: whether the head has a dense layer and a norm before the output table.
        bias: whether the output table has a bias.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, text: str = "caption.text", labels: str | None = "caption.labels", image: str = "clean", pairing: str = "aligned",
        given: str | None = None, by: str = "decoder", smoothing: float = 0.0, smooth: Literal["all", "others"] = "all", transform: bool = True,
        bias: bool = True, head: str = "lm", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.text, self.labels, self.image, self.pairing, self.given, self.by, self.name = text, labels, image, pairing, given, by, head
        self.smoothing, self.smooth, self.transform, self.bias = smoothing, smooth, transform, bias

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A words head."""
        return {self.name: WordsHead(dims[f"{self.by}.w"], vocab=dims.vocab, transform=self.transform, bias=self.bias)}

    def _labels(self, s: Streams) -> Tensor:
        if self.labels is not None:
            return s.labels(self.labels)
        text = s.text(self.text)
        return torch.where(text.mask, text.ids, IGNORE)

    def forward(self, s: Streams) -> Loss:
        """Mean over the asked tokens of this rank, in nats."""
        fused, labels = s.fused(self.image, self.text, self.pairing, by=self.by, given=self.given), self._labels(s)[:, 1:]
        states, asked = pick(fused.w.x[:, : labels.shape[1]], labels)   # padding that an embed filled up asks for nothing
        logits = s.head(self.name, states)
        vocab = logits.shape[-1]
        smoothing = self.smoothing * vocab / (vocab - 1) if self.smooth == "others" else self.smoothing   # the right word keeps 1 - smoothing
        return Loss(mean_tokens(logits, asked, smoothing=smoothing), {"acc": hits(logits, asked)})
