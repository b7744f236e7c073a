"""One attention for every trunk: self (mask and order) or cross (mask of the memory), with a cache for decoding.
Who may see whom is data on the streams; it is turned into a kernel mask once per trunk call, never per block."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.fits import split_heads
from vlpkit.layers.experts import apply, several
from vlpkit.types import Parts, Stream, is_full

_CAUSAL: dict[tuple[int, int, str], Tensor] = {}


def causal_order(rows: int, length: int, device: torch.device | str) -> Tensor:
    """(rows, length) int64 order 1..length: each position reads itself and what stands before it.

    The same tensor object for equal arguments, which attention recognises and hands to the causal kernel.
    """
    key = (rows, length, str(device))
    if key not in _CAUSAL:
        if len(_CAUSAL) > 256:  # shapes vary with the padding; forget rather than grow
            _CAUSAL.clear()
        with torch.inference_mode(False):
            _CAUSAL[key] = torch.arange(1, length + 1, device=device).expand(rows, length)
    return _CAUSAL[key]


def is_causal(order: Tensor) -> bool:
    """True when `order` is the constant of `causal_order`; False says nothing about the values."""
    return _CAUSAL.get((order.shape[0], order.shape[1], str(order.device))) is order


class Memory(NamedTuple):
    """What cross-attention reads.

    Args:
        x: (R, M, D) states.
        of: (B,) row that each query row reads; row i reads row i when left out. Keys and values are made once a row of `x`,
            so images that stand in several drawn pairs cost no more.
    """

    x: Tensor
    of: Tensor | None = None


class Sight(NamedTuple):
    """Which keys each query may read, in the form the kernel wants.

    Args:
        mask: (B, 1, 1|Lq, Lk) bool or None when every key is visible (or `causal` says it all); with a position bias
            (1|B, heads, Lq, Lk) float, -inf where a key is not visible.
        seen: (B, 1|Lq, 1) bool, False where a query has no visible key, or None when that cannot happen.
        causal: the kernel's own triangle applies.
    """

    mask: Tensor | None = None
    seen: Tensor | None = None
    causal: bool = False


    def biased(self, bias: Tensor) -> Sight:
        """The same keys with a position bias (1|B, heads, Lq, Lk) added to the logits."""
        mask = self.mask
        if self.causal:
            mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
        return Sight(bias if mask is None else bias.masked_fill(~mask, float("-inf")), self.seen)


def _sight(visible: Tensor) -> Sight:
    seen = visible.any(-1, keepdim=True)
    return Sight((visible | ~seen)[:, None], seen)


def look_within(s: Stream) -> Sight:
    """Self-attention: position i reads j where `mask[j] and order[j] <= order[i]`."""
    if s.order is None:
        return Sight() if is_full(s.mask) else _sight(s.mask[:, None, :])
    if is_full(s.mask) and is_causal(s.order):
        return Sight(causal=True)
    return _sight(s.mask[:, None, :] & (s.order[:, None, :] <= s.order[:, :, None]))


def look_across(memory: Stream, of: Tensor | None = None, reader: Stream | None = None) -> Sight:
    """Cross-attention: every query reads the real tokens of the memory, of its row `of` (B,) where that is given.

    Where the memory and its reader both carry groups, only tokens of one group read each other.
    """
    group = None if reader is None or reader.group is None else memory.group
    if group is None:
        return Sight() if is_full(memory.mask) else _sight((memory.mask if of is None else memory.mask[of])[:, None, :])
    mask, group = (memory.mask, group) if of is None else (memory.mask[of], group[of])
    assert reader is not None and reader.group is not None
    return _sight(mask[:, None, :] & (group[:, None, :] == reader.group[:, :, None]))


class Cache:
    """Keys, values, masks and orders of the positions already decoded, by block; rows are beams."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What was kept under `key`, or None."""
        return self._kept.get(key)

    def keep(self, key: Hashable, *tensors: Tensor) -> None:
        """Replace what is kept under `key`."""
        self._kept[key] = tensors

    def rows(self, index: Tensor) -> None:
        """Reorder every kept tensor to (P,) rows: beams that go on."""
        self._kept = {k: tuple(t[index] for t in ts) for k, ts in self._kept.items()}

    def within(self, key: Hashable, s: Stream) -> Sight:
        """Self-attention of new positions over the kept ones and themselves; keeps the new mask and order."""
        order = torch.zeros(s.mask.shape, dtype=torch.int64, device=s.mask.device) if s.order is None else s.order
        mask = s.mask
        before = self.get(key)
        keys_order = order
        if before is not None:
            mask, keys_order = torch.cat([before[0], mask], 1), torch.cat([before[1], order], 1)
        self.keep(key, mask, keys_order)
        return _sight(mask[:, None, :] & (keys_order[:, None, :] <= order[:, :, None]))

    def across(self, key: Hashable, memory: Stream, of: Tensor | None, reader: Stream) -> Sight:
        """Cross-attention over a memory that is read once and kept."""
        before = self.get(key)
        if before is None:
            mask = memory.mask if of is None else memory.mask[of]
            group = memory.group if memory.group is None or of is None else memory.group[of]
            self.keep(key, mask, *(() if group is None else (group,)))
            return look_across(memory, of, reader)
        kept = Stream(memory.x, before[0], (), group=before[1] if len(before) > 1 else None)
        return look_across(kept, None, reader)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2).

    Parameters: `qkv` (3D, D) for self-attention; `q` (D, D) and `kv` (2D, memory_dim) for cross-attention; `out` (D, D); `inner` (D,)
    and `norm_memory` (memory_dim,) where asked for. With experts, `qkv`, `q`, `inner` and `out` each come in sets; keys and values of a memory do not.

    Args:
        dim: D, width of the queries and of the result.
        heads: number of heads; must divide D.
        memory_dim: width of the keys' states; None means self-attention.
        bias: whether the projections have biases.
        dropout: probability of dropping an attention weight while training.
        inner_norm: a norm before the output projection (Wang et al. 2022, sub-LN).
        memory_norm: a norm of what cross-attention reads, before keys and values (open_clip's CoCa).
        eps: of those norms.
        experts: sets of the projections; none shares them.
    """

    def __init__(
        self, dim: int, *, heads: int, memory_dim: int | None = None, bias: bool = True, dropout: float = 0.0, inner_norm: bool = False,
        memory_norm: bool = False, eps: float = 1e-5, experts: Sequence[str] = (),
    ) -> None:
        super().__init__()
        split_heads(dim, heads)
        self.dim, self.heads, self.dropout = dim, heads, dropout
        if memory_dim is None:
            self.qkv = several(lambda: nn.Linear(dim, 3 * dim, bias=bias), experts)
        else:
            self.q = several(lambda: nn.Linear(dim, dim, bias=bias), experts)
            self.kv = nn.Linear(memory_dim, 2 * dim, bias=bias)
        self.norm_memory = nn.LayerNorm(memory_dim, eps=eps) if memory_norm and memory_dim is not None else None
        self.inner = several(lambda: nn.LayerNorm(dim, eps=eps), experts) if inner_norm else None
        self.out = several(lambda: nn.Linear(dim, dim, bias=bias), experts)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.view(*x.shape[:2], parts, self.heads, self.dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def _read(self, memory: Memory) -> tuple[Tensor, ...]:
        kv = self.kv(memory.x if self.norm_memory is None else self.norm_memory(memory.x))
        return self._split(kv if memory.of is None else kv.index_select(0, memory.of), 2)

    def forward(
        self, x: Tensor, sight: Sight, *, memory: Memory | None = None, cache: Cache | None = None, key: Hashable = None, parts: Parts = (),
        route: str | None = None,
    ) -> Tensor:
        """(B, Lq, D) states to (B, Lq, D); a query without visible key gives exactly 0. `parts` and `route` choose among experts."""
        if memory is None:
            q, k, v = self._split(apply(self.qkv, x, parts, route), 3)
        else:
            (q,) = self._split(apply(self.q, x, parts, route), 1)
        kept = None if cache is None else cache.get(key)
        if memory is None and kept is not None:
            k, v = torch.cat([kept[0], k], 2), torch.cat([kept[1], v], 2)
        if memory is not None:
            k, v = (kept[0], kept[1]) if kept is not None else self._read(memory)
        if cache is not None:
            cache.keep(key, k, v)
        if k.shape[2] == 0:
            return torch.zeros_like(x)
        mask = sight.mask if sight.mask is None or sight.mask.dtype == torch.bool else sight.mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0, is_causal=sight.causal)
        y = y.transpose(1, 2).reshape(x.shape)
        if self.inner is not None:
            y = apply(self.inner, y, parts, route)
        y = apply(self.out, y, parts, route)
        return y if sight.seen is None else y * sight.seen
