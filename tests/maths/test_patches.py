"""Hidden patches: exact counts, blocks, every place in reach. Tables of places over other grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlpkit.maths.patches import hide_blocks, hide_each, stretch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("grid", "rate", "count"), [(14, 0.4, 78), (8, 0.4, 26), (3, 0.4, 4), (4, 1.0, 16), (4, 0.0, 0)])
def test_every_image_hides_exactly_its_share(grid: int, rate: float, count: int) -> None:
    hidden = hide_blocks(20, grid, rng(), rate=rate)
    assert hidden.shape == (20, grid * grid)
    assert hidden.sum(1).tolist() == [count] * 20


def test_blocks_hang_together_where_single_patches_do_not() -> None:
    """Share of hidden neighbours of hidden patches: by chance it would be the rate."""

    def neighbours(hidden: torch.Tensor) -> float:
        plane = hidden.view(-1, 14, 14)
        both = (plane[:, 1:] & plane[:, :-1]).sum() + (plane[:, :, 1:] & plane[:, :, :-1]).sum()
        return float(2 * both / (4 * plane.sum()))

    assert neighbours(hide_blocks(50, 14, rng(), rate=0.4)) > 0.6
    assert neighbours(hide_each(50, 196, rng(), rate=0.4)) < 0.45


def test_every_patch_is_hidden_sometimes_and_the_seed_decides() -> None:
    hidden = hide_blocks(400, 6, rng(), rate=0.4)
    assert float(hidden.float().mean(0).min()) > 0.05   # rectangles reach a corner in one place only
    assert torch.equal(hidden, hide_blocks(400, 6, rng(), rate=0.4))
    assert not torch.equal(hidden, hide_blocks(400, 6, rng(1), rate=0.4))


def test_a_table_over_grids_of_other_shapes_equals_torchs_bilinear_one_and_is_zero_around_them() -> None:
    table = torch.randn(4, 4, 3, generator=rng())
    shapes = [(4, 4), (2, 5), (7, 1), (1, 3)]
    laid = stretch(table, *torch.tensor(shapes).unbind(1), rows=7, columns=6)
    for found, (high, wide) in zip(laid, shapes):
        expected = F.interpolate(table.permute(2, 0, 1)[None], (high, wide), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
        assert torch.allclose(found[:high, :wide], expected, atol=1e-6)
        assert (found[high:] == 0).all()
        assert (found[:, wide:] == 0).all()


def test_over_its_own_grid_a_table_is_itself_bit_for_bit() -> None:
    table = torch.randn(5, 5, 3, generator=rng())
    five = torch.tensor([5])
    assert torch.equal(stretch(table, five, five, rows=5, columns=5)[0], table)
