"""Micro-batches by number: each item is a pure function of its number, so any count of workers delivers the same sequence.
Refused samples are replaced where they stand and travel to the main process as faults, beside the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlpkit.data.arrays import MEMBER
from vlpkit.data.collate import Sample, collate, images_of
from vlpkit.data.decode import Refused, read_caption
from vlpkit.data.faults import Fault, Ledger
from vlpkit.data.order import Order, sample_rng
from vlpkit.data.questions import Asked, Questions
from vlpkit.data.reader import IMAGES, TEXTS, Reader, image_of
from vlpkit.data.regions import Detections, Found
from vlpkit.data.share import Share
from vlpkit.data.tokenize import Words
from vlpkit.data.transforms import Transform
from vlpkit.data.wishes import PAIRS
from vlpkit.data.workers import load
from vlpkit.types import IGNORE, Batch, ImageInput

log = logging.getLogger(__name__)

SUBSTITUTES = 32  # refused in a row before a position is given up


@dataclass(frozen=True, eq=False)
class Item:
    """One micro-batch on its way to the main process; `batch` is None when a position could not be filled."""

    position: int  # of its first sample
    batch: Batch | None
    faults: tuple[Fault, ...]

    def pin_memory(self) -> Item:
        """Called by the loader's pinning thread."""
        return self if self.batch is None else replace(self, batch=self.batch.each(Tensor.pin_memory))


@dataclass(frozen=True, eq=False)
class EvalBatch:
    """Up to R samples of the validation split, in index order.

    Args:
        index: (R,) int64 sample numbers.
        images: R rows of (3, S, S) uint8, of regions, or of both.
        captions: all captions of each.
        records: KEY.json of each as a dict, {} without one.
        keys: sample keys.
        targets: of the regions, R rows each; {} without them.
        questions: of each image, with their answers' numbers; [] where the recipe reads none.
        second: whether the recipe reads two captions of an image.
    """

    index: Tensor
    images: ImageInput
    captions: list[list[str]]
    records: list[dict[str, Any]]
    keys: list[str]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    questions: list[list[Asked]] = field(default_factory=list)
    second: bool = False

    def seconds(self) -> list[str | None]:
        """Another caption of each image, where the recipe reads two."""
        return [another(captions[0], captions, 1 % len(captions)) if self.second else None for captions in self.captions]

    def told(self) -> tuple[list[str], Mapping[str, Tensor]]:
        """One text an image, and all targets: its first caption, or, of every other image that has questions, one of these with its answer."""
        texts = [captions[0] for captions in self.captions]
        if not self.questions:
            return texts, self.targets
        answers = torch.full_like(self.index, IGNORE)
        for row, (number, asked) in enumerate(zip(self.index.tolist(), self.questions)):
            if asked and number % 2:
                texts[row], answers[row] = asked[number // 2 % len(asked)]
        return texts, {**self.targets, "answer": answers}


@dataclass(frozen=True, eq=False)
class EvalItem:
    """One evaluation batch, None when none of its samples is usable."""

    served: int
    batch: EvalBatch | None
    faults: tuple[Fault, ...]


class Seen(NamedTuple):
    """What was read of one sample."""

    pixels: Tensor | None
    found: Found | None
    captions: list[str]
    record: dict[str, Any]
    told: Asked | None  # the text of a training sample


class Look:
    """Reads of a sample what the recipe wants: nothing else is fetched, and nothing else decoded.

    Args:
        reader: bytes by number.
        transform: of the pixels; None: no pixels are read.
        regions: which regions count; None: none are read.
        questions: how they are mixed with captions; None: captions alone.
        texts: whether captions are read, and a sample without one refused.
    """

    def __init__(
        self, reader: Reader, *, transform: Transform | None, regions: Detections | None, questions: Questions | None, texts: bool = True,
    ) -> None:
        self.reader, self.transform, self.regions, self.questions = reader, transform, regions, questions
        # regions are read beside the record, which may hold the size of their image
        self.texts = texts or regions is not None
        self._only = (*(IMAGES if transform is not None else ()), *(TEXTS if self.texts else ()), *((MEMBER,) if regions is not None else ()))

    def __call__(self, number: int, rng: np.random.Generator, *, choose: bool) -> Seen:
        """One sample; with `choose`, one of its texts, before `rng` goes to the pixels. Raises Refused."""
        members = self.reader.read(number, only=self._only)
        image = image_of(members) if self.transform is not None else b""
        captions, record = said_of(members, self.questions) if self.texts else ([], {})
        told = self._told(captions, record, rng) if choose and self.texts else None
        found = None if self.regions is None else self.regions(members.get(MEMBER), record)
        return Seen(None if self.transform is None else self.transform(image, rng), found, captions, record, told)

    def _told(self, captions: list[str], record: dict[str, Any], rng: np.random.Generator) -> Asked:
        return (captions[int(rng.integers(len(captions)))], IGNORE) if self.questions is None else self.questions.choose(captions, record, rng)


class TrainItems(Dataset[Item]):
    """Item `turn` holds the positions that `share` gives this rank in its micro-batch of that number; without `words`, images alone."""

    def __init__(
        self, *, reader: Reader, order: Order, share: Share, transform: Transform | None, words: Words | None, regions: Detections | None = None,
        questions: Questions | None = None, second: bool = False, ahead: Callable[[int], None],
    ) -> None:
        self.reader, self.order, self.share, self.second, self.ahead = reader, order, share, second, ahead
        self.look, self.words = Look(reader, transform=transform, regions=regions, questions=questions, texts=words is not None), words

    def __getitem__(self, turn: int) -> Item:
        start = self.share.start(turn)
        self.ahead(start)
        samples: list[Sample] = []
        faults: list[Fault] = []
        for position, (epoch, number) in enumerate(self.order.samples(start, start + self.share.micro).tolist(), start):
            sample = self._usable(position, epoch, number, faults)
            if sample is None:
                return Item(position, None, tuple(fault for fault in faults if fault.position == position))
            samples.append(sample)
        return Item(start, collate(samples, words=self.words), tuple(faults))

    def _usable(self, position: int, epoch: int, number: int, faults: list[Fault]) -> Sample | None:
        """The sample of a position, or the first substitute that is not refused."""
        for attempt in range(SUBSTITUTES + 1):
            if attempt:
                number = self.order.substitute(position, attempt)
            try:
                return self._sample(position, epoch, number, attempt)
            except Refused as refused:
                faults.append(fault(self.reader, number, refused, position=position, attempt=attempt))
        return None

    def _sample(self, position: int, epoch: int, number: int, attempt: int) -> Sample:
        rng = sample_rng(self.order.seed, epoch, position, attempt)
        seen = self.look(number, rng, choose=True)
        if seen.told is None or self.words is None:
            return Sample(seen.pixels, None, number, self.reader.index.key(number), seen.found)
        text, answer = seen.told
        other = another(text, seen.captions, int(rng.integers(len(seen.captions)))) if self.second else None
        return Sample(seen.pixels, text, number, self.reader.index.key(number), seen.found, None if self.look.questions is None else answer, other)


class EvalItems(Dataset[EvalItem]):
    """Items by their span of sample numbers; what is refused is left out and reported."""

    def __init__(
        self, *, reader: Reader, transform: Transform | None, regions: Detections | None = None, questions: Questions | None = None, second: bool = False
    ) -> None:
        self.second = second
        self.reader, self.look = reader, Look(reader, transform=transform, regions=regions, questions=questions)

    def __getitem__(self, span: tuple[int, int]) -> EvalItem:
        numbers: list[int] = []
        rows: list[Seen] = []
        faults: list[Fault] = []
        for number in range(*span):
            try:
                rows.append(self.look(number, sample_rng(0, 0, number), choose=False))
                numbers.append(number)
            except Refused as refused:
                faults.append(fault(self.reader, number, refused, position=number, attempt=0))
        if not rows:
            return EvalItem(span[1] - span[0], None, tuple(faults))
        images, targets = images_of([seen.pixels for seen in rows], [seen.found for seen in rows])
        keys = [self.reader.index.key(number) for number in numbers]
        index = torch.tensor(numbers, dtype=torch.int64)
        asked = [] if self.look.questions is None else [self.look.questions.of(seen.record) for seen in rows]
        batch = EvalBatch(index, images, [seen.captions for seen in rows], [seen.record for seen in rows], keys, targets, asked, self.second)
        return EvalItem(span[1] - span[0], batch, tuple(faults))


class TrainLoader:
    """What the trainer iterates: endless unless `stop` says otherwise, and without a length, so that a resumed run counts nothing twice.

    Args:
        items: micro-batches by number.
        span: called at each start; the numbers to deliver.
        workers: processes; 0: this one.
        ledger: books what was refused; its budget may end the run.
        source: name under which batches are given.
    """

    def __init__(self, items: TrainItems, *, span: Callable[[], range], workers: int, ledger: Ledger, source: str = PAIRS) -> None:
        self.items, self.span, self.workers, self.ledger, self.source = items, span, workers, ledger, source

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        length, share = len(self.items.order), self.items.share
        for item in load(self.items, self.span(), workers=self.workers, key=self.ledger.key):
            if item.batch is None:
                self.ledger.give_up(item.position, item.faults)
                return
            self.ledger.add(len(item.batch), item.faults)
            done = share.turn(item.position) * share.world * share.micro
            epoch = done // length
            if (done + share.world * share.micro) // length > epoch:
                log.info("epoch %d of the %s is read; this rank so far: %s", epoch, "data" if self.source == PAIRS else self.source, self.ledger.line())
            yield {self.source: item.batch}


def fault(reader: Reader, number: int, refused: Refused, *, position: int, attempt: int) -> Fault:
    """What the ledger needs to know of a refusal."""
    shard, _ = reader.index.shard_of(number)
    return Fault(position, attempt, refused.reason, reader.index.key(number), reader.index.shards[shard].shown, refused.detail)


def another(text: str, captions: Sequence[str], number: int) -> str:
    """A caption other than `text`, counted on from that `number`; `text` itself where there is no other."""
    rest = [caption for caption in captions if caption != text] or [text]
    return rest[number % len(rest)]


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
