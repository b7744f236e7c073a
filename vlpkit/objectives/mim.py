"""Masked image modelling: which code stood where a patch is hidden, which patch of all images, or which pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlpkit.layers.embed import pixels_of
from vlpkit.layers.heads import CodesHead, FeatureHead
from vlpkit.maths.contrastive import full_precision, hits
from vlpkit.maths.masking import mean_tokens, pick
from vlpkit.maths.patches import cut_patches
from vlpkit.maths.regions import take
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


class MaskedAmong(Objective):
    """Which of all patches of this rank's images stood where one is hidden? (Dou et al. 2021, in-batch negatives; recalled)

    The candidates are the embedded patches of the whole images, with their places, each once an image: a picture that stands in the
    batch twice is its own rival.

    Args:
        image: image with hidden patches.
        chosen: which of them are hidden.
        whole: image without hidden patches.
        text: text that is read beside it.
        by: the fusion, or `vision` for the image alone.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, image: str = "hole.image", chosen: str = "hole.chosen", whole: str = "clean", text: str = "clean", by: str = "fusion",
        head: str = "mim_batch", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.image, self.chosen, self.whole, self.text, self.by, self.name = image, chosen, whole, text, by, head

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """States to the width of embedded patches."""
        return {self.name: FeatureHead(dims.of(self.by, "v"), size=dims["vision.embed"])}

    def forward(self, s: Streams) -> Loss:
        """Mean over the hidden patches of this rank, in nats; about log(R * M) before training."""
        chosen, keys = s.labels(self.chosen), s.v(self.whole, "embed").part("v").x
        found = s.head(self.name, take(s.side("v", self.image, self.text, by=self.by).part("v").x, chosen))
        number = torch.arange(chosen.numel(), device=chosen.device).view(chosen.shape)
        own = take(number, chosen)
        with full_precision(keys.device):
            logits = found.float() @ keys.flatten(0, 1).float().T
        return Loss(mean_tokens(logits, own), {"acc": hits(logits, own)})


class MaskedPixels(Objective):
    """The colours of hidden patches, by their absolute differences (Kwon et al. 2023, MaskVLM).

    Args:
        patch: side of a patch in pixels.
        normed: whether each patch is brought to mean 0 and variance 1 first (He et al. 2022); else colours are in [0, 1].
        image: image with hidden patches.
        chosen: which of them are hidden.
        text: text that is read beside it.
        by: the fusion, or `vision` for the image alone.
        head: name of the head.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(
        self, *, patch: int, normed: bool = False, image: str = "hole.image", chosen: str = "hole.chosen", text: str = "clean", by: str = "fusion",
        head: str = "mim_pixels", on: str = "pairs", weight: float = 1.0,
    ) -> None:
        super().__init__(on=on, weight=weight)
        self.patch, self.normed, self.image, self.chosen, self.text, self.by, self.name = patch, normed, image, chosen, text, by, head

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """States to the pixels of a patch."""
        return {self.name: FeatureHead(dims.of(self.by, "v"), size=3 * self.patch**2)}

    def target(self, pixels: Tensor) -> Tensor:
        """(R, 3, H, W) pixels to (R, M, 3*p*p) fp32."""
        cut = cut_patches(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float(), self.patch)
        if self.normed:
            spread, mean = torch.var_mean(cut, -1, keepdim=True)
            cut = (cut - mean) / (spread + 1e-6).sqrt()
        return cut

    def forward(self, s: Streams) -> Loss:
        """Mean over hidden patches, channels and pixels; 0 when every colour is found exactly."""
        chosen, target = s.labels(self.chosen), self.target(pixels_of(s.image(self.image)))
        found = s.head(self.name, take(s.side("v", self.image, self.text, by=self.by).part("v").x, chosen)).float()
        return Loss((found - take(target, chosen)).abs().sum() / max(found.numel(), 1))
