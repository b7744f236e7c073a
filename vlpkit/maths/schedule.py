"""Learning rate and other quantities over a run, as pure functions of the optimiser step."""

from __future__ import annotations

import math
from typing import Literal


def ramp(step: int, over: int, top: float) -> float:
    """Linear from 0 at step 0 to `top` at step `over`, constant from there on; `over` 0 gives `top` at once."""
    return top if step >= over else top * step / over


def learning_rate(
    step: int, *, peak: float, total: int, warmup: int, warmup_from: float, end: float, shape: Literal["cosine", "linear", "constant", "step"],
    period: int = 0, factor: float = 1.0,
) -> float:
    """The rate for the update number `step`, counted from 0.

    Args:
        step: optimiser step.
        peak: rate after the warm-up.
        total: steps of the run.
        warmup: steps of the linear warm-up from `warmup_from`.
        warmup_from: rate of the first update when there is a warm-up.
        end: lowest rate; cosine and linear reach it at `total`.
        shape: cosine or linear over what follows the warm-up, constant, or step: times `factor` every `period` steps.
        period: steps between two drops.
        factor: of a drop.
    """
    if step < warmup:
        return warmup_from + (peak - warmup_from) * (step + 1) / warmup
    if shape == "constant":
        return peak
    if shape == "step":
        return max(end, peak * factor ** (step // period))
    share = min(1.0, (step - warmup) / max(total - warmup, 1))
    if shape == "linear":
        return peak + (end - peak) * share
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * share))
