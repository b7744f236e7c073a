"""One shard, opened to be looked at from front to back: its table, and its samples with what could not be read of them booked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlpkit.data.decode import Refused
from vlpkit.data.index import Index
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.reader import IMAGES, Reader
from vlpkit.data.table import Shard, Table, index_shard, unreadable

_NOTHING = np.zeros(0, np.uint32)


class Opened(NamedTuple):
    """A shard and where its samples lie; none of them when it cannot be read."""

    shard: Shard
    table: Table

    @property
    def name(self) -> str:
        """Base name of the file."""
        return Path(self.shard.path).name

    def samples(
        self, findings: Findings, *, only: Collection[str] | None = None, rows: Iterable[int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        """Row, key and members of samples; one that cannot be read is booked and passed over.

        Args:
            findings: the book.
            only: extensions that are read; None: all.
            rows: of the samples; None: all.
        """
        reader = Reader(Index([self.shard], folder=None, held={self.shard.path: self.table.pack()}))
        for row in range(len(self.table.keys)) if rows is None else rows:
            try:
                found = reader.read(row, only=only)
            except Refused as refused:
                findings.refuse(self.table.keys[row], refused)
                continue
            yield row, self.table.keys[row], found

    def extensions(self, *kinds: str) -> list[str]:
        """The extensions that end in one of `kinds`: `left.jpg` is a jpg, too."""
        return [ext for ext in self.table.extensions if ext.rpartition(".")[2] in kinds]

    @property
    def images(self) -> list[str]:
        """The extensions of images in this shard, in the order of preference of the reader."""
        return sorted(self.extensions(*IMAGES), key=lambda ext: (ext.count("."), IMAGES.index(ext.rpartition(".")[2]), ext))


def open_shard(path: str) -> Opened:
    """The headers of a tar, read anew; a file that cannot be read is a shard of no samples with the flaw `unreadable`."""
    try:
        return Opened(*index_shard(path))
    except OSError as error:
        return Opened(unreadable(path, error), Table((), (), np.zeros(1, np.uint32), _NOTHING.astype(np.uint16), _NOTHING, _NOTHING))
