"""Contrastive losses as pure functions: no modules, no ranks. Logits are cast to fp32 once, at the first line."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside: it would take the product of two fp32 matrices in bf16 again."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def similarity(query: Tensor, keys: Tensor, scale: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scaled similarities (B, R) fp32 of unit vectors (B, E) and (R, E); keys that are not `valid` (R,) get -inf."""
    with full_precision(query.device):
        logits = scale.float() * (query.float() @ keys.float().T)
    return logits if valid is None else logits.masked_fill(~valid, float("-inf"))


def info_nce(query: Tensor, keys: Tensor, positive: Tensor, scale: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each query against its key among all keys (Radford et al. 2021, figure 3).

    Args:
        query: (B, E) unit vectors of this rank.
        keys: (R, E) unit vectors, R >= B; local, gathered or queued, in any order.
        positive: (B,) row of `keys` that matches each query.
        scale: () inverse temperature.
        smoothing: label smoothing in [0, 1).

    Returns:
        () mean over queries, in nats. Equals log R when all keys are equal.
    """
    return F.cross_entropy(similarity(query, keys, scale), positive, label_smoothing=smoothing)


def pairwise_sigmoid(query: Tensor, keys: Tensor, positive: Tensor, scale: Tensor, bias: Tensor, *, chunk: int | None = None) -> Tensor:
    """One yes-or-no question a pair: does this key belong to this query? (Zhai et al. 2023, algorithm 1)

    Args:
        query: (B, E) unit vectors of this rank.
        keys: (R, E) unit vectors, R >= B; local or gathered, in any order.
        positive: (B,) row of `keys` that matches each query; all others count as mismatches.
        scale: () inverse temperature.
        bias: () added to scaled similarities.
        chunk: queries at a time, whose logits are made anew in the backward; None: the whole matrix, kept for it.

    Returns:
        () sum over keys, mean over queries, in nats. Equals R log 2 when every logit is 0.
    """

    def total(some: Tensor, own: Tensor) -> Tensor:
        logits = similarity(some, keys, scale) + bias.float()
        own = own[:, None]
        return F.softplus(logits.scatter(1, own, -logits.gather(1, own))).sum()  # softplus(-z) is -log sigmoid(z)

    if chunk is None or chunk >= len(query):
        return total(query, positive) / len(query)
    sums = [
        checkpoint(total, some, own, use_reentrant=False, preserve_rng_state=False) for some, own in zip(query.split(chunk), positive.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum() / len(query)


def soft_targets(query: Tensor, keys: Tensor, positive: Tensor, scale: Tensor, alpha: float, *, valid: Tensor | None = None) -> Tensor:
    """Targets alpha * softmax(teacher similarities) + (1 - alpha) * one-hot (Li et al. 2021, eq. 5 and 6).

    Args:
        query: (B, E) unit vectors of the teacher.
        keys: (R, E) unit vectors of the teacher and the queue.
        positive: (B,) row of `keys` that matches each query.
        scale: () inverse temperature.
        alpha: weight of the teacher, in [0, 1]; 0 gives the one-hot target.
        valid: (R,) bool; rows of the queue that hold something.

    Returns:
        (B, R) rows summing to 1, without gradient.
    """
    with torch.no_grad():
        soft = similarity(query, keys, scale, valid).softmax(-1) * alpha
        return soft.scatter_add(1, positive[:, None], torch.full_like(positive, 1, dtype=soft.dtype)[:, None] * (1 - alpha))


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of -sum(target * log softmax(logits)), in nats; logits and targets (B, R). A -inf logit with target 0 counts 0."""
    log_p = logits.float().log_softmax(-1)
    return -(target * log_p.masked_fill(target == 0, 0.0)).sum(-1).mean()


def hits(logits: Tensor, positive: Tensor) -> Tensor:
    """Share () of rows of (B, R) logits whose largest entry is `positive` (B,), 0 of none; without gradient."""
    return (logits.detach().argmax(-1) == positive).float().sum() / max(len(positive), 1)
