"""Durations as people write them, `2000_steps`, `2_epochs`, `1.5M_samples`, `10_percent`, and the clock that turns them into steps.
Exact arithmetic and no torch: the cheap checks read durations, too."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from vlpkit.errors import ConfigError, nearest

Unit = Literal["steps", "samples", "epochs", "percent"]
UNITS: tuple[Unit, ...] = ("steps", "samples", "epochs", "percent")
ACCEPTED = "2000_steps, 2_epochs, 1.5M_samples or 10_percent"

_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_SPELLING = re.compile(r"(?P<amount>\d[\d_]*(?:\.\d+)?)(?P<scale>[kKMB]?)(?:_(?P<unit>[A-Za-z]+))?")


class Duration(NamedTuple):
    """A length of training, exact.

    Args:
        amount: how many of `unit`, at least 0.
        unit: steps, samples, epochs or percent (of the whole run).
    """

    amount: Fraction
    unit: Unit


def parse(text: str | int, *, place: str = "duration") -> Duration:
    """Read a duration; a bare number counts steps.

    Args:
        text: such as 2000, `10_000_steps`, `0.5_epochs`, `2M_samples`, `1_epoch` or `5_percent`.
        place: config path that an error names.

    Raises:
        ConfigError: when `text` is no duration.
    """
    found = None if isinstance(text, bool) else _SPELLING.fullmatch(str(text).strip())
    if found is None or found["amount"].endswith("_"):
        raise ConfigError(f"{place}: {text!r} is no duration (write {ACCEPTED}).")
    unit = _unit(found["unit"], text, place)
    amount = Fraction(found["amount"].replace("_", "")) * _SCALE[found["scale"]]
    if unit == "percent" and amount > 100:
        raise ConfigError(f"{place}: {text!r} is more than the whole run (0 to 100 percent).")
    return Duration(amount, unit)


def _unit(word: str | None, text: str | int, place: str) -> Unit:
    if word is None:
        return "steps"
    for unit in UNITS:
        if word in (unit, unit.removesuffix("s")):
            return unit
    close = nearest(word, UNITS)
    hint = "" if close is None else f" Did you mean {str(text).removesuffix(word)}{close}?"
    raise ConfigError(f"{place}: {text!r} has no unit that is known (units: {', '.join(UNITS)}).{hint}")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Turns durations into optimiser steps.

    Args:
        batch: global batch, in samples per optimiser step.
        samples_per_epoch: length of the data; None where no epoch is defined.
        total_steps: length of the run; None while it is being worked out.
    """

    batch: int
    samples_per_epoch: int | None = None
    total_steps: int | None = None

    def steps(self, text: str | int, *, place: str = "duration") -> int:
        """The least number of optimiser steps that lasts at least as long as `text`: `2_epochs` of 10 samples at batch 8 are 3 steps.

        Raises:
            ConfigError: when `text` is no duration, or counts what this clock does not know.
        """
        amount, unit = parse(text, place=place)
        if unit == "samples":
            amount /= self.batch
        elif unit == "epochs":
            if self.samples_per_epoch is None:
                raise ConfigError(f"{place}: {text!r} counts epochs, but the length of the data is not known (write steps or samples).")
            amount = amount * self.samples_per_epoch / self.batch
        elif unit == "percent":
            if self.total_steps is None:
                raise ConfigError(f"{place}: {text!r} is a share of the whole run, whose length this sets (write steps, samples or epochs).")
            amount = amount * self.total_steps / 100
        return math.ceil(amount)


def total(text: str | int, clock: Clock) -> Clock:
    """The same clock, knowing the length of the run that `total` asks for. Raises ConfigError when that is no step at all."""
    steps = clock.steps(text, place="total")
    if steps < 1:
        raise ConfigError(f"total: {text!r} is no training at all (write {ACCEPTED}).")
    return Clock(batch=clock.batch, samples_per_epoch=clock.samples_per_epoch, total_steps=steps)
