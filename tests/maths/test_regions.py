"""Choosing regions, and losses over them, against loops and limits."""

from __future__ import annotations

import math

import pytest
import torch

from vlpkit.maths.masking import choose, mask_words
from vlpkit.maths.regions import divergence, feature_distance, share
from vlpkit.types import IGNORE


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_row_gets_at_least_one_and_padding_none() -> None:
    allowed = torch.arange(7)[None] < torch.randint(0, 8, (400, 1), generator=rng(1))
    chosen = choose(allowed, rng(), rate=0.05)
    assert not (chosen & ~allowed).any()
    assert torch.equal(chosen.any(-1), allowed.any(-1))


def test_the_one_that_must_be_is_drawn_evenly() -> None:
    chosen = choose(torch.ones(8000, 4, dtype=torch.bool), rng(), rate=0.0)
    assert (chosen.sum(-1) == 1).all()
    assert (chosen.float().mean(0) - 0.25).abs().max() < 0.03   # five standard deviations are 0.024


def test_a_long_row_is_chosen_from_at_the_rate() -> None:
    assert abs(float(choose(torch.ones(100, 1000, dtype=torch.bool), rng(), rate=0.15).float().mean()) - 0.15) < 0.006
    assert choose(torch.ones(3, 5, dtype=torch.bool), rng(), rate=1.0).all()


def test_a_text_without_a_masked_word_gets_its_first_one_masked_where_asked() -> None:
    ids, allowed = torch.arange(10, 22).view(3, 4), torch.tensor([[False, True, True, False], [False] * 4, [True] * 4])
    masked, labels = mask_words(ids, allowed, rng(), rate=0.0, mask=1, vocab=50, least=True)
    assert masked.tolist() == [[10, 1, 12, 13], [14, 15, 16, 17], [1, 19, 20, 21]]
    assert labels.tolist() == [[IGNORE, 11, IGNORE, IGNORE], [IGNORE] * 4, [18, IGNORE, IGNORE, IGNORE]]
    assert (mask_words(ids, allowed, rng(), rate=0.0, mask=1, vocab=50).labels == IGNORE).all()


@pytest.mark.parametrize(("distance", "expected"), [("squared", [0.0, (0.25 + 4) / 2]), ("smooth", [0.0, (0.125 + 1.5) / 2])])
def test_features_are_compared_number_by_number(distance: str, expected: list[float]) -> None:
    found, target = torch.tensor([[1.0, 2.0], [0.5, 3.0]]), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    assert feature_distance(found, target, distance).tolist() == expected  # type: ignore[arg-type]


def test_the_divergence_of_a_sure_label_from_nothing_known_is_log_c() -> None:
    target = torch.eye(8)[:3]
    assert float(divergence(torch.zeros(3, 8), target, "regions")) == pytest.approx(math.log(8))
    assert float(divergence(torch.zeros(3, 8), target, "elements")) == pytest.approx(math.log(8) / 8)


def test_the_divergence_of_a_distribution_from_itself_is_nothing() -> None:
    logits = torch.randn(4, 6, generator=rng())
    assert abs(float(divergence(logits, logits.softmax(-1), "regions"))) < 1e-6
    assert float(divergence(logits[:0], logits[:0], "elements")) == 0


def test_a_share_is_taken_of_real_regions_only() -> None:
    assert float(share(torch.tensor([1.0, 2.0]), torch.tensor([[True, True, True, False]]))) == 1.0
    assert float(share(torch.zeros(0), torch.zeros(1, 2, dtype=torch.bool))) == 0.0
