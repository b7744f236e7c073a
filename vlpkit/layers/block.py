"""One block for every trunk: an ordered list of sublayers, each one residual that owns its norm.
A sublayer's name is its address: `self`, `cross`, `ffn`, and `ffn2` for the second of a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.layers.attention import Attention, Cache, Memory, Sight
from vlpkit.layers.experts import apply, several
from vlpkit.types import Parts

NormPlace = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu"]


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The named non-linearity; quick_gelu is x * sigmoid(1.702 x), as CLIP was trained, squared_relu relu(x)^2 (Flamingo)."""
    if kind == "quick_gelu":
        return F.silu(1.702 * x) / 1.702  # the same, with half the passes over memory on the way back
    if kind == "squared_relu":
        return F.relu(x).square()
    return F.relu(x) if kind == "relu" else F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """Two linear layers around a non-linearity, with biases or without. Parameters: `fc1` (H, D), `fc2` (D, H), and `inner` (H,) before `fc2` where asked for."""

    def __init__(
        self, dim: int, *, hidden: int, activation: Activation = "gelu", inner_norm: bool = False, eps: float = 1e-5, bias: bool = True
    ) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(dim, hidden, bias=bias), nn.Linear(hidden, dim, bias=bias), activation
        self.inner = nn.LayerNorm(hidden, eps=eps) if inner_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        h = activate(self.fc1(x), self.activation)
        return self.fc2(h if self.inner is None else self.inner(h))


class Call(NamedTuple):
    """What every sublayer of one trunk call is told.

    Args:
        within: which positions of the stream each may read.
        across: which positions of the memory.
        memory: what `cross` reads; None skips it.
        cache: kept keys and values.
        parts: of the stream, which experts go by.
        route: set of experts that is forced.
    """

    within: Sight
    across: Sight
    memory: Memory | None = None
    cache: Cache | None = None
    parts: Parts = ()
    route: str | None = None


class Sublayer(nn.Module):
    """A residual: x + drop(body(norm x)) when the norm stands before, norm(x + drop(body x)) when it stands after.

    Parameters: `norm` (D,), `body`, and `scale` (D,) or `gate` () that multiply the branch, where asked for.

    Args:
        body: what the residual adds, or its experts.
        norm: of its input or of the sum, or its experts.
        place: of the norm.
        dim: D.
        dropout: of the branch.
        drop_path: probability of skipping the branch for a row.
        scale: start of a learned scale a channel (Touvron et al. 2021, LayerScale); None: no scale.
        gate: the branch is multiplied by tanh of a scalar that starts at 0 (Alayrac et al. 2022, section 3.1.2).
    """

    def __init__(
        self, body: nn.Module, norm: nn.Module, *, place: NormPlace, dim: int, dropout: float = 0.0, drop_path: float = 0.0, scale: float | None = None,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.norm, self.body = norm, body
        self.place, self.dropout, self.drop_path = place, dropout, drop_path
        self.scale = None if scale is None else nn.Parameter(torch.full((dim,), scale))
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

    def _branch(self, y: Tensor) -> Tensor:
        if self.scale is not None:
            y = y * self.scale
        if self.gate is not None:
            y = y * self.gate.tanh()
        if not self.training:
            return y
        if self.dropout:
            y = F.dropout(y, self.dropout)
        if self.drop_path:
            keep = torch.rand(y.shape[0], 1, 1, device=y.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return y

    def forward(self, x: Tensor, kind: str, call: Call, key: Hashable) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        h = apply(self.norm, x, call.parts, call.route) if self.place == "pre" else x
        if kind == "self":
            y = self.body(h, call.within, cache=call.cache, key=key, parts=call.parts, route=call.route)
        elif kind == "cross":
            y = self.body(h, call.across, memory=call.memory, cache=call.cache, key=key, parts=call.parts, route=call.route)
        else:
            y = apply(self.body, h, call.parts, call.route)
        x = x + self._branch(y)
        return x if self.place == "pre" else apply(self.norm, x, call.parts, call.route)


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What all blocks of a trunk have in common; see `Trunk` for each."""

    dim: int
    heads: int
    hidden: int
    sublayers: Sequence[str]
    memory_dim: int
    place: NormPlace
    eps: float
    dropout: float
    attention_dropout: float
    activation: Activation
    bias: bool
    scale: float | None
    gates: Sequence[str]
    every: Mapping[str, int]
    inner_norm: bool
    memory_norm: bool


class Block(nn.Module):
    """Sublayers in order; `cross` is skipped when there is no memory.

    Args:
        plan: what the blocks of a trunk have in common; a kind of sublayer may repeat.
        drop_path: probability of skipping a residual branch for a row.
        experts: sets by kind of module: `ffn` is that whole sublayer, `attn` the projections of attention, `norm` its norm.
        number: of the block in its trunk, from 0; a sublayer that only each n-th block has leaves the names of the others as they are.
    """

    def __init__(self, plan: BlockPlan, *, drop_path: float, experts: Mapping[str, Sequence[str]], number: int) -> None:
        super().__init__()
        self.kinds: list[tuple[str, str]] = []
        seen: Counter[str] = Counter()
        named = []
        for kind in plan.sublayers:
            if kind not in ("self", "cross", "ffn"):
                raise ValueError(f"block: no sublayer {kind!r} (there are: self, cross, ffn)")
            seen[kind] += 1
            name = kind if seen[kind] == 1 else f"{kind}{seen[kind]}"
            named.append(name)
            if (number + 1) % plan.every.get(name, 1):
                continue
            norm = several(lambda: nn.LayerNorm(plan.dim, eps=plan.eps), experts.get("ffn" if kind == "ffn" else "norm", ()))
            sublayer = Sublayer(
                self._body(kind, plan, experts), norm, place=plan.place, dim=plan.dim, dropout=plan.dropout, drop_path=drop_path, scale=plan.scale,
                gate=name in plan.gates,
            )
            self.add_module(name, sublayer)
            self.kinds.append((name, kind))
        for word, asked in (("gates", plan.gates), ("every", plan.every)):
            if strange := [name for name in asked if name not in named]:
                raise ValueError(f"{word}: no sublayer {strange[0]!r} (there are: {', '.join(named)})")

    @staticmethod
    def _body(kind: str, plan: BlockPlan, experts: Mapping[str, Sequence[str]]) -> nn.Module:
        if kind == "ffn":
            return several(
                lambda: FeedForward(plan.dim, hidden=plan.hidden, activation=plan.activation, inner_norm=plan.inner_norm, eps=plan.eps), experts.get("ffn", ())
            )
        return Attention(
            plan.dim, heads=plan.heads, memory_dim=plan.memory_dim if kind == "cross" else None, bias=plan.bias, dropout=plan.attention_dropout,
            inner_norm=plan.inner_norm, memory_norm=plan.memory_norm and kind == "cross", eps=plan.eps, experts=experts.get("attn", ()),
        )

    def forward(self, x: Tensor, call: Call, where: Hashable = None) -> Tensor:
        """(B, L, D) to (B, L, D); `where` tells the places of one block in a cache apart."""
        for name, kind in self.kinds:
            if kind != "cross" or call.memory is not None:
                x = self.get_submodule(name)(x, kind, call, (where, name))
        return x
