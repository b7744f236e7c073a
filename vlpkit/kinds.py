"""What a parameter accepts, read from its annotation: does a YAML value fit, how to say so, and how to convert it.
Annotations are syntax here, never evaluated; what YAML cannot spell (a module, a function) is a block with `_target_`."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlpkit.durations import ACCEPTED, Clock, parse
from vlpkit.errors import ConfigError, nearest
from vlpkit.signatures import Source, dotted, locate, qualify

Name = Literal["any", "int", "float", "bool", "str", "none", "literal", "list", "tuple", "mapping", "steps", "path", "block", "union"]

_NAMED: Mapping[str, Name] = {
    "builtins.int": "int", "builtins.float": "float", "builtins.bool": "bool", "builtins.str": "str", "builtins.object": "any", "typing.Any": "any",
    "pathlib.Path": "path", "typing.NoReturn": "none",
    **{f"{home}.{name}": "tuple" for home in ("typing", "collections.abc") for name in ("Sequence", "Iterable", "Collection", "MutableSequence")},
    **{f"{home}.{name}": "mapping" for home in ("typing", "collections.abc") for name in ("Mapping", "MutableMapping")},
    "builtins.list": "list", "builtins.tuple": "tuple", "builtins.set": "list", "builtins.dict": "mapping", "typing.List": "list",
    "typing.Tuple": "tuple", "typing.Dict": "mapping",
}  # fmt: skip
_SCALAR: Mapping[str, str] = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "none": "null", "path": "a path",
    "steps": f"a duration ({ACCEPTED})",
}  # fmt: skip
_PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "none": (type(None),), "path": (str, Path),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A type that YAML values may have.

    Args:
        name: which.
        inner: of a union its members; of a list the element; of a mapping the value; of a tuple of fixed length each element.
        choices: of a literal.
        fixed: whether a tuple has exactly the elements of `inner`.
        label: of a block, the class.
        fields: whether a plain mapping may stand for the block (named tuples, dataclasses, typed dicts).
    """

    name: Name
    inner: tuple[Kind, ...] = ()
    choices: tuple[Any, ...] = ()
    fixed: bool = False
    label: str = ""
    fields: bool = False


ANY = Kind("any")


@functools.cache
def read_kind(node: ast.expr | None, source: Source) -> Kind:
    """The kind that an annotation in a module stands for; `any` where it says nothing that YAML could break."""
    if node is None:
        return ANY
    if isinstance(node, ast.Constant):
        return Kind("none") if node.value is None else read_kind(ast.parse(str(node.value), mode="eval").body, source)
    if isinstance(node, ast.BinOp):
        return _union([read_kind(node.left, source), read_kind(node.right, source)])
    if isinstance(node, ast.Subscript):
        return _generic(node, source)
    name = dotted(node)
    return ANY if name is None else _named(qualify(source, name))


def _union(kinds: Sequence[Kind]) -> Kind:
    flat = [inner for kind in kinds for inner in (kind.inner if kind.name == "union" else (kind,))]
    return flat[0] if len(flat) == 1 else Kind("union", tuple(flat))


def _named(address: str) -> Kind:
    if address in _NAMED:
        return Kind(_NAMED[address])
    if address.partition(".")[0] in ("builtins", "typing", "collections", "torch"):
        return Kind("block", label=address.rpartition(".")[2])
    found = locate(address)
    if found is None:
        return Kind("block", label=address.rpartition(".")[2])
    if isinstance(found.node, ast.ClassDef):
        bases = {dotted(base) for base in found.node.bases}
        marks = {dotted(mark.func if isinstance(mark, ast.Call) else mark) for mark in found.node.decorator_list}
        fields = bool(bases & {"NamedTuple", "TypedDict", "typing.NamedTuple", "typing.TypedDict"} or marks & {"dataclass", "dataclasses.dataclass"})
        return Kind("block", label=found.name, fields=fields)
    if isinstance(found.node, ast.Call):
        kind = dotted(found.node.func)
        if kind in ("NewType", "typing.NewType"):
            return Kind("steps") if found.name == "Steps" else read_kind(found.node.args[1], found.source)
        return ANY  # a type variable
    return read_kind(found.node, found.source) if isinstance(found.node, ast.expr) else ANY


def _generic(node: ast.Subscript, source: Source) -> Kind:
    outer = (qualify(source, name) if (name := dotted(node.value)) else "").rpartition(".")[2]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        return Kind("literal", choices=tuple(ast.literal_eval(item) for item in items))
    if outer in ("Callable", "type", "Type"):
        return Kind("block", label=outer)
    endless = isinstance(items[-1], ast.Constant) and items[-1].value is Ellipsis
    inner = tuple(read_kind(item, source) for item in (items[:-1] if endless else items))
    if outer == "Optional":
        return _union([*inner, Kind("none")])
    if outer == "Union":
        return _union(inner)
    if outer in ("Annotated", "Final", "Required", "NotRequired"):
        return inner[0]
    if outer in ("tuple", "Tuple"):
        return Kind("tuple", inner, fixed=not endless)
    base = read_kind(node.value, source)
    if base.name == "mapping":
        return Kind("mapping", inner[-1:])
    return Kind(base.name, inner[:1]) if base.name in ("list", "tuple") else base


def describe(kind: Kind) -> str:
    """What is accepted, in words."""
    if kind.name == "union":
        literal = [inner for inner in kind.inner if inner.name in ("literal", "none")]
        if len(literal) == len(kind.inner):
            return _either([word for inner in kind.inner for word in (map(_spell, inner.choices) if inner.name == "literal" else ["null"])])
        return _either([describe(inner) for inner in kind.inner])
    if kind.name == "literal":
        return _either([_spell(choice) for choice in kind.choices])
    if kind.name in ("list", "tuple"):
        if kind.fixed:
            return f"a list of {len(kind.inner)} ({', '.join(describe(inner) for inner in kind.inner)})"
        return f"a list of {describe(kind.inner[0])}" if kind.inner and kind.inner[0].name != "any" else "a list"
    if kind.name == "mapping":
        return f"a mapping to {describe(kind.inner[0])}" if kind.inner and kind.inner[0].name != "any" else "a mapping"
    if kind.name == "block":
        return f"a block with _target_ ({kind.label})"
    return _SCALAR.get(kind.name, "anything")


def _either(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _spell(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def misfit(kind: Kind, value: Any) -> tuple[str, Kind, Any] | None:
    """None when the value fits; otherwise where inside it (such as `[1]`), what is accepted there, and what was found."""
    if kind.name == "any" or (kind.name == "block" and _is_block(value, kind)):
        return None
    if kind.name == "union":
        misses = [misfit(inner, value) for inner in kind.inner]
        if None in misses:
            return None
        deep = [miss for miss in misses if miss is not None and miss[0]]
        return deep[0] if len(deep) == 1 else ("", kind, value)
    if kind.name in ("list", "tuple") and isinstance(value, list | tuple):
        if kind.fixed and len(value) != len(kind.inner):
            return ("", kind, value)
        kinds = kind.inner if kind.fixed else (kind.inner or (ANY,)) * len(value)
        return _first((f"[{i}]", inner, item) for i, (inner, item) in enumerate(zip(kinds, value)))
    if kind.name == "mapping" and isinstance(value, Mapping) and "_target_" not in value:
        return _first((f".{key}", inner, item) for inner in kind.inner for key, item in value.items())
    return None if _is_scalar(kind, value) else ("", kind, value)


def _first(parts: Any) -> tuple[str, Kind, Any] | None:
    for where, kind, value in parts:
        miss = misfit(kind, value)
        if miss is not None:
            return (where + miss[0], miss[1], miss[2])
    return None


def _is_block(value: Any, kind: Kind) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or kind.fields
    return value is not None and not isinstance(value, str | int | float | list | tuple)


def _is_scalar(kind: Kind, value: Any) -> bool:
    if kind.name == "literal":
        return any(value == choice and type(value) is type(choice) for choice in kind.choices)
    if kind.name == "steps":
        return _is_duration(value)
    return isinstance(value, _PLAIN.get(kind.name, ())) and (kind.name == "bool" or not isinstance(value, bool))


def _is_duration(value: Any) -> bool:
    try:
        parse(value)
    except ConfigError:
        return False
    return True


def hint(kind: Kind, value: Any) -> str:
    """A closing question for a value that is nearly a choice; "" otherwise."""
    choices = [str(choice) for inner in (kind.inner if kind.name == "union" else (kind,)) for choice in inner.choices]
    close = nearest(value, choices) if isinstance(value, str) else None
    return "" if close is None else f"Did you mean {close!r}?"


def convert(kind: Kind, value: Any, clock: Clock | None, place: str) -> Any:
    """A fitting value as the constructor wants it: durations in steps, tuples for sequences, floats for whole numbers.

    Raises:
        ConfigError: for a duration that the clock cannot turn into steps.
    """
    if kind.name == "union":
        exact = [inner for inner in kind.inner if misfit(inner, value) is None]
        whole = [inner for inner in exact if inner.name == "int"]
        return convert((whole or exact or [ANY])[0], value, clock, place)
    if kind.name == "steps":
        if clock is None and parse(value, place=place).unit != "steps":
            raise ConfigError(f"{place}: {value!r} cannot be turned into steps here (write a number of steps).")
        return (clock or Clock(batch=1)).steps(value, place=place)
    if kind.name == "float" and isinstance(value, int):
        return float(value)
    if kind.name == "path" and isinstance(value, str):
        return Path(value)
    if isinstance(value, list | tuple):
        kinds = kind.inner if kind.fixed else (kind.inner or (ANY,)) * len(value)
        items = [convert(inner, item, clock, f"{place}[{i}]") for i, (inner, item) in enumerate(zip(kinds, value))]
        return tuple(items) if kind.name == "tuple" else items
    if isinstance(value, Mapping) and kind.name in ("mapping", "any"):
        inner = kind.inner[0] if kind.inner else ANY
        return {key: convert(inner, item, clock, f"{place}.{key}") for key, item in value.items()}
    return value
