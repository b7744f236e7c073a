"""Draws over images: regions whose features the model may not look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator

from vlpkit.layers.regions import regions_of
from vlpkit.maths.masking import choose
from vlpkit.streams import Drawn, Streams


class HideRegions:
    """Some regions, at least one an image, lose their features: gives `image` and `chosen` (R, M) bool. Boxes are kept.

    UNITER hides every chosen feature; LXMERT hides 80 %, gives 10 % the feature of a region of another image, and leaves 10 % alone.

    Args:
        image: input to corrupt.
        rate: chance of a region to be chosen.
        keep: share of chosen regions that stay as they are.
        other: share of chosen regions that get the feature of another image's region on this rank; the rest are hidden.
    """

    def __init__(self, *, image: str = "clean", rate: float = 0.15, keep: float = 0.0, other: float = 0.0) -> None:
        self.image, self.rate, self.keep, self.other = image, rate, keep, other

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The corrupted image, and which regions were chosen."""
        given = s.image(self.image)
        regions = regions_of(given)
        real = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device) if given.mask is None else given.mask
        if not s.corrupt:
            return {"image": given, "chosen": torch.zeros_like(real)}
        chosen = choose(real, rng, rate=self.rate)
        draw = torch.rand(real.shape, generator=rng).to(real.device)
        step, place = (torch.rand(real.shape, generator=rng).to(real.device) for _ in range(2))
        if self.other:
            rows, many = real.shape
            # any image but this one, and any of its real regions, which stand first
            image = (torch.arange(rows, device=real.device)[:, None] + 1 + (step * max(rows - 1, 1)).long()) % rows
            region = (place * real.sum(-1).clamp(min=1)[image]).long().clamp(max=many - 1)
            regions = torch.where((chosen & (draw < self.other))[..., None], regions[image, region], regions)
        hidden = chosen & (draw >= self.keep + self.other)
        return {"image": replace(given, regions=regions, hidden=hidden), "chosen": chosen}
