"""Draws over images of patches: what is hidden, and which code stood there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Generator

from vlpkit.maths.patches import hide_blocks, hide_each
from vlpkit.streams import Drawn, Streams
from vlpkit.types import IGNORE


class HidePatches:
    """An image with hidden patches: gives `image`, `chosen` (R, M) bool, which are hidden, and `labels`, the codes of those.

    Args:
        image_size: side in pixels.
        patch: side of a patch in pixels.
        image: input to hide patches of.
        rate: share of the patches that is hidden.
        how: blocks (BEiT), or each patch on its own.
        codes: whether `labels` are made, which takes a codebook.
    """

    def __init__(
        self, *, image_size: int, patch: int, image: str = "clean", rate: float = 0.4, how: Literal["blocks", "each"] = "blocks", codes: bool = True
    ) -> None:
        self.grid, self.image, self.rate, self.how, self.codes = image_size // patch, image, rate, how, codes

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The image, its `hidden` (R, M) set, and which those are, and labels (R, M), IGNORE where nothing is hidden."""
        given = s.image(self.image)
        if self.how == "blocks":
            hidden = hide_blocks(len(given), self.grid, rng, rate=self.rate)
        else:
            hidden = hide_each(len(given), self.grid**2, rng, rate=self.rate)
        hidden = hidden.to(given.device)
        made: dict[str, Drawn] = {"image": replace(given, hidden=hidden), "chosen": hidden}
        if self.codes:
            made["labels"] = s.codes(self.image).masked_fill(~hidden, IGNORE)
        return made
