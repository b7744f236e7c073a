"""A ring of rows from past batches, equal on every rank: features, identities, raw inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit import dist


class Field(NamedTuple):
    """One field of a queue: the shape of a row, and whether rows are points on the unit sphere or integers."""

    shape: tuple[int, ...]
    kind: Literal["point", "id"] = "point"


def _points(*shape: int) -> Tensor:
    """Random unit vectors; on the meta device, where asking for numbers would load half of torch's compiler, just the shape."""
    return torch.empty(shape) if torch.get_default_device().type == "meta" else F.normalize(torch.randn(shape), dim=-1)


class Queue(nn.Module):
    """The last K rows that were pushed, oldest overwritten first.

    Buffers: one (K, *shape) a field, `cursor` () and `filled` ().

    Args:
        length: K.
        fields: by name.
        start: empty marks unwritten rows as not valid; random fills points with random unit vectors that count as
            valid from the first step (ALBEF, BLIP as released).
    """

    cursor: Tensor
    filled: Tensor

    def __init__(self, *, length: int, fields: Mapping[str, Field], start: Literal["empty", "random"] = "empty") -> None:
        super().__init__()
        self.length, self.fields, self.start = length, dict(fields), start
        for name, field in self.fields.items():
            rows = torch.full((length, *field.shape), -1) if field.kind == "id" else _points(length, *field.shape)
            self.register_buffer(name, rows)
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.full((), length if start == "random" else 0, dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Mapping[str, Tensor]) -> None:
        """Write the rows of all ranks, in rank order; any number of rows, also more than K."""
        gathered = {name: dist.gather(values.detach(), equal=True) for name, values in rows.items()}
        count = len(next(iter(gathered.values())))
        kept = min(count, self.length)
        place = (self.cursor + torch.arange(count - kept, count, device=self.cursor.device)) % self.length
        for name, values in gathered.items():
            buffer = self.get_buffer(name)
            # A point that is not finite would stand in the loss of every step until it is overwritten; 0 is like nothing at all.
            buffer[place] = values[count - kept :].nan_to_num(0.0, 0.0, 0.0).to(buffer.dtype)
        self.cursor.copy_((self.cursor + count) % self.length)
        self.filled.copy_((self.filled + count).clamp(max=self.length))

    def keys(self) -> dict[str, Tensor]:
        """The rows by field, (K, *shape), and `valid` (K,) bool; not copied, so read them before the next push."""
        rows = {name: self.get_buffer(name) for name in self.fields}
        return rows | {"valid": torch.arange(self.length, device=self.cursor.device) < self.filled}
