"""Operations over both sides at once: merged attention concatenates, runs blocks and splits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from vlpkit.layers.attention import Cache
from vlpkit.layers.trunk import Trunk
from vlpkit.types import Stream


class Merged(nn.Module):
    """One self-attention over image and text tokens together (ViLT, UNITER).

    Parameters: `trunk`; `project` (D, image_dim) with a bias, where images come in another width; and `types` (2, D) added to image and text
    tokens where asked for.

    Args:
        dim: D, the width of the text and of the trunk.
        image_dim: width of the image; D when absent.
        trunk: the blocks; None where a tie fills the place.
        types: whether each side gets a learned vector of its own.
    """

    trunk: Trunk | None

    def __init__(self, dim: int, *, image_dim: int | None = None, trunk: Trunk | None = None, types: bool = True) -> None:
        super().__init__()
        self.project = None if image_dim in (None, dim) else nn.Linear(int(image_dim or dim), dim)
        self.register_module("trunk", trunk)
        self.types = nn.Parameter(torch.empty(2, dim).normal_(std=0.02)) if types else None

    @property
    def depth(self) -> int:
        """Number of blocks; 0 while the place of the trunk is empty."""
        return 0 if self.trunk is None else self.trunk.depth

    def forward(self, v: Stream, w: Stream, *, layers: range, cache: Cache | None = None) -> tuple[Stream, Stream]:
        """(P, M, image_dim) and (P, N, D) streams to (P, M, D) and (P, N, D)."""
        if layers.start == 0:  # once, also where other steps stand between the blocks
            v = v if self.project is None else replace(v, x=self.project(v.x))
            if self.types is not None:
                v, w = replace(v, x=v.x + self.types[0]), replace(w, x=w.x + self.types[1])
        assert self.trunk is not None
        both = self.trunk(Stream.cat(v, w), layers=layers, cache=cache, close=layers.stop == self.depth)
        return both.side("v"), both.side("w")
