"""Losses over regions with their reductions by name, as pure functions. Logits are cast to fp32 once, at the first line."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["squared", "smooth"]


def take(x: Tensor, chosen: Tensor) -> Tensor:
    """(n, ...) entries of x (P, M, ...) where `chosen` (P, M); on the meta device, where values are unknown, all of them."""
    return x.flatten(0, 1) if x.is_meta else x[chosen]


def feature_distance(found: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """(n,) mean over the F numbers of a feature: squared differences, or smooth L1 (quadratic below 1). 0 where both agree."""
    found, target = found.float(), target.float()
    apart = F.mse_loss(found, target, reduction="none") if distance == "squared" else F.smooth_l1_loss(found, target, reduction="none")
    return apart.mean(-1)


def divergence(logits: Tensor, target: Tensor, reduce: Literal["elements", "regions"]) -> Tensor:
    """Kullback-Leibler divergence of a prediction from a distribution.

    Args:
        logits: (n, C).
        target: (n, C) rows that sum to 1.
        reduce: mean over regions, or over all n * C elements, which is C times less (Chen et al. 2020, as released).

    Returns:
        () in nats, 0 when there is no region or the prediction is the target.
    """
    logits, target = logits.float(), target.float()
    whole = F.kl_div(logits.log_softmax(-1), target, reduction="sum")
    return whole / max(len(logits) * (logits.shape[-1] if reduce == "elements" else 1), 1)


def share(loss: Tensor, real: Tensor) -> Tensor:
    """() sum of a loss over some regions, as a share of all real ones (P, M); 0 when there are none."""
    return loss.sum() / real.sum().clamp(min=1).to(torch.float32)
