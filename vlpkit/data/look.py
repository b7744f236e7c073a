"""What is read of one sample, as far as the recipe wants it: its bytes, texts, regions and a view of its image, which stays encoded.
Pixels come last and are written straight into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vlpkit.data.arrays import MEMBER
from vlpkit.data.decode import Refused, read_caption
from vlpkit.data.phrases import WHOLE, Part, Phrases
from vlpkit.data.questions import Asked, Questions
from vlpkit.data.reader import IMAGES, TEXTS, Reader, image_of
from vlpkit.data.regions import Detections, Found
from vlpkit.data.transforms import Transform, View, canvas
from vlpkit.types import IGNORE


class Seen(NamedTuple):
    """What was read of one sample."""

    image: bytes  # encoded; b"" where no pixels are read
    view: View | None
    found: Found | None
    captions: list[str]
    record: dict[str, Any]
    told: Asked | None  # the text of a training sample
    part: Part | None  # where the recipe reads phrases


class Look:
    """Reads of a sample what the recipe wants: nothing else is fetched, and nothing else decoded.

    Args:
        reader: bytes by number.
        transform: of the pixels; None: no pixels are read.
        regions: which regions count; None: none are read.
        questions: how they are mixed with captions; None: captions alone.
        phrases: which of those about parts of the image goes along; None: none does.
        texts: whether captions are read, and a sample without one refused.
    """

    def __init__(
        self, reader: Reader, *, transform: Transform | None, regions: Detections | None, questions: Questions | None, phrases: Phrases | None = None,
        texts: bool = True,
    ) -> None:
        self.reader, self.transform, self.regions, self.questions, self.phrases = reader, transform, regions, questions, phrases
        # regions are read beside the record, which may hold the size of their image
        self.texts = texts or regions is not None
        self._only = (*(IMAGES if transform is not None else ()), *(TEXTS if self.texts else ()), *((MEMBER,) if regions is not None else ()))

    def canvas(self, count: int) -> Tensor | None:
        """(R, 3, S, S), room for the pixels of so many samples, where any are read."""
        return None if self.transform is None else canvas(count, self.transform.size, self.transform.size)

    def __call__(self, number: int, rng: np.random.Generator, *, choose: bool) -> Seen:
        """One sample, its image not decoded; with `choose`, one of its texts, before `rng` chooses a view of the image and a phrase about what
        is seen. Raises Refused."""
        members = self.reader.read(number, only=self._only)
        image = image_of(members) if self.transform is not None else b""
        captions, record = said_of(members, self.questions) if self.texts else ([], {})
        told = self._told(captions, record, rng) if choose and self.texts else None
        found = None if self.regions is None else self.regions(members.get(MEMBER), record)
        view = None if self.transform is None else self.transform.look(image, rng)
        part = None
        if self.phrases is not None and self.texts:
            shown = WHOLE if self.transform is None or view is None else self.transform.seen(view)
            part = self.phrases.choose(captions, record, shown, rng if choose else None)
        return Seen(image, view, found, captions, record, told, part)

    def draw(self, seen: Seen, rng: np.random.Generator, row: Tensor | None) -> None:
        """Writes the pixels to a row of a canvas, where any are read. Raises Refused."""
        if self.transform is not None and seen.view is not None and row is not None:
            self.transform.draw(seen.image, seen.view, rng, row)

    def _told(self, captions: list[str], record: dict[str, Any], rng: np.random.Generator) -> Asked:
        return (captions[int(rng.integers(len(captions)))], IGNORE) if self.questions is None else self.questions.choose(captions, record, rng)


def rows_of(pixels: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Each image of a canvas by itself, (1, 3, S, S); as many Nones without one."""
    return [None] * count if pixels is None else pixels.split(1)


def captions_of(reader: Reader, number: int, questions: Questions | None = None) -> list[str]:
    """All captions of one sample, its image untouched. Raises Refused."""
    return said_of(reader.read(number, only=TEXTS), questions)[0]


def said_of(members: Mapping[str, bytes], questions: Questions | None) -> tuple[list[str], dict[str, Any]]:
    """Captions and record of a sample. Where a recipe reads questions and there is no caption, they are what is said of the image. Raises Refused."""
    captions, record = read_caption(members.get("txt"), members.get("json"), needed=questions is None)
    if questions is not None and not captions:
        captions = [question for question, _ in questions.of(record)]
        if not captions:
            raise Refused("missing_caption", "no question either")
    return captions, record
