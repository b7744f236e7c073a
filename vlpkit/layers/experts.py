"""One module in several sets: each run of a stream is taken by the set of its side, a stream of both sides by `vw` where there is one.
Runs are contiguous, so routing is slicing, never gathering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vlpkit.types import Parts

ExpertSets = Mapping[str, Sequence[str]]  # kind of module -> sets, such as {"ffn": ["v", "w", "vw:10-"]}
SETS = ("v", "w", "vw")


def sides(parts: Parts) -> str:
    """The sides that have tokens: v, w, or vw."""
    return "".join(side for side in "vw" if any(name[0] == side and length for name, length in parts))


class Experts(nn.Module):
    """Equal modules under the names v, w and vw (Bao et al. 2021, section 3.1; Wang et al. 2022, section 2.1).

    Args:
        make: builds one set.
        sets: which there are.
    """

    def __init__(self, make: Callable[[], nn.Module], *, sets: Sequence[str]) -> None:
        super().__init__()
        self.sets = tuple(sets)
        for name in self.sets:
            self.add_module(name, make())

    def forward(self, x: Tensor, parts: Parts, route: str | None = None) -> Tensor:
        """(B, L, D) to (B, L, D'); `route` forces a set where it exists."""
        there = sides(parts)
        forced = route if route in self.sets else "vw" if there == "vw" and "vw" in self.sets else there if len(there) == 1 else None
        if forced is not None:
            return self.get_submodule(forced)(x)
        runs: list[tuple[str, int]] = []  # neighbours of one side go together
        for name, length in parts:
            if runs and runs[-1][0] == name[0]:
                runs[-1] = (name[0], runs[-1][1] + length)
            elif length:
                runs.append((name[0], length))
        if not runs:  # no token at all: any set gives the right width
            return self.get_submodule(self.sets[0])(x)
        return torch.cat([self.get_submodule(side)(piece) for (side, _), piece in zip(runs, x.split([length for _, length in runs], 1))], 1)


def several(make: Callable[[], nn.Module], sets: Sequence[str]) -> nn.Module:
    """The module itself, or one of it a set."""
    return Experts(make, sets=sets) if sets else make()


def apply(module: nn.Module, x: Tensor, parts: Parts, route: str | None) -> Tensor:
    """Run a module that may come in sets."""
    y: Tensor = module(x, parts, route) if isinstance(module, Experts) else module(x)
    return y
