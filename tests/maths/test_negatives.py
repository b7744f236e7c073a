"""Drawn negatives: never a true partner, in proportion to similarity, also where every chance but one vanishes."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from vlpkit.maths.negatives import draw_negatives


def diagonal(rows: int) -> Tensor:
    return torch.eye(rows, dtype=torch.bool)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
@pytest.mark.parametrize("scale", [0.0, 10.0, 1000.0])
def test_a_forbidden_partner_is_never_drawn(scale: float, epsilon: float) -> None:
    rng = Generator().manual_seed(0)
    logits = scale * torch.randn(16, 16, generator=rng)
    forbidden = diagonal(16) | (torch.rand(16, 16, generator=rng) < 0.3)
    for _ in range(50):
        drawn = draw_negatives(logits, forbidden, rng, epsilon=epsilon)
        assert not forbidden[torch.arange(16), drawn].any()


def test_chances_are_the_softmax_over_what_is_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    forbidden = torch.tensor([[False, False, True, False]])
    many = draw_negatives(logits.expand(20000, -1), forbidden.expand(20000, -1), Generator().manual_seed(0))
    expected = logits.masked_fill(forbidden, -torch.inf).softmax(-1)[0]
    found = torch.bincount(many, minlength=4) / 20000
    assert torch.allclose(found, expected, atol=0.015)   # four standard deviations


def test_a_saturated_row_draws_uniformly_among_the_others() -> None:
    # the match holds all the weight that fp32 can tell apart: what remains after clearing it is exactly 0
    logits = (1000.0 * torch.eye(5))[:1].expand(10000, -1)
    drawn = draw_negatives(logits, diagonal(5)[:1].expand(10000, -1), Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=5) / 10000
    assert found[0] == 0
    assert torch.allclose(found[1:], torch.full((4,), 0.25), atol=0.02)


def test_with_two_pairs_the_negative_is_the_other() -> None:
    drawn = draw_negatives(torch.randn(2, 2), diagonal(2), Generator().manual_seed(0))
    assert drawn.tolist() == [1, 0]


def test_a_row_without_any_negative_still_gives_a_column_that_exists() -> None:
    assert draw_negatives(torch.zeros(1, 1), diagonal(1), Generator().manual_seed(0)).tolist() == [0]
    drawn = draw_negatives(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), Generator().manual_seed(0))
    assert drawn.tolist() == [0, 0, 0]


def test_a_number_rounded_up_to_the_total_still_finds_an_allowed_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.ones(shape))
    forbidden = torch.tensor([[False, False, True], [False, True, True]])
    assert draw_negatives(torch.zeros(2, 3), forbidden, Generator()).tolist() == [1, 0]


def test_epsilon_evens_the_chances_out() -> None:
    logits = torch.tensor([[20.0, 10.0, 0.0]]).expand(5000, -1)
    forbidden = torch.tensor([[True, False, False]]).expand(5000, -1)
    sharp = draw_negatives(logits, forbidden, Generator().manual_seed(0))
    even = draw_negatives(logits, forbidden, Generator().manual_seed(0), epsilon=1.0)
    assert (sharp == 2).float().mean() < 0.01
    assert (even == 2).float().mean() > 0.4


def test_equal_generators_draw_equal_partners() -> None:
    logits = torch.randn(8, 8, generator=Generator().manual_seed(1))
    a, b = (draw_negatives(logits, diagonal(8), Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
