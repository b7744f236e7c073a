"""What `data.mix` asks for: sets of pairs and how much of each, presets of conf/data by name; read and checked without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vlpkit.errors import ConfigError, did_you_mean

_OF_PRESET = ("shards", "root", "limit", "safe")  # what a preset tells of its set
_KEYS = ("weight", *_OF_PRESET)
_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


@dataclass(frozen=True)
class PairSet:
    """One set of pairs; a run without a mixture has one.

    Args:
        name: of the set, in reports.
        main: whether its shards are data.shards.
        weight: passes over it an epoch, or its percentage of the samples.
        percent: which of both.
        shards: as data.shards.
        root: folder that they start from.
        limit: the first so many samples only; None: all.
        safe: what its captions survive.
    """

    name: str
    main: bool
    weight: float
    percent: bool
    shards: str | Sequence[str] | None
    root: str
    limit: int | None
    safe: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Configuration key of its shards."""
        return self.place("shards")

    def place(self, word: str) -> str:
        """Where a setting of it stands in the configuration."""
        return f"data.{word}" if self.main else f"data.mix.{self.name}.{word}"

    def __str__(self) -> str:
        return f"{self.weight} %" if self.percent else f"{self.weight} passes an epoch"


def read_mix(
    mix: Mapping[str, Any] | None, *, name: str, shards: str | Sequence[str] | None, root: str, limit: int | None, safe: Mapping[str, Any]
) -> dict[str, PairSet]:
    """The sets that pairs are taken from: those of `data.mix`, or data.shards alone.

    Args:
        mix: the setting; an entry called `name` stands for data.shards themselves.
        name, shards, root, limit, safe: of the data.

    Raises:
        ConfigError: with the place.
    """
    wanted = {one: entry for one, entry in sorted((mix or {}).items()) if entry is not None}  # sorted: how they are written down changes nothing
    if mix and not wanted:
        raise ConfigError("data.mix: every set is null, so nothing is left to read. Give one a weight")
    if not wanted:
        return {name: PairSet(name, True, 1.0, False, shards, root, limit, safe)}
    if shards and name not in (mix or {}):
        raise ConfigError(f"data.mix: leaves out {name}, the data itself. Add it, such as 'data.mix.{name}=1.0', or say that it is not read: data.mix.{name}=null")
    own = {"shards": shards, "root": root, "limit": limit, "safe": safe}
    found = {one: _read(one, entry, own, main=one == name) for one, entry in wanted.items()}
    percent = [one for one in found.values() if one.percent]
    if percent and len(percent) < len(found):
        odd = next(one for one in found.values() if not one.percent)
        raise ConfigError(f"data.mix: {percent[0].name} has {percent[0]}, but {odd.name} {odd}. Give every set the one or the other")
    if percent and abs((together := sum(one.weight for one in percent)) - 100) > 1e-6:
        raise ConfigError(f"data.mix: the percentages come to {together:g} %; they must come to 100 %")
    return found


def _read(name: str, entry: Any, own: Mapping[str, Any], *, main: bool) -> PairSet:
    place = f"data.mix.{name}"
    node: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"weight": entry}
    for word in node:
        if word not in _KEYS:
            raise ConfigError(f"{place}: no key {word!r} (there are: {', '.join(_KEYS)}). {did_you_mean(str(word), _KEYS)}".rstrip())
    weight, percent = _weight(node.get("weight", 1.0), place)
    main = main and node.get("shards") is None
    if not main and not node.get("shards"):
        raise ConfigError(f"{place}: names no shards. Write {place}.shards=..., or take the name of a preset in conf/data")
    limits = [limit for limit in (node.get("limit"), own["limit"]) if limit is not None]
    if any(not isinstance(limit, int) or limit < 1 for limit in limits):
        raise ConfigError(f"{place}.limit is {node.get('limit')!r}; it must be at least 1, or null for all")
    safe = node.get("safe") or {}
    if not isinstance(safe, Mapping):
        raise ConfigError(f"{place}.safe is {safe!r}; it is a block such as {{mirror: false}}")
    root = own["root"] if node.get("root") is None else str(node["root"])
    shards = own["shards"] if main else node["shards"]
    return PairSet(name, main, weight, percent, shards, root, min(limits, default=None), {**own["safe"], **safe})


def _weight(found: Any, place: str) -> tuple[float, bool]:
    percent = _PERCENT.match(found) if isinstance(found, str) else None
    if percent is not None and float(percent[1]) > 0:
        return float(percent[1]), True
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        accepted = "passes over the set an epoch, such as 1.0 or 0.5, or a share such as 30%; above 0, or null to leave the set out"
        raise ConfigError(f"{place}.weight is {found!r} (accepted: {accepted})")
    return float(found), False


def fill_mix(cfg: DictConfig, *, conf: Path) -> None:
    """Put what a preset says of its set where `data.mix` names it, so that the settings of a run tell the whole mixture.

    Args:
        cfg: as composed; changed in place.
        conf: folder of the config groups.

    Raises:
        ConfigError: a name is no preset, or one that is no set of shards.
    """
    mix = cfg.data.get("mix")
    if not isinstance(mix, DictConfig):
        return
    with open_dict(cfg):
        for name in [str(key) for key in mix]:
            entry: Any = OmegaConf.to_container(mix[name]) if isinstance(mix[name], DictConfig) else {"weight": mix[name]}
            if mix[name] is not None and name != cfg.data.get("name") and entry.get("shards") is None:
                mix[name] = {**_preset(name, conf), **entry}


def _preset(name: str, conf: Path) -> dict[str, Any]:
    folder, place = conf / "data", f"data.mix.{name}"
    file = folder / f"{name}.yaml"
    if not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.yaml"))
        guess = did_you_mean(name, there)
        raise ConfigError(f"{place}: there is no preset conf/data/{name}.yaml (there are: {', '.join(there)}). {guess or f'Or name its shards: {place}.shards=...'}")
    preset = OmegaConf.load(file)
    assert isinstance(preset, DictConfig)
    if preset.get("mix"):
        raise ConfigError(f"{place}: {name} is a mixture itself. Name its sets instead: {', '.join(map(str, preset.mix))}")
    if "world" in preset:
        raise ConfigError(f"{place}: {name} is made, not read, so it can only be the data itself: data={name} 'data.mix={{{name}: 1.0, ...}}'")
    plain: Any = OmegaConf.to_container(preset)
    if plain.get("shards") in (None, "???"):
        raise ConfigError(f"{place}: the preset {name} names no shards. Write {place}.shards=...")
    return {key: plain[key] for key in _OF_PRESET if key in plain}
