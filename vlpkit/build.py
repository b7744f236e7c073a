"""From a checked block of YAML to the object it describes: nested blocks first, offered values filled in, durations in steps."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from vlpkit.check import find_target, is_trusted, problems
from vlpkit.durations import Clock
from vlpkit.errors import ConfigError, VlpError, several
from vlpkit.kinds import convert, read_kind
from vlpkit.signatures import read


def build(node: Mapping[str, Any], clock: Clock | None = None, *, where: str = "", **offers: Any) -> Any:
    """The object that a block with `_target_` describes.

    Args:
        node: plain containers; a value that is already an object stays as it is.
        clock: turns parameters annotated `Steps` into steps.
        where: config path of the block, for messages.
        offers: values for parameters that the signature has and the block leaves out, here and in every nested block.

    Raises:
        ConfigError: when the block does not fit the signature, or the constructor refuses a value (ValueError).
    """
    where = where or str(node.get("_target_"))
    wrong = list(problems({key: value for key, value in node.items() if not _nested(value)}, place=where, offered={*offers, *_filled(node)}))
    if wrong:
        raise ConfigError(several(wrong))
    found = find_target(node["_target_"], place=where)
    signature = read(found)
    assert signature is not None  # problems() has refused everything else
    values: dict[str, Any] = {name: offers[name] for name in signature.parameters if name in offers}
    for key, value in node.items():
        if key != "_target_":
            value = _inside(value, clock, f"{where}.{key}", offers)
            parameter = signature.parameters.get(key)
            kind = read_kind(None if parameter is None else parameter.annotation, found.source if parameter is None else parameter.source)
            values[key] = convert(kind, value, clock, f"{where}.{key}")
    try:
        return _import(node["_target_"], where)(**values)
    except VlpError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {signature.name} refused this: {error}") from error


def _nested(value: Any) -> bool:
    """Whether a value holds a block somewhere; such a block is checked when its own turn comes."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(_nested(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_nested(item) for item in value)


def _filled(node: Mapping[str, Any]) -> set[str]:
    return {key for key, value in node.items() if _nested(value)}


def _inside(value: Any, clock: Clock | None, where: str, offers: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, clock, where=where, **offers)
        return {key: _inside(item, clock, f"{where}.{key}", offers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inside(item, clock, f"{where}[{i}]", offers) for i, item in enumerate(value)]
    return value


def _import(address: str, where: str) -> Any:
    """The object itself; what was found in the source is looked at again now that it exists."""
    parts = address.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name is not None and address.startswith(error.name):
                continue
            raise
        for name in parts[count:]:
            thing = getattr(thing, name)
        if not is_trusted(f"{thing.__module__}.{thing.__qualname__}"):
            raise ConfigError(f"{where}._target_: {address!r} turned out to be {thing.__module__}.{thing.__qualname__}, which may not be named here.")
        return thing
    raise ConfigError(f"{where}._target_: there is no module for {address!r}.")
