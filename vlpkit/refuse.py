"""Gate 1: a command line that Hydra would refuse is refused here first, with the place, what was found, what is accepted and a remedy.
Every value of a sweep is composed before the first job starts. Imports Hydra, never torch."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlpkit.check import LISTS, idle_blocks, signature_of, unknown_key
from vlpkit.errors import ConfigError, VlpError, nearest, several
from vlpkit.rephrase import Rephrased, first_line, frame_keys, frame_kind

MOST_JOBS = 24  # of a larger sweep, each value is composed once instead of every combination

OPEN = ("model", "objectives", "draws", "teacher", "plan", "logger", "evals")  # parts, or names of the user's choice
_NAMED = re.compile(r"data\.(mix|sources)(\.|$)")  # blocks whose keys are names of the user's choice

_FORM = "Write key=value, such as optim.lr=1e-4, and quote what the shell would take for itself: 'objective=[itc,lm]'"


@dataclass(frozen=True)
class Job:
    """One composed combination: its overrides in the order given, those that need `++` to reach a key which the YAML leaves out, the config."""

    overrides: tuple[str, ...]
    opened: Mapping[str, str]
    config: DictConfig


class Gate:
    """Composes what was asked for, and says in our words what is wrong with it.

    Args:
        loader: Hydra's, with its search path.
        conf: folder of the config groups, which messages name.
        name: primary config.
    """

    def __init__(self, loader: ConfigLoaderImpl, *, conf: Path, name: str) -> None:
        self.loader, self.conf, self.name = loader, conf, name
        self.repo: IConfigRepository = loader.repository
        self.sweeping = False
        self._loaded: dict[tuple[str, ...], DictConfig] = {}

    def jobs(self, overrides: Sequence[str], *, multirun: bool) -> Iterator[Job]:
        """Every combination, or with very many each value once. Raises ConfigError for the first one that cannot be composed."""
        self.sweeping = multirun
        parsed = [self._parse(text) for text in overrides]
        self._open(parsed)
        sweeps = [override for override in parsed if override.is_sweep_override()]
        if sweeps and not multirun:
            raise ConfigError("\n".join(_unasked_sweep(override) for override in sweeps))
        wrong = [problem for override in parsed for problem in self._options(override)]
        if wrong:
            raise ConfigError(several(wrong))
        wrong = [problem for override in parsed for problem in self._additions(override)]
        if wrong:
            raise ConfigError(several(wrong))
        for i, texts in enumerate(_combinations([_values(override) for override in parsed])):
            try:
                job = self._compose(texts)
            except VlpError as error:
                raise in_job(error, texts, [o.get_key_element() for o in sweeps]) from error
            if i == 0 and multirun:  # a file may ask for a sweep, too
                params = job.config.hydra.sweeper.get("params") or {}
                extra = [f"{key}={value}" for key, value in params.items() if key not in {o.get_key_element() for o in parsed}]
                if extra:
                    yield from self.jobs([*extra, *overrides], multirun=True)
                    return
            yield job

    def groups(self) -> list[str]:
        """Names of the groups that a command may choose from."""
        return [name for name in self.repo.get_group_options("", ObjectType.GROUP) if name not in ("hydra", "schema")]

    def options(self, group: str) -> list[str]:
        """Options of a group."""
        return list(self.repo.get_group_options(group, ObjectType.CONFIG))

    def _parse(self, text: str) -> Override:
        try:
            return OverridesParser.create(config_loader=self.loader).parse_overrides([text])[0]
        except HydraException as error:
            raise ConfigError(f"{text!r} cannot be read as an override ({first_line(error)}).\n  {_FORM}.") from error

    def _open(self, parsed: Sequence[Override]) -> None:
        """The repository with what `hydra.searchpath` adds to it."""
        asked = [str(override.input_line) for override in parsed if override.get_key_element() == "hydra.searchpath"]
        with Rephrased(self.conf):
            self.repo = self.loader._parse_overrides_and_create_caching_repo(self.name, asked)[1]

    def _is_group(self, override: Override) -> bool:
        named = override.package is not None or self.repo.group_exists(override.key_or_group)
        return named and not isinstance(override.value(), dict)  # size={depth: 2} sets keys

    def _options(self, override: Override) -> Iterator[str]:
        """What is wrong with the options that an override chooses."""
        group = override.key_or_group
        if not self._is_group(override) or override.is_delete():
            return
        there = self.options(group)
        for value in _choices(override):
            if isinstance(value, str) and (value in there or ("/" in value and self.repo.config_exists(f"{group}/{value}"))):
                continue
            found = f"there is no option {value!r}" if isinstance(value, str) else f"an option is a name, found {value!r}"
            close = nearest(str(value).removesuffix(".yaml"), there)
            guess = "" if close is None else f" Did you mean {group}={_listed(override, close)}?"
            yield f"{group}: {found} (there are: {', '.join(there)}).{guess}"

    def _additions(self, override: Override) -> Iterator[str]:
        """What is wrong with a group that an override adds, takes away, or puts at a package of its own."""
        key, there = override.get_key_element().lstrip("+~"), self._defaults()
        if not self._is_group(override) or override.is_hydra_override():
            return
        if override.is_add() and key in there:
            yield f"{override.input_line}: {key} is chosen from already. Write {str(override.input_line).lstrip('+')}"
        elif override.is_delete() and isinstance(there.get(key), list):
            yield f"{override.input_line}: {key} is a list; take all away with {key}=[]"
        elif override.package is not None and key not in there and not override.is_add():
            yield f"{override.input_line}: nothing stands at {override.package} to be replaced. To add it there, write +{override.input_line}"

    def _defaults(self) -> dict[str, Any]:
        """Groups of the primary config with what they choose before anything is asked."""
        loaded = self.repo.load_config(self.name)
        chosen = [] if loaded is None or loaded.defaults_list is None else loaded.defaults_list
        groups = [default for default in chosen if isinstance(default, GroupDefault)]
        return {f"{d.group}@{d.package}" if d.package else str(d.group): d.value for d in groups}

    def spell_out(self, overrides: Sequence[str]) -> list[str]:
        """`fusion=null` as Hydra wants it: `~fusion`, and `objective=null` as an empty list."""
        texts = []
        for text in overrides:
            key, _, value = text.partition("=")
            if value == "null" and self.repo.group_exists(key):
                text = f"{key}=[]" if isinstance(self._defaults().get(key), list) else f"~{key}"
            texts.append(text)
        return texts

    def _compose(self, texts: Sequence[str]) -> Job:
        parsed = [self._parse(text) for text in texts]
        later = [o for o in parsed if not (self._is_group(o) or o.is_hydra_override() or o.is_add() or o.is_force_add() or o.is_delete())]
        first = [str(override.input_line) for override in parsed if override not in later]
        cfg = self._load(first)
        wrong, opened = list(self._strays(cfg)), {}
        for override in later:
            try:
                if self._assign(cfg, override.key_or_group, override.value()):
                    opened[str(override.input_line)] = f"++{override.input_line}"
            except ConfigError as error:
                wrong.append(str(error))
        if not wrong:
            wrong = [self._in_vain(key, place) for place in idle_blocks(cfg) for o in later if (key := o.key_or_group).startswith(f"{place}.")]
        if wrong:
            raise ConfigError(several(wrong))
        return Job(tuple(texts), opened, cfg)

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        """What the groups say; composed once for all jobs that differ in plain keys only."""
        key = tuple(overrides)
        if key not in self._loaded:
            with Rephrased(self.conf):
                self._loaded[key] = self.loader.load_configuration(self.name, list(overrides), run_mode=RunMode.RUN, validate_sweep_overrides=False)
        return copy.deepcopy(self._loaded[key]) if self.sweeping else self._loaded.pop(key)

    def _strays(self, cfg: DictConfig) -> Iterator[str]:
        """Keys that no option file knows, in blocks that name no part: a misspelt `size.depht` in a recipe would else go unread."""
        for name in (str(key) for key in cfg if key != "hydra"):
            if name not in frame_keys():
                yield f"{name}: no such key (a config has: {', '.join(frame_keys())}).{_guess(name, frame_keys())}"
                continue
            if name in OPEN or name not in self.groups() or not isinstance(cfg[name], DictConfig) or "_target_" in cfg[name]:
                continue
            known = {path for option in self.options(name) for path in self._known(name, option)}
            for path in _paths(cfg[name], f"{name}."):
                if path not in known:
                    above, _, word = path.rpartition(".")
                    beside = sorted(there.rpartition(".")[2] for there in known if there.rpartition(".")[0] == above)
                    yield f"{path}: no such key ({above} has: {', '.join(beside)}).{_guess(word, beside, f'{above}.')}"

    def _known(self, group: str, option: str) -> Iterator[str]:
        """Keys that an option file sets below its group's own name."""
        with Rephrased(self.conf):
            loaded = self.repo.load_config(f"{group}/{option}")
        assert loaded is not None  # it was listed
        node = loaded.config.get(group) if loaded.header["package"] == "_global_" else loaded.config
        yield from _paths(node, f"{group}.")

    def _in_vain(self, key: str, place: str) -> str:
        return f"{key}: has no effect, as this command builds no {place}.{self._add_one(place.rpartition('.')[2])}"

    def _assign(self, cfg: DictConfig, key: str, value: Any) -> bool:
        """Set a key; True when the YAML leaves it out but the part it belongs to takes it."""
        parts = re.findall(r"[^.\[\]]+", key)
        node, depth = _descend(cfg, parts)
        absent, named = depth < len(parts), _NAMED.match(key) is not None and isinstance(node, DictConfig) and not node._is_none()
        if absent and not (named and depth == 2) and not self._takes(node, ".".join(parts[:depth]), parts[depth]):
            raise ConfigError(self._no_such_key(cfg, node, parts, depth, value))
        if isinstance(node, DictConfig) and not absent and not node._is_none() and value is not None and not isinstance(value, dict):
            raise ConfigError(f"{key}: is a block of keys ({', '.join(map(str, node))}), found {value!r}.{self._as_choice(parts[-1], value)}")
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=absent or named)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: takes {frame_kind(parts[0])}, found {value!r}.") from error
        return absent or named

    def _takes(self, node: Any, place: str, key: str) -> bool:
        if not isinstance(node, DictConfig) or node._is_none():
            return False
        if "_target_" not in node:
            return place == "model" and key in LISTS
        signature = signature_of(node["_target_"], place=place)
        if key not in signature.parameters and not signature.anything:
            raise ConfigError(unknown_key(signature, [key], place=place, node=node, conf=self.conf, typed=True))
        return True

    def _no_such_key(self, cfg: DictConfig, node: Any, parts: Sequence[str], depth: int, value: Any) -> str:
        key, place, word, rest = ".".join(parts), ".".join(parts[:depth]), parts[depth], parts[depth + 1 :]
        if not isinstance(node, Container) or node._is_none():
            return f"{key}: {place} is {'null' if _empty(node) else repr(node)} here, so it has no keys.{self._add_one(parts[depth - 1])}"
        if isinstance(node, ListConfig):
            return f"{key}: {place} is a list of {len(node)}, counted from 0."
        keys = [str(name) for name in node if name != "hydra"]
        elsewhere = [path for path in _paths(cfg) if path.endswith(f".{key}")]
        close = nearest(word, [*keys, *(self.groups() if depth == 0 else [])])
        if depth == 0 and close in self.groups() and not rest:
            guess = self._as_choice(str(close), value)
        else:
            near = elsewhere[0] if elsewhere else None if close is None else ".".join([*parts[:depth], close, *rest])
            guess = "" if near is None else f" Did you mean {near}?"
        if depth == 0:
            return f"{key}: there is no group and no key {word!r}.{guess}\n  groups: {', '.join(self.groups())}\n  keys: {', '.join(keys)}"
        return f"{key}: no such key ({place} has: {', '.join(keys) or 'nothing'}).{self._add_one(word) or guess}"

    def _add_one(self, group: str) -> str:
        there = self.options(group) if group in self.groups() else []
        return f" Choose one: {group}={there[0]} (there are: {', '.join(there)})." if there else ""

    def _as_choice(self, group: str, value: Any) -> str:
        if group not in self.groups():
            return ""
        close = value if not isinstance(value, str) or value in self.options(group) else nearest(value, self.options(group))
        return "" if close is None else f" Did you mean {group}={close}?"


def _guess(word: str, choices: Sequence[str], above: str = "") -> str:
    close = nearest(word, choices)
    return "" if close is None else f" Did you mean {above}{close}?"


def in_job(error: VlpError, texts: Sequence[str], swept: Sequence[str]) -> VlpError:
    """The same error, naming the job of a sweep that it belongs to."""
    mine = [text for text in texts if text.partition("=")[0] in swept]
    return type(error)(f"In the job {' '.join(mine)}:\n{error}") if mine else error


def _combinations(values: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    count = 1
    for texts in values:
        count *= len(texts)
    if count <= MOST_JOBS:
        yield from itertools.product(*values)
        return
    first = [texts[0] for texts in values]
    yield tuple(first)
    for i, texts in enumerate(values):
        for text in texts[1:MOST_JOBS]:
            yield (*first[:i], text, *first[i + 1 :])


def _values(override: Override) -> list[str]:
    """An override as the overrides of its jobs; of a continuous range the lower end stands for all."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{override.get_key_element()}={value.start}"]
    texts = [f"{override.get_key_element()}={text}" for text in itertools.islice(override.sweep_iterator(transformer=Transformer.str), 1000)]
    if not texts:
        raise ConfigError(f"{override.input_line}: the sweep has no values.")
    return texts


def _choices(override: Override) -> list[Any]:
    if override.is_sweep_override():
        chosen = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
        values = [getattr(value, "text", value) for value in chosen]  # a quoted string knows its text
    else:
        values = [override.value()]
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _listed(override: Override, option: str) -> str:
    return f"[{option}]" if isinstance(override.value(), list) else option


def _unasked_sweep(override: Override) -> str:
    key, _, value = str(override.input_line).partition("=")
    return f"{override.input_line}: several values are a sweep. Run them one after another with -m, or write a list: '{key}=[{value}]'"


def _descend(cfg: DictConfig, parts: Sequence[str]) -> tuple[Any, int]:
    """The deepest node on a path that exists, and how many parts lead to it."""
    node: Any = cfg
    for depth, part in enumerate(parts):
        if isinstance(node, DictConfig) and not _empty(node) and part in node.keys():  # noqa: SIM118 - `in` hides null and missing values
            inner = node._get_node(part)
            node = inner if isinstance(inner, Container) else inner._value()  # type: ignore[union-attr]
        elif isinstance(node, ListConfig) and not _empty(node) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return node, depth
    return node, len(parts)


def _empty(node: Any) -> bool:
    return node is None or (isinstance(node, Container) and node._is_none())


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig) and not _empty(node) and not node._is_missing() and not node._is_interpolation():
        for key in node.keys():  # noqa: SIM118
            if prefix or key != "hydra":
                yield f"{prefix}{key!s}"
                yield from _paths(node._get_node(key), f"{prefix}{key!s}.")
