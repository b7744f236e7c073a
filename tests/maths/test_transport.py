"""Optimal transport: marginals, padding, and the plan that UNITER's own code found."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.recorded import recording
from vlpkit.maths.transport import cosine_cost, transport_distance, transport_plan


def sides(*, n: int = 5, m: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 8, generator=rng), torch.randn(2, m, 8, generator=rng)
    x_mask, y_mask = torch.ones(2, n, dtype=torch.bool), torch.ones(2, m, dtype=torch.bool)
    x_mask[1, 3:], y_mask[1, 2:] = False, False
    return x, y, x_mask, y_mask


def test_the_plan_of_the_original_code_comes_out() -> None:
    r = recording("uniter_a")
    x_mask, y_mask = r["in/attention_mask"].bool(), r["in/region_mask"].bool()
    plan = transport_plan(r["out/ot_cost"], x_mask, y_mask)
    assert float((plan - r["out/ot_plan"]).abs().max() / r["out/ot_plan"].max()) < 1e-5
    distance, matched = transport_distance(r["out/ot_cost"], plan), r["in/itm_targets"].bool()
    assert torch.allclose(distance[matched], r["out/ot_distance_matched"], rtol=1e-5)
    assert torch.allclose(distance[~matched], r["out/ot_distance_unmatched"], rtol=1e-5)


def test_all_mass_is_carried_each_word_gets_its_share_and_padding_nothing() -> None:
    x, y, x_mask, y_mask = sides()
    plan = transport_plan(cosine_cost(x, y, x_mask, y_mask), x_mask, y_mask)
    assert torch.allclose(plan.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert torch.allclose(plan.sum(1), x_mask / x_mask.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(plan.sum(2), y_mask / y_mask.sum(-1, keepdim=True), atol=1e-2)   # regions: only nearly, after so many steps
    assert (plan[1, 2:] == 0).all() and (plan[1, :, 3:] == 0).all()


def test_what_stands_at_padding_changes_nothing() -> None:
    x, y, x_mask, y_mask = sides()
    cost = cosine_cost(x, y, x_mask, y_mask)
    other = cosine_cost(torch.where(x_mask[..., None], x, 9.0), torch.where(y_mask[..., None], y, -9.0), x_mask, y_mask)
    assert torch.equal(cost, other)
    short = cosine_cost(x[1:, :3], y[1:, :2], x_mask[1:, :3], y_mask[1:, :2])
    whole, cut = transport_plan(cost, x_mask, y_mask)[1:, :2, :3], transport_plan(short, x_mask[1:, :3], y_mask[1:, :2])
    assert torch.allclose(whole, cut, atol=1e-6)


def test_equal_sides_are_carried_over_for_nothing_and_opposite_ones_for_two() -> None:
    x = torch.eye(4)[None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    cost = cosine_cost(x, x, mask, mask)
    assert float(transport_distance(cost, transport_plan(cost, mask, mask))) < 1e-3
    one = torch.ones(1, 4, 3)
    opposite = cosine_cost(one, -one, mask, mask)
    assert torch.allclose(transport_distance(opposite, transport_plan(opposite, mask, mask)), torch.tensor([2.0]))


def test_the_distance_has_a_gradient_and_the_plan_has_none() -> None:
    x, y, x_mask, y_mask = sides()
    cost = cosine_cost(x.requires_grad_(), y, x_mask, y_mask)
    plan = transport_plan(cost, x_mask, y_mask)
    assert not plan.requires_grad
    transport_distance(cost, plan).sum().backward()
    assert x.grad is not None and float(x.grad[0].abs().sum()) > 0 == float(x.grad[1, 3:].abs().sum())


def test_where_a_side_is_empty_nothing_is_carried() -> None:
    x, y, x_mask, y_mask = sides()
    for mask in (x_mask, y_mask):
        real = mask.clone()
        mask[0] = False
        cost = cosine_cost(x, y, x_mask, y_mask)
        plan = transport_plan(cost, x_mask, y_mask)
        assert (plan[0] == 0).all()
        assert torch.allclose(plan[1].sum(), torch.tensor(1.0), atol=1e-5)
        assert transport_distance(cost, plan)[0] == 0
        mask.copy_(real)
