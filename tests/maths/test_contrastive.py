"""Contrastive maths: loops over rows, two-by-two numbers, limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpkit.maths.contrastive import hits, info_nce, pairwise_sigmoid, similarity, soft_cross_entropy, soft_targets


def points(rows: int, width: int = 5, *, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_info_nce(query: Tensor, keys: Tensor, positive: Tensor, scale: float, smoothing: float = 0.0) -> float:
    total = 0.0
    for i in range(len(query)):
        logits = [scale * float(query[i] @ keys[j]) for j in range(len(keys))]
        norm = math.log(sum(math.exp(x) for x in logits))
        own = logits[int(positive[i])] - norm
        total -= (1 - smoothing) * own + smoothing * sum(x - norm for x in logits) / len(logits)
    return total / len(query)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_info_nce_is_the_loop_over_rows_and_keys(smoothing: float) -> None:
    query, keys, positive = points(3), points(7, seed=1), torch.tensor([2, 6, 0])
    fast = info_nce(query, keys, positive, torch.tensor(10.0), smoothing=smoothing)
    assert float(fast) == pytest.approx(slow_info_nce(query, keys, positive, 10.0, smoothing), rel=1e-5)


def test_two_pairs_by_hand() -> None:
    # similarities 1 on the diagonal and 0 beside it, scale 2: -log(e^2 / (e^2 + 1)) in each row
    loss = info_nce(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor(2.0))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


@pytest.mark.parametrize("keys", [1, 2, 50])
def test_equal_keys_give_the_logarithm_of_their_number(keys: int) -> None:
    same = points(1).expand(keys, -1)
    loss = info_nce(points(4, seed=3), same, torch.zeros(4, dtype=torch.int64), torch.tensor(100.0))
    assert float(loss) == pytest.approx(math.log(keys), abs=1e-5)


def test_a_queue_of_other_pairs_only_lowers_the_chance_of_the_match() -> None:
    query, keys, positive, scale = points(4), points(4, seed=1), torch.arange(4), torch.tensor(5.0)
    assert info_nce(query, torch.cat([keys, points(9, seed=2)]), positive, scale) > info_nce(query, keys, positive, scale)


def test_the_order_of_keys_does_not_matter() -> None:
    query, keys, positive, scale = points(4), points(6, seed=1), torch.arange(4), torch.tensor(5.0)
    turned = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = torch.tensor([int((turned == i).nonzero()) for i in positive])
    assert torch.allclose(info_nce(query, keys, positive, scale), info_nce(query, keys[turned], moved, scale))


def test_similarities_are_fp32_whatever_comes_in() -> None:
    sim = similarity(points(2).bfloat16(), points(3).bfloat16(), torch.tensor(100.0, dtype=torch.bfloat16))
    assert sim.dtype == torch.float32


def test_similarities_are_fp32_also_under_autocast() -> None:
    query, keys, scale = points(4, 64), points(6, 64, seed=1), torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sim = similarity(query, keys, scale)
    assert torch.equal(sim, similarity(query, keys, scale))


def test_keys_that_hold_nothing_have_no_chance() -> None:
    valid = torch.tensor([True, False, True])
    sim = similarity(points(2), points(3, seed=1), torch.tensor(3.0), valid)
    assert torch.equal(sim.isinf().all(0), ~valid)
    assert torch.equal(sim.softmax(-1)[:, 1], torch.zeros(2))


def test_soft_targets_mix_the_teacher_with_the_pair() -> None:
    query, keys, positive, scale = points(3), points(5, seed=1), torch.tensor([1, 4, 0]), torch.tensor(7.0)
    targets = soft_targets(query, keys, positive, scale, 0.4)
    for i in range(3):
        logits = torch.tensor([7.0 * float(query[i] @ keys[j]) for j in range(5)])
        expected = 0.4 * logits.softmax(0)
        expected[int(positive[i])] += 0.6
        assert torch.allclose(targets[i], expected, atol=1e-6)
    assert torch.allclose(targets.sum(-1), torch.ones(3))


def test_alpha_zero_is_the_hard_loss_and_alpha_one_the_teacher_alone() -> None:
    query, keys, positive, scale = points(3), points(5, seed=1), torch.tensor([1, 4, 0]), torch.tensor(7.0)
    teacher = points(3, seed=9)
    logits = similarity(query, keys, scale)
    hard = soft_cross_entropy(logits, soft_targets(teacher, keys, positive, scale, 0.0))
    assert float(hard) == pytest.approx(float(info_nce(query, keys, positive, scale)), rel=1e-6)
    alone = soft_targets(teacher, keys, positive, scale, 1.0)
    assert torch.allclose(alone, similarity(teacher, keys, scale).softmax(-1))


def test_no_gradient_flows_into_the_targets() -> None:
    query = points(3).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    assert not soft_targets(query, points(4), torch.arange(3), scale, 0.5).requires_grad


def test_an_empty_queue_leaves_loss_and_gradient_finite() -> None:
    query = points(3).requires_grad_()
    keys, positive, scale = torch.cat([points(3, seed=1), points(4, seed=2)]), torch.arange(3), torch.tensor(5.0)
    valid = torch.tensor([True] * 3 + [False] * 4)
    loss = soft_cross_entropy(similarity(query, keys, scale, valid), soft_targets(points(3, seed=5), keys, positive, scale, 0.4, valid=valid))
    loss.backward()
    short = soft_cross_entropy(similarity(query, keys[:3], scale), soft_targets(points(3, seed=5), keys[:3], positive, scale, 0.4))
    assert torch.allclose(loss, short)
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_soft_cross_entropy_by_hand() -> None:
    logits, target = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]])
    # softmax is (1/4, 3/4)
    assert float(soft_cross_entropy(logits, target)) == pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75), rel=1e-6)


def test_hits_are_the_share_of_rows_whose_best_is_the_match() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert float(hits(logits, torch.tensor([0, 1, 1, 1]))) == 0.75
    assert float(hits(logits[:0], torch.tensor([], dtype=torch.int64))) == 0.0


def slow_sigmoid(query: Tensor, keys: Tensor, positive: Tensor, scale: float, bias: float) -> float:
    total = 0.0
    for i in range(len(query)):
        for j in range(len(keys)):
            sign = 1 if j == int(positive[i]) else -1
            total += math.log(1 + math.exp(-sign * (scale * float(query[i] @ keys[j]) + bias)))
    return total / len(query)


@pytest.mark.parametrize("chunk", [None, 1, 2, 9])
def test_pairwise_sigmoid_is_the_loop_over_pairs(chunk: int | None) -> None:
    query, keys, positive = points(3), points(7, seed=1), torch.tensor([2, 6, 0])
    fast = pairwise_sigmoid(query, keys, positive, torch.tensor(10.0), torch.tensor(-3.0), chunk=chunk)
    assert float(fast) == pytest.approx(slow_sigmoid(query, keys, positive, 10.0, -3.0), rel=1e-5)


def test_one_pair_and_one_mismatch_by_hand() -> None:
    # logits 2 - 1 on the diagonal and 0 - 1 beside it: log(1 + e^-1) for each of the two questions of a row
    loss = pairwise_sigmoid(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor(2.0), torch.tensor(-1.0))
    assert float(loss) == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-6)


def test_questions_are_summed_over_keys_and_averaged_over_queries() -> None:
    nothing = pairwise_sigmoid(points(4), points(6, seed=1), torch.arange(4), torch.tensor(0.0), torch.tensor(0.0))
    assert float(nothing) == pytest.approx(6 * math.log(2), rel=1e-6)


def test_chunks_give_the_same_gradients() -> None:
    grads = []
    for chunk in (None, 2):
        given = [points(5).requires_grad_(), points(5, seed=1).requires_grad_(), torch.tensor(9.0, requires_grad=True), torch.tensor(-4.0, requires_grad=True)]
        pairwise_sigmoid(given[0], given[1], torch.arange(5), given[2], given[3], chunk=chunk).backward()
        grads.append([x.grad for x in given])
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*grads))  # type: ignore[arg-type]


def test_a_sure_answer_costs_nothing_and_its_opposite_its_logit() -> None:
    z, one = torch.ones(1, 1), torch.tensor([0])
    assert float(pairwise_sigmoid(z, z, one, torch.tensor(50.0), torch.tensor(0.0))) == pytest.approx(0.0, abs=1e-12)
    assert float(pairwise_sigmoid(z, z, one, torch.tensor(-50.0), torch.tensor(0.0))) == pytest.approx(50.0)
