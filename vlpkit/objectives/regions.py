"""Hidden regions predicted from the other regions and the text: their feature, their class, their distribution over classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.errors import AssemblyError
from vlpkit.layers.heads import FeatureHead, WordsHead
from vlpkit.layers.regions import regions_of
from vlpkit.maths.contrastive import hits
from vlpkit.maths.masking import pick
from vlpkit.maths.regions import Distance, divergence, feature_distance, share, take
from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Dims, Loss, Stream


class Regions(Objective):
    """What all have in common: image-side states of a fusion, beside what is known of each region.

    Args:
        head: name of the head.
        image: corrupted image.
        chosen: which of its regions were chosen.
        text: text input.
        pairing: rows to fuse.
        by: the fusion.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, head: str, image: str = "hole.image", chosen: str = "hole.chosen", text: str = "clean", pairing: str = "aligned", by: str = "fusion",
        on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.name, self.image, self.chosen, self.text, self.pairing, self.by = head, image, chosen, text, pairing, by

    def states(self, s: Streams) -> Stream:
        """(P, M, D) image side of the fusion."""
        return s.fused(self.image, self.text, self.pairing, by=self.by).v

    def rows(self, s: Streams, known: Tensor) -> Tensor:
        """What is known of R images, (R, M, ...), for the P rows of the pairing."""
        return known if self.pairing == "aligned" else known[s.pairing(self.pairing).image]


class RegionFeatures(Regions):
    """Regression of the features that were hidden (Chen et al. 2020, MRFR; Tan and Bansal 2019, RoI-feature regression).

    Args:
        size: F, numbers of one feature.
        distance: squared (UNITER) or smooth (LXMERT) differences, averaged over the F numbers.
        over: chosen averages over the chosen regions; real adds them up and divides by all real ones (LXMERT).
        head: name of the head; `vision.embed.feature.weight -> heads.mrfr.weight` shares the embed's projection, read backwards.
        options: of `Regions`.
    """

    def __init__(
        self, *, size: int, distance: Distance = "squared", over: Literal["chosen", "real"] = "chosen", head: str = "mrfr", **options: Any
    ) -> None:
        super().__init__(head=head, **options)
        self.size, self.distance, self.over = size, distance, over

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """A feature head."""
        return {self.name: FeatureHead(dims[f"{self.by}.v"], size=self.size)}

    def forward(self, s: Streams) -> Loss:
        """Mean distance; 0 when every feature is found exactly."""
        v, chosen = self.states(s), self.rows(s, s.labels(self.chosen))
        target = self.rows(s, regions_of(s.image()))
        apart = feature_distance(s.head(self.name, take(v.x, chosen)), take(target, chosen), self.distance)
        return Loss(apart.sum() / max(len(apart), 1) if self.over == "chosen" else share(apart, v.mask))


class RegionClasses(Regions):
    """Cross-entropy of what a detector called the regions (Tan and Bansal 2019, detected-label classification; Chen et al. 2020, MRC).

    Args:
        classes: C, of which the data tell.
        target: (R, M) class ids, IGNORE where there is none.
        first: the first class that is asked for; those before it, such as a background that comes first, have no row in the head and are no
            target (LXMERT). Weights of a head without them fit then.
        confidence: (R, M) weights in [0, 1]; with them all regions count, chosen or not, and the mean is over all real ones, as LXMERT
            was released. Without, the mean is over the chosen ones.
        head: name of the head.
        options: of `Regions`.
    """

    def __init__(
        self, *, classes: int, target: str = "region_class", first: int = 0, confidence: str | None = None, head: str = "mrc", **options: Any
    ) -> None:
        super().__init__(head=head, **options)
        self.classes, self.target, self.first, self.confidence = classes, target, first, confidence

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """Dense, GELU, norm, classes."""
        return {self.name: WordsHead(dims[f"{self.by}.v"], vocab=self.classes - self.first)}

    def forward(self, s: Streams) -> Loss:
        """In nats; log C when all logits are equal and, with confidences, those are 1."""
        v, labels = self.states(s), self.rows(s, s.target(self.target))
        if self.first:
            labels = torch.where(labels < self.first, IGNORE, labels - self.first)
        if self.confidence is None:
            labels = labels.masked_fill(~self.rows(s, s.labels(self.chosen)), IGNORE)
        states, asked = pick(v.x, labels)
        logits = s.head(self.name, states).float()
        loss = F.cross_entropy(logits, asked, reduction="none")
        logs = {"acc": hits(logits, asked)}
        if self.confidence is None:
            return Loss(loss.sum() / max(len(asked), 1), logs)
        weights = take(self.rows(s, s.target(self.confidence)), labels != IGNORE)
        return Loss(share(loss * weights.float(), v.mask), logs)


class RegionDistribution(Regions):
    """Divergence from the detector's distribution over classes, at chosen regions (Chen et al. 2020, MRC-kl; Lu et al. 2019).

    Args:
        classes: C.
        target: (R, M, C) rows that sum to 1.
        reduce: mean over regions, or over regions and classes (as UNITER was released).
        head: name of the head.
        options: of `Regions`.
    """

    def __init__(
        self, *, classes: int, target: str = "region_soft", reduce: Literal["elements", "regions"] = "regions", head: str = "mrc", **options: Any
    ) -> None:
        super().__init__(head=head, **options)
        self.classes, self.target, self.reduce = classes, target, reduce

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """Dense, GELU, norm, classes."""
        return {self.name: WordsHead(dims[f"{self.by}.v"], vocab=self.classes)}

    def forward(self, s: Streams) -> Loss:
        """In nats; 0 when every distribution is found exactly."""
        v, chosen, target = self.states(s), self.rows(s, s.labels(self.chosen)), self.rows(s, s.target(self.target))
        if target.shape[-1] != self.classes:
            raise AssemblyError(f"predicts {self.classes} classes, but {self.target!r} has {target.shape[-1]} of them")
        logits, asked = s.head(self.name, take(v.x, chosen)), take(target, chosen)
        return Loss(divergence(logits, asked, self.reduce), {"acc": hits(logits, asked.argmax(-1))})
