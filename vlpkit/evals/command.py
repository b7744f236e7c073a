"""evaluate.py's job: restore, open the data, run the evaluators, write records and predictions, show a table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlpkit.errors import ConfigError, VlpError
from vlpkit.evals.request import TASKS, Request, applicable, help_text, read

if TYPE_CHECKING:  # heavy: refused commands never get so far
    import torch

    from vlpkit.data.module import DataModule
    from vlpkit.evals.base import Evaluator
    from vlpkit.restore import Restored

log = logging.getLogger(__name__)

_DATA = ("vlpkit.data.module.", "vlpkit.data.world.")


def main(argv: Sequence[str], *, conf: Path) -> int:
    """Evaluate as the words say, and print the table.

    Returns:
        exit code: 0, or 2 when a VlpError was raised, whose message alone goes to the error stream. Other exceptions pass.
    """
    if any(word in ("--help", "-h") for word in argv):
        sys.stdout.write(help_text())
        return 0
    try:
        request = read(argv, conf=conf)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        sys.stdout.write(evaluate(request))
    except VlpError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def evaluate(request: Request) -> str:
    """Run every task, write `eval/` and `predictions/` of the run folder, and give the table.

    Raises:
        VlpError: nothing to restore, no data, or a task that the model cannot do.
    """
    from vlpkit.evals.record import stamp, write
    from vlpkit.restore import restore

    device = _device(request.device)
    found = restore(request.run, device=device)
    evaluators = _evaluators(request, found)
    data = _data(request, found)
    folder = _folder(found.path)
    rows: list[tuple[str, str, str]] = []
    for evaluator in evaluators:
        with _autocast(device, request.precision):
            metrics = {name: float(value) for name, value in evaluator(found, data)}
        record = stamp(evaluator, metrics, data, step=found.step, device=device, precision=request.precision)
        record["checkpoint"] = {"file": found.path.name, "sha256": found.sha256, "samples_seen": found.samples_seen}
        name = evaluator.name if request.data is None else f"{evaluator.name}_{data.name}"
        for path in write(folder, name, record, evaluator):
            log.info("written: %s", path)
        rows += [(evaluator.name, metric, _number(metric, value)) for metric, value in metrics.items()]
    count, limit = len(data.val_index), request.settings.get("limit")
    part = f"{count} samples" if limit is None else f"the first {min(limit, count)} of {count} samples"
    return f"{found.model.name} after {found.step} steps, {found.samples_seen} pairs seen, on {part} of {data.name} ({request.precision}, {device.type})\n{table(rows)}"


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Aligned lines of task, metric and number; a task is named once."""
    wide = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines, last = [], ""
    for task, metric, number in rows:
        lines.append(f"  {'' if task == last else task:<{wide[0]}}  {metric:<{wide[1]}}  {number:>{wide[2]}}")
        last = task
    return "\n".join(lines) + "\n"


def _number(metric: str, value: float) -> str:
    return f"{value:.0f}" if metric == "count" else f"{value:.2f}"


def _device(word: str) -> torch.device:
    import torch

    there = torch.cuda.is_available()
    if word == "cuda" and not there:
        raise ConfigError("device: cuda, but no CUDA device is visible. Use device=auto, or check the driver")
    return torch.device("cuda" if there and word != "cpu" else "cpu")


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _evaluators(request: Request, found: Restored) -> list[Evaluator]:
    """Those asked for, as the run's own settings and the command line say; of `all`, those that the model supports."""
    from vlpkit.build import build
    from vlpkit.evals.base import fitting

    made: list[Evaluator] = []
    for task in request.tasks or TASKS:
        own = found.config.get("evals", {}).get(task) or {}
        target = own.get("_target_", TASKS[task])
        if not str(target).startswith("vlpkit.evals."):
            own, target = {}, TASKS[task]
        evaluator: Evaluator = build({**own, "_target_": target, **applicable(target, request.settings)}, where=f"evals.{task}", name=task)
        made.append(evaluator)
    if not request.tasks:
        return fitting(made, found.assembly)
    for evaluator in made:
        evaluator.check(found.assembly)
    return made


def _data(request: Request, found: Restored) -> DataModule:
    """The data asked for, or the run's own, prepared as the run prepared its validation images."""
    from vlpkit.assemble import image_size
    from vlpkit.build import build

    own: Mapping[str, Any] = found.config["data"]
    if request.data is None:
        block = _changed(own, request.changes)
    else:  # other pictures, but cut and resized as this model knows them, and other regions, but as many
        block = {**request.data, "eval_resize": request.changes.get("eval_resize", own.get("eval_resize", request.data["eval_resize"]))}
        block = {**{key: own[key] for key in ("regions", "questions", "phrases", "second") if key in own}, **block}
    if not str(block["_target_"]).startswith(_DATA):
        raise ConfigError(f"data._target_: {block['_target_']!r} is no data of this package, and evaluation opens no other. Name shards with data=custom data.val_shards=...")
    return build(block, where="data", image_size=image_size(found.config), seed=found.config["seed"], words=found.words)


def _changed(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The block with dotted keys set."""
    made = dict(block)
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        inside = made.get(first)
        made[first] = _changed(inside if isinstance(inside, Mapping) else {}, {rest: value}) if dot else value
    return made


def _folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
