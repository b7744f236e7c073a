"""Parts that only these tests configure: every shape of a constructor that the signature reader has to understand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from tests.config.aliases import Place
from tests.config.aliases import Renamed as Other
from vlpkit.errors import AssemblyError
from vlpkit.types import Steps

Alias = Other


class Base(nn.Module):
    def __init__(self, *, on: str = "pairs", weight: float = 1.0) -> None:
        super().__init__()
        self.on, self.weight = on, weight


class Contrast(Base):
    def __init__(self, *, gather: bool = True, smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gather, self.smoothing = gather, smoothing


class MomentumContrast(Base):
    def __init__(self, space: int, *, queue: int, ramp: Steps | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space, self.queue, self.ramp = space, queue, ramp


class Quiet(Base):
    """Inherits its whole constructor."""


class Trunk(nn.Module):
    def __init__(self, dim: int, *, depth: int, block: Sequence[Literal["self", "cross", "ffn"]] = ("self", "ffn"), place: Place = "pre", ratio: float = 4.0) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth {depth} is negative")
        self.dim, self.depth, self.block, self.place, self.ratio = dim, depth, block, place, ratio


class Encoder(nn.Module):
    def __init__(self, dim: int, *, trunk: Trunk | None = None, sizes: tuple[int, int] = (1, 1), names: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.dim, self.trunk, self.sizes, self.names = dim, trunk, sizes, names


class Rate(NamedTuple):
    peak: float
    end: float = 0.0


@dataclass(kw_only=True)
class Optim:
    lr: float
    betas: Sequence[float] = (0.9, 0.999)
    warmup: Steps = Steps(0)  # noqa: RUF009
    rate: Rate | None = None
    folder: Path | None = None
    made: int = field(init=False, default=0)


class Data:
    def __init__(self, *, root: str, batch: int, limit: int | None = None, key: Callable[[int], int] | None = None) -> None:
        self.root, self.batch, self.limit, self.key = root, batch, limit, key


class Anything:
    def __init__(self, first: int, **kwargs: Any) -> None:
        self.first, self.rest = first, kwargs

    @classmethod
    def small(cls, *, second: int) -> Anything:
        return cls(0, second=second)


def refuse(*, why: str) -> None:
    raise AssemblyError(why)


def pair(left: int, /, right: int = 2) -> tuple[int, int]:
    return left, right


def teacher(model: Any, *, momentum: float) -> tuple[Any, float]:
    return model, momentum
