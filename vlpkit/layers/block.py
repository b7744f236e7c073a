"""One block for every trunk: an ordered list of sublayers, each one residual that owns its norm.
A sublayer's name is its address: `self`, `cross`, `ffn`, and `ffn2` for the second of a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.layers.attention import Attention, Cache, Memory, Sight

NormPlace = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The named non-linearity; quick_gelu is x * sigmoid(1.702 x), as CLIP was trained."""
    if kind == "quick_gelu":
        return F.silu(1.702 * x) / 1.702  # the same, with half the passes over memory on the way back
    return F.relu(x) if kind == "relu" else F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """Two linear layers around a non-linearity. Parameters: `fc1` (H, D), `fc2` (D, H)."""

    def __init__(self, dim: int, *, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(dim, hidden), nn.Linear(hidden, dim), activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.fc2(activate(self.fc1(x), self.activation))


class Sights(NamedTuple):
    """What the sublayers of one trunk call may see: within the stream, and across to the memory."""

    within: Sight
    across: Sight


class Sublayer(nn.Module):
    """A residual: x + drop(body(norm x)) when the norm stands before, norm(x + drop(body x)) when it stands after."""

    def __init__(self, body: Attention | FeedForward, dim: int, *, place: NormPlace, eps: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(dim, eps=eps), body
        self.place, self.dropout, self.drop_path = place, dropout, drop_path

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training:
            return y
        if self.dropout:
            y = F.dropout(y, self.dropout)
        if self.drop_path:
            keep = torch.rand(y.shape[0], 1, 1, device=y.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return y

    def forward(self, x: Tensor, kind: str, sights: Sights, memory: Memory | None, cache: Cache | None, key: Hashable) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        h = self.norm(x) if self.place == "pre" else x
        if kind == "self":
            y = self.body(h, sights.within, cache=cache, key=key)
        elif kind == "cross":
            y = self.body(h, sights.across, memory=memory, cache=cache, key=key)
        else:
            y = self.body(h)
        x = x + self._drop(y)
        return x if self.place == "pre" else self.norm(x)


class Block(nn.Module):
    """Sublayers in order; `cross` is skipped when there is no memory.

    Args:
        dim: D, the width.
        heads: attention heads.
        hidden: width of the feed-forward layer.
        sublayers: kinds in order, out of self, cross, ffn; a kind may repeat.
        memory_dim: width of what `cross` reads.
        place: norm before or after the residual sum.
        eps: of the norms.
        dropout: of the residual branches.
        attention_dropout: of the attention weights.
        drop_path: probability of skipping a residual branch for a row.
        activation: of the feed-forward layers.
        bias: whether attention projections have biases.
    """

    def __init__(
        self, dim: int, *, heads: int, hidden: int, sublayers: Sequence[str], memory_dim: int, place: NormPlace, eps: float,
        dropout: float, attention_dropout: float, drop_path: float, activation: Activation, bias: bool,
    ) -> None:
        super().__init__()
        self.kinds: list[tuple[str, str]] = []
        seen: Counter[str] = Counter()
        for kind in sublayers:
            if kind not in ("self", "cross", "ffn"):
                raise ValueError(f"block: no sublayer {kind!r} (there are: self, cross, ffn)")
            seen[kind] += 1
            name = kind if seen[kind] == 1 else f"{kind}{seen[kind]}"
            body: Attention | FeedForward
            if kind == "ffn":
                body = FeedForward(dim, hidden=hidden, activation=activation)
            else:
                reads = memory_dim if kind == "cross" else None
                body = Attention(dim, heads=heads, memory_dim=reads, bias=bias, dropout=attention_dropout)
            self.add_module(name, Sublayer(body, dim, place=place, eps=eps, dropout=dropout, drop_path=drop_path))
            self.kinds.append((name, kind))

    def forward(self, x: Tensor, sights: Sights, memory: Memory | None = None, cache: Cache | None = None, where: Hashable = None) -> Tensor:
        """(B, L, D) to (B, L, D); `where` tells the places of one block in a cache apart."""
        for name, kind in self.kinds:
            if kind != "cross" or memory is not None:
                x = self.get_submodule(name)(x, kind, sights, memory, cache, (where, name))
        return x
