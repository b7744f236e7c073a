"""From the command line to a job: arguments completed, refused early when they cannot be right, then handed to Hydra.
A mistake the user can mend is printed alone and ends with code 2; anything else keeps its traceback and ends with 1."""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from vlpkit import schema
from vlpkit.check import trust
from vlpkit.data.shardlist import quoted
from vlpkit.errors import ConfigError, VlpError
from vlpkit.launch import check_launch
from vlpkit.refuse import Gate, in_job
from vlpkit.stages import read_stages, run_stages
from vlpkit.usage import usage

_WANTS = re.compile(r"#\s*size:\s*(\w+)\s*$")
_VALUE_FLAGS = ("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun")


def run_hydra(
    task: Callable[[DictConfig], Any], *, conf: Path, name: str = "train", check: Callable[[DictConfig], object] | None = None, argv: Sequence[str] | None = None,
) -> int:
    """Compose, refuse or run, and say how it went.

    Args:
        task: the job; gets the composed config, in which a job of a sweep finds its own `run_dir`.
        conf: folder with the config groups.
        name: primary config.
        check: called with the config of every job before the first one starts; it raises a VlpError to refuse.
        argv: arguments; those of the process when left out.

    Returns:
        exit code: 0, also for `--help`, or 2 when a VlpError was raised, whose message alone went to the error stream. Other exceptions pass.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(argv):
        sys.stdout.write(usage(conf, name))
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra swallows exceptions and exits with 1
    try:
        ahead = look_ahead(argv, conf=conf, name=name, check=check)
        sys.argv[1:] = ahead.arguments  # what a launcher repeats to start the other processes of a node
        if ahead.config is not None and ahead.config.get("stages"):
            stages = OmegaConf.to_container(ahead.config.stages, resolve=True)
            assert isinstance(stages, dict)
            runs = read_stages(stages, ahead.arguments, run_dir=ahead.config.run_dir)  # type: ignore[arg-type]
            return run_stages(runs, ask=lambda arguments: look_ahead(arguments, conf=conf, name=name, check=check))
        if ahead.config is not None:
            _run_once(_job(task), ahead)
        else:
            hydra.main(config_path=str(conf.resolve()), config_name=name, version_base="1.3")(_job(task))()
    except (VlpError, _Refusal) as error:
        sys.stderr.write(f"{error.error if isinstance(error, _Refusal) else error}\n")
        return 2
    return 0


@dataclass(frozen=True)
class Ahead:
    """What a command line will do.

    Args:
        arguments: as Hydra shall get them: flags first, the size that the data asks for, `++` where a part takes a key that its YAML leaves out.
        config: of a command that is a single run, composed and checked; None for sweeps and for commands that only show something.
        loader: that composed it.
    """

    arguments: list[str]
    config: DictConfig | None
    loader: ConfigLoaderImpl | None


def _run_once(task: Callable[[DictConfig], Any], ahead: Ahead) -> None:
    """Hydra's own way with a job, but for composing it: that took a third of the time to a refusal, and was done by the gate."""
    assert ahead.config is not None
    config, callbacks = ahead.config, Callbacks(ahead.config)
    with open_dict(config):
        config.hydra.mode = RunMode.RUN
        config.hydra.overrides.task = [text for text in ahead.arguments if not text.lstrip("+~").startswith("hydra")]
    callbacks.on_run_start(config=config, config_name=config.hydra.job.config_name)
    context = HydraContext(config_loader=ahead.loader, callbacks=callbacks)
    done = run_job(task_function=task, config=config, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
    callbacks.on_run_end(config=config, config_name=config.hydra.job.config_name, job_return=done)
    _ = done.return_value  # raises what the job raised


class _Refusal(BaseException):
    """Carries a VlpError past Hydra, which would announce every Exception of a job in its own words."""

    def __init__(self, error: VlpError) -> None:
        super().__init__(error)
        self.error = error


def _job(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        trust(cfg.plugins)
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # there Hydra keeps the error, goes on with the other jobs, and raises it at the end
            cfg.run_dir = HydraConfig.get().runtime.output_dir
            return task(cfg)
        try:
            return task(cfg)
        except VlpError as error:
            raise _Refusal(error) from error

    return job


def look_ahead(argv: Sequence[str], *, conf: Path, name: str = "train", check: Callable[[DictConfig], object] | None = None) -> Ahead:
    """Compose every job that the arguments ask for, before the first one starts.

    Raises:
        ConfigError: with every mistake of the first job that cannot be composed.
        VlpError: what `check` raises.
    """
    schema.register()
    asked = get_args_parser().parse_intermixed_args(list(argv))
    flags = _flags(argv)
    overrides = complete_arguments(list(map(quoted, asked.overrides)), conf=conf)
    if asked.hydra_help or asked.shell_completion or asked.experimental_rerun:
        return Ahead([*flags, *overrides], None, None)
    multirun = bool(asked.multirun) or "hydra.mode=MULTIRUN" in overrides
    if multirun:  # every job makes its own folder under the one asked for
        overrides = [re.sub(r"^\+{0,2}run_dir=", "hydra.sweep.dir=", text) for text in overrides]
    _trust_plugins(overrides)
    gate = _gate(asked, conf=conf, name=name)
    overrides = gate.spell_out(overrides)
    opened: dict[str, str] = {}
    running, single = not (asked.cfg or asked.info), None
    for job in gate.jobs(overrides, multirun=multirun):
        if multirun and job.config.get("stages"):
            raise ConfigError("experiment: its runs follow one another, so it is not swept. Start it once for each value, without -m")
        single = job.config if running and not flags and not multirun and job.config.hydra.mode != RunMode.MULTIRUN else None
        opened.update({text.partition("=")[0]: new.partition("=")[0] for text, new in job.opened.items()})
        if running:
            check_launch(OmegaConf.to_container(job.config.hydra, resolve=False))  # type: ignore[arg-type]
        if check is not None and running:
            _ask(check, job.config, [text for text in job.overrides if text not in overrides], job.overrides)
    spelled = [f"{opened.get(key, key)}{sign}{value}" for key, sign, value in (text.partition("=") for text in overrides)]
    return Ahead([*flags, *spelled], single, gate.loader)


def _trust_plugins(overrides: Sequence[str]) -> None:
    """Let the user's own modules in before any key is looked up in them; a word that is no override is refused by the gate."""
    for text in overrides:
        if text.lstrip("+").startswith("plugins="):
            try:
                (parsed,) = OverridesParser.create().parse_overrides([text])
            except HydraException:
                return
            value = parsed.value()
            if isinstance(value, list):
                trust(str(module) for module in value)


def _ask(check: Callable[[DictConfig], object], cfg: DictConfig, swept: Sequence[str], overrides: Sequence[str]) -> None:
    own = copy.deepcopy(cfg)
    with open_dict(own):
        own.pop("hydra")
    trust(own.plugins)
    try:
        check(own)
    except VlpError as error:
        raise in_job(error, overrides, [text.partition("=")[0] for text in swept]) from error


def _flags(argv: Sequence[str]) -> list[str]:
    flags: list[str] = []
    for i, text in enumerate(argv):
        if text.startswith("-") or (i and argv[i - 1] in _VALUE_FLAGS) or (i and argv[i - 1] in ("--cfg", "-c", "--info", "-i") and "=" not in text):
            flags.append(text)
    return flags


def _gate(asked: Namespace, *, conf: Path, name: str) -> Gate:
    setup_globals()
    JobRuntime.instance().set("name", Path(sys.argv[0]).stem or name)
    path = conf.resolve() if asked.config_path is None else (Path(sys.argv[0]).resolve().parent / asked.config_path)
    search = create_config_search_path(str(path))
    if asked.config_dir is not None:
        if not Path(asked.config_dir).is_dir():
            raise ConfigError(f"--config-dir: {asked.config_dir!r} is no folder.")
        search.prepend(provider="command-line", path=f"file://{Path(asked.config_dir).resolve()}", anchor=SearchPathQuery(provider="schema"))
    hydra.version.setbase("1.3")
    return Gate(ConfigLoaderImpl(config_search_path=search), conf=path, name=asked.config_name or name)


def complete_arguments(argv: Sequence[str], *, conf: Path) -> list[str]:
    """The arguments, and `size=...` when the chosen data ask for a size (a line `# size: base` in their file) and nothing else chose one.

    Raises:
        ConfigError: when the data of a sweep ask for different sizes.
    """
    chosen = {key: value for key, sign, value in (text.partition("=") for text in argv) if sign}
    if "size" in chosen or "data" not in chosen or _sets_size(conf / "local" / "default.yaml"):
        return list(argv)
    if any(_sets_size(conf / "experiment" / f"{option}.yaml") for option in chosen.get("experiment", "").split(",")):
        return list(argv)
    wanted = {option: _wanted_size(conf / "data" / f"{option}.yaml") for option in chosen["data"].split(",")}
    sizes = set(wanted.values())
    if len(sizes) > 1:
        said = ", ".join(f"{option} asks for {size or 'no size'}" for option, size in wanted.items())
        raise ConfigError(f"data={chosen['data']}: {said}.\n  Say which one: size={next(size for size in wanted.values() if size)}")
    (size,) = sizes
    return [*argv, *([] if size is None else [f"size={size}"])]


def _sets_size(file: Path) -> bool:
    return file.is_file() and re.search(r"^\s*-\s*override\s+/size\s*:", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _wanted_size(file: Path) -> str | None:
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()[:10]
    return next((found[1] for line in lines if (found := _WANTS.match(line))), None)
