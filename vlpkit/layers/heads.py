"""Heads: what turns states into logits. Objectives ask for them, the model owns them, teachers copy them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlpkit.layers.block import Activation, activate
from vlpkit.types import Stream


class WordsHead(nn.Module):
    """States to word logits: dense, non-linearity, norm, output table (BERT's prediction head), or the table alone (GIT, CoCa).

    Parameters: `dense` (D, D) and `norm` (D,) unless `transform` is off; `out` (V, D) with its bias (V,) unless `bias` is off;
    `out.weight` is usually tied to the word table.
    """

    def __init__(self, dim: int, *, vocab: int, activation: Activation = "gelu", eps: float = 1e-12, transform: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.dense = nn.Linear(dim, dim) if transform else None
        self.norm = nn.LayerNorm(dim, eps=eps) if transform else None
        self.out = nn.Linear(dim, vocab, bias=bias)
        for linear in (self.dense, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        if self.dense is not None and self.norm is not None:
            x = self.norm(activate(self.dense(x), self.activation))
        return self.out(x)


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


class FeatureHead(nn.Module):
    """States to features of regions: dense, GELU, norm, and the table `weight` (D, F), which may be that of the embed (UNITER).

    Parameters: `dense` (D, D), `norm` (D,), `weight` (D, F), `bias` (F,).
    """

    def __init__(self, dim: int, *, size: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=eps)
        self.weight, self.bias = nn.Parameter(torch.empty(dim, size)), nn.Parameter(torch.zeros(size))
        nn.init.normal_(self.weight, std=0.02)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., F)."""
        h: Tensor = self.norm(activate(self.dense(x), "gelu"))
        return h @ self.weight + self.bias


class Pool(nn.Module):
    """The first token through a dense layer and a tanh (BERT's pooler). Parameters: `dense` (D, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, s: Stream) -> Tensor:
        """A stream (P, L, D) to (P, D)."""
        return self.dense(s.x[:, 0]).tanh()


class Classifier(nn.Module):
    """The first token of each given stream, side by side, to class logits.

    Parameters: `out` (C, sum of widths), and a `pool` for each stream where they are pooled.

    Args:
        dim: width of the stream, or of each of several.
        classes: C.
        pooled: whether each first token goes through a pool of its own first.
    """

    def __init__(self, dim: int | Sequence[int], *, classes: int, pooled: bool = False) -> None:
        super().__init__()
        widths = [dim] if isinstance(dim, int) else list(dim)
        self.pool = nn.ModuleList(Pool(width) for width in widths) if pooled else None
        self.out = nn.Linear(sum(widths), classes)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, *given: Stream) -> Tensor:
        """Streams (P, L, D) to (P, C)."""
        first = [s.x[:, 0] for s in given] if self.pool is None else [pool(s) for pool, s in zip(self.pool, given)]
        return self.out(torch.cat(first, -1))


class BoxHead(nn.Module):
    """The first token to four numbers before a sigmoid, centre, width and height of a box, through a layer of twice the width (X-VLM).

    Parameters: `dense` (2D, D), `norm` (2D,), `out` (4, 2D).
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.dense, self.norm, self.out = nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim, eps=eps), nn.Linear(2 * dim, 4)
        for linear in (self.dense, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, s: Stream) -> Tensor:
        """A stream (P, L, D) to (P, 4)."""
        return self.out(activate(self.norm(self.dense(s.x[:, 0])), "gelu"))


class AnswerHead(nn.Module):
    """The pooled first token to one of C answers, through a layer of twice the width (LXMERT).

    Parameters: `pool`, `dense` (2D, D), `norm` (2D,), `out` (C, 2D).
    """

    def __init__(self, dim: int, *, classes: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.pool = Pool(dim)
        self.dense, self.norm, self.out = nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim, eps=eps), nn.Linear(2 * dim, classes)
        for linear in (self.dense, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, s: Stream) -> Tensor:
        """A stream (P, L, D) to (P, C)."""
        return self.out(self.norm(activate(self.dense(self.pool(s)), "gelu")))
