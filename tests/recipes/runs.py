"""Whole runs through the functions that train.py calls, in a process of their own that may be told when to die."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from tests.builders import CONF
from vlpkit import session
from vlpkit.program import open_job
from vlpkit.schema import register

NARROW = (
    "size.dim=32", "size.heads=2", "size.depth=2", "size.half=1", "size.late=1", "size.narrow.dim=32", "size.narrow.heads=2", "size.space=16", "size.image=32",
    "size.queue=40", "size.vocab=300", "size.dropout=0.1", "data.world.train=120", "data.world.val=16", "data.world.image_size=32",
    "data.world.samples_per_shard=30", "data.window=2", "data.batch=16", "trainer.log_every=1", "trainer.precision=fp32", "evals=[]",
)  # a queue that does not divide by the batch, dropout on, several shards


class Keys(pl.Callback):
    """Appends the sample keys of every optimiser step to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """One line a step; a step that is run again after a crash is a line again."""
        if pl_module.micro == 0:
            with self.path.open("a") as file:
                file.write(f"{trainer.global_step} {' '.join(pl_module.last_keys)}\n")


class Die(pl.Callback):
    """SIGKILL to the own process at a hook of a step."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._die)

    def _die(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(run: Path, cache: Path, *overrides: str, callbacks: Callable[[], list[pl.Callback]] = list) -> None:
    """What train.py does, with further callbacks in front."""
    register()
    narrow = [word for word in NARROW if "data=custom" not in overrides or not word.startswith("data.world")]
    with initialize_config_dir(config_dir=str(CONF), version_base=None):
        cfg = compose(config_name="train", overrides=[*narrow, f"run_dir={run}", f"paths.cache={cache}", *overrides])
    job = open_job(cfg, conf=CONF)
    data = session.open_data(job)
    words = session.open_words(job, data)
    clock = session.make_clock(job, data)
    card = session.make_card(job, words, clock)
    module = session.make_module(job, words, clock, card)
    trainer = session.make_trainer(job, data, module, clock)
    trainer.callbacks[:0] = [Keys(run / "keys.txt"), *callbacks()]  # type: ignore[attr-defined]
    session.fit(job, trainer, module, data)


def _child(run: Path, cache: Path, overrides: tuple[str, ...], die: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    sys.stderr = sys.stdout = (run.parent / f"{run.name}.log").open("a")
    fit(run, cache, *overrides, callbacks=lambda: [] if die is None else [Die(*die)])


def in_child(run: Path, cache: Path, *overrides: str, die: tuple[str, int] | None = None) -> int:
    """Run in a forked process; its exit code, -9 when it was killed."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, cache, overrides, die))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    return -1000 if process.exitcode is None else process.exitcode


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def keys(run: Path) -> dict[int, str]:
    """Sample keys by optimiser step; a step that was run twice must have had the same ones."""
    seen: dict[int, str] = {}
    for line in (run / "keys.txt").read_text().splitlines():
        step, _, names = line.partition(" ")
        assert seen.setdefault(int(step), names) == names, f"step {step} saw other samples when it was run again"
    return seen
