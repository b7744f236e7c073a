"""Outside weights enter through two-column tables: every source key is consumed or listed as dropped, every target key is filled or
listed as fresh, and anything left over is an error. The same table read backwards takes gradients, or weights, out again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Size, Tensor, nn

from vlpkit.account import SHOWN, Asked, Piece, Report, plan
from vlpkit.errors import WeightsError
from vlpkit.rows import DROPPED, FRESH, RESIZING, SHARED, TRANSFORMS, VOCABULARY, Row, match, sources

log = logging.getLogger(__name__)

def canonical(target: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of the tensor behind each name: tied tensors have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in target.items()}


Spare = Callable[[Piece, Size, Size], bool]


def convert(
    source: Mapping[str, Tensor], table: Sequence[Row], target: Mapping[str, Tensor], *, asked: Asked | None = None, added: Sequence[str] = (),
    spare: Spare = lambda piece, found, shape: False,
) -> tuple[dict[str, Tensor], Report]:
    """Bring outside tensors into our names, shapes and types; on the meta device nothing but shapes is compared.

    Args:
        source: tensors under their outside names.
        table: rows in order; the first that matches a source key decides.
        target: our tensors by name; shapes and types are read, values are not. A tensor with several names counts as filled when
            one of them is.
        asked: which of ours are to be filled; None: all.
        added: words at the end of our vocabulary that a file may lack; their rows keep what they had (as a resized embedding of transformers does).
        spare: whether a misfit of two shapes, that which came and ours, is to be passed over, and the tensor left out.

    Returns:
        Tensors under the first of our names, and the report.

    Raises:
        WeightsError: keys left over on either side, shapes that differ, tied tensors with different values.
    """
    names = canonical(target)
    report = plan({key: tensor.shape for key, tensor in source.items()}, table, names, asked=asked)
    made: dict[str, Tensor] = {}
    wrong, resized, extended = [], [], {}
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
        if added and piece.transform in VOCABULARY and x.shape == (len(ours) - len(added), *ours.shape[1:]):
            extended[names[piece.target]] = f"{', '.join(added)} of {piece.target}"
            x = torch.cat([x.to(ours.device), ours.detach()[len(x) :]])
        if x.shape != ours.shape and spare(piece, x.shape, ours.shape):
            continue
        if x.shape != ours.shape:
            remedy = transform.remedy(x.shape, ours.shape)
            wrong.append(f"{what} is {tuple(x.shape)}, {piece.target} is {tuple(ours.shape)}" + (f": {remedy}" if remedy else ""))
            continue
        if came.numel() != x.numel() and piece.transform in RESIZING:
            resized.append(f"{piece.target} from {tuple(came.shape)} to {tuple(x.shape)}")
        if not _equal(made.setdefault(names[piece.target], x), x):
            wrong.append(f"{what} differs from another source of {names[piece.target]}, though they are one tensor here")
    if wrong:
        raise WeightsError("the weights do not fit\n" + "\n".join(f"  {line}" for line in wrong[:SHOWN]) + (f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""))
    return made, replace(report, resized=tuple(resized), extended=tuple(extended.values()))


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
            made = sources(row.source, found.stars)
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
        for key, part in zip(piece.sources, [x] if len(rows) == 1 else x.split(rows)):
            out[key] = part + out[key] if piece.transform in SHARED and key in out else part
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
