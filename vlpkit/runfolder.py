"""The folder of a run: which one, whether it may be written, what it already holds, and whether a changed configuration may go on in it.
No torch: a refused command answers at once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from vlpkit.errors import ConfigError, ResumeError
from vlpkit.identity import HIDDEN, SECRET, check_same_run, compare_configs, redact
from vlpkit.sidecar import find_checkpoint, read_sidecar, verify, write_text

__all__ = ["Run", "compare_configs", "environment", "holds_run", "open_run", "record", "redact"]

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
_ENV = "VLPKIT_RUN_DIR"  # how processes that this one launches learn the folder
_LIBRARIES = ("vlpkit", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "timm", "transformers", "tokenizers", "webdataset", "wandb", "numpy")

class Run(NamedTuple):
    """An opened run folder.

    Args:
        folder: where everything of the run goes.
        checkpoint: what to continue from; None: start from the beginning.
        step: optimiser steps that `checkpoint` holds; 0 without one.
    """

    folder: Path
    checkpoint: Path | None
    step: int


# -- which folder ------------------------------------------------------------------------------------------------------


def open_run(
    run_dir: str | Path | None,
    *,
    name: str,
    resume: str | None,
    config: Mapping[str, Any],
    runs: str | Path = "runs",
    agree: Callable[[str], str] | None = None,
) -> Run:
    """Choose the run folder and what to continue from; refuse what would lose or mix up something. Writes nothing but the folder.

    Args:
        run_dir: the folder; None: the one that `resume` names, or a new `<runs>/<stamp>_<name>`.
        name: such as clip_shapes, for a new folder.
        resume: None, auto, a run folder or a checkpoint file.
        config: resolved, as plain containers; compared with the saved one on the first process.
        runs: parent of new folders.
        agree: gives all processes the choice of the first one; asked only when a name must be invented by several.

    Raises:
        ConfigError: the folder cannot be used, or `resume` names nothing.
        ResumeError: the folder already holds a run, the run is another one, or no checkpoint is whole.
    """
    given = os.environ.get(_ENV) if run_dir is None and _launched_by_us() else run_dir
    source = _source(resume)
    if resume == "auto" and given is None:
        raise ConfigError("resume: auto continues the run in run_dir, but run_dir is null. Name it: run_dir=runs/NAME resume=auto")
    if given is None:
        given = source.folder if source is not None else _invent(Path(runs), name, agree)
    folder = Path(given).absolute()
    _usable(folder)
    _check_held(folder, resume, source)
    run = _continued(folder, resume, source)
    if run.checkpoint is not None and _process() == 0:
        check_same_run(_saved_config(run.checkpoint), config, place=str(run.checkpoint))
    os.environ[_ENV] = str(folder)
    return run


def _process() -> int:
    return next((int(os.environ[word]) for word in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if word in os.environ), 0)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE") or (os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"))


def _launched_by_us() -> bool:
    """Whether a trainer started this process; those of torchrun ask each other, and may inherit words of an earlier run."""
    return _process() > 0 and "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ


def _source(resume: str | None) -> Run | None:
    """The run that an explicit `resume` path speaks of."""
    if resume is None or resume == "auto":
        return None
    path = Path(resume).absolute()
    if path.is_dir():
        found, _ = find_checkpoint(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)
        if found is None:
            raise ResumeError(f"resume: {resume} holds no checkpoint. Name a run folder that has one, a checkpoint file, or leave resume away")
    elif path.is_file():
        found = path
        verify(path)
    else:
        raise ConfigError(f"resume: there is no {resume} (accepted: null, auto, a run folder or a checkpoint file)")
    parent = found.parent
    return Run(parent.parent if parent.name == CHECKPOINTS else parent, found, read_sidecar(found).step)


def _invent(runs: Path, name: str, agree: Callable[[str], str] | None) -> Path:
    folder = _new(runs, f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}") if _process() == 0 else runs
    if _processes() == 1:
        return folder
    if agree is None:
        from vlpkit import dist  # brings torch, so only where several processes must agree

        return Path(dist.agree(str(folder.absolute()), about="run_dir"))
    return Path(agree(str(folder.absolute())))


def _new(runs: Path, stem: str) -> Path:
    """A folder that nobody else has: jobs of a sweep start in the same second."""
    for count in range(1, 1000):
        folder = runs / (stem if count == 1 else f"{stem}_{count}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            return folder  # said properly by the check that follows
        return folder
    raise ConfigError(f"run_dir: no free name like {runs / stem}. Give one: run_dir=runs/NAME")


def holds_run(folder: Path) -> bool:
    """Whether anything was trained in `folder`; a start that was refused leaves a folder that may be used again."""
    return (folder / METRICS).exists() or any((folder / CHECKPOINTS).glob("*.ckpt*"))


def _usable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        list(folder.iterdir())
        probe = folder / f".probe.{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"run_dir: {folder} cannot be used ({error.strerror}). Give a folder that can be read and written: run_dir=...") from error


def _check_held(folder: Path, resume: str | None, source: Run | None) -> None:
    """Only the first process asks: it writes into the folder while others are still starting."""
    here = source is not None and source.folder == folder
    if _process() > 0 or resume == "auto" or here or not holds_run(folder):
        return
    raise ResumeError(f"run_dir: {folder} already holds a run. Continue it with resume=auto, or choose another run_dir.")


def _continued(folder: Path, resume: str | None, source: Run | None) -> Run:
    if source is not None:
        return source._replace(folder=folder)
    found = find_checkpoint(folder / CHECKPOINTS)[0] if resume == "auto" else None
    return Run(folder, found, 0 if found is None else read_sidecar(found).step)


def _saved_config(checkpoint: Path) -> dict[str, Any] | None:
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        path = folder / CONFIG
        if path.is_file():
            try:
                loaded = yaml.safe_load(path.read_text())
            except (OSError, yaml.YAMLError) as error:
                raise ResumeError(f"{path}: cannot be read ({error}), so it is not known which run this is") from error
            if not isinstance(loaded, dict):
                raise ResumeError(f"{path}: is empty or no mapping, so it is not known which run this is")
            return loaded
    return None


# -- what is written at the start ----------------------------------------------------------------------------------------


def record(run: Run, *, config: Mapping[str, Any], card: str) -> None:
    """Write config.yaml, card.txt and env.txt; a continued run appends to env.txt. First process only."""
    if _process() > 0:
        return
    write_text(run.folder / CONFIG, yaml.safe_dump(redact(config), sort_keys=False, width=120))
    write_text(run.folder / "card.txt", card.rstrip("\n") + "\n")
    old = run.folder / "env.txt"
    before = old.read_text() + "\n" if run.step and old.is_file() else ""
    write_text(old, before + environment(run.step))


def environment(step: int = 0) -> str:
    """When, where and with what: time, command, commit, Python, processors, versions; one fact a line."""
    lines = [f"started: {datetime.now().astimezone().isoformat(timespec='seconds')}" + (f" (continued at step {step})" if step else "")]
    lines.append("command: " + " ".join(_safe_word(word) for word in sys.argv))
    commit = _commit()
    if commit:
        lines.append(f"commit: {commit}")
    lines += [f"python: {platform.python_version()}", f"system: {platform.platform()}", f"processors: {os.cpu_count()}"]
    lines.append(f"processes: {_processes()}")
    return "\n".join(lines + [f"{name}: {found}" for name in _LIBRARIES if (found := _version(name))]) + "\n"


def _safe_word(word: str) -> str:
    key, mark, value = word.partition("=")
    return f"{key}={HIDDEN}" if mark and value and SECRET.search(key) else str(redact(word))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
