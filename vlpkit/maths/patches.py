"""Patches that are hidden, and tables of places laid over other grids, as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from vlpkit.maths.contrastive import full_precision

_SMALLEST, _NARROWEST = 4, 0.3  # patches of a block, and its sides as width over height (Bao et al. 2022, algorithm 1, scaled to any grid)


def cut_patches(pixels: Tensor, patch: int) -> Tensor:
    """(R, 3, H, W) pixels to (R, H/p * W/p, 3*p*p) patches, row by row; in each, channel by channel."""
    n, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels.view(n, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, rows * columns, channels * patch * patch)


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


def stretch(table: Tensor, high: Tensor, wide: Tensor, *, rows: int, columns: int) -> Tensor:
    """A square table of places over grids of other shapes, bilinear, corner on corner (Kim et al. 2021, as released).

    Args:
        table: (g, g, D).
        high: (R,) int64, rows of each grid, 1 to `rows`.
        wide: (R,) int64, columns of each grid, 1 to `columns`.
        rows: of the frame in whose top left each grid lies.
        columns: of that frame.

    Returns:
        (R, rows, columns, D) fp32, 0 outside each grid. A grid of g by g gets the table itself.
    """
    with full_precision(table.device):
        return torch.einsum("rhi,ijd,rwj->rhwd", _hats(high, rows, len(table)), table.float(), _hats(wide, columns, len(table)))


def _hats(real: Tensor, length: int, grid: int) -> Tensor:
    """(R, length, g) share of each table row in each place: its two neighbours, nearest most; nothing behind the first `real` places."""
    places, marks = (torch.tensor([*range(n)], dtype=torch.float32).to(real.device) for n in (length, grid))
    at = places * ((grid - 1) / (real - 1).clamp(min=1))[:, None]
    shares = (1 - (at[..., None] - marks).abs()).clamp(min=0)
    return shares.masked_fill((places >= real[:, None])[..., None], 0.0)
