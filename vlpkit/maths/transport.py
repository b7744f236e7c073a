"""Optimal transport between two sets of states, by proximal point iterations (Xie et al. 2018, IPOT), as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpkit.maths.contrastive import full_precision

_NEVER = 1e4  # added to the mass that a padded place would be divided by


def cosine_cost(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
    """1 - cosine of every state of one side with every state of the other, in [0, 2].

    Args:
        x: (P, N, D).
        y: (P, M, D).
        x_mask: (P, N) bool, which are real.
        y_mask: (P, M) bool.

    Returns:
        (P, N, M) fp32, 0 at padding.
    """
    with full_precision(x.device):
        x, y = (F.normalize(t.float(), dim=-1, eps=1e-5) for t in (x, y))
        return (1 - x @ y.transpose(1, 2)).masked_fill(~(x_mask[:, :, None] & y_mask[:, None, :]), 0.0)


@torch.no_grad()
def transport_plan(cost: Tensor, x_mask: Tensor, y_mask: Tensor, *, beta: float = 0.5, steps: int = 50) -> Tensor:
    """How much of each y goes to each x when all x weigh the same and all y do (Chen et al. 2020, appendix; k = 1).

    Args:
        cost: (P, N, M), 0 at padding.
        x_mask: (P, N) bool, which are real.
        y_mask: (P, M) bool.
        beta: step of the proximal iterations; the plan is as good for any, only later.
        steps: iterations.

    Returns:
        (P, M, N) fp32 without gradient, sums to 1; a real x receives exactly 1/n, a real y gives nearly 1/m, padding nothing;
        all 0 where a side is empty.
    """
    with full_precision(cost.device):
        n, m = (mask.sum(-1, keepdim=True).float() for mask in (x_mask, y_mask))                # (P, 1)
        none = ~(y_mask[:, :, None] & x_mask[:, None, :])
        kernel = torch.exp(-cost.float().transpose(1, 2) / beta).masked_fill(none, 0.0)         # (P, M, N)
        plan = torch.ones_like(kernel).masked_fill(none, 0.0)
        of_x = (1 / n).expand(x_mask.shape).masked_fill(~x_mask, 0.0)                           # (P, N)
        x_never, y_never = (_NEVER * none.all(axis) for axis in (1, 2))   # also a place whose other side is empty
        for _ in range(steps):
            q = kernel * plan
            of_y = 1 / (m * (q @ of_x[:, :, None]).squeeze(2) + y_never)
            of_x = 1 / (n * (of_y[:, None, :] @ q).squeeze(1) + x_never)
            plan = of_y[:, :, None] * q * of_x[:, None, :]
        return plan


def transport_distance(cost: Tensor, plan: Tensor) -> Tensor:
    """(P,) cost of a plan (P, M, N) under costs (P, N, M); 0 when everything goes where it costs nothing."""
    return (cost * plan.transpose(1, 2)).sum((1, 2))
