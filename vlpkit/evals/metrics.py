"""Numbers of evaluation as pure functions on the CPU: ranks with ties told apart, hit rates, re-ranking, accuracies.
Letters: R images, T texts, Q queries, K candidates of a query. A rank counts from 0; what cannot be compared (NaN) stands last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KS = (1, 5, 10)
_ROWS = 256  # queries compared at a time: 256 x 25,000 texts is 26 MB a temporary
Score = Literal["itm", "itm+itc"]


class Places(NamedTuple):
    """Where the right answer of each query stands.

    Args:
        worst: (Q,) int64 candidates that score higher or the same; the reported rank, so that a constant model is never right.
        best: (Q,) int64 candidates that score higher.
    """

    worst: Tensor
    best: Tensor

    @property
    def ties(self) -> int:
        """Queries whose rank depends on how equal scores are ordered."""
        return int((self.worst != self.best).sum())


def image_places(sim: Tensor, owner: Tensor) -> Places:
    """For each image, the place of its best own text among all texts; other own texts do not count against it.

    Args:
        sim: (R, T) scores.
        owner: (T,) row of the image that each text belongs to.
    """
    parts = []
    for start in range(0, len(sim), _ROWS):
        scores = _comparable(sim[start : start + _ROWS])
        own = owner[None, :] == torch.arange(start, start + len(scores))[:, None]
        parts.append(_places(scores, own))
    return _joined(parts)


def text_places(sim: Tensor, owner: Tensor) -> Places:
    """For each text, the place of its image among all images; arguments as in `image_places`."""
    parts = []
    for start in range(0, sim.shape[1], _ROWS):
        scores = _comparable(sim[:, start : start + _ROWS].T)
        own = owner[start : start + _ROWS, None] == torch.arange(len(sim))[None, :]
        parts.append(_places(scores, own))
    return _joined(parts)


def _comparable(scores: Tensor) -> Tensor:
    return scores.float().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))


def _places(scores: Tensor, own: Tensor) -> Places:
    """(Q, C) scores of candidates and which of them are right."""
    right = scores.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
    higher = (scores > right).sum(1)
    same = ((scores == right) & ~own).sum(1)
    return Places(higher + same, higher)


def _joined(parts: Sequence[Places]) -> Places:
    empty = torch.zeros(0, dtype=torch.int64)
    return Places(torch.cat([empty, *(part.worst for part in parts)]), torch.cat([empty, *(part.best for part in parts)]))


def hit_rate(places: Tensor, k: int) -> float:
    """Percent of the (Q,) ranks that are below k."""
    return 100.0 * float((places < k).sum()) / max(len(places), 1)


def hit_rates(image: Places, text: Places, ks: Sequence[int] = KS, *, prefix: str = "") -> dict[str, float]:
    """`i2t_R@K` and `t2i_R@K` in percent (the reported, pessimistic rule), `r_mean` their mean and `rsum` their sum."""
    found = {f"{prefix}i2t_R@{k}": hit_rate(image.worst, k) for k in ks} | {f"{prefix}t2i_R@{k}": hit_rate(text.worst, k) for k in ks}
    total = sum(found.values())
    return found | {f"{prefix}r_mean": total / len(found), f"{prefix}rsum": total}


def optimistic(image: Places, text: Places, ks: Sequence[int] = KS) -> dict[str, float]:
    """The same hit rates when every tie is resolved in favour of the model, for the record."""
    return {f"i2t_R@{k}": hit_rate(image.best, k) for k in ks} | {f"t2i_R@{k}": hit_rate(text.best, k) for k in ks}


def retrieval_hits(sim: Tensor, owner: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """Hit rates of both directions: a text query hits when its image is among the first K, an image query when any of its texts is.

    Args:
        sim: (R, T) scores, higher is closer.
        owner: (T,) row of the image that each text belongs to.
        ks: the values of K.

    Returns:
        `i2t_R@K`, `t2i_R@K`, `r_mean` and `rsum` in percent, each R@K in [0, 100]. A constant model scores 0 at K = 1.
    """
    return hit_rates(image_places(sim, owner), text_places(sim, owner), ks)


# -- re-ranking --------------------------------------------------------------------------------------------------------


def candidates(scores: Tensor, k: int) -> Tensor:
    """(Q, K) columns of the K highest of (Q, C) scores, highest first, with K clamped to C; among equals the lower column is taken."""
    k = min(k, scores.shape[1])
    parts = [_comparable(rows).sort(dim=1, descending=True, stable=True).indices[:, :k] for rows in scores.split(_ROWS)]
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=torch.int64)


def rerank(dual: Tensor, match: Tensor, score: Score) -> Tensor:
    """(Q, K) scores that order the candidates of a query.

    Args:
        dual: (Q, K) cosine similarities of the candidates.
        match: (Q, K) logits of "belongs together", not probabilities.
        score: itm is the logit alone (ALBEF), itm+itc adds the similarity without temperature (BLIP).
    """
    return match.float() if score == "itm" else match.float() + dual.float()


def reranked_places(scores: Tensor, own: Tensor, *, among: int) -> Places:
    """The place of the right answer among re-ranked candidates.

    Args:
        scores: (Q, K) from `rerank`.
        own: (Q, K) bool, which candidates are right.
        among: number of candidates before the choice; the rank of an answer that was not chosen.
    """
    found = _places(_comparable(scores), own)
    missed = ~own.any(1)
    return Places(*(ranks.masked_fill(missed, among) for ranks in found))


# -- pairs -------------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """How often the true one of two scored higher.

    Args:
        accuracy: percent; a tie is wrong.
        pairs: how many there were.
        ties: pairs with equal scores.
    """

    accuracy: float
    pairs: int
    ties: int


def pair_accuracy(true: Tensor, false: Tensor) -> Verdict:
    """Percent of (P,) pairs whose true score is strictly higher; chance is 50, a constant model gets 0, NaN is wrong."""
    right, same = int((true > false).sum()), int((true == false).sum())
    return Verdict(100.0 * right / max(len(true), 1), len(true), same)
