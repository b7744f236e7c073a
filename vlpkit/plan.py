"""Which objectives, on which source, at this step: a pure function of the step, equal on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from vlpkit.errors import AssemblyError, did_you_mean
from vlpkit.streams import seed_of


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


class One:
    """One of several turns a step, by chance (Chen et al. 2020, appendix: a task a step, the same on all devices).

    Args:
        sources: source by objective.
        seed: of the run; with the step it decides, so nothing about it needs to be saved or sent.
        turns: each with `ask`, objectives by source, and `chance`, its weight among the others; 1 when left out.
    """

    def __init__(self, *, sources: Mapping[str, str], seed: int, turns: Sequence[Mapping[str, Any]]) -> None:
        made, chances = [], []
        for i, turn in enumerate(turns):
            if strange := set(turn) - {"ask", "chance"}:
                raise AssemblyError(f"turns[{i}] has the key {min(strange)!r} (it takes: ask, chance)")
            made.append(Turn(_asked(turn.get("ask"), sources, f"turns[{i}].ask")))
            chances.append(turn.get("chance", 1))
            if not isinstance(chances[-1], int | float) or not chances[-1] > 0:
                raise AssemblyError(f"turns[{i}].chance is {chances[-1]}; it is a weight among the turns, above 0")
        if not made:
            raise AssemblyError("turns is empty; name at least one, such as {ask: {pairs: [itm]}, chance: 2}")
        asked = {name for turn in made for names in turn.ask.values() for name in names}
        if idle := [name for name in sources if name not in asked]:
            raise AssemblyError(f"no turn asks for the objective {idle[0]!r}; name it in one, or take it away (objectives.{idle[0]}=null)")
        self.turns, self.seed, self._ends = tuple(made), seed, list(accumulate(chances))

    def __call__(self, step: int) -> Turn:
        """The turn of a step: equal on all ranks and through accumulation."""
        at = seed_of(self.seed, step, "plan") / 2**63 * self._ends[-1]
        return next((turn for turn, end in zip(self.turns, self._ends) if at < end), self.turns[-1])


def _asked(ask: Any, sources: Mapping[str, str], place: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(ask, Mapping) or not ask or not all(isinstance(names, list | tuple) and names for names in ask.values()):
        raise AssemblyError(f"{place} is {ask!r}; it names objectives by source, such as {{pairs: [itm]}}")
    for source, names in ask.items():
        for name in names:
            if name not in sources:
                raise AssemblyError(f"{place} asks for {name!r}, but there is {', '.join(sources)}. {did_you_mean(name, sources)}".rstrip())
            if sources[name] != source:
                raise AssemblyError(f"{place} asks for {name!r} on {source!r}, but it reads {sources[name]!r}")
    return {source: tuple(names) for source, names in ask.items()}
