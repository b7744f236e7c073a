"""A part of one's own: a projector with a hidden layer, let in with `plugins=[examples.parts]`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.types import Stream


class TwoLayerProjector(nn.Module):
    """Pool the first token, two layers, normalise; fulfils the projector contract.

    Args:
        dim: D, width of the stream; assembly fills it in.
        out: E, width of the shared space.
        pool: first or last token.
        bias: whether the layers have biases.
    """

    def __init__(self, dim: int, *, out: int, pool: str = "first", bias: bool = True) -> None:
        super().__init__()
        self.space = out  # what the contract asks for: the width of the points
        self.pool, self.hidden, self.out = pool, nn.Linear(dim, dim, bias=bias), nn.Linear(dim, out, bias=bias)

    def forward(self, s: Stream) -> Tensor:
        """(B, L, D) stream to (B, E) unit vectors."""
        last = s.mask.long().sum(1) - 1
        x = s.x[:, 0] if self.pool == "first" else s.x[range(len(last)), last]
        return F.normalize(self.out(F.gelu(self.hidden(x))).float(), dim=-1)
