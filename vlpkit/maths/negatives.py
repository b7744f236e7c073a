"""Drawing mismatched partners in proportion to their similarity."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def draw_negatives(logits: Tensor, forbidden: Tensor, rng: Generator, *, epsilon: float = 0.0) -> Tensor:
    """One column for each row, with chance softmax(logits) among the columns that are not forbidden (Li et al. 2021, section 3.2).

    The uniform number comes from a CPU generator and is inverted through the cumulative weights, so the draw is the same
    on every device. A row whose allowed weights vanish in fp32 is drawn uniformly among what is allowed; a row where
    everything is forbidden gets column 0.

    Args:
        logits: (B, R) scaled similarities.
        forbidden: (B, R) bool, partners that do belong together.
        rng: CPU generator.
        epsilon: added to every softmax weight before the forbidden ones are cleared (BLIP 1e-4, ALBEF 0).

    Returns:
        (B,) int64 columns.
    """
    weights = (logits.float().softmax(-1) + epsilon).masked_fill(forbidden, 0.0)
    allowed = (~forbidden).to(weights.dtype)
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, allowed)
    cumulative = weights.cumsum(-1)
    u = torch.rand(len(logits), 1, generator=rng).to(logits.device) * cumulative[:, -1:]
    # right=True skips columns of weight 0; the minimum catches u rounded up to the total.
    found = torch.searchsorted(cumulative, u, right=True).squeeze(1)
    last = (allowed * torch.arange(logits.shape[1], device=logits.device)).argmax(-1)
    return torch.minimum(found, last)
