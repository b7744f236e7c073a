"""The data of a run: shards to an endless, seekable sequence of global batches, and the validation split in index order.
The constructor is the schema of `conf/data/*.yaml`; everything that matters to resuming is in `state_dict`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from vlpkit.data.ahead import Ahead
from vlpkit.data.decode import Refused
from vlpkit.data.faults import Ledger
from vlpkit.data.feed import EvalBatch, EvalItem, EvalItems, TrainItems, TrainLoader, captions_of
from vlpkit.data.index import Index, build_index
from vlpkit.data.order import Order, seed_beside
from vlpkit.data.place import real, shown
from vlpkit.data.questions import Questions
from vlpkit.data.reader import LocalStore, Reader
from vlpkit.data.regions import Detections
from vlpkit.data.remote import Remote
from vlpkit.data.shardlist import expand
from vlpkit.data.share import Share, divide
from vlpkit.data.stock import Stock, Together
from vlpkit.data.tokenize import Words
from vlpkit.data.transforms import EvalTransform, TrainTransform, safe_augment
from vlpkit.data.wishes import PAIRS, Holds, Wish, read_wishes
from vlpkit.data.workers import load
from vlpkit.errors import ConfigError, DataError, ResumeError, VlpError

log = logging.getLogger(__name__)

_FORMAT = 1
# what a resumed run must find unchanged, and the configuration key that sets it
_IDENTITY = {
    "fingerprint": "the shards of data.shards",
    "limit": "data.limit",
    "window": "data.window",
    "seed": "seed",
    "global_batch": "data.batch",
    "words": "the tokenizer (model.text.words)",
    "sources": "data.sources",
}


class DataModule(pl.LightningDataModule):
    """Image-caption pairs, called "pairs" in batches, and what other sources stand beside them.

    Args:
        name: of the data set, for reports.
        shards: training shards: path, glob, brace range, list, or several joined by `::`, relative to `root`.
        val_shards: likewise for validation; None: there is none.
        batch: B, the global batch: samples of one optimiser step over all ranks.
        val_batch: samples of one evaluation batch on one rank.
        workers: reading processes of each rank; 0: the training process reads.
        window: shards whose samples mix.
        max_bad_share: share of the last 10,000 samples, and of the shards, that may be unusable.
        limit: use the first so many training samples only; None: all.
        augment: scale, flip and randaugment that the recipe wishes.
        safe: min_crop, mirror and randaugment that these captions survive.
        eval_resize: "squash" or "crop".
        root: folder that shard patterns start from.
        cache: folder for the index, and for copies of remote shards.
        cache_bytes: room for all copies together, such as 64GB; least recently used ones give way.
        timeout: seconds for which a server of shards may be silent before it is asked again.
        tries: how often in a row a server may fail before a shard counts as unusable.
        image_size: S, pixels a side; None: pixels are neither read nor decoded.
        seed: of order, captions and augmentation.
        words: the tokenizer; may be attached later, since one trained on `captions()` needs the data first.
        regions: what is read of KEY.regions.npz; None: nothing.
        questions: how questions are mixed with captions; None: captions alone.
        second: whether a second caption of each image comes along, as the text "second"; the first one again where there is no other.
        sources: further sources by name, each with `holds` (pairs, texts or images), `share` of each step as a share of `batch` and, where they
            differ from those of the pairs, `shards` and `limit`; null leaves one out.
    """

    def __init__(
        self,
        *,
        name: str,
        shards: str | Sequence[str],
        val_shards: str | Sequence[str] | None,
        batch: int,
        augment: Mapping[str, Any],
        safe: Mapping[str, Any],
        eval_resize: Literal["squash", "crop"],
        root: str,
        cache: str,
        image_size: int | None,
        seed: int,
        words: Words | None = None,
        val_batch: int = 128,
        workers: int = 0,
        window: int = 8,
        max_bad_share: float = 0.01,
        limit: int | None = None,
        regions: Detections | None = None,
        questions: Questions | None = None,
        second: bool = False,
        cache_bytes: str | int = "64GB",
        timeout: float = 60.0,
        tries: int = 6,
        sources: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        super().__init__()
        _check(val_batch=(val_batch, 1), window=(window, 1), workers=(workers, 0), limit=(1 if limit is None else limit, 1), tries=(tries, 1))
        if not timeout > 0:
            raise ConfigError(f"data.timeout is {timeout}; it is a number of seconds above 0")
        if not 0 <= max_bad_share <= 1:
            raise ConfigError(f"data.max_bad_share is {max_bad_share}; it is a share of the samples, from 0 to 1")
        self.name, self.shards, self.val_shards = name, shards, val_shards
        self.batch, self.val_batch, self.workers, self.window = batch, val_batch, workers, window
        self.max_bad_share, self.limit, self.seed, self.image_size = max_bad_share, limit, seed, image_size
        self.root, self.cache, self.words = root, Path(cache), words
        self.remote = Remote(self.cache, limit=cache_bytes, timeout=timeout, tries=tries, window=window)
        if image_size is None and regions is None:
            raise ConfigError("data.regions is null, but the vision part reads no pixels. Use vision=regions, which asks for regions, or another vision")
        if image_size is not None and regions is not None:
            raise ConfigError("data.regions measures boxes on whole images, but the vision part reads pixels, which are cut. Take data.regions away")
        wishes = safe_augment(augment, safe)
        if questions is not None and questions.numbers is None:
            raise ConfigError("data.questions.answers is null, and these data bring no list of answers. Name a file with one a line")
        self.regions, self.questions, self.second = regions, questions, second
        self.train_transform = None if image_size is None else TrainTransform(image_size=image_size, **wishes)
        self.eval_transform = None if image_size is None else EvalTransform(image_size=image_size, resize=eval_resize)
        self.samples_seen = 0  # of the whole world; set by the training module when a step is done
        self.ledger = Ledger(max_bad_share=max_bad_share)
        self.val_ledger = Ledger(max_bad_share=1.0, key="data.val_shards")
        self.wishes = read_wishes(sources)
        self.share: Share | None = None
        self._total: int | None = None

    @cached_property
    def index(self) -> Index:
        """The training samples. Raises DataError for missing shards, damaged ones, or none."""
        index = build_index(expand(self.shards, self.root), cache=self.cache, max_bad_share=self.max_bad_share, remote=self.remote)
        log.info("data.shards: %d samples in %d shards", len(index), len(index.shards))
        return index

    @cached_property
    def val_index(self) -> Index:
        """The validation samples. Raises DataError as `index` does, and when there is no validation split."""
        key = "data.val_shards"
        if not self.val_shards:
            raise DataError(f"{key} is empty, so there is nothing to evaluate on. Name validation shards: {key}=...")
        paths = expand(self.val_shards, self.root, key=key)
        index = build_index(paths, cache=self.cache, max_bad_share=self.max_bad_share, key=key, remote=self.remote)
        both = {real(path) for path in paths} & {real(path) for path in self._train_paths()}
        if both:
            log.warning("%s shares %d shards with data.shards (%s): evaluation sees training samples", key, len(both), shown(sorted(both)[0]))
        return index

    def _train_paths(self) -> list[str]:
        """Training shards, as far as they are here: an evaluation does without."""
        try:
            return expand(self.shards, self.root)
        except VlpError:
            return []

    @cached_property
    def order(self) -> Order:
        """Which sample stands at which position."""
        return Order(self.index.first(self.limit), seed=self.seed, window=self.window)

    @cached_property
    def stocks(self) -> dict[str, Stock]:
        """The sources beside the pairs. Raises DataError as `index` does."""
        return {name: self._stock(wish) for name, wish in self.wishes.items()}

    def _stock(self, wish: Wish) -> Stock:
        index, key = self.index, f"{wish.key}.shards"
        if wish.shards is not None:
            index = build_index(expand(wish.shards, self.root, key=key), cache=self.cache, max_bad_share=self.max_bad_share, key=key, remote=self.remote)
        log.info("%s: %d samples in %d shards", key, len(index), len(index.shards))
        order = Order(index.first(wish.limit), seed=seed_beside(self.seed, wish.name), window=self.window)
        return Stock(wish, index, order, Ledger(max_bad_share=self.max_bad_share, key=key))

    def holds(self, source: str) -> Holds:
        """What the samples of a source hold."""
        return self.wishes[source].holds if source in self.wishes else "pairs"

    def __len__(self) -> int:
        """Training samples of one epoch: of the pairs."""
        return len(self.order)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in which each sample is seen once; seldom whole, since epochs follow one another without a gap."""
        return len(self) / self.batch

    def plan(self, *, world: int, micro: int | None = None, rank: int = 0, total: int | None = None) -> Share:
        """Divide the global batch; `train_dataloader` follows it.

        Args:
            world: ranks.
            micro: samples a rank takes at a time; None: batch / world.
            rank: this rank; a trainer, once attached, knows better.
            total: optimiser steps of the run, after which the loader ends; None: never.

        Raises:
            ConfigError: the batch does not divide, or that of another source.
        """
        self.share, self._total = divide(self.batch, world=world, micro=micro, rank=rank), total
        for wish in self.wishes.values():
            wish.divided(self.share)
        return self.share

    def train_dataloader(self) -> TrainLoader | Together:
        """Micro-batches `{"pairs": Batch}` of this rank from `samples_seen` on, each with one of every other source."""
        share = self._share_now()
        if self.words is None:
            raise ConfigError("data has no tokenizer yet: attach one (data.words = ...) before the training loader is made")
        both: dict[str, Any] = {"transform": self.train_transform, "regions": self.regions, "questions": self.questions, "second": self.second}
        stop = sys.maxsize if self._total is None else self._total * share.accumulation
        times: dict[str, Any] = {"span": lambda: range(share.turn(self.samples_seen), stop), "workers": self.workers}
        items = TrainItems(**self._read(self.index, self.order), share=share, words=self.words, **both)
        pairs = TrainLoader(items, ledger=self.ledger, **times)
        if not self.stocks:
            return pairs
        loaders = {PAIRS: pairs}
        for name, stock in self.stocks.items():
            wanted = {
                "pairs": {**both, "words": self.words}, "texts": {"transform": None, "words": self.words},
                "images": {"transform": self.train_transform, "regions": self.regions, "words": None},
            }[stock.wish.holds]  # fmt: skip
            items = TrainItems(**self._read(stock.index, stock.order), share=stock.wish.divided(share), **wanted)
            loaders[name] = TrainLoader(items, ledger=stock.ledger, source=name, **times)
        return Together(loaders)

    def _read(self, index: Index, order: Order) -> dict[str, Any]:
        """What reads the samples of an index in an order, and fetches those of remote shards ahead."""
        store, span = LocalStore(self.remote.open), -(-len(index) * self.window // len(index.shards))
        return {"reader": Reader(index, store=store), "order": order, "ahead": Ahead(self.remote, store, index, order, span=span)}

    def eval_batches(self, *, batch: int, rank: int = 0, world: int = 1, limit: int | None = None) -> Iterator[EvalBatch]:
        """Validation samples in index order; unusable ones are left out and counted.

        Args:
            batch: samples of one batch before anything is left out.
            rank, world: batches rank, rank + world, ... are given.
            limit: the first so many samples of the split only.
        """
        length = len(self.val_index) if limit is None else min(limit, len(self.val_index))
        spans = [(start, min(start + batch, length)) for start in range(0, length, batch)][rank::world]
        items = EvalItems(
            reader=Reader(self.val_index, store=LocalStore(self.remote.open)), transform=self.eval_transform, regions=self.regions, questions=self.questions, second=self.second
        )
        return self._evaluate(load(items, spans, workers=min(self.workers, len(spans)), key=self.val_ledger.key))

    def _evaluate(self, items: Iterator[EvalItem]) -> Iterator[EvalBatch]:
        served = skipped = 0
        for item in items:
            self.val_ledger.add(item.served, item.faults)
            served, skipped = served + item.served, skipped + len(item.faults)
            if item.batch is not None:
                yield item.batch
        if served and served == skipped:
            raise DataError(f"data.val_shards: none of {served} samples can be used.\n{self.val_ledger.table()}")
        if skipped:
            log.warning("data.val_shards: %d of %d samples left out:\n%s", skipped, served, self.val_ledger.table())

    def captions(self, *, limit: int | None = None) -> Iterator[str]:
        """Captions of the training samples in index order, at most `limit`; no image is decoded, and unusable samples are passed over."""
        reader, given = Reader(self.index, store=LocalStore(self.remote.open)), 0
        for number in range(len(self)):
            try:
                found = captions_of(reader, number, self.questions)
            except Refused:
                continue  # counted when its position comes
            for caption in found:
                if limit is not None and given >= limit:
                    return
                given += 1
                yield caption

    def report(self) -> dict[str, Any]:
        """What was served, read, replaced and refused on this rank, and the damaged shards, as plain types."""
        damaged = dict(self.index.flaws)
        for stock in self.stocks.values():
            damaged |= dict(stock.index.flaws)
        beside = {name: stock.ledger.report()._asdict() for name, stock in self.stocks.items()}
        found = {"train": self.ledger.report()._asdict(), "val": self.val_ledger.report()._asdict(), "damaged_shards": damaged}
        return found | ({"sources": beside} if beside else {})

    def state_dict(self) -> dict[str, Any]:
        """The position in the data as plain types: no rank and no worker."""
        return {"format": _FORMAT, "name": self.name, "samples_seen": self.samples_seen, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Seek to a saved position. Raises ResumeError, both values shown, when it belongs to another sequence of batches."""
        if state_dict["format"] != _FORMAT:
            raise ResumeError(f"the checkpoint's data state has format {state_dict['format']}, this version reads {_FORMAT}")
        now = self._identity()
        changed = [f"  {what}: {state_dict.get(word)} in the checkpoint, {now.get(word)} now" for word, what in _IDENTITY.items() if state_dict.get(word) != now.get(word)]
        if changed:
            lines = "\n".join(changed)
            raise ResumeError(
                f"resume: the batches of this run cannot be continued, since these changed:\n{lines}\nPut them back, or start a new run with another run_dir."
            )
        if state_dict["samples_seen"] % self.batch:
            raise ResumeError(f"resume: {state_dict['samples_seen']} samples seen is no whole number of global batches of {self.batch}")
        self.samples_seen = int(state_dict["samples_seen"])

    def _identity(self) -> dict[str, Any]:
        words = None if self.words is None else self.words.fingerprint
        beside = {name: [s.index.fingerprint, s.wish.holds, s.wish.batch(self.batch), s.wish.limit] for name, s in self.stocks.items()}
        return ({"sources": beside} if beside else {}) | {
            "fingerprint": self.index.fingerprint,
            "limit": self.limit,
            "window": self.window,
            "seed": self.seed,
            "global_batch": self.batch,
            "words": words,
        }

    def _share_now(self) -> Share:
        if self.trainer is None:
            return self.share if self.share is not None else self.plan(world=1)
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.share is not None and self.share.world != world:
            raise ConfigError(f"data was planned for {self.share.world} devices, but the trainer has {world}. Set trainer devices to match.")
        return divide(self.batch, world=world, rank=rank, micro=None if self.share is None else self.share.micro)


def _check(**counts: tuple[int, int]) -> None:
    for word, (found, least) in counts.items():
        if found < least:
            raise ConfigError(f"data.{word} is {found}; it must be at least {least}")
