"""Samples to a Batch: regions padded and captions encoded together, beside the pixels, which were written where they belong.
The layout of the pixels is that of `transforms.canvas`; whoever normalises them brings them into the order its kernels are measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlpkit.data.regions import Found, pad
from vlpkit.data.tokenize import Words
from vlpkit.types import Batch, ImageInput, TextInput


class Sample(NamedTuple):
    """One usable pair, but for its pixels."""

    caption: str | None  # of a source that holds texts
    number: int  # global sample number
    key: str
    found: Found | None = None  # where it reads regions
    answer: int | None = None  # where it reads questions; IGNORE beside a caption
    second: str | None = None  # another caption, where it reads two of each image


def images_of(pixels: Tensor | None, found: Sequence[Found | None]) -> tuple[ImageInput, dict[str, Tensor]]:
    """R images as one input with the pixels (R, 3, S, S) uint8, the regions or both that there are, and the targets of their regions."""
    regions = [one for one in found if one is not None]
    image, targets = pad(regions) if regions else (ImageInput(), {})
    return replace(image, pixels=pixels), targets


def texts_of(captions: Sequence[str], seconds: Sequence[str | None], *, words: Words) -> dict[str, TextInput]:
    """B texts "clean", and beside them "second" where each image has another one."""
    texts = {"clean": words.encode(captions)}
    others = [text for text in seconds if text is not None]
    return {**texts, "second": words.encode(others)} if others else texts


def collate(samples: Sequence[Sample], *, pixels: Tensor | None, words: Words | None) -> Batch:
    """B samples as named inputs, and their pixels (B, 3, S, S) uint8 where the recipe reads any.

    Images "clean" with pixels, regions or both; texts "clean" (B, N) and, of recipes that read two, "second"; targets of regions and the
    answer; pair_id the sample numbers. Without pixels and regions there is no image, without `words` no text.
    """
    image, targets = images_of(pixels, [sample.found for sample in samples])
    answers = [sample.answer for sample in samples if sample.answer is not None]
    if answers:
        targets["answer"] = torch.tensor(answers, dtype=torch.int64)
    return Batch(
        images={} if image.empty else {"clean": image},
        texts={} if words is None else texts_of([str(sample.caption) for sample in samples], [sample.second for sample in samples], words=words),
        targets=targets,
        pair_id=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        keys=tuple(sample.key for sample in samples),
    )
