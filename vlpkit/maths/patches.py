"""Hiding patches, as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

_SMALLEST, _NARROWEST = 4, 0.3  # patches of a block, and its sides as width over height (Bao et al. 2022, algorithm 1, scaled to any grid)


def hide_blocks(rows: int, grid: int, rng: Generator, *, rate: float) -> Tensor:
    """Rectangles of patches until a share of the grid is hidden (Bao et al. 2022, BEiT, algorithm 1).

    Args:
        rows: R images.
        grid: g patches a side.
        rng: CPU generator.
        rate: share of the patches that is hidden.

    Returns:
        (R, g*g) bool with exactly round(rate * g * g) True in each row, on the CPU.
    """
    count = round(rate * grid * grid)
    hidden = torch.zeros(rows, grid, grid, dtype=torch.bool)
    for row in range(rows):
        left = count
        while left:
            size, shape, top, start = torch.rand(4, generator=rng).tolist()
            area = _SMALLEST + size * max(left - _SMALLEST, 0)
            ratio = math.exp((2 * shape - 1) * -math.log(_NARROWEST))
            height, width = (min(grid, max(1, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
            y, x = int(top * (grid - height + 1)), int(start * (grid - width + 1))
            block = hidden[row, y : y + height, x : x + width]
            new = (~block).nonzero()[:left]  # the last block stops where the count is reached
            block[new[:, 0], new[:, 1]] = True
            left -= len(new)
    return hidden.flatten(1)


def hide_each(rows: int, count: int, rng: Generator, *, rate: float) -> Tensor:
    """(R, M) bool, each of `count` patches hidden with chance `rate` on its own, on the CPU."""
    return torch.rand(rows, count, generator=rng) < rate
