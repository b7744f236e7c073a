"""What stands between a trunk and its readers: learned queries that read the stream and become its named tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vlpkit.layers.attention import Attention, Memory, Sight, look_across
from vlpkit.layers.block import Activation, Call, FeedForward, Sublayer
from vlpkit.types import Stream, full_mask


class Neck(nn.Module):
    """The neck contract: a stream to another of width `dim`, whose length and names it chooses."""

    dim: int

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to (B, L', dim)."""
        raise TypeError(f"{type(self).__name__} defines no forward")


class Queries(Neck):
    """Learned queries read the stream through one attention, without a residual around it (Lee et al. 2019, section 3.2).

    Parameters: `query` (1, Q, E), `attention` (its q, kv and out), and where asked for `ffn` (its norm and body), `norm_query` (E,),
    `norm_memory` (D,) and the closing `norm` (E,).

    Args:
        dim: D, width of the stream.
        parts: names of the queries and how many of each, such as {v_cls: 1} or {v_cls: 1, v: 255}.
        heads: attention heads.
        out: E, width of the queries; None: that of the stream.
        ffn: a feed-forward layer behind the attention, whose residual is the attention's un-normalised result (SigLIP's head).
        norms: a norm of the queries and one of what they read (CoCa's poolers).
        closing: a norm of the result.
        keep: whether what was read follows the queries; both must be of one width.
        ratio: width of the feed-forward layer as a multiple of E.
        eps: of all norms.
        activation: of the feed-forward layer.
        std: of the queries at the start; E ** -0.5 when left out.
    """

    def __init__(
        self, dim: int, *, parts: Mapping[str, int], heads: int, out: int | None = None, ffn: bool = False, norms: bool = False, closing: bool = False,
        keep: bool = False, ratio: float = 4.0, eps: float = 1e-6, activation: Activation = "gelu", std: float | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim if out is None else out
        if keep and self.dim != dim:
            raise ValueError(f"queries of width {self.dim} cannot stand before a stream of width {dim}")
        self.parts, self.keep = tuple(parts.items()), keep
        self.query = nn.Parameter(torch.empty(1, sum(parts.values()), self.dim))
        self.attention = Attention(self.dim, heads=heads, memory_dim=dim)
        self.norm_query = nn.LayerNorm(self.dim, eps=eps) if norms else None
        self.norm_memory = nn.LayerNorm(dim, eps=eps) if norms else None
        body = FeedForward(self.dim, hidden=round(self.dim * ratio), activation=activation)
        self.ffn = Sublayer(body, nn.LayerNorm(self.dim, eps=eps), place="pre", dim=self.dim) if ffn else None
        self.norm = nn.LayerNorm(self.dim, eps=eps) if closing else None
        nn.init.normal_(self.query, std=self.dim**-0.5 if std is None else std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to (B, Q, E), or (B, Q + L, E) with what was read."""
        query, read = self.query, s.x
        if self.norm_query is not None and self.norm_memory is not None:
            query, read = self.norm_query(query), self.norm_memory(read)
        x: Tensor = self.attention(query.expand(len(read), -1, -1), look_across(s), memory=Memory(read))
        if self.ffn is not None:
            x = self.ffn(x, "ffn", Call(Sight(), Sight()), None)
        if self.norm is not None:
            x = self.norm(x)
        asked = Stream(x, full_mask(x.shape[0], x.shape[1], x.device), self.parts)
        return Stream.cat(asked, s) if self.keep else asked


class Chain(Neck):
    """Necks one behind the other, each reading what the one before gave (CoCa's cascade: queries for the decoder, and one that reads them).

    Parameters: `necks`.

    Args:
        dim: D, width of the stream that the first reads.
        necks: in order; the first reads width D, each other one names the width it reads (`dim`).
    """

    def __init__(self, dim: int, *, necks: Sequence[Neck]) -> None:
        super().__init__()
        if not necks:
            raise ValueError("a chain needs at least one neck")
        self.necks, self.dim = nn.ModuleList(necks), necks[-1].dim

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to that of the last neck."""
        for neck in self.necks:
            s = neck(s)
        return s


class _Resample(nn.Module):
    """One layer of a resampler: queries read the stream and themselves, then a feed-forward layer, both residual."""

    def __init__(self, dim: int, *, heads: int, ratio: float, eps: float, activation: Activation) -> None:
        super().__init__()
        self.norm_query, self.norm_memory = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = Attention(dim, heads=heads, memory_dim=dim, bias=False)
        body = FeedForward(dim, hidden=round(dim * ratio), activation=activation, bias=False)
        self.ffn = Sublayer(body, nn.LayerNorm(dim, eps=eps), place="pre", dim=dim)

    def forward(self, x: Tensor, read: Tensor, sight: Sight) -> Tensor:
        """(B, Q, D) queries and (B, L, D) states to (B, Q, D)."""
        query = self.norm_query(x)
        x = x + self.attention(query, sight, memory=Memory(torch.cat([self.norm_memory(read), query], 1)))
        return self.ffn(x, "ffn", Call(Sight(), Sight()), None)


class Resampler(Neck):
    """Learned queries read the stream and themselves, layer after layer, and stand for it (Alayrac et al. 2022, section 3.1.1).

    Parameters: `query` (1, Q, D), `layers.N.{norm_query,norm_memory,attention,ffn}` without biases but those of norms, `norm` (D,).

    Args:
        dim: D, width of the stream and of the queries.
        queries: Q, number of tokens that come out, all of the part v.
        depth: number of layers.
        heads: attention heads.
        reads: name of the run of tokens that is read; None: the whole stream.
        ratio: width of the feed-forward layers as a multiple of D.
        eps: of all norms.
        activation: of the feed-forward layers.
        std: of the queries at the start.
    """

    def __init__(
        self, dim: int, *, queries: int, depth: int, heads: int, reads: str | None = "v", ratio: float = 4.0, eps: float = 1e-5,
        activation: Activation = "squared_relu", std: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim, self.reads = dim, reads
        self.query = nn.Parameter(torch.empty(1, queries, dim).normal_(std=std))
        self.layers = nn.ModuleList(_Resample(dim, heads=heads, ratio=ratio, eps=eps, activation=activation) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, s: Stream) -> Stream:
        """(B, L, D) stream to (B, Q, D)."""
        s = s if self.reads is None else s.part(self.reads)
        x = self.query.to(s.x.dtype).expand(len(s.x), -1, -1)
        kept = Stream(x, full_mask(x.shape[0], x.shape[1], x.device), (("v", x.shape[1]),))
        sight = look_across(Stream.cat(s, kept))
        for layer in self.layers:
            x = layer(x, s.x, sight)
        return replace(kept, x=self.norm(x))
