"""Masked words read with the image, against the hard label or mixed with a teacher's distribution."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vlpkit.layers.heads import WordsHead
from vlpkit.maths.contrastive import hits
from vlpkit.maths.masking import mean_tokens, pick
from vlpkit.maths.schedule import ramp
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Dims, Loss, Steps


class MaskedWords(Objective):
    """Cross-entropy at masked positions; the words head runs on those alone (Devlin et al. 2019; Li et al. 2021, eq. 7).

    Args:
        text: corrupted text.
        labels: what stood there.
        image: image input.
        pairing: rows to fuse.
        by: the fusion, or `text` for the words alone.
        alpha: weight of the teacher's distribution at the end of the ramp; 0 needs no teacher.
        ramp: steps over which alpha grows linearly from 0.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, text: str = "mask.text", labels: str = "mask.labels", image: str = "clean", pairing: str = "aligned", by: str = "fusion",
        alpha: float = 0.0, ramp: Steps = Steps(0), head: str = "mlm", on: str = "pairs", weight: float = 1.0,  # noqa: B008
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.text, self.labels, self.image, self.pairing, self.by, self.name = text, labels, image, pairing, by, head
        self.alpha, self.ramp = alpha, ramp

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A words head."""
        return {self.name: WordsHead(dims.of(self.by, "w"), vocab=dims.vocab)}

    def _asked(self, s: Streams, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = s.side("w", self.image, self.text, self.pairing, by=self.by).x
        return pick(x[:, : labels.shape[1]], labels)   # a class token behind the words is asked for none

    def forward(self, s: Streams) -> Loss:
        """Mean over the masked tokens of this rank, in nats; about log V before training."""
        labels = s.labels(self.labels)
        if self.pairing != "aligned":
            labels = labels[s.pairing(self.pairing).text]
        states, asked = self._asked(s, labels)
        logits, soft = s.head(self.name, states), None
        if self.alpha:
            soft = s.teacher.head(self.name, self._asked(s.teacher, labels)[0])
        loss = mean_tokens(logits, asked, soft=soft, alpha=ramp(s.step, self.ramp, self.alpha))
        return Loss(loss, {"acc": hits(logits, asked)})
