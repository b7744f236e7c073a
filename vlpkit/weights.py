"""Outside weights enter through two-column tables: every source key is consumed or listed as dropped, every target key is filled or
listed as fresh, and anything left over is an error. The same table read backwards takes gradients, or weights, out again."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from vlpkit.errors import WeightsError, did_you_mean

log = logging.getLogger(__name__)

DROPPED, FRESH = "(dropped)", "(fresh)"
_RANGE = re.compile(r"(\d+)-(\d*)")
_CHOICE = re.compile(r"\{([^{}]+)\}")
_SHOWN = 8


class Transform(NamedTuple):
    """What happens to a tensor on its way between two files.

    Args:
        into: the tensor and the shape it must end in; what it cannot bring there it gives back as it was.
        out: the way back: the tensor and the shape that its source had.
        outside: the shape that a tensor of ours has outside.
        remedy: of a misfit, from the shape that came and the shape here; "" when there is none.
    """

    into: Callable[[Tensor, Size], Tensor] = lambda x, shape: x
    out: Callable[[Tensor, Size], Tensor] = lambda x, shape: x
    outside: Callable[[Size], Size] = lambda shape: shape
    remedy: Callable[[Size, Size], str] = lambda found, shape: ""


def _same_but_units(x: Tensor, shape: Size) -> Tensor:
    return x.reshape(shape) if [n for n in x.shape if n != 1] == [n for n in shape if n != 1] else x


def _no_units(shape: Size) -> Size:
    return Size(n for n in shape if n != 1)


def _side(rows: int) -> tuple[int, int] | None:
    """(rows before the grid, side of the grid): a class row and a square, or a square alone."""
    for first in (1, 0):
        side = math.isqrt(max(rows - first, 0))
        if side and side * side == rows - first:
            return first, side
    return None


def _grid(x: Tensor, shape: Size) -> Tensor:
    """(..., N, D) positions of one grid to those of another: the class row stays, the square is interpolated (bicubic, no antialiasing)."""
    if x.numel() == shape.numel():
        return _same_but_units(x, shape)
    found, wanted = (_side(n[-2]) if len(n) > 1 and _no_units(n[:-2]) == Size() else None for n in (x.shape, shape))
    if found is None or wanted is None or found[0] != wanted[0] or x.shape[-1] != shape[-1]:
        return x
    (first, old), (_, new), dim = found, wanted, shape[-1]
    rows = x.reshape(-1, dim).float()
    square = F.interpolate(rows[first:].view(1, old, old, dim).permute(0, 3, 1, 2), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([rows[:first], square.permute(0, 2, 3, 1).reshape(new * new, dim)]).to(x.dtype).reshape(shape)


def _too_short(found: Size, shape: Size) -> str:
    if len(found) != 2 or found[1:] != shape[1:]:
        return ""
    return f"the file knows positions of {found[0]} tokens, this model has {shape[0]}; a table can be cut, not grown: size.positions={found[0]}"


def _other_words(found: Size, shape: Size) -> str:
    if len(found) != len(shape) or found[1:] != shape[1:]:
        return ""
    return f"the file's vocabulary has {found[0]} words, the tokenizer {shape[0]}; take the tokenizer of the weights: size.vocab=null model.text.words.name=FOLDER"


TRANSFORMS: dict[str, Transform] = {
    "": Transform(),
    "transpose": Transform(lambda x, shape: x.transpose(-1, -2), lambda x, shape: x.transpose(-1, -2), lambda shape: Size((*shape[:-2], shape[-1], shape[-2]))),
    # only units may come or go: a reshape that mixed dimensions would load without a word and mean nothing
    "squeeze": Transform(_same_but_units, _same_but_units, _no_units),
    "grid": Transform(_grid, _same_but_units),
    "one": Transform(_same_but_units, _same_but_units, lambda shape: Size([1])),   # a scalar that stands outside as a row of one
    "squeeze grid": Transform(_grid, _same_but_units, _no_units),
    "cut": Transform(lambda x, shape: x[: shape[0]] if len(x) > shape[0] and x.shape[1:] == shape[1:] else x, remedy=_too_short),
    "cut before last": Transform(lambda x, shape: torch.cat([x[: shape[0] - 1], x[-1:]]) if len(x) > shape[0] and x.shape[1:] == shape[1:] else x, remedy=_too_short),
    "words": Transform(remedy=_other_words),
    "transpose words": Transform(lambda x, shape: x.transpose(-1, -2), lambda x, shape: x.transpose(-1, -2), lambda shape: Size((*shape[:-2], shape[-1], shape[-2])), _other_words),
    # biases of queries and values around keys without one: a bias of keys shifts all logits of a row alike and changes nothing
    "around": Transform(lambda x, shape: torch.cat([x[: len(x) // 2], x.new_zeros(len(x) // 2), x[len(x) // 2 :]]), lambda x, shape: torch.cat([*x.chunk(3)[::2]])),
    # one row of a table that is several tensors here; rows of a table with more than one such line lead to different places
    "row 0": Transform(lambda x, shape: x[0], lambda x, shape: _alone(x, shape, 0)),
    "row 1": Transform(lambda x, shape: x[1], lambda x, shape: _alone(x, shape, 1)),
    # a tensor that starts several of ours, which then go their own ways
    "also": Transform(),
    "also cut": Transform(lambda x, shape: x[: shape[0]] if len(x) > shape[0] and x.shape[1:] == shape[1:] else x, remedy=_too_short),
    # position tables whose first two rows are never read (fairseq counts from 2)
    "from 2": Transform(lambda x, shape: x[2:], lambda x, shape: torch.cat([x.new_zeros(2, *x.shape[1:]), x])),
    "from 2, squeeze": Transform(lambda x, shape: x[None, 2:], lambda x, shape: torch.cat([x.new_zeros(2, x.shape[-1]), x[0]])),
}
_RESIZING = ("grid", "squeeze grid", "cut", "cut before last", "also cut")
VOCABULARY = ("words", "transpose words")  # transforms of what has a row for each word
_SHARED = ("row 0", "row 1", "also", "also cut")  # transforms that leave the rest of their source to other lines


def _alone(x: Tensor, shape: Size, row: int) -> Tensor:
    whole = x.new_zeros(shape)
    whole[row] = x
    return whole


class Row(NamedTuple):
    """One line of a table: a source pattern, a target pattern and the name of a transform.

    A pattern is a dotted path in which `*` stands for one segment, `**` (at the end) for one or more, and `6-` or `0-5` for
    numbered layers, counted from the first of the range on the other side. What they matched fills the target's `*` in order.
    `{query,key,value}` names several sources, which are laid one under the other in one target; in a target, `{q,kv}` names
    several targets, among which the rows of one source are cut, in order.
    """

    source: str
    target: str
    transform: str = ""


def parse(lines: Iterable[str]) -> list[Row]:
    """Rows of `SOURCE -> TARGET`, `SOURCE -> TARGET | transform`, `SOURCE -> (dropped)` or `(fresh) -> TARGET`; # opens a comment.

    Raises:
        WeightsError: a line that is none of these.
    """
    rows = []
    for line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        source, arrow, rest = (part.strip() for part in text.partition("->"))
        target, _, transform = (part.strip() for part in rest.partition("|"))
        if not (source and arrow and target):
            raise WeightsError(f"{line.strip()!r} is no row of a table; write SOURCE -> TARGET, SOURCE -> {DROPPED} or {FRESH} -> TARGET")
        if transform not in TRANSFORMS:
            known = [name for name in TRANSFORMS if name]
            raise WeightsError(f"{line.strip()!r}: no transform {transform!r} (there are: {', '.join(known)}). {did_you_mean(transform, known)}".rstrip())
        rows.append(Row(source, target, transform))
    return rows


class _Match(NamedTuple):
    stars: tuple[str, ...]   # what `*`, `**` and ranges stood for
    turn: int                # which of the alternatives in braces
    turns: int               # how many there are


def match(pattern: str, key: str) -> _Match | None:
    """What a source pattern found in a key; None when they do not fit."""
    segments, names = pattern.split("."), key.split(".")
    stars: list[str] = []
    turn, turns = 0, 1
    for i, segment in enumerate(segments):
        if segment == "**":
            return _Match((*stars, ".".join(names[i:])), turn, turns) if len(names) > i else None
        if i >= len(names):
            return None
        found = _RANGE.fullmatch(segment)
        if segment == "*":
            stars.append(names[i])
        elif found:
            first, last = int(found[1]), found[2]
            if not names[i].isdigit() or int(names[i]) < first or (last and int(names[i]) > int(last)):
                return None
            stars.append(str(int(names[i]) - first))
        elif segment.startswith("{"):
            choices = segment.strip("{}").split(",")
            if names[i] not in choices:
                return None
            turn, turns = choices.index(names[i]), len(choices)
        elif segment != names[i]:
            return None
    return _Match(tuple(stars), turn, turns) if len(segments) == len(names) else None


def _sources(pattern: str, stars: Sequence[str]) -> list[str]:
    """The keys that a source pattern stands for, one an alternative; none when a number lies outside its range."""
    left, keys = iter(stars), [""]
    for segment in pattern.split("."):
        found = _RANGE.fullmatch(segment)
        if segment in ("*", "**"):
            choices = [next(left)]
        elif found:
            star = next(left)
            number = int(star) + int(found[1]) if star.isdigit() else -1
            if number < 0 or (found[2] and number > int(found[2])):
                return []
            choices = [str(number)]
        else:
            choices = segment.strip("{}").split(",")
        keys = [f"{key}.{choice}" if key else choice for key in keys for choice in choices]
    return keys


def _fill(pattern: str, stars: Sequence[str]) -> str:
    left = iter(stars)
    return ".".join(next(left) if segment in ("*", "**") else segment for segment in pattern.split("."))


def _spread(name: str) -> tuple[str, ...]:
    found = _CHOICE.search(name)
    return (name,) if found is None else tuple(name[: found.start()] + choice + name[found.end() :] for choice in found[1].split(","))


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
    """

    pieces: tuple[Piece, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    resized: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken, filled = sum(len(piece.sources) for piece in self.pieces), len({piece.target for piece in self.pieces})
        lines = [f"{taken} source keys fill {filled} of ours; {len(self.dropped)} dropped, {len(self.fresh)} fresh"]
        lines += [f"  dropped: {_listed(self.dropped)}"] if self.dropped else []
        lines += [f"  fresh: {_listed(self.fresh)}"] if self.fresh else []
        lines += [f"  resized: {line}" for line in self.resized]
        return "\n".join(lines)

    def full(self) -> str:
        """Every key, one a line."""
        lines = [str(self).partition("\n")[0]]
        lines += [f"  {' + '.join(piece.sources)} -> {piece.target}" for piece in self.pieces]
        for what, keys in (("dropped", self.dropped), ("fresh", self.fresh), ("resized", self.resized)):
            lines += [f"  {what}: {key}" for key in keys]
        return "\n".join(lines)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def canonical(target: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of the tensor behind each name: tied tensors have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in target.items()}


def plan(source: Mapping[str, Size], table: Sequence[Row], names: Mapping[str, str]) -> Report:
    """Decide what becomes of every key, without touching a number.

    Args:
        source: shapes by outside key.
        table: rows in order; the first that matches a source key decides.
        names: ours, each with the first name of its tensor, as `canonical` gives them.

    Raises:
        WeightsError: source keys that no row names, rows that lead to no target, targets that nothing fills; all at once.
    """
    made: dict[tuple[int, str], dict[int, str]] = {}
    among: dict[tuple[int, str], tuple[str, ...]] = {}
    needs: dict[tuple[int, str], int] = {}
    unknown, astray, dropped, torn = [], [], [], []
    for key in source:
        matching = [(n, m) for n, row in enumerate(table) if row.source != FRESH and (m := match(row.source, key))]
        shared = [(n, m) for n, m in matching if table[n].transform in _SHARED]
        if not matching:
            unknown.append(key)
        for n, found in shared if matching and matching[0] in shared else matching[:1]:
            if table[n].target == DROPPED:
                dropped.append(key)
                continue
            spread = _spread(_fill(table[n].target, found.stars))
            for name in spread:
                if name not in names:
                    astray.append(f"{key} -> {name}")
                elif found.turn in made.setdefault((n, name), {}):
                    torn.append(f"{key} and {made[n, name][found.turn]} both claim {name}")
                else:
                    made[n, name][found.turn], needs[n, name] = key, found.turns
                    among[n, name] = spread if len(spread) > 1 else ()
    torn += [f"{name} needs {needs[at]} sources and has {', '.join(keys.values())}" for at, keys in made.items() if len(keys) < needs[at] for name in at[1:]]
    filled = {names[name] for _, name in made}
    left = [name for name, first in names.items() if name == first and first not in filled]
    fresh = [name for name in left if any(row.source == FRESH and match(row.target, name) for row in table)]
    left = [name for name in left if name not in fresh]
    found_wrong = (("no row of the table names", unknown), ("a row leads to what is not here:", astray), ("sources that do not add up:", torn), ("nothing fills", left))
    if any(keys for _, keys in found_wrong):
        lines = "\n".join(f"  {what} {_listed(keys)}" for what, keys in found_wrong if keys)
        raise WeightsError(f"the weights and the table disagree\n{lines}\n  Name what may be missing: KEY -> {DROPPED}, or {FRESH} -> KEY.")
    pieces = []
    for (n, name), keys in sorted(made.items()):
        sources = tuple(keys[turn] for turn in sorted(keys))
        pieces.append(Piece(name, sources, tuple(source[key] for key in sources), table[n].transform, among[n, name]))
    return Report(tuple(pieces), tuple(dropped), tuple(fresh))


Spare = Callable[[Piece, Size, Size], bool]


def convert(
    source: Mapping[str, Tensor], table: Sequence[Row], target: Mapping[str, Tensor], *, spare: Spare = lambda piece, found, shape: False
) -> tuple[dict[str, Tensor], Report]:
    """Bring outside tensors into our names, shapes and types; on the meta device nothing but shapes is compared.

    Args:
        source: tensors under their outside names.
        table: rows in order; the first that matches a source key decides.
        target: our tensors by name; shapes and types are read, values are not. A tensor with several names counts as filled when
            one of them is.
        spare: whether a misfit of two shapes, that which came and ours, is to be passed over, and the tensor left out.

    Returns:
        Tensors under the first of our names, and the report.

    Raises:
        WeightsError: keys left over on either side, shapes that differ, tied tensors with different values.
    """
    names = canonical(target)
    report = plan({key: tensor.shape for key, tensor in source.items()}, table, names)
    made: dict[str, Tensor] = {}
    wrong, resized = [], []
    for piece in report.pieces:
        ours, what = target[piece.target], " + ".join(piece.sources)
        x = source[piece.sources[0]] if len(piece.sources) == 1 else torch.cat([source[key] for key in piece.sources])
        if piece.among:
            rows = [len(target[name]) for name in piece.among]
            if sum(rows) != len(x):
                wrong.append(f"{what} has {len(x)} rows, {', '.join(piece.among)} take {sum(rows)}")
                continue
            x = x.split(rows)[piece.among.index(piece.target)]
        came, transform = x, TRANSFORMS[piece.transform]
        x = transform.into(x, ours.shape).to(ours.dtype)
        if x.shape != ours.shape and spare(piece, x.shape, ours.shape):
            continue
        if x.shape != ours.shape:
            remedy = transform.remedy(x.shape, ours.shape)
            wrong.append(f"{what} is {tuple(x.shape)}, {piece.target} is {tuple(ours.shape)}" + (f": {remedy}" if remedy else ""))
            continue
        if came.numel() != x.numel() and piece.transform in _RESIZING:
            resized.append(f"{piece.target} from {tuple(came.shape)} to {tuple(x.shape)}")
        if not _equal(made.setdefault(names[piece.target], x), x):
            wrong.append(f"{what} differs from another source of {names[piece.target]}, though they are one tensor here")
    if wrong:
        raise WeightsError("the weights do not fit\n" + "\n".join(f"  {line}" for line in wrong[:_SHOWN]) + (f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""))
    return made, replace(report, resized=tuple(resized))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or a.is_meta or b.is_meta or torch.equal(a, b)


def outward(ours: Mapping[str, Size], table: Sequence[Row]) -> dict[str, Size]:
    """The keys of a file that a table would read our tensors from, with their shapes: the table backwards.

    Args:
        ours: shapes by our name; names that no row leads to have no place outside.
        table: rows in order.
    """
    keys: dict[str, Size] = {}
    for row in table:
        for name, shape in ours.items():
            if row.source == FRESH or row.target == DROPPED or (found := match(row.target, name)) is None:
                continue
            whole = TRANSFORMS[row.transform].outside(shape)
            made = _sources(row.source, found.stars)
            for key in made:
                keys.setdefault(key, Size([whole[0] // len(made), *whole[1:]]) if len(made) > 1 else whole)
    return keys


def revert(values: Mapping[str, Tensor], report: Report) -> dict[str, Tensor]:
    """The way back: our tensors (weights, or gradients) under the outside names, fused rows cut apart.

    Args:
        values: by our names; a target without a value is left out.
        report: of the way in.

    Returns:
        Tensors by source key. Keys that share one tensor of ours all get it.
    """
    out: dict[str, Tensor] = {}
    for piece in report.pieces:
        if piece.target not in values:
            continue
        if piece.among:  # once, with the first of them
            if piece.target == piece.among[0] and all(name in values for name in piece.among):
                out[piece.sources[0]] = torch.cat([TRANSFORMS[piece.transform].out(values[name], values[name].shape) for name in piece.among])
            continue
        rows = [shape[0] if shape else 1 for shape in piece.shapes]
        whole = piece.shapes[0] if len(rows) == 1 else Size([sum(rows), *piece.shapes[0][1:]])
        x = TRANSFORMS[piece.transform].out(values[piece.target], whole)
        if piece.transform in _SHARED and piece.sources[0] in out:
            x = x + out[piece.sources[0]]
        out.update(zip(piece.sources, [x] if len(rows) == 1 else x.split(rows)))
    return out


def everything(model: nn.Module, **beside: nn.Module | None) -> dict[str, Tensor]:
    """Parameters and saved buffers of a model by address, and of what stands beside it under its own word, such as `teacher`."""
    held = model.state_dict(keep_vars=True)
    for word, module in beside.items():
        held |= {f"{word}.{name}": tensor for name, tensor in (module.state_dict(keep_vars=True) if module is not None else {}).items()}
    return held


def load(target: nn.Module | Mapping[str, Tensor], source: Mapping[str, Tensor], table: Sequence[Row]) -> Report:
    """Fill a module, or what `everything` lists, in place; what is tied stays tied.

    Raises:
        WeightsError: see `convert`; then nothing was changed.
    """
    ours = everything(target) if isinstance(target, nn.Module) else target
    made, report = convert(source, table, ours)
    with torch.no_grad():
        for name, tensor in made.items():
            ours[name].copy_(tensor)
    log.info("%s", report)
    return report
