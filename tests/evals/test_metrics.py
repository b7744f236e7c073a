"""Numbers of evaluation against vectors worked out by hand, and what must hold for any scores."""

from __future__ import annotations

import pytest
import torch

from vlpkit.evals.metrics import (
    candidates,
    hit_rate,
    image_places,
    optimistic,
    pair_accuracy,
    rerank,
    reranked_places,
    retrieval_hits,
    text_places,
)

torch.set_num_threads(1)

# three images, texts 2i and 2i+1 belong to image i
SIM = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.3, 0.0], [0.7, 0.2, 0.6, 0.5, 0.1, 0.0], [0.5, 0.6, 0.7, 0.4, 0.3, 0.2]])
OWNER = torch.tensor([0, 0, 1, 1, 2, 2])


def random_scores(images: int, texts: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(images, texts * images, generator=torch.Generator().manual_seed(seed))


def owners(images: int, texts: int) -> torch.Tensor:
    return torch.arange(images).repeat_interleave(texts)


def test_small_retrieval_by_hand() -> None:
    found = retrieval_hits(SIM, OWNER, ks=(1, 2, 3, 5))
    assert [found[f"i2t_R@{k}"] for k in (1, 2, 5)] == pytest.approx([100 / 3, 200 / 3, 100])
    assert [found[f"t2i_R@{k}"] for k in (1, 2, 3)] == pytest.approx([50, 200 / 3, 100])
    assert image_places(SIM, OWNER).worst.tolist() == [0, 1, 4]
    assert text_places(SIM, OWNER).best.tolist() == [0, 2, 2, 0, 0, 0]


def test_a_tie_counts_against_the_reported_number_and_is_told() -> None:
    places = text_places(SIM, OWNER)
    assert (places.worst.tolist(), places.ties) == ([0, 2, 2, 0, 1, 0], 1)
    assert hit_rate(places.best, 1) == pytest.approx(200 / 3)
    assert optimistic(image_places(SIM, OWNER), places, ks=(1,))["t2i_R@1"] == pytest.approx(200 / 3)


def test_equal_scores_among_own_captions_are_no_tie() -> None:
    places = image_places(torch.tensor([[0.5, 0.5, 0.1], [0.0, 0.0, 0.3]]), torch.tensor([0, 0, 1]))
    assert (places.worst.tolist(), places.ties) == ([0, 0], 0)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf"), float("-inf")])
def test_a_constant_model_is_never_right_at_1(value: float) -> None:
    found = retrieval_hits(torch.full((20, 40), value), owners(20, 2))
    assert found["i2t_R@1"] == found["t2i_R@1"] == found["t2i_R@10"] == 0


def test_a_score_that_is_no_number_stands_last() -> None:
    sim = torch.eye(3)
    sim[1, 1] = float("nan")
    assert image_places(sim, torch.arange(3)).worst.tolist() == [0, 2, 0]


def test_chance_is_what_combinatorics_say() -> None:
    sums: dict[str, float] = {}
    rounds = 8
    for seed in range(rounds):
        for name, value in retrieval_hits(random_scores(1000, 5, seed), owners(1000, 5)).items():
            sums[name] = sums.get(name, 0) + value / rounds
    # four standard errors of 40,000 and of 8,000 draws
    for k, expected in {1: 0.1, 5: 0.5, 10: 1.0}.items():
        assert sums[f"t2i_R@{k}"] == pytest.approx(expected, abs=4 * (expected * 100 / 40_000) ** 0.5)
    for k, expected in {1: 0.1, 5: 0.4992, 10: 0.9964}.items():
        assert sums[f"i2t_R@{k}"] == pytest.approx(expected, abs=4 * (expected * 100 / 8_000) ** 0.5)


@pytest.mark.parametrize("images", [3, 300])
def test_the_order_of_samples_does_not_matter(images: int) -> None:
    sim, owner = random_scores(images, 3).round(decimals=2), owners(images, 3)  # rounded: with ties
    rows = torch.randperm(images, generator=torch.Generator().manual_seed(1))
    texts = torch.randperm(3 * images, generator=torch.Generator().manual_seed(2))
    moved = rows.argsort()[owner[texts]]
    assert retrieval_hits(sim[rows][:, texts], moved) == retrieval_hits(sim, owner)


def test_adding_a_constant_to_all_scores_changes_nothing() -> None:
    sim = torch.randint(0, 64, (40, 80), generator=torch.Generator().manual_seed(0)).float()
    assert retrieval_hits(sim + 1000, owners(40, 2)) == retrieval_hits(sim, owners(40, 2))


@pytest.mark.parametrize("seed", range(5))
def test_hit_rates_are_percentages_that_grow_with_k_and_the_sums_add_up(seed: int) -> None:
    found = retrieval_hits(random_scores(12, 2, seed), owners(12, 2))
    for side in ("i2t", "t2i"):
        values = [found[f"{side}_R@{k}"] for k in (1, 5, 10)]
        assert 0 <= values[0] <= values[1] <= values[2] <= 100
    six = [value for name, value in found.items() if "@" in name]
    assert (found["rsum"], found["r_mean"]) == pytest.approx((sum(six), sum(six) / 6))


def test_chunks_equal_one_comparison_of_everything() -> None:
    sim, owner = random_scores(600, 2).round(decimals=2), owners(600, 2)
    own = owner[None, :] == torch.arange(600)[:, None]
    right = sim.masked_fill(~own, -1).amax(1, keepdim=True)
    assert torch.equal(image_places(sim, owner).worst, ((sim >= right) & ~own).sum(1))
    truth = sim[owner, torch.arange(1200)]
    assert torch.equal(text_places(sim, owner).worst, ((sim >= truth) & ~own).sum(0))


# -- re-ranking --------------------------------------------------------------------------------------------------------


def rank_after(itc: list[float], itm: list[float], truth: int, k: int, score: str = "itm") -> int:
    dual, match = torch.tensor([itc]), torch.tensor([itm])
    chosen = candidates(dual, k)
    scores = rerank(dual.gather(1, chosen), match.gather(1, chosen), score)  # type: ignore[arg-type]
    return int(reranked_places(scores, chosen == truth, among=len(itc)).worst)


def test_an_answer_beyond_the_candidates_is_a_miss() -> None:
    itc, itm = [0.9, 0.8, 0.7, 0.1], [0.1, 2.0, 1.5, 5.0]
    assert rank_after(itc, itm, truth=3, k=2) >= 2
    assert rank_after(itc, itm, truth=3, k=4) == 0
    assert rank_after(itc, itm, truth=3, k=400) == 0  # clamped to what there is


def test_the_two_published_sums_rank_differently() -> None:
    itc, itm = [0.9, 0.2], [1.0, 1.5]
    assert [rank_after(itc, itm, truth, 2, "itm") for truth in (0, 1)] == [1, 0]
    assert [rank_after(itc, itm, truth, 2, "itm+itc") for truth in (0, 1)] == [0, 1]


@pytest.mark.parametrize("k", [10, 20])
def test_re_ranking_never_hits_what_the_candidates_lack(k: int) -> None:
    sim, owner = random_scores(60, 2), owners(60, 2)
    chosen = candidates(sim.T, k)
    match = torch.randn(120, k, generator=torch.Generator().manual_seed(3))
    after = reranked_places(match, chosen == owner[:, None], among=60)
    assert hit_rate(after.worst, k) == pytest.approx(hit_rate(text_places(sim, owner).worst, k))
    assert hit_rate(after.worst, 10) <= hit_rate(text_places(sim, owner).worst, k)


def test_candidates_are_the_highest_and_among_equals_the_first() -> None:
    assert candidates(torch.tensor([[0.1, 0.5, 0.5, 0.9], [0.0, 0.0, 0.0, 0.0]]), 2).tolist() == [[3, 1], [0, 1]]


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_a_tie_between_true_and_false_is_wrong() -> None:
    found = pair_accuracy(torch.tensor([1.0, 0.5, 0.2, 0.7]), torch.tensor([0.0, 0.5, 0.9, 0.1]))
    assert (found.accuracy, found.pairs, found.ties) == (50.0, 4, 1)


def test_pairs_of_no_numbers_are_wrong_and_no_pairs_are_0_percent() -> None:
    nan = torch.tensor([float("nan")])
    assert pair_accuracy(nan, nan).accuracy == 0
    assert pair_accuracy(nan[:0], nan[:0]) == (0.0, 0, 0)
