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
    """An image with hidden patches: gives `image` and `labels`, the codes of what is hidden.

    Args:
        image_size: side in pixels.
        patch: side of a patch in pixels.
        image: input to hide patches of.
        rate: share of the patches that is hidden.
        how: blocks (BEiT), or each patch on its own.
    """

    def __init__(self, *, image_size: int, patch: int, image: str = "clean", rate: float = 0.4, how: Literal["blocks", "each"] = "blocks") -> None:
        self.grid, self.image, self.rate, self.how = image_size // patch, image, rate, how

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The image, its `hidden` (R, M) set, and labels (R, M), IGNORE where nothing is hidden."""
        given, codes = s.image(self.image), s.codes(self.image)
        if self.how == "blocks":
            hidden = hide_blocks(len(given), self.grid, rng, rate=self.rate)
        else:
            hidden = hide_each(len(given), self.grid**2, rng, rate=self.rate)
        hidden = hidden.to(codes.device)
        return {"image": replace(given, hidden=hidden), "labels": codes.masked_fill(~hidden, IGNORE)}
