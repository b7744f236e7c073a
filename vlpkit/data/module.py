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
from vlpkit.data.decode import Refused, slow_path
from vlpkit.data.faults import Ledger, together
from vlpkit.data.feed import EvalBatch, EvalItem, EvalItems, TrainItems, TrainLoader, arrived
from vlpkit.data.index import Index, build_index
from vlpkit.data.look import captions_of
from vlpkit.data.mixture import Sequenced
from vlpkit.data.order import Order, seed_beside
from vlpkit.data.pairsets import read_mix
from vlpkit.data.phrases import Phrases
from vlpkit.data.place import real, shown
from vlpkit.data.pool import Pool
from vlpkit.data.questions import Questions
from vlpkit.data.reader import LocalStore, Reader
from vlpkit.data.regions import Detections
from vlpkit.data.remote import Remote
from vlpkit.data.shardlist import expand
from vlpkit.data.share import Share, divide
from vlpkit.data.state import FORMAT, check_state
from vlpkit.data.stock import Stock, Together
from vlpkit.data.tokenize import Words
from vlpkit.data.transforms import EvalTransform, TrainTransform, safe_augment
from vlpkit.data.wishes import PAIRS, Holds, Wish, read_wishes
from vlpkit.data.workers import load
from vlpkit.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class DataModule(pl.LightningDataModule):
    """Image-caption pairs, called "pairs" in batches, and what other sources stand beside them.

    Args:
        name: of the data set, for reports.
        shards: training shards: path, glob, brace range, list, or several joined by `::`, relative to `root`; None: those of `mix` alone.
        val_shards: likewise for validation; None: there is none.
        batch: B, the global batch: samples of one optimiser step over all ranks.
        val_batch: samples of one evaluation batch on one rank.
        workers: reading processes of each rank; 0: the training process reads.
        window: shards whose samples mix.
        max_bad_share: share of the last 10,000 samples, and of the shards, that may be unusable.
        verify: hash each shard, once for as long as it stays the same file, and compare with the manifest.json beside it.
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
        phrases: which phrase about a part of each image comes along, as the text "phrase", with the target "box"; None: none does. Images are then
            neither mirrored nor distorted.
        second: whether a second caption of each image comes along, as the text "second"; the first one again where there is no other.
        mix: sets that the pairs are mixed from, by name, each with passes over it an epoch (1.0: every sample once) or a share ("30%"), or with
            `weight` and what differs: `shards`, `root`, `limit`, `safe`; the one called `name` stands for `shards`. Nothing: `shards` alone.
        sources: further sources by name, each with `holds` (pairs, texts or images), `share` of each step as a share of `batch` and, where they
            differ from those of the pairs, `shards` and `limit`; null leaves one out.
    """

    def __init__(
        self,
        *,
        name: str,
        shards: str | Sequence[str] | None,
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
        verify: bool = False,
        limit: int | None = None,
        regions: Detections | None = None,
        questions: Questions | None = None,
        phrases: Phrases | None = None,
        second: bool = False,
        mix: Mapping[str, Any] | None = None,
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
        self.max_bad_share, self.verify, self.limit, self.seed, self.image_size = max_bad_share, verify, limit, seed, image_size
        self.root, self.cache, self.words = root, Path(cache), words
        if image_size is None and regions is None:
            raise ConfigError("data.regions is null, but the vision part reads no pixels. Use vision=regions, which asks for regions, or another vision")
        if image_size is not None and regions is not None:
            raise ConfigError("data.regions measures boxes on whole images, but the vision part reads pixels, which are cut. Take data.regions away")
        sets = read_mix(mix, name=name, shards=shards, root=root, limit=limit, safe=safe)
        self.remote = Remote(self.cache, limit=cache_bytes, timeout=timeout, tries=tries, window=window * len(sets))
        self.pool = Pool(sets, mixed=bool(mix), build=self._index, window=window)
        if questions is not None and questions.numbers is None:
            raise ConfigError("data.questions.answers is null, and these data bring no list of answers. Name a file with one a line")
        self.regions, self.questions, self.phrases, self.second = regions, questions, phrases, second
        self.train_transform = self._transform(augment, safe, "data.safe")
        self.set_transforms = [
            self.train_transform if one.safe == safe else self._transform(augment, one.safe, one.place("safe")) for one in sets.values()
        ]
        self.eval_transform = None if image_size is None else EvalTransform(image_size=image_size, resize=eval_resize)
        self.samples_seen = 0  # of the whole world; set by the training module when a step is done
        self.ledgers = {name: Ledger(max_bad_share=max_bad_share, key=one.key) for name, one in sets.items()}
        self.val_ledger = Ledger(max_bad_share=1.0, key="data.val_shards")
        self.wishes = read_wishes(sources)
        self.share: Share | None = None
        self._total: int | None = None

    def _transform(self, augment: Mapping[str, Any], safe: Mapping[str, Any], place: str) -> TrainTransform | None:
        wishes = safe_augment(augment, safe, place=place)
        for name, off in {"flip": 0.0, "randaugment": None}.items() if self.phrases is not None else ():
            if wishes[name] != off:
                log.info("data.augment.%s is %s here, not %s: the boxes of data.phrases follow a crop and nothing else", name, off, wishes[name])
                wishes[name] = off
        return None if self.image_size is None else TrainTransform(image_size=self.image_size, **wishes)

    @property
    def index(self) -> Index:
        """The training samples. Raises DataError for missing shards, damaged ones, or none."""
        return self.pool.index

    def _index(self, paths: Sequence[str], key: str) -> Index:
        index = build_index(paths, cache=self.cache, max_bad_share=self.max_bad_share, verify=self.verify, key=key, remote=self.remote)
        log.info("%s: %d samples in %d shards", key, len(index), len(index.shards))
        return index

    @cached_property
    def val_index(self) -> Index:
        """The validation samples. Raises DataError as `index` does, and when there is no validation split."""
        key = "data.val_shards"
        if not self.val_shards:
            raise DataError(f"{key} is empty, so there is nothing to evaluate on. Name validation shards: {key}=...")
        paths = expand(self.val_shards, self.root, key=key)
        index = build_index(paths, cache=self.cache, max_bad_share=self.max_bad_share, verify=self.verify, key=key, remote=self.remote)
        both = {real(path) for path in paths} & {real(path) for path in self.pool.paths()}
        if both:
            log.warning("%s shares %d shards with data.shards (%s): evaluation sees training samples", key, len(both), shown(sorted(both)[0]))
        return index

    @cached_property
    def order(self) -> Sequenced:
        """Which sample stands at which position."""
        return self.pool.order(self.seed, self.limit)

    @cached_property
    def stocks(self) -> dict[str, Stock]:
        """The sources beside the pairs. Raises DataError as `index` does."""
        return {name: self._stock(wish) for name, wish in self.wishes.items()}

    def _stock(self, wish: Wish) -> Stock:
        key, seed = f"{wish.key}.shards", seed_beside(self.seed, wish.name)
        ledger = Ledger(max_bad_share=self.max_bad_share, key=key)
        if wish.shards is None:
            return Stock(wish, self.index, self.pool.order(seed, wish.limit), ledger)
        index = self._index(expand(wish.shards, self.root, key=key), key)
        return Stock(wish, index, Order(index.first(wish.limit), seed=seed, window=self.window), ledger)

    def holds(self, source: str) -> Holds:
        """What the samples of a source hold."""
        return self.wishes[source].holds if source in self.wishes else "pairs"

    def __len__(self) -> int:
        """Training samples of one epoch: of the pairs."""
        return len(self.order)

    @property
    def ledger(self) -> Ledger:
        """What became of the pairs on this rank, all sets together."""
        return together(list(self.ledgers.values()))

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
        both = self._beside()
        stop = sys.maxsize if self._total is None else self._total * share.accumulation
        times: dict[str, Any] = {"span": lambda: range(share.turn(self.samples_seen), stop), "workers": self.workers}
        items = TrainItems(**self._read(self.index, self.order), share=share, transforms=self.set_transforms, words=self.words, **both)
        pairs = TrainLoader(items, ledgers=list(self.ledgers.values()), key=self.pool.key, **times)
        if not self.stocks:
            return pairs
        loaders = {PAIRS: pairs}
        for name, stock in self.stocks.items():
            seen = self.set_transforms if stock.wish.shards is None else [self.train_transform]
            wanted = {
                "pairs": {**both, "transforms": seen, "words": self.words}, "texts": {"transforms": [None] * len(seen), "words": self.words},
                "images": {"transforms": seen, "regions": self.regions, "words": None},
            }[stock.wish.holds]  # fmt: skip
            items = TrainItems(**self._read(stock.index, stock.order), share=stock.wish.divided(share), **wanted)
            loaders[name] = TrainLoader(items, ledgers=[stock.ledger] * len(seen), key=stock.ledger.key, source=name, **times)
        return Together(loaders)

    def _beside(self) -> dict[str, Any]:
        """What is read of a pair beside its pixels and its caption."""
        return {"regions": self.regions, "questions": self.questions, "phrases": self.phrases, "second": self.second}

    def _read(self, index: Index, order: Sequenced) -> dict[str, Any]:
        """What reads the samples of an index in an order, and fetches those of remote shards ahead."""
        store, span = LocalStore(self.remote.open), -(-len(index) * self.remote.window // len(index.shards))
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
        items = EvalItems(reader=Reader(self.val_index, store=LocalStore(self.remote.open)), transform=self.eval_transform, **self._beside())
        workers = min(self.workers, len(spans))
        return self._evaluate(arrived(load(items, spans, workers=workers, key=self.val_ledger.key), workers=workers))

    def _evaluate(self, items: Iterator[EvalItem]) -> Iterator[EvalBatch]:
        served = skipped = 0
        for item in items:
            read = 0 if item.batch is None else len(item.batch.keys)
            if read + len(item.faults) != item.served:
                raise RuntimeError(f"data.val_shards: {read} of {item.served} samples arrived, and {len(item.faults)} were refused")
            self.val_ledger.add(read, item.faults)
            served, skipped = served + item.served, skipped + len(item.faults)
            if item.batch is not None:
                yield item.batch
        if served and served == skipped:
            raise DataError(f"data.val_shards: none of {served} samples can be used.\n{self.val_ledger.table()}")
        if skipped:
            log.warning("data.val_shards: %d of %d samples left out:\n%s", skipped, served, self.val_ledger.table())

    def captions(self, *, limit: int | None = None) -> Iterator[str]:
        """Captions of the training samples in index order, of a mixture set by set in turn, at most `limit`; no image is decoded, and unusable
        samples are passed over."""
        reader, given = Reader(self.index, store=LocalStore(self.remote.open)), 0
        for number in self.order.numbers():
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
        """What was served, read, replaced and refused on this rank, the damaged shards, and the images that only the slow decoder took, as plain types."""
        damaged = dict(self.index.flaws)
        for stock in self.stocks.values():
            damaged |= dict(stock.index.flaws)
        beside = {name: stock.ledger.report()._asdict() for name, stock in self.stocks.items()}
        sets = {name: ledger.report()._asdict() for name, ledger in self.ledgers.items()} if self.pool.mixed else {}
        found = {"train": self.ledger.report()._asdict(), "val": self.val_ledger.report()._asdict(), "damaged_shards": damaged, "slow_path": dict(slow_path)}
        return found | ({"sets": sets} if sets else {}) | ({"sources": beside} if beside else {})

    def state_dict(self) -> dict[str, Any]:
        """The position in the data as plain types: no rank and no worker."""
        beside = {name: [s.index.fingerprint, s.wish.holds, s.wish.batch(self.batch), s.wish.limit] for name, s in self.stocks.items()}
        return {
            "format": FORMAT,
            "name": self.name,
            "samples_seen": self.samples_seen,
            **self.pool.state(),
            "limit": self.limit,
            "window": self.window,
            "seed": self.seed,
            "global_batch": self.batch,
            "words": None if self.words is None else self.words.fingerprint,
        } | ({"sources": beside} if beside else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Seek to a saved position. Raises ResumeError, both values shown, when it belongs to another sequence of batches."""
        self.samples_seen = check_state(state_dict, self.state_dict())

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
