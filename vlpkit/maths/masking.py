"""Word masking and the losses over masked positions, as pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlpkit.types import IGNORE


class Masked(NamedTuple):
    """Corrupted ids (B, N) and labels (B, N), IGNORE where nothing is asked."""

    ids: Tensor
    labels: Tensor


def mask_words(
    ids: Tensor, allowed: Tensor, rng: Generator, *, rate: float, mask: int, vocab: int, keep: float = 0.1, random: float = 0.1, least: bool = False,
    starts: Tensor | None = None,
) -> Masked:
    """Independent masking of words (Devlin et al. 2019, section 3.1, as ALBEF draws it: each token on its own).

    With `starts` all tokens of a word are chosen or none (Kim et al. 2021, section 3.3); what becomes of each is still drawn on its own.

    Args:
        ids: (B, N) word ids.
        allowed: (B, N) bool, positions that may be chosen.
        rng: CPU generator.
        rate: chance of a position to be chosen.
        mask: id of the mask token.
        vocab: V; random words are uniform over all ids.
        keep: share of chosen positions that stay as they are.
        random: share of chosen positions that become a random word; the rest become `mask`.
        least: whether a row without a chosen position gets its first allowed one, or its first word, masked (Chen et al. 2020, as released).
        starts: (B, N) bool, True where a token opens a word; a token behind a position that may not be chosen always does. Absent: all do.

    Returns:
        Corrupted ids and labels, on the device of `ids`. With rate 0 the ids are unchanged and no label is set.
    """
    draw = [torch.rand(ids.shape, generator=rng).to(ids.device) for _ in range(2)]
    words = torch.randint(vocab, ids.shape, generator=rng).to(ids.device)
    opens = allowed if starts is None else allowed & (starts | ~F.pad(allowed, (1, 0))[:, :-1])
    if starts is not None:
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        draw[0] = draw[0].gather(1, torch.where(opens, places, 0).cummax(-1).values)   # the number of the token that opens the word
    chosen = (draw[0] < rate) & allowed
    masked = torch.where(chosen & (draw[1] >= keep + random), mask, ids)
    masked = torch.where(chosen & (draw[1] < random), words, masked)
    if least:
        first = allowed & (opens.cumsum(-1) == 1) & ~chosen.any(-1, keepdim=True)
        chosen, masked = chosen | first, torch.where(first, mask, masked)
    return Masked(masked, torch.where(chosen, ids, IGNORE))


def choose(allowed: Tensor, rng: Generator, *, rate: float) -> Tensor:
    """Independent choice of positions, at least one in every row that has one to choose (Chen et al. 2020, section 3.2).

    Args:
        allowed: (R, M) bool, positions that may be chosen.
        rng: CPU generator.
        rate: chance of a position to be chosen.

    Returns:
        (R, M) bool on the device of `allowed`. With rate 1 all that is allowed.
    """
    draw = torch.rand(allowed.shape, generator=rng).to(allowed.device).masked_fill(~allowed, 2.0)
    chosen = draw < rate
    nearest = torch.zeros_like(allowed).scatter(1, draw.argmin(-1, keepdim=True), True)  # uniform among the allowed
    return chosen | (nearest & allowed & ~chosen.any(-1, keepdim=True))


def pick(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, N, D) and labels (B, N) at the positions with a label: (n, D) and (n,).

    On the meta device, where values are unknown, all positions.
    """
    if x.is_meta:
        return x.flatten(0, 1), labels.flatten()
    chosen = labels != IGNORE
    return x[chosen], labels[chosen]


def mean_tokens(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, soft: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """Mean cross-entropy over tokens, mixed with a teacher's distribution where one is given (Li et al. 2021, eq. 7).

    Args:
        logits: (n, V).
        labels: (n,) word ids.
        smoothing: label smoothing in [0, 1).
        soft: (n, V) teacher logits.
        alpha: weight of the teacher, in [0, 1].

    Returns:
        () in nats; 0 when there is no token. Equals log V when all logits are equal.
    """
    logits = logits.float()
    count = max(len(labels), 1)
    hard = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) / count
    if soft is None:
        return hard
    target = soft.detach().float().softmax(-1)
    return (1 - alpha) * hard - alpha * (target * logits.log_softmax(-1)).sum() / count
