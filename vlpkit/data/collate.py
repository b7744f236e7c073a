"""Samples to a Batch: pixels stacked in one layout, captions encoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlpkit.data.tokenize import Words
from vlpkit.types import Batch, ImageInput


class Sample(NamedTuple):
    """One usable pair."""

    pixels: Tensor  # (3, S, S) uint8
    caption: str
    number: int  # global sample number
    key: str


def stack(images: Sequence[Tensor]) -> Tensor:
    """(R, 3, S, S) uint8, contiguous whatever the layout of the rows: kernels, and with them rounding, depend on it."""
    pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    for row, image in enumerate(images):
        pixels[row] = image
    return pixels


def collate(samples: Sequence[Sample], *, words: Words) -> Batch:
    """B pairs as named inputs: images "clean" (B, 3, S, S) uint8, texts "clean" (B, N), pair_id the sample numbers."""
    return Batch(
        images={"clean": ImageInput(stack([sample.pixels for sample in samples]))},
        texts={"clean": words.encode([sample.caption for sample in samples])},
        targets={},
        pair_id=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        keys=tuple(sample.key for sample in samples),
    )
