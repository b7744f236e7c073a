"""Heads: what turns states into logits. Objectives ask for them, the model owns them, teachers copy them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlpkit.layers.block import Activation, activate
from vlpkit.types import Stream


class WordsHead(nn.Module):
    """States to word logits: dense, non-linearity, norm, output table (BERT's prediction head).

    Parameters: `dense` (D, D), `norm` (D,), `out` (V, D) with its bias (V,); `out.weight` is usually tied to the word table.
    """

    def __init__(self, dim: int, *, vocab: int, activation: Activation = "gelu", eps: float = 1e-12) -> None:
        super().__init__()
        self.dense, self.norm, self.activation = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=eps), activation
        self.out = nn.Linear(dim, vocab)
        for linear in (self.dense, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        return self.out(self.norm(activate(self.dense(x), self.activation)))


class CodesHead(nn.Module):
    """States to logits over the codes of patches. Parameters: `out` (K, D) with its bias."""

    def __init__(self, dim: int, *, codes: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, codes)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., K)."""
        return self.out(x)


class Classifier(nn.Module):
    """The first token of each given stream, side by side, to class logits.

    Parameters: `out` (C, sum of widths), and one of `pool` (D, D) a stream where they are pooled.

    Args:
        dim: width of each stream, or the widths.
        classes: C.
        pooled: whether each first token goes through a dense layer and tanh of its own first (BERT's pooler).
    """

    def __init__(self, dim: int | Sequence[int], *, classes: int, pooled: bool = False) -> None:
        super().__init__()
        widths = [dim] if isinstance(dim, int) else list(dim)
        self.pool = nn.ModuleList(nn.Linear(width, width) for width in widths) if pooled else None
        self.out = nn.Linear(sum(widths), classes)
        for linear in (*(self.pool or ()), self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, *given: Stream) -> Tensor:
        """Streams (P, L, D) to (P, C)."""
        first = [s.x[:, 0] for s in given]
        if self.pool is not None:
            first = [torch.tanh(dense(x)) for dense, x in zip(self.pool, first)]
        return self.out(torch.cat(first, -1))
