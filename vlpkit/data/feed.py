"""Micro-batches by number: each item is a pure function of its number, so any count of workers delivers the same sequence.
Refused samples are replaced where they stand and travel to the main process as faults, beside the batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlpkit.data.absent import Absent
from vlpkit.data.audit import Audit
from vlpkit.data.collate import Sample, collate, images_of
from vlpkit.data.decode import Refused, slow_path
from vlpkit.data.faults import Fault, Ledger
from vlpkit.data.look import Look, Seen, rows_of
from vlpkit.data.mixture import Sequenced
from vlpkit.data.order import sample_rng, set_rng
from vlpkit.data.phrases import Part, Phrases
from vlpkit.data.questions import Asked, Questions
from vlpkit.data.reader import Reader
from vlpkit.data.regions import Detections
from vlpkit.data.share import Share
from vlpkit.data.tokenize import Words
from vlpkit.data.transforms import Transform
from vlpkit.data.wishes import PAIRS
from vlpkit.data.workers import load
from vlpkit.types import IGNORE, Batch, ImageInput

log = logging.getLogger(__name__)

SUBSTITUTES = 32  # refused in a row before a position is given up
BLOCK, BLOCK_BYTES = 64, 64 << 20  # samples, and bytes of encoded images, that are held before they are decoded


@dataclass(frozen=True, eq=False)
class Item:
    """One micro-batch on its way to the main process; `batch` is None when a position could not be filled."""

    position: int  # of its first sample
    batch: Batch | None
    faults: tuple[Fault, ...]
    slow: Counter[str]  # images that the fast decoder would not take, by cause

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
        parts: of each image a phrase about a part of it, with its box; [] where the recipe reads none.
    """

    index: Tensor
    images: ImageInput
    captions: list[list[str]]
    records: list[dict[str, Any]]
    keys: list[str]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    questions: list[list[Asked]] = field(default_factory=list)
    second: bool = False
    parts: list[Part] = field(default_factory=list)

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
    slow: Counter[str]


class Draft(NamedTuple):
    """A position whose image is not decoded yet; `seen` is None when its sample was refused."""

    look: Look  # of the set that the sample belongs to
    position: int
    epoch: int
    number: int  # global sample number
    rng: np.random.Generator  # of the position, as far as it is used
    seen: Seen | None


class TrainItems(Dataset[Item]):
    """Item `turn` holds the positions that `share` gives this rank in its micro-batch of that number; without `words`, images alone.
    Each set of the order has a transform."""

    def __init__(
        self, *, reader: Reader, order: Sequenced, share: Share, transforms: Sequence[Transform | None], words: Words | None,
        regions: Detections | None = None, questions: Questions | None = None, phrases: Phrases | None = None, second: bool = False,
        ahead: Callable[[int], None],
    ) -> None:
        self.reader, self.order, self.share, self.words, self.second, self.ahead = reader, order, share, words, second, ahead
        read: dict[str, Any] = {"regions": regions, "questions": questions, "phrases": phrases, "texts": words is not None}
        self.looks = [Look(reader, transform=transform, **read) for transform in transforms]
        self._rngs = [sample_rng(0, 0, row) for row in range(min(BLOCK, share.micro))]

    def __getitem__(self, turn: int) -> Item:
        start, before = self.share.start(turn), slow_path.copy()
        self.ahead(start)
        faults: list[Fault] = []
        samples: list[Sample] = []
        pixels = self.looks[0].canvas(self.share.micro)
        rows = rows_of(pixels, self.share.micro)
        for drafts in self._drafts(start, faults):
            for draft in drafts:
                sample = self._usable(draft, rows[len(samples)], faults)
                if sample is None:
                    return Item(draft.position, None, tuple(fault for fault in faults if fault.position == draft.position), slow_path - before)
                samples.append(sample)
        faults.sort(key=lambda fault: (fault.position, fault.attempt))
        return Item(start, collate(samples, pixels=pixels, words=self.words), tuple(faults), slow_path - before)

    def _drafts(self, start: int, faults: list[Fault]) -> Iterator[list[Draft]]:
        """The positions of a micro-batch, encoded, in blocks: reading all of a block before any image of it is decoded keeps the code and tables
        of each work in the processor's cache, which halves the time of the small ones."""
        block: list[Draft] = []
        held = 0
        found = self.order.samples(start, start + self.share.micro)
        for row, ((epoch, number), at) in enumerate(zip(found.tolist(), self.order.sets(found[:, 1]).tolist())):
            block.append(self._draft(self.looks[at], start + row, epoch, number, 0, self._rngs[len(block)], faults))
            held += 0 if block[-1].seen is None else len(block[-1].seen.image)
            if len(block) == len(self._rngs) or held > BLOCK_BYTES:
                yield block
                block, held = [], 0
        yield block

    def _draft(self, look: Look, position: int, epoch: int, number: int, attempt: int, rng: np.random.Generator, faults: list[Fault]) -> Draft:
        set_rng(rng, self.order.seed, epoch, position, attempt)
        seen = None
        try:
            seen = look(number, rng, choose=True)
        except Refused as refused:
            faults.append(fault(self.reader, number, refused, position=position, attempt=attempt))
        return Draft(look, position, epoch, number, rng, seen)

    def _usable(self, draft: Draft, row: Tensor | None, faults: list[Fault]) -> Sample | None:
        """The sample of a position, its pixels written to `row`, or the first substitute that is not refused."""
        for attempt in range(SUBSTITUTES + 1):
            if attempt:
                draft = self._substitute(draft, attempt, faults)
            if draft.seen is None:
                continue
            try:
                draft.look.draw(draft.seen, draft.rng, row)
                return self._sample(draft, draft.seen)
            except Refused as refused:
                faults.append(fault(self.reader, draft.number, refused, position=draft.position, attempt=attempt))
        return None

    def _substitute(self, draft: Draft, attempt: int, faults: list[Fault]) -> Draft:
        number = self.order.substitute(draft.position, attempt)
        (at,) = self.order.sets(np.array([number])).tolist()
        return self._draft(self.looks[at], draft.position, draft.epoch, number, attempt, draft.rng, faults)

    def _sample(self, draft: Draft, seen: Seen) -> Sample:
        number, key = draft.number, self.reader.index.key(draft.number)
        if seen.told is None or self.words is None:
            return Sample(None, number, key, seen.found)
        text, answer = seen.told
        other = another(text, seen.captions, int(draft.rng.integers(len(seen.captions)))) if self.second else None
        return Sample(text, number, key, seen.found, None if draft.look.questions is None else answer, other, seen.part)


class EvalItems(Dataset[EvalItem]):
    """Items by their span of sample numbers; what is refused is left out and reported."""

    def __init__(
        self, *, reader: Reader, transform: Transform | None, regions: Detections | None = None, questions: Questions | None = None,
        phrases: Phrases | None = None, second: bool = False,
    ) -> None:
        self.second = second
        self.reader, self.look = reader, Look(reader, transform=transform, regions=regions, questions=questions, phrases=phrases)

    def __getitem__(self, span: tuple[int, int]) -> EvalItem:
        before = slow_path.copy()
        numbers: list[int] = []
        rows: list[Seen] = []
        faults: list[Fault] = []
        pixels = self.look.canvas(span[1] - span[0])
        places = rows_of(pixels, span[1] - span[0])
        for number in range(*span):
            rng = sample_rng(0, 0, number)
            try:
                seen = self.look(number, rng, choose=False)
                self.look.draw(seen, rng, places[len(rows)])
                rows.append(seen)
                numbers.append(number)
            except Refused as refused:
                faults.append(fault(self.reader, number, refused, position=number, attempt=0))
        if not rows:
            return EvalItem(span[1] - span[0], None, tuple(faults), slow_path - before)
        images, targets = images_of(None if pixels is None else pixels[: len(rows)], [seen.found for seen in rows])
        keys = [self.reader.index.key(number) for number in numbers]
        index = torch.tensor(numbers, dtype=torch.int64)
        asked = [] if self.look.questions is None else [self.look.questions.of(seen.record) for seen in rows]
        parts = [seen.part for seen in rows if seen.part is not None]
        batch = EvalBatch(index, images, [seen.captions for seen in rows], [seen.record for seen in rows], keys, targets, asked, self.second, parts)
        return EvalItem(span[1] - span[0], batch, tuple(faults), slow_path - before)


Arrival = TypeVar("Arrival", Item, EvalItem)


class TrainLoader:
    """What the trainer iterates: endless unless `stop` says otherwise, and without a length, so that a resumed run counts nothing twice.

    Args:
        items: micro-batches by number.
        span: called at each start; the numbers to deliver.
        workers: processes; 0: this one.
        ledgers: of each set of the order one, which books what was refused; its budget may end the run.
        key: configuration key of the shards, named in messages.
        source: name under which batches are given.
    """

    def __init__(
        self, items: TrainItems, *, span: Callable[[], range], workers: int, ledgers: Sequence[Ledger], key: str, source: str = PAIRS
    ) -> None:
        self.items, self.span, self.workers, self.ledgers, self.key, self.source = items, span, workers, ledgers, key, source

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        turns, order = self.span(), self.items.order
        audit, absent = Audit(order, self.items.share, turn=turns.start, key=self.key), Absent(self.key)
        for item in arrived(load(self.items, turns, workers=self.workers, key=self.key), workers=self.workers):
            if item.batch is None:
                (at,) = order.sets(order.samples(item.position, item.position + 1)[:, 1])
                self.ledgers[at].give_up(item.position, item.faults)
                return
            for at, (read, faults) in audit.book(item.position, item.batch.pair_id, item.faults).items():
                self.ledgers[at].add(read, faults)
            for epoch, tally in audit.closed().items():
                log.info("epoch %d of the %s ends; on this rank %s", epoch, "data" if self.source == PAIRS else self.source, tally)
            absent.watch(item.batch)
            yield {self.source: item.batch}


def arrived(items: Iterator[Arrival], *, workers: int) -> Iterator[Arrival]:
    """The same items; what reading processes counted of the slow path is booked in this one."""
    for item in items:
        if workers:
            slow_path.update(item.slow)
        yield item


def fault(reader: Reader, number: int, refused: Refused, *, position: int, attempt: int) -> Fault:
    """What the ledger needs to know of a refusal."""
    shard, _ = reader.index.shard_of(number)
    return Fault(position, attempt, refused.reason, reader.index.key(number), reader.index.shards[shard].shown, refused.detail)


def another(text: str, captions: Sequence[str], number: int) -> str:
    """A caption other than `text`, counted on from that `number`; `text` itself where there is no other."""
    rest = [caption for caption in captions if caption != text] or [text]
    return rest[number % len(rest)]
