"""Samples to a Batch: pixels stacked in one layout, captions encoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlpkit.data.regions import Found, pad
from vlpkit.data.tokenize import Words
from vlpkit.types import Batch, ImageInput


class Sample(NamedTuple):
    """One usable pair."""

    pixels: Tensor | None  # (3, S, S) uint8, where the recipe reads pixels
    caption: str
    number: int  # global sample number
    key: str
    found: Found | None = None  # where it reads regions
    answer: int | None = None  # where it reads questions; IGNORE beside a caption


def stack(images: Sequence[Tensor]) -> Tensor:
    """(R, 3, S, S) uint8, contiguous whatever the layout of the rows: kernels, and with them rounding, depend on it."""
    pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    for row, image in enumerate(images):
        pixels[row] = image
    return pixels


def images_of(pixels: Sequence[Tensor | None], found: Sequence[Found | None]) -> tuple[ImageInput, dict[str, Tensor]]:
    """R images as one input with the pixels (R, 3, S, S) uint8, the regions or both that there are, and the targets of their regions."""
    seen, regions = [image for image in pixels if image is not None], [one for one in found if one is not None]
    image, targets = pad(regions) if regions else (ImageInput(), {})
    return (replace(image, pixels=stack(seen)) if seen else image), targets


def collate(samples: Sequence[Sample], *, words: Words) -> Batch:
    """B pairs as named inputs: images "clean" with pixels, regions or both, texts "clean" (B, N), targets of regions and the answer, pair_id the sample numbers."""
    image, targets = images_of([sample.pixels for sample in samples], [sample.found for sample in samples])
    answers = [sample.answer for sample in samples if sample.answer is not None]
    if answers:
        targets["answer"] = torch.tensor(answers, dtype=torch.int64)
    return Batch(
        images={"clean": image},
        texts={"clean": words.encode([sample.caption for sample in samples])},
        targets=targets,
        pair_id=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        keys=tuple(sample.key for sample in samples),
    )
