"""Where a resumed run stands: Lightning's counters put in order, changed optimiser settings put into effect, later files set aside.
The contract with the data: the training loader yields exactly the micro-batches that remain."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from vlpkit.errors import ResumeError
from vlpkit.sidecar import LAST, read_sidecar, sidecar_path, step_files

log = logging.getLogger(__name__)


def rewind(checkpoint: dict[str, Any], *, accumulate: int) -> None:
    """Rewrite Lightning's counters as "a new pass over a loader that starts at the right place, `global_step` steps in".

    Lightning counts the batches of an epoch and adds the old count to the new loader, so a loader that yields only what
    remains would end early, and a changed accumulation would shift every boundary. Counting from 0 at a step boundary
    is right for any loader and any accumulation, and makes the moment of saving irrelevant.
    """
    step, loop = int(checkpoint["global_step"]), checkpoint["loops"]["fit_loop"]
    done, zero = step * accumulate, {"ready": 0, "completed": 0, "started": 0, "processed": 0}
    _count(loop["epoch_progress"], total=0)
    _count(loop["epoch_loop.batch_progress"], total=done)
    loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    _count(loop["epoch_loop.scheduler_progress"], total=step)
    for word in ("step", "zero_grad"):
        _count(loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"][word], total=step)
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
    for name, progress in loop.items():
        if "val_loop" in name and "current" in progress:
            progress["current"].update({word: zero[word] for word in progress["current"]})


def _count(progress: dict[str, Any], *, total: int) -> None:
    for part, value in (("total", total), ("current", 0)):
        progress[part].update(dict.fromkeys(progress[part], value))


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimiser group is set to, its parameters left out."""
    return {word: value for word, value in group.items() if word != "params"}


def retune(trainer: pl.Trainer, fresh: list[list[dict[str, Any]]]) -> None:
    """Give restored optimisers the settings of the present configuration; the rate follows from the schedule's own base."""
    for optimizer, groups in zip(trainer.optimizers, fresh):
        for group, now in zip(optimizer.param_groups, groups):
            changed = {word: value for word, value in now.items() if word != "lr" and group.get(word) != value}
            for word, value in changed.items():
                log.warning("optimiser: %s is %s from here on (the checkpoint has %s)", word, value, group.get(word))
                group[word] = value
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
            for group, base, shape in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["lr"] = base * shape(scheduler.last_epoch)


def set_aside(folder: Path, step: int) -> None:
    """Rename checkpoints from beyond the step that the run is resumed at: they belong to another course of the run."""
    later = [path for number, path in step_files(folder) if number > step]
    last = folder / LAST
    if last.exists() and (later or not _stands_at_most(last, step)):
        later.append(last)
    for path in later:
        log.warning("%s is from beyond step %d, where this run goes on; renamed to %s.superseded", path, step, path.name)
        os.replace(path, path.with_name(path.name + ".superseded"))
        sidecar_path(path).unlink(missing_ok=True)


def _stands_at_most(path: Path, step: int) -> bool:
    try:
        return read_sidecar(path).step <= step
    except ResumeError:
        return False
