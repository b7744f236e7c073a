"""What can be told of names without torch: parts that nobody names, and parts, draws and sources that somebody names but nobody makes.
The dry step would find them, seconds later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlpkit.check import LISTS, signature_of
from vlpkit.data.wishes import PAIRS
from vlpkit.errors import did_you_mean, no_draw, no_part, no_source, opaque_text

_BACKBONES = ("vlpkit.encoders.timm.TimmBackbone", "vlpkit.encoders.timm.ConvStem")
_OPAQUE = "vlpkit.encoders.hf.TransformersText"  # refuses a text that has an order
_GROUPED = ("bias", "norm", "fresh", "loaded")  # words that stand for parameters wherever they are
_BY_CODE = ("vision", "text", "codebook")  # what Streams asks for without being told a name


def unread(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each part of a checked config that is named nowhere; none where an objective is not ours, as it may name parts in its code."""
    model, objectives = cfg["model"], cfg["objectives"]
    if not all(str(node["_target_"]).startswith("vlpkit.") for node in objectives.values()):
        return []
    parts = [key for key, node in model.items() if isinstance(node, Mapping) and key not in LISTS]
    elsewhere = [objectives, cfg["draws"], *(model.get(key) or [] for key in LISTS)]
    lines = []
    for part in parts:
        if part not in _BY_CODE and part not in set(_names([*elsewhere, *(model[other] for other in parts if other != part)])):
            lines.append(
                f"model.{part}: no objective reads it ({', '.join(objectives) or 'there is none'}), so nothing would train it.\n"
                f"  Add an objective that does (objective=[...]), drop the part ({part}=null), or freeze it (+model.freeze=[{part}])."
            )
    return lines


def unsourced(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each objective on a source that the data do not deliver."""
    sources, lines = [PAIRS, *(name for name, node in (cfg["data"].get("sources") or {}).items() if node is not None)], []
    for name, node in cfg["objectives"].items():
        parameter = signature_of(node["_target_"], place=f"objectives.{name}").parameters.get("on")
        source = node.get("on", PAIRS if parameter is None or parameter.word is None else parameter.word)
        if source not in sources:
            lines.append(f"objectives.{name} {no_source(str(source), sources)}")
    return lines


def unbuilt(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each objective of ours whose `by` is no part of the model."""
    parts, lines = [key for key, node in cfg["model"].items() if isinstance(node, Mapping)], []
    for name, node in cfg["objectives"].items():
        parameter = signature_of(node["_target_"], place=f"objectives.{name}").parameters.get("by")
        by = node.get("by", None if parameter is None else parameter.word)
        if isinstance(by, str) and by not in parts and str(node["_target_"]).startswith("vlpkit."):
            lines.append(f"objectives.{name} {no_part(by, cfg['name'], parts)}")
    return lines


def undrawn(cfg: Mapping[str, Any], *, conf: Path | None = None) -> list[str]:
    """One line for each `DRAW.KEY` that an objective or a draw of ours reads, where no draw has that name, and with the options of `conf` that make one."""
    draws, lines = cfg["draws"], []
    for place, nodes in (("objectives", cfg["objectives"]), ("draws", draws)):
        for name, node in nodes.items():
            if not str(node["_target_"]).startswith("vlpkit."):
                continue
            parameters = signature_of(node["_target_"], place=f"{place}.{name}").parameters
            given = {key: p.word for key, p in parameters.items() if p.word is not None} | {k: v for k, v in node.items() if k != "_target_"}
            for key, value in given.items():
                draw = value.partition(".")[0] if isinstance(value, str) and re.fullmatch(r"[a-z]\w*\.[a-z]\w*", value) else None
                if draw is not None and draw not in draws and draw not in cfg["model"]:
                    lines.append(f"{place}.{name}.{key} {no_draw(value, draws, makers=_makers(conf, draw))}")
    return lines


def _makers(conf: Path | None, draw: str) -> list[str]:
    """Objectives that bring a draw of this name along."""
    files = [] if conf is None else sorted((conf / "objective").glob("*.yaml"))
    return [file.stem for file in files if draw in (OmegaConf.select(OmegaConf.load(file), "draws") or {})]


def astray(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each address of ties, freeze and optimiser groups that begins with no part of the model; where it leads is seen at assembly."""
    model, lines = cfg["model"], []
    roots = [*(key for key, node in model.items() if isinstance(node, Mapping) and key not in LISTS), "heads"]
    ties = model.get("ties") or []
    told = [
        *((f"model.ties[{i}]", side) for i, rule in enumerate(ties) for side in str(rule).split("->")),
        *((f"model.freeze[{i}]", address) for i, address in enumerate(model.get("freeze") or [])),
        *((f"optim.groups[{i}].match", group.get("match")) for i, group in enumerate(cfg["optim"].get("groups") or []) if isinstance(group, Mapping)),
    ]
    for place, address in told:
        first = str(address or "").strip().partition(".")[0]
        known = [*roots, *(_GROUPED if place.startswith("optim") else ())]
        for word in re.findall(r"\w+", first) if "*" not in first else ():
            if word not in known:
                lines.append(f"{place}: {str(address).strip()!r} matches nothing: the model has no {word!r} (it has: {', '.join(roots)}). {did_you_mean(word, known)}".rstrip())
    return lines


def unknown(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each backbone of timm, and each kind of text model of transformers, that the installed library does not have: its files
    are searched, since importing it would take seconds."""
    lines = []
    for part, node in cfg["model"].items():
        embed: Mapping[str, Any] = (node.get("embed") if isinstance(node, Mapping) else None) or {}
        target = embed.get("_target_")
        place = f"model.{part}.embed"
        if target in _BACKBONES and ":" not in (name := str(embed["name"])):
            names = _timm_names()
            if names and name.partition(".")[0] not in names:
                lines.append(f"{place}.name: timm has no {name!r}. {did_you_mean(name, names)}".rstrip())
        if target == _OPAQUE and embed.get("pretrained") is None:
            kinds = _transformers_kinds()
            if kinds and str(embed["kind"]).replace("-", "_") not in kinds:
                lines.append(f"{place}.kind: transformers has no {embed['kind']!r}. {did_you_mean(str(embed['kind']), kinds)}".rstrip())
    return lines


@cache
def _timm_names() -> list[str]:
    files = (path for folder in _folders("timm") for path in Path(folder, "models").glob("*.py"))
    return sorted({name for path in files for name in re.findall(r"^@register_model\ndef (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)})


@cache
def _transformers_kinds() -> list[str]:
    return sorted(path.parent.name for folder in _folders("transformers") for path in Path(folder, "models").glob("*/__init__.py"))


def _folders(package: str) -> list[str]:
    spec = find_spec(package)
    return [] if spec is None else list(spec.submodule_search_locations or ())


def disordered(cfg: Mapping[str, Any]) -> list[str]:
    """One line for each objective of ours that gives an ordered text to a fusion over a transformers encoder."""
    model, lines = cfg["model"], []
    ordered = {word for name, node in cfg["draws"].items() for word in _ordered(name, node)}
    for name, node in cfg["objectives"].items():
        if not str(node["_target_"]).startswith("vlpkit."):
            continue
        parameters = signature_of(node["_target_"], place=f"objectives.{name}").parameters
        text, by = (node.get(word, parameters[word].word if word in parameters else None) for word in ("text", "by"))
        if text in ordered and isinstance(by, str):
            lines += [f"objectives.{name} {opaque_text(str(kind))}" for kind in _opaque(by, model, seen=set())]
    return lines


def _ordered(name: str, node: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a draw in which a word reads only what stands before it."""
    if node["_target_"] == "vlpkit.draws.words.Opening" and node.get("order") == "causal":
        yield f"{name}.text"
    if node["_target_"] == "vlpkit.draws.words.Split":
        yield f"{name}.suffix"


def _opaque(part: str, model: Mapping[str, Any], seen: set[str]) -> Iterator[Any]:
    """Kinds of the transformers encoders among what a part reads as words, and what that reads."""
    node = model.get(part)
    if part in seen or not isinstance(node, Mapping):
        return
    seen.add(part)
    embed, reads = node.get("embed"), node.get("reads")
    if isinstance(embed, Mapping) and embed.get("_target_") == _OPAQUE:
        yield embed.get("kind")
    for source in _names(reads.get("w") if isinstance(reads, Mapping) else None):
        yield from _opaque(source, model, seen)


def _names(node: Any) -> Iterator[str]:
    """Every word in the strings of a config, and in those that its parts take when nothing is said."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            parameters = signature_of(node["_target_"], place="").parameters
            yield from _names([p.word for name, p in parameters.items() if p.word is not None and name not in node])
        yield from _names([value for key, value in node.items() if key != "_target_"])
    elif isinstance(node, list):
        for value in node:
            yield from _names(value)
    elif isinstance(node, str):
        yield from re.findall(r"\w+", node)
