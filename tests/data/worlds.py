"""What ranks and workers read of a data module, joined to the global batches that they make together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from shards import module

from vlpkit.data.module import DataModule
from vlpkit.types import Batch

Row = tuple[str, bytes, tuple[int, ...]]


def rows(batch: Batch) -> list[Row]:
    """Each sample of a batch as key, pixels and words, free of padding."""
    text, image = batch.texts["clean"], batch.images["clean"]
    ids = [tuple(row[keep].tolist()) for row, keep in zip(text.ids, text.mask)]
    return list(zip(batch.keys, (pixels.numpy().tobytes() for pixels in image.pixels), ids))  # type: ignore[union-attr]


def batches(data: DataModule, count: int) -> list[Batch]:
    return [found["pairs"] for found in islice(iter(data.train_dataloader()), count)]


def global_batches(
    folder: Path, steps: int, *, world: int = 1, workers: int = 0, micro: int | None = None, seen: int = 0, make: Callable[..., DataModule] = module, **changes: Any
) -> list[list[Row]]:
    """What all ranks read, joined step by step in the order of micro-batch and rank; with `seen`, of a run resumed after so many samples."""
    ranks: list[list[Batch]] = []
    accumulation = 1
    for rank in range(world):
        data = make(folder, workers=workers, **changes)
        accumulation = data.plan(world=world, micro=micro, rank=rank).accumulation
        data.load_state_dict({**make(folder, **changes).state_dict(), "samples_seen": seen})
        ranks.append(batches(data, steps * accumulation))
    turns = [[row for rank in ranks for row in rows(rank[turn])] for turn in range(steps * accumulation)]
    return [[row for turn in turns[k * accumulation : (k + 1) * accumulation] for row in turn] for k in range(steps)]
