"""Which objectives, on which source, at this step: a pure function of the step, equal on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Turn(NamedTuple):
    """What one step asks: objectives by source."""

    ask: Mapping[str, tuple[str, ...]]


class Plan(Protocol):
    """Pure in (seed, step), held through accumulation."""

    turns: tuple[Turn, ...]

    def __call__(self, step: int) -> Turn:
        """The turn of an optimiser step, counted from 0."""


class All:
    """Every objective on its source, every step.

    Args:
        sources: source by objective.
    """

    def __init__(self, *, sources: Mapping[str, str]) -> None:
        ask: dict[str, tuple[str, ...]] = {}
        for objective, source in sources.items():
            ask[source] = (*ask.get(source, ()), objective)
        self.turns = (Turn(ask),)

    def __call__(self, step: int) -> Turn:
        """The one turn there is."""
        return self.turns[0]
