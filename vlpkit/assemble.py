"""Configuration to model: parts in order, widths passed along what they read, heads, ties, freeze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlpkit import address
from vlpkit.build import build
from vlpkit.data.tokenize import Words
from vlpkit.durations import Clock
from vlpkit.encoders.encoder import Encoder
from vlpkit.errors import AssemblyError, no_part
from vlpkit.fusion import Fusion
from vlpkit.model import VLModel, parse_reads
from vlpkit.objectives.base import Objective
from vlpkit.plan import Plan
from vlpkit.streams import Draw, Streams
from vlpkit.teacher import Teacher
from vlpkit.types import Dims

if TYPE_CHECKING:  # brings decoders, which few recipes need for a dry step
    from vlpkit.data.regions import Detections

ORDER = ("vision", "text", "fusion", "decoder")


@dataclass(eq=False)
class Assembly:
    """What a recipe became.

    Args:
        model: parts and heads, tied and frozen.
        objectives: by name.
        draws: by name.
        plan: which objectives at which step.
        teacher: momentum copy, made after weights are loaded; None without.
        frozen: addresses that were frozen.
        ties: (first address, other address) of everything shared.
    """

    model: VLModel
    objectives: dict[str, Objective]
    draws: dict[str, Draw]
    plan: Plan
    teacher: Teacher | None
    frozen: list[str]
    ties: list[tuple[str, str]]

    def ask(self, streams: Mapping[str, Streams], step: int) -> Iterator[tuple[str, Objective, Streams]]:
        """The objectives of a step with the streams of their source."""
        for source, names in self.plan(step).ask.items():
            for name in names:
                yield name, self.objectives[name], streams[source]


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the config path before what a part complains about."""
    try:
        yield
    except AssemblyError as error:
        text = str(error)
        raise AssemblyError(text if text.startswith(place) else f"{place}{'' if text[:5] in ('asks ', 'reads') else ':'} {text}") from error
    except (ValueError, KeyError) as error:
        raise AssemblyError(f"{place}: {error.args[0] if error.args else error}") from error


class _Builder:
    def __init__(self, cfg: Mapping[str, Any], words: Words, clock: Clock) -> None:
        self.cfg, self.words, self.clock = cfg, words, clock
        self.name: str = cfg["name"]
        self.parts: dict[str, nn.Module] = {}
        self.dims: dict[str, int] = {}

    def part_missing(self, name: str) -> AssemblyError:
        part = name.partition(".")[0]
        if part in self.parts:
            taps = ", ".join(n.partition(".")[2] for n in self.dims if n.startswith(f"{part}.")) or "one width"
            return AssemblyError(f"{name!r} is no tap of {part} (it has: {taps})")
        return AssemblyError(no_part(part, self.name, self.parts))

    def width(self, reads: str) -> int:
        """D of what `reads` names; every term must agree."""
        widths = {}
        for part, tap, _run in parse_reads(reads):
            if tap.isdigit() and isinstance(encoder := self.parts.get(part), Encoder):
                encoder.cut(tap)
                self.dims[f"{part}.{tap}"] = encoder.width(tap)
            if f"{part}.{tap}" not in self.dims:
                raise self.part_missing(f"{part}.{tap}")
            widths[f"{part}.{tap}"] = self.dims[f"{part}.{tap}"]
        if len(set(widths.values())) > 1:
            raise ValueError(f"{reads!r} joins widths {', '.join(f'{n} {d}' for n, d in widths.items())}")
        return next(iter(widths.values()))

    def make(self, node: Any, place: str, **offers: Any) -> Any:
        return None if node is None else build(node, self.clock, where=place, words=self.words, vocab=self.words.size, **offers)

    def part(self, key: str, node: Mapping[str, Any]) -> None:
        place = f"model.{key}"
        with at(place):
            if "embed" in node:
                embed = self.make(node["embed"], f"{place}.embed")
                # A trunk with cross-attention is there to be lent to a fusion or a decoder, which reads the images.
                lent = {"memory_dim": self.dims["vision.encode"]} if "vision.encode" in self.dims else {}
                node = {**node, "embed": embed, "words": self.words} if "words" in node else {**node, "embed": embed}
                made: nn.Module = self.make(node, place, dim=embed.dim, **lent)
                assert isinstance(made, Encoder)
                self.dims.update({f"{key}.{tap}": made.width(tap) for tap in made.taps})
            elif "steps" in node:
                v, w = (self.reading(place, node, side) for side in ("v", "w"))
                sides = {"v": self.make(node.get("v"), f"{place}.v", dim=v, memory_dim=w), "w": self.make(node.get("w"), f"{place}.w", dim=w, memory_dim=v)}
                joint = self.make(node.get("joint"), f"{place}.joint", dim=w, image_dim=v)
                made = self.make({**node, **sides, "joint": joint}, place)
                self.dims.update({f"{key}.v": v if joint is None else w, f"{key}.w": w})
            elif "reads" in node:
                sides = {side: self.make(node[side], f"{place}.{side}", dim=self.reading(place, node, side)) for side in ("v", "w")}
                made = self.make({**node, **sides}, place)
                self.dims[key] = int(made.dim)  # type: ignore[arg-type]
            else:
                made = self.make(node, place)
        self.parts[key] = made

    def reading(self, place: str, node: Mapping[str, Any], side: str) -> int:
        with at(f"{place}.reads.{side}"):
            return self.width(node["reads"][side])

    def objectives(self) -> dict[str, Objective]:
        made: dict[str, Objective] = {}
        for name, node in self.cfg["objectives"].items():
            by = node.get("by", "align")
            with at(f"objectives.{name}"):
                offers = {"space": self.dims[by]} if by in self.dims else {}
                made[name] = self.make(node, f"objectives.{name}", **offers)
            if next(made[name].parameters(), None) is not None:
                raise AssemblyError(f"objectives.{name}: {type(made[name]).__name__} owns parameters; heads belong to the model (declare them in `heads`)")
        if not made:
            raise AssemblyError("objectives: there is none; choose some, such as objective=[itc]")
        return made

    def heads(self, objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
        dims = Dims(self.dims, self.words.size, self.part_missing)
        heads: dict[str, nn.Module] = {}
        for name, objective in objectives.items():
            with at(f"objectives.{name}"):
                for key, head in objective.heads(dims).items():
                    heads.setdefault(key, head)
        return heads


def tie(model: VLModel, rules: list[str]) -> list[tuple[str, str]]:
    """Replace right-hand modules, parameters or buffers by left-hand ones. Returns (first address, other address)."""
    done = []
    for i, rule in enumerate(rules):
        with at(f"model.ties[{i}]"):
            for left, right in address.pairs(model, rule):
                kept = address.resolve(model, left)
                if kept is None:
                    raise AssemblyError(f"{rule!r}: {left} is empty; a tie gives away what is on its left")
                _same_shape(rule, kept, address.resolve(model, right), left, right)
                address.replace(model, right, kept)
                done.append((left, right))
    return done


def _same_shape(rule: str, kept: Any, gone: Any, left: str, right: str) -> None:
    if gone is None:
        return
    if isinstance(kept, torch.Tensor) and isinstance(gone, torch.Tensor):
        ours, theirs = {"": kept.shape}, {"": gone.shape}
    else:
        ours, theirs = ({n: p.shape for n, p in m.named_parameters()} for m in (kept, gone))
    for name in ours.keys() | theirs.keys():
        a, b = ours.get(name), theirs.get(name)
        if a != b:
            suffix = f".{name}" if name else ""
            raise AssemblyError(f"{rule!r}: {left}{suffix} is {tuple(a) if a else 'absent'}, {right}{suffix} is {tuple(b) if b else 'absent'}; a tie needs equal shapes")


def assemble(cfg: Mapping[str, Any], *, words: Words, clock: Clock, with_teacher: bool = True) -> Assembly:
    """Build everything a recipe names, on torch's default device.

    Args:
        cfg: resolved configuration with name, model, objectives, draws, teacher and plan; already checked by signature.
        words: the tokenizer.
        clock: turns durations into steps.
        with_teacher: False leaves the teacher to be copied after weights are loaded.

    Raises:
        AssemblyError: a missing part, tap or draw, a tie without effect, widths that differ, a hole.
    """
    b = _Builder(cfg, words, clock)
    parts = {key: node for key, node in cfg["model"].items() if isinstance(node, Mapping)}
    for key in [*(k for k in ORDER if k in parts), *(k for k in parts if k not in ORDER)]:
        b.part(key, parts[key])
    objectives = b.objectives()
    model = VLModel(b.name, b.parts, b.heads(objectives))
    ties = tie(model, list(cfg["model"].get("ties") or []))
    frozen = []
    for i, pattern in enumerate(cfg["model"].get("freeze") or []):
        with at(f"model.freeze[{i}]"):
            for path, found in address.find(model, pattern):
                found.requires_grad_(False)
                frozen.append(path)
                if isinstance(found, nn.Module):
                    model.frozen.append(path)
    model.train(model.training)
    for key in model.names:
        part = model.part(key)
        if isinstance(part, Fusion):
            with at(f"model.{key}"):
                part.plan()
    draws: dict[str, Draw] = {}
    for key, node in cfg["draws"].items():
        with at(f"draws.{key}"):
            draws[key] = b.make(node, f"draws.{key}")
    with at("plan"):
        plan: Plan = b.make(cfg["plan"], "plan", sources={name: objective.on for name, objective in objectives.items()}, seed=cfg["seed"])
    made = Assembly(model, objectives, draws, plan, None, frozen, ties)
    if with_teacher:
        give_teacher(made, cfg, clock)
    return made


def give_teacher(assembly: Assembly, cfg: Mapping[str, Any], clock: Clock) -> None:
    """Copy the teacher from the model as it stands now: after weights were loaded."""
    if cfg.get("teacher") is not None:
        with at("teacher"):
            assembly.teacher = build(cfg["teacher"], clock, where="teacher", model=assembly.model)


def image_size(cfg: Mapping[str, Any]) -> int | None:
    """Side in pixels of the images that the vision part reads, or a detector for it; None when neither reads any."""
    size = (cfg["model"].get("detector") or cfg["model"]["vision"]["embed"]).get("image_size")
    return None if size is None else int(size)


def detections(cfg: Mapping[str, Any]) -> Detections:
    """Which regions the data delivers. Raises AssemblyError when a vision part without pixels finds none of these, either."""
    node = cfg["data"].get("regions")
    if node is None:
        raise AssemblyError("model.vision reads no pixels, and data.regions is null. Use vision=regions, which asks the data for regions, or another vision")
    made: Detections = build(node, None, where="data.regions")
    return made
