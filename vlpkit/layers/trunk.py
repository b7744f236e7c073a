"""A stack of blocks over a stream: any range of layers, a closing norm that follows the last block and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlpkit.errors import AssemblyError
from vlpkit.layers.attention import Cache, Memory, Sight, look_across, look_within
from vlpkit.layers.block import Activation, Block, BlockPlan, Call, NormPlace
from vlpkit.layers.experts import SETS, apply, several
from vlpkit.types import Stream

Init = Literal["normal", "scaled", "xavier"]


def layer_range(text: str | int, depth: int) -> range:
    """The layers that `all`, `3`, `0-2` or `6-` name in a trunk of `depth` blocks. Raises ValueError when outside."""
    text = str(text)
    if text == "all":
        return range(depth)
    first, dash, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise ValueError(f"{text!r} is no layer range (write all, 3, 0-2 or 6-)")
    start, stop = int(first), int(last) + 1 if last else (depth if dash else int(first) + 1)
    if not 0 <= start < stop <= depth:
        raise ValueError(f"layers {text!r} lie outside 0..{depth - 1}")
    return range(start, stop)


def sets_in(sets: Sequence[str], layer: int, depth: int) -> list[str]:
    """The sets that live in a layer: `v`, `w`, or `vw:10-` from layer 10 on. Raises ValueError for a set of another name."""
    there = []
    for text in sets:
        name, _, layers = text.partition(":")
        if name not in SETS:
            raise ValueError(f"experts: {name!r} is no set (there are: {', '.join(SETS)})")
        if layer in layer_range(layers or "all", depth):
            there.append(name)
    return there


class Bias(Protocol):
    """A position bias of a trunk, from the parts and places of a stream."""

    def __call__(self, s: Stream) -> Sequence[Tensor]:
        """One (1|B, heads, L, L) a block, added to the logits of self-attention."""


class Trunk(nn.Module):
    """Blocks over a stream; fulfils the trunk contract (layer ranges, memory, cache, route, `close`).

    Parameters: `blocks.N.SUBLAYER.{norm,body}` and, with the norm before, the closing `norm` (D,) unless `closing` is off.

    Args:
        dim: D, the width.
        depth: number of blocks; 0 is legal.
        heads: attention heads.
        block: kinds of sublayers in order, such as [self, cross, ffn].
        memory_dim: width of the states that `cross` reads; the width of the trunk when left out.
        ratio: width of the feed-forward layers as a multiple of D.
        place: norm before (ViT, GPT) or after (BERT) the residual sum.
        eps: of all norms.
        dropout: of the residual branches.
        attention_dropout: of the attention weights.
        drop_path: skip probability of the last block's residuals, growing linearly from 0 at the first.
        activation: of the feed-forward layers.
        bias: whether attention projections have biases.
        init: normal (std 0.02), scaled by width and depth (CLIP's text tower), or xavier (torch's attention).
        experts: sets by kind of module, such as `{ffn: [v, w, "vw:10-"]}` (VLMo) or `{attn: [v, w], norm: [v, w], ffn: [v, w]}` (BEiT-3 as
            released): `ffn` is that whole sublayer, `attn` the projections of attention, `norm` its norm and the closing one. The rest is shared.
        scale: start of a learned scale a channel of every residual (LayerScale); None: no scale.
        gates: sublayers behind a tanh gate that starts closed, such as [cross, ffn].
        every: sublayers that only each n-th block has, such as {cross: 4}: blocks 3, 7, 11 (Alayrac et al. 2022, section 3.1.2).
        inner_norm: norms inside attention and feed-forward, before their last projection (sub-LN).
        memory_norm: a norm of what each `cross` reads.
        closing: whether a norm follows the last block where norms stand before; a neck may norm for itself.
        relative: position bias of self-attention.
    """

    def __init__(
        self, dim: int, *, depth: int, heads: int, block: Sequence[str] = ("self", "ffn"), memory_dim: int | None = None, ratio: float = 4.0,
        place: NormPlace = "pre", eps: float = 1e-6, dropout: float = 0.0, attention_dropout: float = 0.0, drop_path: float = 0.0,
        activation: Activation = "gelu", bias: bool = True, init: Init = "normal", experts: Mapping[str, Sequence[str]] | None = None,
        scale: float | None = None, gates: Sequence[str] = (), every: Mapping[str, int] | None = None, inner_norm: bool = False,
        memory_norm: bool = False, closing: bool = True, relative: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.place = dim, depth, place
        self.recompute = False  # activation checkpointing: switched by the training module
        self.reads_memory = "cross" in block
        if small := [name for name, n in (every or {}).items() if n < 1]:
            raise ValueError(f"every: {small[0]!r} stands in each n-th block, and n is at least 1")
        sets = dict(experts or {})
        if strange := sorted(sets.keys() - {"attn", "ffn", "norm"}):
            raise ValueError(f"experts: {strange[0]!r} is no kind of module (there are: attn, ffn, norm)")
        plan = BlockPlan(
            dim=dim, heads=heads, hidden=round(dim * ratio), sublayers=block, memory_dim=memory_dim or dim, place=place, eps=eps, dropout=dropout,
            attention_dropout=attention_dropout, activation=activation, bias=bias, scale=scale, gates=gates, every=dict(every or {}),
            inner_norm=inner_norm, memory_norm=memory_norm,
        )
        self.blocks = nn.ModuleList(
            Block(
                plan, drop_path=drop_path * i / max(depth - 1, 1), experts={kind: sets_in(names, i, depth) for kind, names in sets.items()},
                number=i,
            )
            for i in range(depth)
        )
        named = [name for name in sets.get("norm", ()) if ":" not in name]
        self.norm = several(lambda: nn.LayerNorm(dim, eps=eps), named) if place == "pre" and closing else None
        self.register_module("relative", relative)
        self._start(init)

    def _start(self, init: Init) -> None:
        attention = {"normal": 0.02, "scaled": self.dim**-0.5, "xavier": 0.0}[init]
        out = {"normal": 0.02, "scaled": self.dim**-0.5 * (2 * max(self.depth, 1)) ** -0.5, "xavier": 0.0}[init]
        hidden = {"normal": 0.02, "scaled": (2 * self.dim) ** -0.5, "xavier": 0.0}[init]
        std = {"qkv": attention, "q": attention, "kv": attention, "out": out, "fc1": hidden, "fc2": out}
        for path, linear in self.blocks.named_modules():
            if isinstance(linear, nn.Linear):
                if init == "xavier":
                    nn.init.xavier_uniform_(linear.weight)
                else:
                    # of qkv, or of the set v of qkv's experts
                    nn.init.normal_(linear.weight, std=next(std[name] for name in reversed(path.split(".")) if name in std))
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(
        self, s: Stream, *, memory: Stream | None = None, of: Tensor | None = None, layers: range | None = None, route: str | None = None,
        cache: Cache | None = None, close: bool = True,
    ) -> Stream:
        """Run blocks over a stream.

        Args:
            s: (B, L, D) stream; with a cache, new positions only.
            memory: stream that `cross` reads; None skips those sublayers.
            of: (B,) row of the memory that each row of `s` reads; row i reads row i when left out.
            layers: blocks to run; all when left out.
            route: set of experts that is forced where it exists; left out, each part of the stream goes to the set of its side.
            cache: kept keys and values; then the order of `s` must exceed every kept one.
            close: apply the closing norm when the last block was run.

        Returns:
            (B, L, D) stream, raw when the range stops early.
        """
        layers = range(self.depth) if layers is None else layers
        if cache is not None and self.relative is not None:
            raise AssemblyError("decodes with a cache, but a trunk with a position bias has none; decode without (cached=false)")
        place = (id(self), layers.start)
        within = look_within(s) if cache is None else cache.within((*place, "self"), s)
        across, states = Sight(), None
        if memory is not None and self.reads_memory:
            states = Memory(memory.x, of)
            across = look_across(memory, of, s) if cache is None else cache.across((*place, "cross"), memory, of, s)
        biases: Sequence[Tensor] | None = None if self.relative is None else self.relative(s)  # type: ignore[operator]
        x, call = s.x, Call(within, across, states, cache, s.parts, route)
        for i in layers:
            if biases is not None:
                call = call._replace(within=within.biased(biases[i]))
            if self.recompute and self.training and cache is None and x.requires_grad:
                x = checkpoint(self.blocks[i], x, call, use_reentrant=False)
            else:
                x = self.blocks[i](x, call, (id(self), i))
        s = replace(s, x=x)
        return self.close(s, route=route) if close and layers.stop == self.depth else s

    def close(self, s: Stream, *, route: str | None = None) -> Stream:
        """The closing norm; the stream itself where there is none."""
        return s if self.norm is None else replace(s, x=apply(self.norm, s.x, s.parts, route))
