"""What shards hold, in numbers: sizes and formats of images, captions and their lengths, what records list, how even the shards are.
One pass; images are opened and not decoded, and samples with a broken part are left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vlpkit.data.arrays import MEMBER, Archive, boxes_of
from vlpkit.data.decode import Refused, read_header
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.opened import Opened, open_shard
from vlpkit.data.inspect.pool import each
from vlpkit.data.inspect.said import texts_of
from vlpkit.data.inspect.spread import Common, Spread
from vlpkit.data.reader import TEXTS

Count = Callable[[str], int]  # tokens of a caption, specials included and nothing cut
SPREADS = ("width", "height", "short_side", "image_bytes", "captions", "words", "tokens", "regions")
_FIELDS = 64  # names that records may bring; they come from strangers
OTHERS = "(others)"


@dataclass
class Stats:
    """Sums over samples and shards; those of several shards merge.

    Args:
        samples: used.
        left_out: samples with a part that cannot be read, by reason, and damaged shards.
        members: samples by extension.
        formats: images by format.
        spreads: by name: width, height and short_side in pixels, image_bytes; captions of a sample; words and tokens of a caption; regions.
        fields: samples whose record has a field.
        lists: how many entries a field of the record holds that is a list.
        texts: captions by how often they occur.
        shards: samples of a shard, and its bytes.
    """

    samples: int = 0
    left_out: Findings = field(default_factory=Findings)
    members: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    spreads: dict[str, Spread] = field(default_factory=lambda: {name: Spread() for name in SPREADS})
    fields: Counter[str] = field(default_factory=Counter)
    lists: dict[str, Spread] = field(default_factory=dict)
    texts: Common = field(default_factory=Common)
    shards: dict[str, Spread] = field(default_factory=lambda: {"samples": Spread(), "bytes": Spread()})

    def merge(self, other: Stats) -> None:
        """Add the sums of another shard."""
        self.samples += other.samples
        self.left_out.merge(other.left_out)
        self.members.update(other.members)
        self.formats.update(other.formats)
        self.texts.merge(other.texts)
        for mine, theirs in ((self.spreads, other.spreads), (self.shards, other.shards)):
            for name, spread in theirs.items():
                mine[name].merge(spread)
        for name, count in other.fields.items():
            self.fields[_bounded(name, self.fields)] += count
        for name, spread in other.lists.items():
            self.lists.setdefault(_bounded(name, self.lists), Spread()).merge(spread)

    def plain(self, *, length: int | None, top: int) -> dict[str, object]:
        """As JSON has it; `length` tokens are kept of a caption, and the `top` most common captions are named."""
        tokens = self.spreads["tokens"]
        return {
            "samples": self.samples,
            "left_out": self.left_out.plain(),
            "members": dict(self.members.most_common()),
            "formats": dict(self.formats.most_common()),
            **{name: spread.plain() for name, spread in self.spreads.items() if len(spread)},
            "fields": dict(self.fields.most_common()),
            "lists": {name: spread.plain() for name, spread in self.lists.items()},
            "common_captions": {"top": self.texts.top(top), "repeated": self.texts.repeated, "uncounted": self.texts.missed},
            "cut": {"length": length, "captions": tokens.above(length)} if length is not None and len(tokens) else None,
            "shards": {name: spread.plain() for name, spread in self.shards.items()},
        }


def measure(paths: Sequence[str], *, tokens: Count | None = None, processes: int = 1) -> Stats:
    """The statistics of shards.

    Args:
        tokens: counts the tokens of a caption; None: tokens are not counted.

    Raises:
        DataError: a worker process was killed.
    """
    total = Stats()
    for one in each(partial(measure_shard, tokens=tokens), paths, processes=processes, doing="measured"):
        total.merge(one)
    return total


def measure_shard(path: str, *, tokens: Count | None) -> Stats:
    """The statistics of one shard."""
    opened, stats = open_shard(path), Stats()
    stats.left_out.flaws(opened.shard.flaws)
    stats.shards["samples"].add(opened.shard.samples)
    stats.shards["bytes"].add(opened.shard.size)
    images = opened.images
    for _, key, found in opened.samples(stats.left_out, only=[*images, *TEXTS, MEMBER]):
        try:
            captions, record = texts_of(found)
            headers = [(read_header(found[ext]), len(found[ext])) for ext in images if ext in found]
            regions = _regions(found[MEMBER]) if MEMBER in found else None
        except Refused as refused:
            stats.left_out.refuse(key, refused)
            continue
        stats.samples += 1
        for header, size in headers:
            stats.formats[header.format] += 1
            sizes = (header.width, header.height, min(header.width, header.height), size)
            for name, value in zip(SPREADS, sizes):
                stats.spreads[name].add(value)
        if regions is not None:
            stats.spreads["regions"].add(regions)
        _captions(captions, stats, tokens)
        _record(record, stats)
    stats.members.update(_members(opened))
    return stats


def _regions(payload: bytes) -> int:
    try:
        return len(boxes_of(Archive(payload)))
    except Refused as refused:
        if refused.reason != "no_regions":
            raise
        return 0


def _captions(captions: Sequence[str], stats: Stats, tokens: Count | None) -> None:
    stats.spreads["captions"].add(len(captions))
    for caption in captions:
        stats.spreads["words"].add(len(caption.split()))
        stats.texts.add(caption)
        if tokens is not None:
            stats.spreads["tokens"].add(tokens(caption))


def _record(record: Mapping[str, object], stats: Stats) -> None:
    for name, value in record.items():
        stats.fields[_bounded(name, stats.fields)] += 1
        if isinstance(value, list) and name != "captions":
            stats.lists.setdefault(_bounded(name, stats.lists), Spread()).add(len(value))


def _bounded(name: str, known: Mapping[str, object]) -> str:
    return name if name in known or len(known) < _FIELDS else OTHERS


def _members(opened: Opened) -> dict[str, int]:
    """Samples by extension; the index keeps one member of each extension a sample."""
    counts = Counter(opened.table.ext.tolist())
    return {opened.table.extensions[number]: count for number, count in counts.items()}
