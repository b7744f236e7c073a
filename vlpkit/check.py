"""Gate 2: every block with `_target_` against the signature of what it names, all mistakes at once, nothing imported.
The signature is the schema of a part; only code under vlpkit, or in modules the user lists in `plugins`, may be named."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, SCMode, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from vlpkit.errors import ConfigError, did_you_mean, nearest, several
from vlpkit.kinds import ANY, describe, hint, misfit, read_kind
from vlpkit.signatures import Found, Parameter, Signature, locate, read

# What assembly knows and hands on, so that no YAML repeats it.
OFFERED = frozenset({
    "model", "sources", "total", "dim", "memory_dim", "dims", "space", "vocab", "words", "length", "image_size", "seed", "root", "cache", "captions",
    "run_dir", "resumed",
})  # fmt: skip
_HOLD_BLOCKS = ("model", "draws", "objectives", "evals", "logger")  # each child is a block
_ARE_BLOCKS = ("teacher", "plan")
LISTS = ("ties", "freeze")  # what stands under `model` beside the parts

_trusted: set[str] = {"vlpkit"}


def trust(modules: Iterable[str]) -> None:
    """Let `_target_` name what is in these modules, too. For what the user typed, never for a config found in a file of weights."""
    _trusted.update(modules)


def is_trusted(address: str) -> bool:
    """Whether a dotted name lies under vlpkit or a trusted module."""
    return any(address.startswith(f"{name}.") for name in _trusted)


def settle(cfg: DictConfig, *, offered: Collection[str] = OFFERED, conf: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """The config as plain containers, idle blocks dropped, interpolations resolved, every signature checked.

    Args:
        cfg: as composed.
        offered: parameters that assembly fills in.
        conf: folder of the option files; with it, messages name options that would take a misplaced key.

    Returns:
        the plain config, and the names of the blocks that were dropped because their option was not chosen.

    Raises:
        ConfigError: with every mistake found.
    """
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        dropped = _drop_idle(cfg)
    plain = _resolve(cfg)
    dropped += _forget(plain, dropped)
    check_signatures(plain, offered=offered, conf=conf)
    return plain, dropped


def _forget(plain: dict[str, Any], dropped: Sequence[str]) -> list[str]:
    """Take out the ties and teacher parts that speak of heads or parts which went with their option; returns their places."""
    gone = {f"heads.{place[11:]}" for place in dropped if place.startswith("objectives.")} | {place[6:] for place in dropped if place.startswith("model.")}

    def speaks_of_gone(address: str) -> bool:
        return any(address == name or address.startswith(f"{name}.") for name in gone)

    forgotten: list[str] = []
    model, teacher = plain.get("model") or {}, plain.get("teacher") or {}
    for holder, key, words in ((model, "ties", "model.ties"), (teacher, "parts", "teacher.parts")):
        lines = holder.get(key)
        if isinstance(lines, list):
            idle = [line for line in lines if isinstance(line, str) and any(speaks_of_gone(side.strip()) for side in line.split("->"))]
            holder[key] = [line for line in lines if line not in idle]
            forgotten += [f"{words}: {line}" for line in idle]
    return forgotten


def idle_blocks(cfg: DictConfig) -> list[str]:
    """Places where a block should be, but where only settings for one stand, because the option they tune was not chosen."""
    places: list[str] = []
    for name, node in _blocks(cfg, ""):
        if name in _HOLD_BLOCKS:
            places += [f"{name}.{key}" for key, child in _blocks(node, "") if "_target_" not in child]
        elif name in _ARE_BLOCKS and "_target_" not in node:
            places.append(name)
    for name, node in _blocks(cfg, ""):
        places += [place for place in _idle_within(node, name) if not any(place.startswith(f"{above}.") for above in places)]
    return places


def _blocks(node: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    """Children that are mappings, with their names; null, missing and interpolated ones are not."""
    for key in node.keys():  # noqa: SIM118 - a DictConfig iterates over values that may be missing
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield f"{prefix}{key!s}", child


def _idle_within(node: DictConfig, place: str) -> Iterator[str]:
    """Settings without a block under a parameter that takes a block or nothing: `text.trunk: {depth: 6}` where the option has no trunk."""
    parameters: Mapping[str, Parameter] = {}
    if "_target_" in node:
        try:
            parameters = signature_of(node["_target_"], place=place).parameters
        except ConfigError:
            return  # said again, and better, when signatures are checked
    for key, child in _blocks(node, ""):
        kind = read_kind(parameters[key].annotation, parameters[key].source) if key in parameters else ANY
        names = {inner.name for inner in kind.inner if kind.name == "union" and not inner.fields}
        if names == {"block", "none"} and "_target_" not in child:
            yield f"{place}.{key}"
        else:
            yield from _idle_within(child, f"{place}.{key}")


def _drop_idle(cfg: DictConfig) -> list[str]:
    idle = idle_blocks(cfg)
    for place in idle:
        above, _, name = place.rpartition(".")
        node = OmegaConf.select(cfg, above) if above else cfg
        if above in _HOLD_BLOCKS:
            del node[name]
        else:
            node[name] = None
    for holder in _HOLD_BLOCKS[1:]:  # `objectives.itm: null` takes an objective away
        if isinstance(cfg.get(holder), DictConfig):
            for name in [name for name in cfg[holder] if cfg[holder]._get_node(name)._is_none()]:
                del cfg[holder][name]
    return idle


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, structured_config_mode=SCMode.DICT)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: this has to be given. Write {error.full_key}=...") from error
    except InterpolationResolutionError as error:
        text = OmegaConf.to_container(cfg, resolve=False)
        for part in str(error.full_key).replace("[", ".").replace("]", "").split("."):
            text = text[int(part) if isinstance(text, list) else part]  # type: ignore[index,call-overload]
        raise ConfigError(f"{error.full_key}: {text!r} leads nowhere. {str(error.msg).splitlines()[0]}.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    return {str(key): value for key, value in plain.items()}  # type: ignore[union-attr]


def check_signatures(cfg: Mapping[str, Any], *, offered: Collection[str] = OFFERED, conf: Path | None = None) -> None:
    """Bind every block of a plain config to the signature it names. Raises ConfigError with all mistakes, one paragraph each."""
    found = [*_not_blocks(cfg), *problems(cfg, offered=offered, conf=conf)]
    if found:
        raise ConfigError(several(found))


def _not_blocks(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Values that stand where only blocks do."""
    for holder in _HOLD_BLOCKS:
        for key, value in (cfg.get(holder) or {}).items():
            if value is None or isinstance(value, Mapping) or (holder == "model" and key in LISTS):
                continue
            lists = f", or one of {', '.join(LISTS)}" if holder == "model" else ""
            yield _with_hint(f"{holder}.{key}: a block with _target_ stands here{lists}, found {_spell(value)}.", did_you_mean(key, LISTS if lists else ()))


def problems(cfg: Any, *, place: str = "", offered: Collection[str] = OFFERED, conf: Path | None = None) -> Iterator[str]:
    """Every mistake in a config or in a part of one, each with the place, what was found, what is accepted and a remedy."""
    if isinstance(cfg, Mapping):
        if "_target_" in cfg:
            yield from _block(cfg, place, offered, conf)
        for key, value in cfg.items():
            yield from problems(value, place=f"{place}.{key}" if place else str(key), offered=offered, conf=conf)
    elif isinstance(cfg, list | tuple):
        for i, value in enumerate(cfg):
            yield from problems(value, place=f"{place}[{i}]", offered=offered, conf=conf)


def _block(node: Mapping[str, Any], place: str, offered: Collection[str], conf: Path | None) -> Iterator[str]:
    try:
        signature = signature_of(node["_target_"], place=place)
    except ConfigError as error:
        yield str(error)
        return
    name, parameters = signature.name, signature.parameters
    unknown = [] if signature.anything else [str(key) for key in node if key != "_target_" and key not in parameters]
    if unknown:
        yield unknown_key(signature, unknown, place=place, node=node, offered=offered, conf=conf)
    for key, value in node.items():
        if key not in parameters:
            continue
        miss = misfit(read_kind(parameters[key].annotation, parameters[key].source), value)
        if miss is not None:
            where, kind, found = miss
            yield _with_hint(f"{place}.{key}{where}: {name} takes {describe(kind)} here, found {_spell(found)}.", hint(kind, found))
    missing = [key for key, parameter in parameters.items() if parameter.required and key not in node and key not in offered]
    for key in missing:
        yield _with_hint(f"{place}.{key}: {name} needs {key!r}, and nothing gives it.", f"Write {place}.{key}=...")


def signature_of(address: Any, *, place: str) -> Signature:
    """The signature that `_target_` leads to. Raises ConfigError when there is none, or when it is not trusted."""
    found = find_target(address, place=place)
    signature = read(found)
    if signature is None:
        raise ConfigError(f"{place}._target_: {address!r} is neither a class nor a function.")
    return signature


def find_target(address: Any, *, place: str) -> Found:
    """The definition that `_target_` names, through re-exports. Raises ConfigError when absent or outside what is trusted."""
    if not isinstance(address, str) or not is_trusted(address):
        raise ConfigError(_with_hint(
            f"{place}._target_: {_spell(address)} may not be named here (accepted: names under {', '.join(sorted(_trusted))}).",
            "A module of your own is let in by name: plugins=[my_parts]",
        ))
    found = locate(address)
    if found is None:
        raise ConfigError(_nothing_there(address, place))
    if not is_trusted(found.address):
        raise ConfigError(f"{place}._target_: {address!r} leads to {found.address!r}, which is outside of {', '.join(sorted(_trusted))}.")
    return found


def _nothing_there(address: str, place: str) -> str:
    from vlpkit.signatures import load  # the message alone needs it

    parts = address.split(".")
    for count in range(len(parts) - 1, 0, -1):
        source = load(".".join(parts[:count]))
        if source is not None:
            names = [name for name, node in source.names.items() if read(Found(source, name, node)) is not None] if count == len(parts) - 1 else []  # type: ignore[arg-type]
            accepted = f" (it has: {', '.join(names)})" if names else ""
            return _with_hint(f"{place}._target_: {source.name} has no {'.'.join(parts[count:])!r}{accepted}.", did_you_mean(parts[-1], names))
    return f"{place}._target_: there is no module {parts[0]!r}."


def unknown_key(
    signature: Signature, keys: Sequence[str], *, place: str, node: Mapping[str, Any], offered: Collection[str] = OFFERED, conf: Path | None = None,
    typed: bool = False,
) -> str:
    """The paragraph about keys that a block's target does not take; `typed`: they came from the command line, not from a recipe."""
    accepted = [name for name, p in signature.parameters.items() if name in node or not (name in offered and p.required)]
    close = {key: near for key in keys if (near := nearest(key, accepted)) is not None}
    options = [] if close or conf is None else list(_options_with(conf, place, keys))
    guesses = [f"{place}.{near}" for near in close.values()] or options[:2]
    guess = f"Did you mean {' or '.join(guesses)}" if guesses else ""
    if place.partition(".")[0] in ("objectives", "draws", "teacher", "plan") and not typed:
        guess = f"{guess}, or should the recipe's {place} block go" if guess else f"Should the recipe's {place} block go"
    found = f"{place}.{keys[0]}" if len(keys) == 1 else place
    takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes nothing"
    return _with_hint(f"{found}: {signature.name} takes no {', '.join(map(repr, keys))} ({takes}).", f"{guess}?" if guess else "")


def _options_with(conf: Path, place: str, keys: Sequence[str]) -> Iterator[str]:
    """Choices such as `objective=[itc_momentum,...]` whose part at this place does take the keys."""
    for file in sorted(conf.glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8")
        first = text.partition("\n")[0].split()
        package = first[2].split(".") if first[:2] == ["#", "@package"] and len(first) > 2 else [file.parent.name]
        package, path = [] if package == ["_global_"] else package, place.split(".")
        if path[: len(package)] != package:
            continue
        node: Any = OmegaConf.to_container(OmegaConf.create(text))
        for name in path[len(package) :]:
            node = node.get(name) if isinstance(node, Mapping) else None
        address = node.get("_target_") if isinstance(node, Mapping) else None
        found = locate(address) if isinstance(address, str) and is_trusted(address) else None
        signature = None if found is None else read(found)
        if signature is not None and set(keys) <= set(signature.parameters):
            option = f"[{file.stem},...]" if file.parent.name == "objective" else file.stem
            yield f"{file.parent.name}={option}"


def _with_hint(sentence: str, closing: str) -> str:
    return f"{sentence}\n  {closing}" if closing else sentence


def _spell(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" not in value:
        return f"keys without a _target_ ({', '.join(map(str, value))})"
    if isinstance(value, Mapping):
        return f"the block {value['_target_']!r}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), repr(value))
