"""Samples to a Batch: regions padded and captions encoded together, beside the pixels, which were written where they belong.
The layout of the pixels is that of `transforms.canvas`; whoever normalises them brings them into the order its kernels are measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlpkit.data.phrases import Part
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
    part: Part | None = None  # where it reads phrases about parts of the image


def images_of(pixels: Tensor | None, found: Sequence[Found | None]) -> tuple[ImageInput, dict[str, Tensor]]:
    """R images as one input with the pixels (R, 3, S, S) uint8, the regions or both that there are, and the targets of their regions."""
    regions = [one for one in found if one is not None]
    image, targets = pad(regions) if regions else (ImageInput(), {})
    return replace(image, pixels=pixels), targets


def texts_of(captions: Sequence[str], seconds: Sequence[str | None], parts: Sequence[Part | None] = (), *, words: Words) -> dict[str, TextInput]:
    """B texts "clean", and beside them "second" where each image has another one, and "phrase" where each has one about a part."""
    given = {"clean": [*captions], "second": [text for text in seconds if text is not None], "phrase": [part.text for part in parts if part is not None]}
    return {name: words.encode(texts) for name, texts in given.items() if texts}


def boxes_of(parts: Sequence[Part | None]) -> dict[str, Tensor]:
    """Where the B phrases belong: "box" (B, 4), corners as fractions of what is seen of each image, 0 where none is asked for; {} without phrases."""
    boxes = [part.box for part in parts if part is not None]
    return {"box": torch.tensor(boxes, dtype=torch.float32)} if boxes else {}


def collate(samples: Sequence[Sample], *, pixels: Tensor | None, words: Words | None) -> Batch:
    """B samples as named inputs, and their pixels (B, 3, S, S) uint8 where the recipe reads any.

    Images "clean" with pixels, regions or both; texts "clean" (B, N) and, of recipes that read them, "second" and "phrase"; targets of regions, the
    answer and the box of the phrase; pair_id the sample numbers. Without pixels and regions there is no image, without `words` no text.
    """
    image, targets = images_of(pixels, [sample.found for sample in samples])
    answers = [sample.answer for sample in samples if sample.answer is not None]
    if answers:
        targets["answer"] = torch.tensor(answers, dtype=torch.int64)
    seconds, parts = [sample.second for sample in samples], [sample.part for sample in samples]
    targets |= boxes_of(parts)
    return Batch(
        images={} if image.empty else {"clean": image},
        texts={} if words is None else texts_of([str(sample.caption) for sample in samples], seconds, parts, words=words),
        targets=targets,
        pair_id=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        keys=tuple(sample.key for sample in samples),
    )
