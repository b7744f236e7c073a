"""A neck that brings an encoder's states to another width, token by token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from vlpkit.types import Stream


class Bridge(nn.Module):
    """A linear layer between two widths and, where asked for, a norm (Wang et al. 2022, GIT) and the type of its side (Dou et al. 2021).

    Parameters: `out` (E, D), and `norm` (E,), `side` (E,) where asked for.

    Args:
        dim: D, width of the stream.
        out: E, width behind it.
        norm: whether a norm follows.
        eps: of the norm.
        typed: whether a learned vector, the side's token type, is added to every token.
    """

    def __init__(self, dim: int, *, out: int, norm: bool = False, eps: float = 1e-5, typed: bool = False) -> None:
        super().__init__()
        self.dim, self.out = out, nn.Linear(dim, out)
        self.norm = nn.LayerNorm(out, eps=eps) if norm else None
        self.side = nn.Parameter(torch.empty(out)) if typed else None
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        if self.side is not None:
            nn.init.normal_(self.side, std=0.02)

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to (B, L, E); length, names and visibility stay."""
        x = self.out(s.x)
        if self.norm is not None:
            x = self.norm(x)
        return replace(s, x=x if self.side is None else x + self.side)
