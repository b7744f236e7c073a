"""The currency of the house: inputs from data, streams between parts, and what objectives hand back.

House legend: B texts on this rank, R images on this rank, P rows of a pairing, G ranks, M image tokens, N text tokens,
L any length, D width, E shared space, K queue length, V vocabulary. `v` is image-side, `w` text-side. A mask is boolean
and True means "a real token". Index -1 means "none".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple, NewType

import torch
from torch import Tensor

Side = Literal["v", "w"]
Parts = tuple[tuple[str, int], ...]  # runs of named tokens, such as (("v_cls", 1), ("v", 196))
Steps = NewType("Steps", int)  # optimiser steps; in YAML `2000_steps`, `2_epochs`, `1M_samples` or `10_percent`
IGNORE = -100  # the label that no loss counts


def full_mask(rows: int, length: int, device: torch.device | str) -> Tensor:
    """(rows, length) all True, held as one element: attention recognises it without looking at the values."""
    return torch.ones((), dtype=torch.bool, device=device).expand(rows, length)


def is_full(mask: Tensor) -> bool:
    """True when `mask` came from `full_mask`; False says nothing about the values."""
    return mask.ndim == 2 and mask.stride() == (0, 0)


Change = Callable[[Tensor], Tensor]


def _maybe(change: Change, t: Tensor | None) -> Tensor | None:
    return None if t is None else change(t)


def _joined(fields: Iterable[tuple[Tensor | None, Tensor | None]]) -> Iterator[Tensor | None]:
    return (None if a is None or b is None else torch.cat([a, b]) for a, b in fields)


def _picked(t: Tensor | None, index: Tensor) -> Tensor | None:
    """Rows of a tensor; one that is the same in every row (stride 0) stays one row in memory."""
    if t is None:
        return None
    return t[:1].expand(len(index), *t.shape[1:]) if t.stride(0) == 0 and len(t) else t[index]


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What the data knows of R images: pixels, or what a detector found in them.

    Args:
        pixels: (R, 3, H, W) uint8, or float in [0, 1]; each reader normalises for itself.
        regions: (R, M, F) detector features.
        boxes: (R, M, 4) corners x1, y1, x2, y2 of the regions as fractions of the image, in [0, 1].
        mask: (R, M) bool, which regions are real; without regions, which patches where images of several shapes share a frame; absent: all.
        hidden: (R, M) bool over patches or regions, True where the model may not look.
    """

    pixels: Tensor | None = None
    regions: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None
    hidden: Tensor | None = None

    def _fields(self) -> tuple[Tensor | None, ...]:
        return (self.pixels, self.regions, self.boxes, self.mask, self.hidden)

    def key(self) -> tuple[int, ...]:
        """Identity of the tensors a pass over this input reads."""
        return tuple(map(id, self._fields()))

    @property
    def empty(self) -> bool:
        """Whether nothing is known of any image: what samples of texts alone come to."""
        return all(t is None for t in self._fields())

    def rows(self, index: Tensor) -> ImageInput:
        """(P,) rows of the input, in that order."""
        return ImageInput(*(_picked(t, index) for t in self._fields()))

    def join(self, other: ImageInput) -> ImageInput:
        """The rows of both inputs, one behind the other."""
        return ImageInput(*_joined(zip(self._fields(), other._fields())))

    def each(self, change: Change) -> ImageInput:
        """The input with every tensor changed alike: moved, pinned."""
        return ImageInput(*(_maybe(change, t) for t in self._fields()))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ImageInput:
        """The same input on another device."""
        return self.each(lambda t: t.to(device, non_blocking=non_blocking))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(t for t in self._fields() if t is not None).device

    def __len__(self) -> int:
        return len(next(t for t in self._fields() if t is not None))


@dataclass(frozen=True, eq=False)
class TextInput:
    """B token sequences.

    Args:
        ids: (B, N) int64.
        mask: (B, N) bool.
        order: (B, N) int64: position i reads j where `mask[j]` and `order[j] <= order[i]`; absent: everyone reads everyone.
        at: (B, N) int64 position index; absent: 0..N-1.
        segment: (B, N) int64 token type, such as 1 for tags or a second sentence; absent: all 0.
        group: (B, N) int64: which of the text's T images this token may read, -1 for none; absent: all of them.
    """

    ids: Tensor
    mask: Tensor
    order: Tensor | None = None
    at: Tensor | None = None
    segment: Tensor | None = None
    group: Tensor | None = None

    def _fields(self) -> tuple[Tensor | None, ...]:
        return (self.ids, self.mask, self.order, self.at, self.segment, self.group)

    def key(self) -> tuple[int, ...]:
        """Identity of the tensors a pass over this input reads."""
        return tuple(map(id, self._fields()))

    def rows(self, index: Tensor) -> TextInput:
        """(P,) rows of the input, in that order."""
        return TextInput(*(_picked(t, index) for t in self._fields()))  # type: ignore[arg-type]

    def join(self, other: TextInput) -> TextInput:
        """The rows of both inputs, one behind the other."""
        return TextInput(*_joined(zip(self._fields(), other._fields())))  # type: ignore[arg-type]

    def widened(self, length: int) -> TextInput:
        """Padded to (B, length); what is added is no token."""
        more = length - self.ids.shape[1]
        return self if more <= 0 else self.each(lambda t: torch.cat([t, t.new_zeros(len(t), more)], 1))

    def each(self, change: Change) -> TextInput:
        """The input with every tensor changed alike: moved, pinned."""
        return TextInput(*(_maybe(change, t) for t in self._fields()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TextInput:
        """The same input on another device."""
        return self.each(lambda t: t.to(device, non_blocking=non_blocking))

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
        of: (B,) or (B, T) image row(s) that each text speaks of, -1 for none; absent: text i belongs to image i.
    """

    images: Mapping[str, ImageInput]
    texts: Mapping[str, TextInput]
    targets: Mapping[str, Tensor]
    pair_id: Tensor
    keys: tuple[str, ...] = ()
    of: Tensor | None = None

    def each(self, change: Change) -> Batch:
        """The batch with every tensor changed alike: moved, pinned."""
        return replace(
            self, images={k: v.each(change) for k, v in self.images.items()}, texts={k: w.each(change) for k, w in self.texts.items()},
            targets={k: change(t) for k, t in self.targets.items()}, pair_id=change(self.pair_id), of=_maybe(change, self.of),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self.each(lambda t: t.to(device, non_blocking=non_blocking))

    def __len__(self) -> int:
        return len(self.pair_id)


class Pairing(NamedTuple):
    """P rows that put images beside texts.

    Args:
        image: (P,) row of the image input; (P, T) rows, -1 for none, where a text speaks of several images, which it tells apart by group.
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
        at: (B, L, 2) int64 row and column of a patch, or (position, 0) of a word; read by position biases. (-1, -1) is nowhere.
        group: (B, L) int64: of texts, which image a token may read; of images laid side by side, which of them this is.
    """

    x: Tensor
    mask: Tensor
    parts: Parts
    order: Tensor | None = None
    at: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return int(self.x.shape[1])

    @property
    def dim(self) -> int:
        """D, the width."""
        return int(self.x.shape[-1])

    def _with(self, change: Change, mask: Tensor, parts: Parts) -> Stream:
        return Stream(change(self.x), mask, parts, *(_maybe(change, t) for t in (self.order, self.at, self.group)))

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
            return self._with(lambda t: t[:, a:b], self._narrow(a, b), named)
        index = torch.cat([torch.arange(a, b, device=self.x.device) for a, b in runs] or [torch.arange(0, device=self.x.device)])
        return self._with(lambda t: t[:, index], self.mask[:, index], named)

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
        """(P,) rows, re-paired in that order; (P, T) lays T rows side by side, -1 for an absent one, and numbers them as groups."""
        if index.ndim == 2:
            return self._beside(index)
        mask = full_mask(len(index), len(self), self.mask.device) if is_full(self.mask) else self.mask[index]
        rest = (_picked(t, index) for t in (self.order, self.at, self.group))
        return Stream(self.x.index_select(0, index), mask, self.parts, *rest)

    def _beside(self, index: Tensor) -> Stream:
        many, length = index.shape[1], len(self)
        chosen = index.clamp(min=0)
        group = torch.arange(many, device=index.device).repeat_interleave(length).expand(len(index), -1)
        mask = self.mask[chosen].flatten(1, 2) & (index >= 0).repeat_interleave(length, 1)
        order, at = (None if t is None else t[chosen].flatten(1, 2) for t in (self.order, self.at))
        return Stream(self.x[chosen].flatten(1, 2), mask, self.parts * many, order, at, group)

    @staticmethod
    def cat(*streams: Stream) -> Stream:
        """Streams of equal rows and width, laid end to end; a missing order or group counts as 0, a missing place as nowhere."""
        x = torch.cat([s.x for s in streams], 1)
        mask = full_mask(x.shape[0], x.shape[1], x.device) if all(is_full(s.mask) for s in streams) else torch.cat([s.mask for s in streams], 1)

        def laid(fields: list[Tensor | None], missing: int, *tail: int) -> Tensor | None:
            if all(t is None for t in fields):
                return None
            rows = [s.mask.new_full((*s.mask.shape, *tail), missing, dtype=torch.int64) if t is None else t for s, t in zip(streams, fields)]
            if all(t.stride(0) == 0 for t in rows if t.shape[1]):  # the same in every row: one row in memory
                return torch.cat([t[:1] for t in rows], 1).expand(x.shape[0], *([-1] * (1 + len(tail))))
            return torch.cat(rows, 1)

        order, at = laid([s.order for s in streams], 0), laid([s.at for s in streams], -1, 2)
        return Stream(x, mask, sum((s.parts for s in streams), ()), order, at, laid([s.group for s in streams], 0))

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

    def of(self, by: str, side: Side) -> int:
        """Width of one side behind `by`: a fusion, or the encoder of that side itself."""
        return self[f"{by}.encode" if f"{by}.encode" in self.parts else f"{by}.{side}"]

    def __getitem__(self, name: str) -> int:
        if name not in self.parts:
            raise self.parts_missing(name)
        return self.parts[name]
