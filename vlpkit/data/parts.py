"""A list of addresses divided into parts, each the fate of one shard: equal addresses joined, validation held out by a hash.
Two readings of the list and eight bytes a line, so that tens of millions of lines fit into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np

from vlpkit.data.addresses import AddressList, Row
from vlpkit.data.durable import read_json, write_json
from vlpkit.data.img2dataset import DIGITS
from vlpkit.data.packing import FORMAT
from vlpkit.data.prepare import Packing
from vlpkit.data.sources.listing import Candidate
from vlpkit.errors import DataError

MOST = 32  # captions of one address: images that stand for nothing, such as a blank pixel, have thousands


@dataclass(frozen=True)
class Part:
    """Consecutive addresses of one split.

    Args:
        name: number over all parts, as img2dataset counts its shards.
        shard: file name of the result.
        addresses: how many.
    """

    name: str
    split: str
    shard: str
    addresses: int

    def candidates(self, work: Path) -> dict[int, Candidate]:
        """What its list says, by the number of the line; the key is that number."""
        found = {}
        with (work / "lists" / f"{self.name}.jsonl").open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                found[line["row"]] = Candidate(line["url"], "", f"{line['row']:09d}", line["captions"], {"url": line["url"]})
        return found


@dataclass(frozen=True)
class Plan:
    """Which address belongs to which part.

    Args:
        fingerprint: sha256 of the settings and of every usable line.
        rows: counts of lines by outcome: used, same_address, and the reasons of `Row.refused`.
        parts: in order, those of the validation split first.
        seed: of the hash that decides on validation.
        limit: greatest hash of a validation address; -1: there is none.
        repeated: hashes of addresses that stand in several lines.
    """

    fingerprint: str
    rows: Counter[str]
    parts: tuple[Part, ...]
    seed: int
    limit: int
    repeated: frozenset[int]

    @property
    def total(self) -> int:
        """Addresses of all parts."""
        return sum(part.addresses for part in self.parts)

    def write_lists(self, rows: Iterable[Row], work: Path) -> None:
        """One NAME.jsonl a part with `url`, `row` and `captions` in `work`/lists; nothing if those of this plan are there. Clears what else is in `work`."""
        done = work / "lists.json"
        if read_json(done) == {"fingerprint": self.fingerprint}:
            return
        shutil.rmtree(work, ignore_errors=True)
        (work / "lists").mkdir(parents=True)
        captions = self._joined(rows)
        into = {split: _Writer(work / "lists", [part for part in self.parts if part.split == split]) for split in ("val", "train")}
        for row in rows:
            if row.refused:
                continue
            mark = address_hash(row.address, self.seed)
            if mark in self.repeated:
                said = captions.pop(mark, None)
                if said is None:  # its first line has them all
                    continue
            else:
                said = list(row.captions)
            into["val" if mark <= self.limit else "train"].add({"url": row.address, "row": row.number, "captions": said})
        for writer in into.values():
            writer.close()
        write_json(done, {"fingerprint": self.fingerprint})

    def _joined(self, rows: Iterable[Row]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        if self.repeated:
            for row in rows:
                if not row.refused and (mark := address_hash(row.address, self.seed)) in self.repeated:
                    said = found.setdefault(mark, [])
                    said += [caption for caption in row.captions if caption not in said][: MOST - len(said)]
        return found


class _Writer:
    """The lists of a split, filled one after the other."""

    def __init__(self, folder: Path, parts: list[Part]) -> None:
        self._folder, self._parts, self._room = folder, iter(parts), 0
        self._file: IO[str] | None = None

    def add(self, line: dict[str, object]) -> None:
        if not self._room:
            self.close()
            part = next(self._parts)
            self._room = part.addresses
            self._file = (self._folder / f"{part.name}.jsonl").open("w", encoding="utf-8")
        assert self._file is not None
        self._file.write(f"{json.dumps(line)}\n")
        self._room -= 1

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def address_hash(address: str, seed: int) -> int:
    """64 bits; two of ten million addresses coincide once in some 400,000 lists."""
    return int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8, key=str(seed).encode()).digest(), "big")


def draw_up(addresses: AddressList, packing: Packing) -> Plan:
    """Reads the list once. Raises DataError when no line is usable or validation would take all."""
    digest = hashlib.sha256(json.dumps([FORMAT, asdict(packing)], sort_keys=True).encode())
    rows: Counter[str] = Counter()
    marks = array("Q")
    for row in addresses:
        rows[row.refused or "used"] += 1
        if not row.refused:
            marks.append(address_hash(row.address, packing.seed))
            digest.update(json.dumps(row).encode())
    if not marks:
        table = ", ".join(f"{word} {number}" for word, number in sorted(rows.items()))
        raise DataError(f"no usable line in {addresses.source} ({table}); an address starts with http:// or https:// and has a caption")
    distinct, times = np.unique(np.frombuffer(marks, dtype=np.uint64), return_counts=True)
    if len(marks) > len(distinct):
        rows["same_address"], rows["used"] = len(marks) - len(distinct), len(distinct)
    if packing.val >= len(distinct):
        raise DataError(f"--val {packing.val} leaves nothing to train on: there are {len(distinct)} addresses")
    return Plan(
        fingerprint=digest.hexdigest(),
        rows=rows,
        parts=tuple(_parts({"val": packing.val, "train": len(distinct) - packing.val}, packing.samples_per_shard)),
        seed=packing.seed,
        limit=int(distinct[packing.val - 1]) if packing.val else -1,
        repeated=frozenset(distinct[times > 1].tolist()),
    )


def _parts(sizes: dict[str, int], most: int) -> Iterator[Part]:
    names = count()
    for split, size in sizes.items():
        for number, start in enumerate(range(0, size, most)):
            yield Part(f"{next(names):0{DIGITS}d}", split, f"{split}-{number:06d}.tar", min(most, size - start))
