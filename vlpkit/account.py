"""What becomes of every key of a file and of every tensor of a model, decided by the rows of a table before a number is touched:
filled, dropped or fresh; whatever is left over on either side is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Size

from vlpkit.address import matches
from vlpkit.errors import WeightsError
from vlpkit.rows import DROPPED, FRESH, SHARED, Row, fill, match, spread

SHOWN = 8  # keys, or misfits, in a message


class Piece(NamedTuple):
    """How one target is made: sources laid one under the other, then transformed; `shapes` are those of the sources.

    Where one source is cut among several targets, `among` names them in the order of its rows.
    """

    target: str
    sources: tuple[str, ...]
    shapes: tuple[Size, ...]
    transform: str
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What became of every key.

    Args:
        pieces: in the order of the table; one target may be made twice, from tied tensors that a file holds under each name.
        dropped: source keys that the table lets go.
        fresh: target keys that keep what they had.
        resized: position tables that were fitted to another length, each with both shapes.
        extended: tables of words that have rows beyond those of the file, which keep what they had.
    """

    pieces: tuple[Piece, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    resized: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken, filled = sum(len(piece.sources) for piece in self.pieces), len({piece.target for piece in self.pieces})
        lines = [f"{taken} source keys fill {filled} of ours; {len(self.dropped)} dropped, {len(self.fresh)} fresh"]
        lines += [f"  dropped: {_listed(self.dropped)}"] if self.dropped else []
        lines += [f"  fresh: {_listed(self.fresh)}"] if self.fresh else []
        lines += [f"  resized: {line}" for line in self.resized]
        lines += [f"  fresh rows: {line}" for line in self.extended]
        return "\n".join(lines)

    def full(self) -> str:
        """Every key, one a line."""
        lines = [str(self).partition("\n")[0]]
        lines += [f"  {' + '.join(piece.sources)} -> {piece.target}" for piece in self.pieces]
        for what, keys in (("dropped", self.dropped), ("fresh", self.fresh), ("resized", self.resized), ("fresh rows", self.extended)):
            lines += [f"  {what}: {key}" for key in keys]
        return "\n".join(lines)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


@dataclass(frozen=True)
class Asked:
    """Which tensors of ours a file is to fill; the rest of the file is dropped, the rest of ours is fresh.

    An address covers a tensor under the first of its names, as it does for optimiser groups.

    Args:
        named: addresses; whatever lies under them is filled, and whatever leads under them has its place.
        brought: addresses of what comes along where both sides have it: the upper half of a BERT is the fusion of an ALBEF.
    """

    named: tuple[str, ...]
    brought: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Whether a tensor of ours is named or brought."""
        return self.names(name) or any(matches(address, name) for address in self.brought)

    def names(self, name: str) -> bool:
        """Whether a tensor of ours is named."""
        return any(matches(address, name) for address in self.named)


def unit(name: str) -> str:
    """What comes along as a whole or not at all: a part, or a head."""
    return ".".join(name.split(".")[: 2 if name.startswith("heads.") else 1])


@dataclass
class _Ledger:
    """What a plan found so far, by row of the table and target."""

    made: dict[tuple[int, str], dict[int, str]]
    among: dict[tuple[int, str], tuple[str, ...]]
    needs: dict[tuple[int, str], int]
    astray: list[str]
    torn: list[str]

    def claim(self, n: int, key: str, name: str, turns: tuple[int, int], among: tuple[str, ...]) -> None:
        """A source key for a target, or for one of several."""
        turn, many = turns
        if turn in self.made.setdefault((n, name), {}):
            self.torn.append(f"{key} and {self.made[n, name][turn]} both claim {name}")
            return
        self.made[n, name][turn], self.needs[n, name] = key, many
        self.among[n, name] = among if len(among) > 1 else ()


def plan(source: Mapping[str, Size], table: Sequence[Row], names: Mapping[str, str], *, asked: Asked | None = None) -> Report:
    """Decide what becomes of every key, without touching a number.

    Args:
        source: shapes by outside key.
        table: rows in order; the first that matches a source key decides.
        names: ours, each with the first name of its tensor, as `canonical` gives them.
        asked: which of ours are to be filled; None: all.

    Raises:
        WeightsError: source keys that no row names, rows that lead to no target, targets that nothing fills; all at once.
    """
    found = _Ledger({}, {}, {}, [], [])
    units = {unit(name) for name in names}
    unknown, dropped = [], []
    for key in source:
        matching = [(n, m) for n, row in enumerate(table) if row.source != FRESH and (m := match(row.source, key))]
        shared = [(n, m) for n, m in matching if table[n].transform in SHARED]
        if not matching and asked is None:
            unknown.append(key)
        taken = False
        for n, m in shared if matching and matching[0] in shared else matching[:1]:
            spreading = () if table[n].target == DROPPED else spread(fill(table[n].target, m.stars))
            wanted = [asked is None or asked.covers(names.get(name, name)) for name in spreading]
            if any(wanted) and not all(wanted):
                found.torn.append(f"{key} holds {' and '.join(spreading)}, so name all of them")
            for name in spreading if all(wanted) else ():
                if name in names:
                    found.claim(n, key, name, (m.turn, m.turns), spreading)
                    taken = True
                elif asked is None or asked.names(name) or unit(name) in units:
                    found.astray.append(f"{key} -> {name}")
                    taken = True
        if (matching or asked is not None) and not taken:
            dropped.append(key)
    fresh = _settle(found, table, names, asked, unknown)
    pieces = []
    for (n, name), keys in sorted(found.made.items()):
        came = tuple(keys[turn] for turn in sorted(keys))
        pieces.append(Piece(name, came, tuple(source[key] for key in came), table[n].transform, found.among[n, name]))
    return Report(tuple(pieces), tuple(dropped), tuple(fresh))


def _settle(found: _Ledger, table: Sequence[Row], names: Mapping[str, str], asked: Asked | None, unknown: Sequence[str]) -> list[str]:
    """Targets that keep what they had. Raises WeightsError with everything that is left over."""
    torn = [*found.torn]
    torn += [f"{at[1]} needs {found.needs[at]} sources and has {', '.join(keys.values())}" for at, keys in found.made.items() if len(keys) < found.needs[at]]
    filled, units = {names[name] for _, name in found.made}, {unit(name) for _, name in found.made}
    empty = [name for name, first in names.items() if name == first and first not in filled]

    def may_be_fresh(name: str) -> bool:
        outside = asked is not None and (not asked.covers(name) or not (asked.names(name) or unit(name) in units))
        return outside or any(row.source == FRESH and match(row.target, name) for row in table)

    left = [name for name in empty if not may_be_fresh(name)]
    wrong = (("no row of the table names", unknown), ("a row leads to what is not here:", found.astray), ("sources that do not add up:", torn), ("nothing fills", left))
    if any(keys for _, keys in wrong):
        lines = "\n".join(f"  {what} {_listed(keys)}" for what, keys in wrong if keys)
        raise WeightsError(f"the weights and the table disagree\n{lines}")
    return empty
