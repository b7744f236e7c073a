"""A neck that brings an encoder's states to another width, token by token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from vlpkit.types import Stream


class Bridge(nn.Module):
    """A linear layer between two widths and, where asked for, the type of its side (Dou et al. 2021, section 3.1).

    Parameters: `out` (E, D), and `side` (E,) where asked for.

    Args:
        dim: D, width of the stream.
        out: E, width behind it.
        typed: whether a learned vector, the side's token type, is added to every token.
    """

    def __init__(self, dim: int, *, out: int, typed: bool = False) -> None:
        super().__init__()
        self.dim, self.out = out, nn.Linear(dim, out)
        self.side = nn.Parameter(torch.empty(out)) if typed else None
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        if self.side is not None:
            nn.init.normal_(self.side, std=0.02)

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to (B, L, E); length, names and visibility stay."""
        x = self.out(s.x)
        return replace(s, x=x if self.side is None else x + self.side)
