"""One grammar for ties, freezing and optimiser groups: dotted paths in which `*` stands for one segment, `{a,b}` for alternatives,
and a layer range (`3`, `0-2`, `6-`, `all`) for numbered children. Shared modules are found under every name they have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from vlpkit.errors import AssemblyError, did_you_mean

Thing = nn.Module | Tensor | None

_RANGE = re.compile(r"(\d+)(-?)(\d*)")
_SEGMENT = re.compile(r"\*|\{[^{}.]+\}|[^{}*.\s]+")
_SHOWN = 8


def split(pattern: str) -> list[str]:
    """The segments of an address. Raises AssemblyError when it is not one."""
    segments = pattern.strip().split(".")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise AssemblyError(f"{pattern!r} is no address: {segment!r} is not a name, *, {{a,b}} or a layer range (3, 0-2, 6-, all).")
    return segments


def covers(segment: str, name: str) -> bool:
    """Whether one segment of a pattern matches one segment of a path: `*`, `{a,b}`, `6-` against `7`, or the name itself."""
    if segment.startswith("{"):
        return any(covers(part.strip(), name) for part in segment[1:-1].split(","))
    if segment in ("*", name):
        return True
    found = _RANGE.fullmatch(segment)
    if not name.isdigit() or (found is None and segment != "all"):
        return False
    if found is None:
        return True
    first, dash, last = int(found[1]), found[2], found[3]
    return first <= int(name) <= (int(last) if last else int(name) if dash else first)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a path or something above it: `vision.trunk` covers `vision.trunk.blocks.0.ffn.norm.weight`."""
    segments, names = split(pattern), path.split(".")
    return len(segments) <= len(names) and all(covers(segment, name) for segment, name in zip(segments, names))


def find(root: nn.Module, pattern: str) -> list[tuple[str, nn.Module | Tensor]]:
    """Modules, parameters and buffers that a pattern names, in the order of the tree; a shared one under each of its names.

    Raises:
        AssemblyError: when nothing is there, with the nearest place that is.
    """
    hits = [(path, thing) for path, thing in _search(root, split(pattern)) if thing is not None]
    if not hits:
        raise AssemblyError(_nothing(root, pattern))
    return hits


def pairs(root: nn.Module, rule: str) -> list[tuple[str, str]]:
    """Paths that `LEFT -> RIGHT` puts together, in order; one left serves every right. The right may be a hole that a tie fills.

    Raises:
        AssemblyError: a rule without an arrow, a side that matches nothing, or sides of different length.
    """
    left, arrow, right = (part.strip() for part in rule.partition("->"))
    if not (left and arrow and right) or "->" in right:
        raise AssemblyError(f"{rule!r} is no tie; write 'WHAT STAYS -> WHAT IT REPLACES', such as 'text.trunk -> fusion.w'.")
    kept = [path for path, _ in find(root, left)]
    gone = [path for path, _ in _search(root, split(right))]
    if not gone:
        raise AssemblyError(_nothing(root, right))
    if len(kept) not in (1, len(gone)):
        raise AssemblyError(f"{rule!r} pairs {_count(kept)} with {_count(gone)}; both sides need equal numbers, or the left a single one.")
    return list(zip(kept * len(gone) if len(kept) == 1 else kept, gone))


def resolve(root: nn.Module, path: str) -> Thing:
    """The module, parameter or buffer at an exact path; None for a hole. Raises AssemblyError when there is no such place."""
    thing: Thing = root
    for i, name in enumerate(path.split(".")):
        children = dict(_children(thing))
        if name not in children:
            raise AssemblyError(_nothing(root, ".".join(path.split(".")[: i + 1])))
        thing = children[name]
    return thing


def replace(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a module, parameter or buffer at a path, in place of what is there or into a hole; the order of its siblings stays.

    Raises:
        AssemblyError: when there is no such place.
    """
    resolve(root, path)
    above, _, name = path.rpartition(".")
    parent = resolve(root, above) if above else root
    assert isinstance(parent, nn.Module)
    store: dict[str, nn.Module | Tensor | None] = (
        parent._modules if isinstance(value, nn.Module) else parent._parameters if isinstance(value, nn.Parameter) else parent._buffers  # type: ignore[assignment]
    )
    if name in store:
        store[name] = value
        return
    delattr(parent, name)
    if isinstance(value, nn.Module | nn.Parameter):
        setattr(parent, name, value)
    else:
        parent.register_buffer(name, value)


def _children(thing: Thing) -> Iterator[tuple[str, Thing]]:
    """What stands one step below; a public attribute that is None counts as a hole."""
    if isinstance(thing, nn.Module):
        yield from thing._modules.items()
        yield from thing._parameters.items()
        yield from thing._buffers.items()
        yield from ((name, None) for name, value in vars(thing).items() if value is None and not name.startswith("_"))


def _search(thing: Thing, segments: list[str], above: str = "") -> Iterator[tuple[str, Thing]]:
    for name, child in _children(thing):
        if covers(segments[0], name):
            if len(segments) == 1:
                yield above + name, child
            else:
                yield from _search(child, segments[1:], f"{above}{name}.")


def _nothing(root: nn.Module, pattern: str) -> str:
    """The sentence for a pattern without a match: the deepest place that its beginning leads to, and what is there."""
    segments = split(pattern)
    hole = next(_search(root, segments), None)
    if hole is not None:
        return f"{pattern!r} matches nothing: {hole[0]} is empty."
    for count in range(len(segments) - 1, -1, -1):
        places: list[tuple[str, Thing]] = [("", root)] if count == 0 else list(_search(root, segments[:count]))
        if places:
            break
    path, thing = places[0]
    names, missing = [name for name, _ in _children(thing)], segments[count]
    if not names:
        return f"{pattern!r} matches nothing: {path} is {'empty' if thing is None else 'a ' + type(thing).__name__}, with nothing below."
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    guess = did_you_mean(missing, names)
    return f"{pattern!r} matches nothing: {path or 'the model'} has no {missing!r} (it has: {shown}).{' ' if guess else ''}{guess}"


def _count(paths: list[str]) -> str:
    return f"{len(paths)} ({paths[0]}{', ...' if len(paths) > 1 else ''})"
