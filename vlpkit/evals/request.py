"""What a command line of evaluate.py asks for, refused before anything heavy is imported when it cannot be right.
Words are key=value, as for train.py; what a task takes is read from the signature of its evaluator."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from vlpkit.check import check_signatures, signature_of, trust
from vlpkit.errors import ConfigError, did_you_mean
from vlpkit.signatures import Parameter

TASKS: Mapping[str, str] = {
    "retrieval": "vlpkit.evals.retrieval.Retrieval",
    "pairs": "vlpkit.evals.pairs.HardPairs",
    "caption": "vlpkit.evals.caption.Captions",
}
_FORM = "Write key=value, such as run=runs/a task=retrieval"
_OWN = ("run", "task", "data", "device", "precision", "plugins")
_CHOICES: Mapping[str, tuple[str, ...]] = {"device": ("auto", "cpu", "cuda"), "precision": ("fp32", "bf16")}
_DATA = "vlpkit.data.module.DataModule"

HELP = """\
evaluate.py measures a trained model: numbers, predictions, a table.

  python evaluate.py run=runs/a                                    everything the model can do, on its own validation shards
  python evaluate.py run=runs/a task=retrieval k_test=128          re-rank the first 128 candidates with the fusion
  python evaluate.py run=runs/a task=caption limit=200
  python evaluate.py run=runs/a task=retrieval data=flickr30k      other data: an option of conf/data ...
  python evaluate.py run=runs/a data.val_shards='/my/val-*.tar'    ... or other shards

  run=        a run folder (its newest whole checkpoint), a checkpoint file, or a folder of scripts/convert.py
  task=       {tasks}, several with commas, or all (what the model supports)
  data=       an option of conf/data; data.KEY=value changes one of its keys
  device=     auto, cpu or cuda
  precision=  fp32 or bf16
  plugins=    [my_parts]: modules of your own that the run's configuration may name

Keys of the tasks:
{keys}

Results: run/eval/TASK.json and, where a task makes some, run/predictions/TASK.json.
"""


@dataclass(frozen=True)
class Request:
    """One evaluation.

    Args:
        run: run folder or checkpoint file.
        tasks: names, in order; empty: all that the model supports.
        settings: keys of evaluators.
        data: the composed block of `data=NAME` with its changes; None: the run's own.
        changes: keys of the run's own data that are changed, by dotted name without `data.`.
        device: auto, cpu or cuda.
        precision: fp32 or bf16.
    """

    run: Path
    tasks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "fp32"


def help_text() -> str:
    """What `--help` prints."""
    lines = [f"  {task:<11} {' '.join(_parameters(target))}" for task, target in TASKS.items()]
    return HELP.format(tasks=", ".join(TASKS), keys="\n".join(lines))


def read(argv: Sequence[str], *, conf: Path) -> Request:
    """The request that words make. Raises ConfigError for words that are none, and what does not exist."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("evaluate.py runs in one process, and torchrun started several. Start it with python; several ranks evaluate during training.")
    words = dict(_word(text) for text in argv)
    trust(_list(words.get("plugins"), "plugins"))
    changes = {key.removeprefix("data."): value for key, value in words.items() if key.startswith("data.")}
    settings = {key: value for key, value in words.items() if key not in _OWN and not key.startswith("data.")}
    tasks = _tasks(words)
    _known(settings, tasks)
    run = _run(words)
    for key, accepted in _CHOICES.items():
        if words.get(key, accepted[0]) not in accepted:
            raise ConfigError(f"{key}: {words[key]!r} (accepted: {', '.join(accepted)}). {did_you_mean(str(words[key]), accepted)}".rstrip())
    check_signatures({"evals": {task: _block(TASKS[task], settings) for task in tasks or TASKS}})
    name = words.get("data")
    if name is None:
        _changeable(changes)
    return Request(
        run, tasks, settings, None if name is None else _composed(str(name), [text for text in argv if text.startswith("data.")], conf),
        changes, str(words.get("device", "auto")), str(words.get("precision", "fp32")),
    )  # fmt: skip


def applicable(target: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an evaluator takes."""
    taken = _parameters(target)
    return {key: value for key, value in settings.items() if key in taken}


def _block(target: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": target, **applicable(target, settings)}


def _parameters(target: str) -> Mapping[str, Parameter]:
    found = signature_of(target, place="evals")
    return {name: parameter for name, parameter in found.parameters.items() if name != "name"}


def _word(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key or key.startswith("-"):
        raise ConfigError(f"{text!r} is no key=value. {_FORM}; --help lists the keys.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value  # a brace range, say, is text


def _list(value: Any, key: str) -> list[str]:
    found = [] if value is None else value if isinstance(value, list) else str(value).split(",")
    if not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{key}: takes a list of names, found {value!r}. Write {key}=[a,b]")
    return [item.strip() for item in found]


def _tasks(words: Mapping[str, Any]) -> tuple[str, ...]:
    tasks = _list(words.get("task"), "task") or ["all"]
    for task in tasks:
        if task not in (*TASKS, "all"):
            raise ConfigError(f"task: there is no {task!r} (there are: {', '.join(TASKS)}, all). {did_you_mean(task, (*TASKS, 'all'))}".rstrip())
    return () if "all" in tasks else tuple(dict.fromkeys(tasks))


def _known(settings: Mapping[str, Any], tasks: Sequence[str]) -> None:
    chosen = tasks or tuple(TASKS)
    taken = {key for task in chosen for key in _parameters(TASKS[task])}
    for key in settings:
        if key in taken:
            continue
        others = [task for task, target in TASKS.items() if key in _parameters(target)]
        if others:
            raise ConfigError(f"{key}: is a key of {' and '.join(others)}, not of {', '.join(chosen)}. Leave it out, or add task={others[0]}")
        accepted = [*_OWN, "data.KEY", *sorted(taken)]
        raise ConfigError(f"{key}: there is no such key (there are: {', '.join(accepted)}). {did_you_mean(key, accepted)}".rstrip())


def _run(words: Mapping[str, Any]) -> Path:
    if words.get("run") is None:
        raise ConfigError("run: which model is to be evaluated? Write run=runs/NAME, a run folder or a checkpoint file; --help says more.")
    run = Path(str(words["run"]))
    if run.is_file():
        return run
    if not run.is_dir():
        near = sorted(path.name for path in run.parent.iterdir() if path.is_dir()) if run.parent.is_dir() else []
        raise ConfigError(f"run: there is no {run} (accepted: a run folder or a checkpoint file). {did_you_mean(run.name, near)}".rstrip())
    if not any(any(run.glob(pattern)) for pattern in ("*.ckpt", "checkpoints/*.ckpt", "model.safetensors")):
        raise ConfigError(f"run: {run} holds no checkpoint (accepted: a run folder with checkpoints/step_*.ckpt, or a checkpoint file).")
    return run


def _changeable(changes: Mapping[str, Any]) -> None:
    accepted = [*signature_of(_DATA, place="data").parameters, "world"]
    for key in changes:
        first = key.partition(".")[0]
        if first not in accepted:
            raise ConfigError(f"data.{key}: data has no key {first!r} (it has: {', '.join(accepted)}). {did_you_mean(first, accepted)}".rstrip())


def _composed(name: str, words: Sequence[str], conf: Path) -> dict[str, Any]:
    """The block of conf/data/NAME.yaml with changes, resolved; training shards need not be named."""
    from vlpkit.compose import look_ahead  # brings Hydra, which only this case needs

    seen: list[DictConfig] = []
    look_ahead([f"data={name}", *words], conf=conf, check=seen.append)
    found: Any = OmegaConf.to_container(seen[0].data, resolve=True, throw_on_missing=False)
    block = {str(key): "" if value == "???" else value for key, value in found.items() if key != "mix"}  # of which nothing is evaluated
    if not block.get("val_shards"):
        raise ConfigError(f"data.val_shards: {name!r} names no validation shards. Write data.val_shards=...")
    return block
