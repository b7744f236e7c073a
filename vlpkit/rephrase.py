"""What Hydra and OmegaConf say about config files, in our words: the file, the key, what is accepted there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from vlpkit.check import signature_of
from vlpkit.errors import ConfigError, nearest
from vlpkit.kinds import describe, read_kind


class Rephrased:
    """Turns what Hydra and OmegaConf raise about files into our errors."""

    def __init__(self, conf: Path) -> None:
        self.conf = conf

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MarkedYAMLError):
            mark = error.problem_mark
            where = "a config file" if mark is None else f"{_short(mark.name, self.conf)}, line {mark.line + 1}, column {mark.column + 1}"
            raise ConfigError(f"{where}: this is not YAML ({error.problem}).") from error
        if isinstance(error, MissingConfigException):
            raise ConfigError(self._missing(error)) from error
        if isinstance(error, HydraException | OmegaConfBaseException | ValueError):
            raise ConfigError(self._composition(error)) from error

    def _missing(self, error: MissingConfigException) -> str:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if not group:
            there = sorted(file.stem for file in self.conf.glob("*.yaml"))
            return f"--config-name: there is no {option.removesuffix('.yaml')!r} in {self.conf.name}/ (there are: {', '.join(there)})."
        file = _chosen_in(self.conf, group, option) or _file_named_in(str(error))
        there = list(error.options or [])
        close = nearest(option, there)
        guess = "" if close is None else f" Did you mean {close!r}?"
        accepted = f" (there are: {', '.join(there)})" if there else ""
        return f"{file}{group}: there is no option {option!r}{accepted}.{guess}"

    def _composition(self, error: BaseException) -> str:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OmegaConfBaseException):
            cause = cause.__cause__ or cause.__context__
        file = _file_named_in(str(error))
        if isinstance(cause, GrammarParseError):
            return f"{_unreadable(self.conf)}{cause.full_key}: an interpolation is written ${{key}} or ${{a.b}}, and this is none."
        if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
            return file + re.sub(r"^In '[^']*': ", "", first_line(error)) + "."
        key, top = str(cause.full_key), str(cause.full_key).partition(".")[0]
        if top == "hydra":
            return f"{key}: Hydra has no such setting, or takes another type there (--cfg hydra shows them)."
        if top in frame_keys():
            return f"{file}{key}: takes {frame_kind(top)}. {first_line(cause)}."
        close = nearest(top, frame_keys())
        guess = "" if close is None else f" Did you mean {close!r}?"
        return f"{file}{key}: no such key (a config has: {', '.join(frame_keys())}).{guess}"


def _chosen_in(conf: Path, group: str, option: str) -> str:
    """The file whose defaults override a group with this option; Hydra names the primary config instead."""
    wanted = re.compile(rf"-\s*override\s+/?{re.escape(group)}\s*:.*\b{re.escape(option)}\b")
    hits = (file for file in sorted(conf.rglob("*.yaml")) if wanted.search(file.read_text(encoding="utf-8")))
    return next((f"{_short(str(file), conf)}: " for file in hits), "")


def _unreadable(conf: Path) -> str:
    """The first file that OmegaConf cannot read; its error does not name it."""
    for file in sorted(conf.rglob("*.yaml")):
        try:
            OmegaConf.load(file)
        except OmegaConfBaseException:
            return f"{_short(str(file), conf)}: "
    return ""


def frame_keys() -> list[str]:
    """The keys at the top of a config."""
    return list(signature_of("vlpkit.schema.Root", place="schema").parameters)


def frame_kind(key: str) -> str:
    """What a key at the top of a config takes, in words."""
    parameter = signature_of("vlpkit.schema.Root", place="schema").parameters.get(key)
    return "another type" if parameter is None else describe(read_kind(parameter.annotation, parameter.source))


def _file_named_in(text: str) -> str:
    found = re.match(r"In '([^']+)': ", text)
    return f"conf/{found[1].removesuffix('.yaml')}.yaml: " if found else ""


def _short(file: str, conf: Path) -> str:
    path = Path(file)
    return f"conf/{path.relative_to(conf)}" if path.is_relative_to(conf) else file


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
