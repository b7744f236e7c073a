"""The lines of tables of weights: patterns of keys on either side, and what happens to a tensor on its way between two files.
Everything that a file and a model may differ in without meaning something else has a name here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from vlpkit.errors import WeightsError, did_you_mean

DROPPED, FRESH = "(dropped)", "(fresh)"
_RANGE = re.compile(r"(\d+)-(\d*)")
_CHOICE = re.compile(r"\{([^{}]+)\}")


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
    "from 2 cut": Transform(lambda x, shape: x[2 : 2 + shape[0]], lambda x, shape: torch.cat([x.new_zeros(2, *x.shape[1:]), x]), remedy=_too_short),
    "from 2, squeeze": Transform(lambda x, shape: x[None, 2:], lambda x, shape: torch.cat([x.new_zeros(2, x.shape[-1]), x[0]])),
}
RESIZING = ("grid", "squeeze grid", "cut", "cut before last", "also cut", "from 2 cut")
VOCABULARY = ("words", "transpose words")  # transforms of what has a row for each word
SHARED = ("row 0", "row 1", "also", "also cut")  # transforms that leave the rest of their source to other lines


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


def sources(pattern: str, stars: Sequence[str]) -> list[str]:
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


def fill(pattern: str, stars: Sequence[str]) -> str:
    """A target pattern with what the stars of its source stood for."""
    left = iter(stars)
    return ".".join(next(left) if segment in ("*", "**") else segment for segment in pattern.split("."))


def spread(name: str) -> tuple[str, ...]:
    """The targets among which the rows of one source are cut; the name itself where there are no alternatives in it."""
    found = _CHOICE.search(name)
    return (name,) if found is None else tuple(name[: found.start()] + choice + name[found.end() :] for choice in found[1].split(","))
