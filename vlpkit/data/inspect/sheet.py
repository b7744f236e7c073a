"""A contact sheet: some samples of shards as one picture to look at, each with its key, its first caption and its regions.
Which samples is decided by the seed; of many shards only those are opened that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlpkit.data.arrays import MEMBER
from vlpkit.data.decode import Refused, decode, read_header
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.opened import Opened, open_shard
from vlpkit.data.inspect.paint import Tile, paint
from vlpkit.data.inspect.said import boxes_in, tasks_of, texts_of
from vlpkit.data.reader import TEXTS
from vlpkit.errors import DataError

_ALL = 64  # shards up to which every sample has the same chance; of more, shards are drawn by their size first
_ROUNDS = 8  # tries to replace what cannot be read in shards that were drawn
_SPARE = 1.0  # of a size of 0, so that an empty file can be drawn and be seen to be one


@dataclass(frozen=True)
class Sheet:
    """What is shown.

    Args:
        count: samples; fewer when there are not so many.
        columns: tiles in a row.
        tile: pixels a side of the square that an image is fitted into.
        seed: of the choice.
        regions: whether boxes are drawn.
    """

    count: int = 24
    columns: int = 6
    tile: int = 224
    seed: int = 0
    regions: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (("count", 1, 2000), ("columns", 1, 50), ("tile", 48, 1024)):
            if not low <= (found := vars(self)[name]) <= high:
                raise DataError(f"--{name} is {found}; it can be {low} to {high}")
        if self.seed < 0:
            raise DataError(f"--seed is {self.seed}; it must be at least 0")


def make_sheet(paths: Sequence[str], out: Path, sheet: Sheet) -> tuple[int, Findings]:
    """Write the picture to `out`, a .png, whole or not at all.

    Returns:
        How many samples it shows, and what was wrong with shards and samples that were chosen; a broken image is shown as its reason.

    Raises:
        DataError: no shard holds a sample, or `out` cannot be written.
    """
    findings = Findings()
    tiles = [
        tile_of(key, members, opened.images, sheet, findings)
        for opened, rows in chosen(paths, sheet, findings)
        for row, key, members in opened.samples(findings, only=[*opened.images, *TEXTS, MEMBER], rows=rows)
    ]
    if not tiles:
        raise DataError(f"none of {len(paths)} shards holds a sample that can be read ({', '.join(findings.counts) or 'all are empty'}); see verify")
    paint(tiles, out, columns=sheet.columns, side=sheet.tile)
    return len(tiles), findings


def chosen(paths: Sequence[str], sheet: Sheet, findings: Findings) -> list[tuple[Opened, list[int]]]:
    """The shards to open and the rows to show of each, in the order of the shards."""
    rng = np.random.default_rng(sheet.seed)
    if len(paths) <= _ALL:
        opened = [_open(path, findings) for path in paths]
        ends = np.cumsum([0, *(len(one.table.keys) for one in opened)])
        numbers = np.sort(rng.choice(int(ends[-1]), min(sheet.count, int(ends[-1])), replace=False)) if ends[-1] else np.zeros(0, np.int64)
        shards = np.searchsorted(ends, numbers, side="right") - 1
        return [(opened[shard], (numbers[shards == shard] - ends[shard]).tolist()) for shard in np.unique(shards)]
    sizes = np.array([_SPARE + Path(path).stat().st_size for path in paths])
    known: dict[int, Opened] = {}
    rows: dict[int, set[int]] = {}
    for _ in range(_ROUNDS):
        lacking = sheet.count - sum(map(len, rows.values()))
        for shard in rng.choice(len(paths), lacking, p=sizes / sizes.sum()).tolist():
            if shard not in known:
                known[shard] = _open(paths[shard], findings)
            if there := len(known[shard].table.keys):
                rows.setdefault(shard, set()).add(int(rng.integers(there)))
    return [(known[shard], sorted(rows[shard])) for shard in sorted(rows)]


def tile_of(key: str, members: Mapping[str, bytes], images: Sequence[str], sheet: Sheet, findings: Findings) -> Tile:
    """What is shown of a sample: its first image, or in its place the reason why there is none."""
    trouble, pixels, captions, record = "", None, list[str](), dict[str, object]()
    try:
        captions, record = texts_of(members)
    except Refused as refused:
        findings.refuse(key, refused)
        trouble = refused.reason
    try:
        payload = next((members[ext] for ext in images if ext in members), None)
        pixels = decode(payload or b"", read_header(payload), width=2 * sheet.tile, height=2 * sheet.tile)
    except Refused as refused:
        findings.refuse(key, refused)
        trouble = refused.reason
    asked = [f"{text} {answer}".rstrip() for text, answer in tasks_of(record)]
    boxes = boxes_in(members, record) if sheet.regions else []
    return Tile(key, next(iter([*captions, *asked]), ""), pixels, [box for box, _ in boxes], trouble)


def _open(path: str, findings: Findings) -> Opened:
    opened = open_shard(path)
    findings.flaws(opened.shard.flaws)
    return opened
