"""The currency of the house: inputs from data, streams between parts, and what objectives hand back.

House legend: B texts on this rank, R images on this rank, P rows of a pairing, G ranks, M image tokens, N text tokens,
L any length, D width, E shared space, K queue length, V vocabulary. `v` is image-side, `w` text-side. A mask is boolean
and True means "a real token". Index -1 means "none".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple, NewType

import torch
from torch import Tensor

Side = Literal["v", "w"]
Steps = NewType("Steps", int)  # optimiser steps; in YAML `2000_steps`, `2_epochs`, `1M_samples` or `10_percent`
IGNORE = -100  # the label that no loss counts


def full_mask(rows: int, length: int, device: torch.device | str) -> Tensor:
    """(rows, length) all True, held as one element: attention recognises it without looking at the values."""
    return torch.ones((), dtype=torch.bool, device=device).expand(rows, length)


def is_full(mask: Tensor) -> bool:
    """True when `mask` came from `full_mask`; False says nothing about the values."""
    return mask.ndim == 2 and mask.stride() == (0, 0)


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What the data knows of R images.

    Args:
        pixels: (R, 3, H, W) uint8, or float in [0, 1]; each reader normalises for itself.
    """

    pixels: Tensor

    def key(self) -> tuple[int, ...]:
        """Identity of the tensors a pass over this input reads."""
        return (id(self.pixels),)

    def rows(self, index: Tensor) -> ImageInput:
        """(P,) rows of the input, in that order."""
        return ImageInput(self.pixels[index])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ImageInput:
        """The same input on another device."""
        return ImageInput(self.pixels.to(device, non_blocking=non_blocking))

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class TextInput:
    """B token sequences.

    Args:
        ids: (B, N) int64.
        mask: (B, N) bool.
        order: (B, N) int64: position i reads j where `mask[j]` and `order[j] <= order[i]`; absent: everyone reads everyone.
        at: (B, N) int64 position index; absent: 0..N-1.
    """

    ids: Tensor
    mask: Tensor
    order: Tensor | None = None
    at: Tensor | None = None

    def key(self) -> tuple[int, ...]:
        """Identity of the tensors a pass over this input reads."""
        return (id(self.ids), id(self.mask), id(self.order), id(self.at))

    def rows(self, index: Tensor) -> TextInput:
        """(P,) rows of the input, in that order."""
        return TextInput(*(None if t is None else t[index] for t in (self.ids, self.mask, self.order, self.at)))  # type: ignore[arg-type]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TextInput:
        """The same input on another device."""
        moved = (None if t is None else t.to(device, non_blocking=non_blocking) for t in (self.ids, self.mask, self.order, self.at))
        return TextInput(*moved)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch of one source, as the data engine delivers it.

    Args:
        images: named image inputs; "clean" for the usual one, {} for a text source.
        texts: named text inputs; "clean" for the caption, {} for an image source.
        targets: named label tensors; labels never ride on an input.
        pair_id: (B,) int64, equal for captions of the same image.
        keys: B sample keys, for reports and error messages only.
    """

    images: Mapping[str, ImageInput]
    texts: Mapping[str, TextInput]
    targets: Mapping[str, Tensor]
    pair_id: Tensor
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            images={k: v.to(device, non_blocking=non_blocking) for k, v in self.images.items()},
            texts={k: v.to(device, non_blocking=non_blocking) for k, v in self.texts.items()},
            targets={k: v.to(device, non_blocking=non_blocking) for k, v in self.targets.items()},
            pair_id=self.pair_id.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.pair_id)


class Pairing(NamedTuple):
    """P rows that put images beside texts.

    Args:
        image: (P,) row of the image input.
        text: (P,) row of the text input.
        match: (P,) int64 class, 1 = belongs together.
    """

    image: Tensor
    text: Tensor
    match: Tensor


@dataclass(frozen=True, eq=False)
class Stream:
    """The only currency between parts: states, and all that a reader must know of them.

    Args:
        x: (B, L, D) states.
        mask: (B, L) bool.
        parts: runs of named tokens that sum to L, such as (("v_cls", 1), ("v", 196)); the first letter is the side.
        order: (B, L) int64 as in `TextInput`; absent: everyone reads everyone.
    """

    x: Tensor
    mask: Tensor
    parts: tuple[tuple[str, int], ...]
    order: Tensor | None = None

    def __len__(self) -> int:
        return int(self.x.shape[1])

    @property
    def dim(self) -> int:
        """D, the width."""
        return int(self.x.shape[-1])

    def _cut(self, keep: Callable[[str], bool]) -> Stream:
        runs: list[tuple[int, int]] = []
        start = 0
        for name, length in self.parts:
            if keep(name):
                runs.append((start, start + length))
            start += length
        named = tuple(part for part in self.parts if keep(part[0]))
        if len(runs) == len(self.parts):
            return self
        if runs and all(a[1] == b[0] for a, b in pairwise(runs)):
            a, b = runs[0][0], runs[-1][1]
            return Stream(self.x[:, a:b], self._narrow(a, b), named, None if self.order is None else self.order[:, a:b])
        index = torch.cat([torch.arange(a, b, device=self.x.device) for a, b in runs] or [torch.arange(0, device=self.x.device)])
        return Stream(self.x[:, index], self.mask[:, index], named, None if self.order is None else self.order[:, index])

    def _narrow(self, a: int, b: int) -> Tensor:
        return full_mask(self.mask.shape[0], b - a, self.mask.device) if is_full(self.mask) else self.mask[:, a:b]

    def part(self, name: str) -> Stream:
        """The run of tokens called `name`. Raises KeyError with the names there are."""
        if all(name != part for part, _ in self.parts):
            raise KeyError(f"no part {name!r} in this stream (it has: {', '.join(part for part, _ in self.parts)})")
        return self._cut(lambda part: part == name)

    def side(self, letter: str) -> Stream:
        """All runs of one side, `v` or `w`."""
        return self._cut(lambda part: part[0] == letter)

    def rows(self, index: Tensor) -> Stream:
        """(P,) rows, re-paired in that order."""
        mask = full_mask(len(index), len(self), self.mask.device) if is_full(self.mask) else self.mask[index]
        return Stream(self.x.index_select(0, index), mask, self.parts, None if self.order is None else self.order[index])

    @staticmethod
    def cat(*streams: Stream) -> Stream:
        """Streams of equal rows and width, laid end to end; a missing order counts as 0."""
        x = torch.cat([s.x for s in streams], 1)
        mask = full_mask(x.shape[0], x.shape[1], x.device) if all(is_full(s.mask) for s in streams) else torch.cat([s.mask for s in streams], 1)
        order = None
        if any(s.order is not None for s in streams):
            order = torch.cat([torch.zeros(s.mask.shape, dtype=torch.int64, device=x.device) if s.order is None else s.order for s in streams], 1)
        return Stream(x, mask, sum((s.parts for s in streams), ()), order)

    @staticmethod
    def empty(rows: int, dim: int, side: str, like: Tensor) -> Stream:
        """A stream of no tokens: an absent modality, with the device and type of `like`."""
        return Stream(like.new_zeros(rows, 0, dim), torch.ones(rows, 0, dtype=torch.bool, device=like.device), ((side, 0),))


class Fused(NamedTuple):
    """Both sides after a fusion; a side that no step moves is the input itself.

    Args:
        v: (P, M, D) image side.
        w: (P, N, D) text side.
    """

    v: Stream
    w: Stream


class Aligned(NamedTuple):
    """Points in the shared space.

    Args:
        v: (R, E) unit vectors of the images.
        w: (B, E) unit vectors of the texts.
        scale: () inverse temperature, fp32.
        bias: () added to scaled similarities; 0 unless the pairwise sigmoid learns it.
    """

    v: Tensor
    w: Tensor
    scale: Tensor
    bias: Tensor


class Loss(NamedTuple):
    """What an objective returns.

    Args:
        value: () fp32, mean over this rank's pairs or targets, unweighted.
        logs: detached scalars; shown, never summed.
    """

    value: Tensor
    logs: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Dims:
    """Widths known when heads are made.

    Args:
        parts: width by read, such as {"vision": 768, "fusion.w": 768, "align": 256}.
        vocab: V, the number of word ids.
        parts_missing: called with a part's name when an objective asks for one that was not built.
    """

    parts: Mapping[str, int]
    vocab: int
    parts_missing: Callable[[str], Exception] = field(default=KeyError)

    def __getitem__(self, name: str) -> int:
        if name not in self.parts:
            raise self.parts_missing(name)
        return self.parts[name]
