"""Whole runs through the functions that train.py calls, in one process of their own or in two ranks, that may be told when to die."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from tests.builders import CONF
from tests.run.ranks import free_port
from vlpkit import dist, session
from vlpkit.program import open_job
from vlpkit.schema import register
from vlpkit.types import Batch

NARROW = (
    "size.dim=32", "size.heads=2", "size.depth=2", "size.half=1", "size.late=1", "size.narrow.dim=32", "size.narrow.heads=2", "size.space=16", "size.image=32",
    "size.queue=40", "size.vocab=300", "size.dropout=0.1", "data.world.train=120", "data.world.val=16", "data.world.image_size=32",
    "data.world.samples_per_shard=30", "data.window=2", "data.batch=16", "trainer.log_every=1", "trainer.precision=fp32", "evals=[]",
)  # a queue that does not divide by the batch, dropout on, several shards


_START = "TEST_START"  # how often the run was started before


class Keys(pl.Callback):
    """Appends the sample keys of every optimiser step to a file of this start and rank: a line a step, micro-batches apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Mapping[str, Batch], *args: Any) -> None:
        """Of every source, in the order of the micro-batches."""
        self.parts.append(" ".join(key for one in batch.values() for key in one.keys))
        if pl_module.micro == 0:
            name = f"keys_{os.environ.get(_START, '0')}_{dist.rank()}_of_{dist.world()}.txt"
            with (self.folder / name).open("a") as file:
                file.write(f"{trainer.global_step}|{'|'.join(self.parts)}\n")
            self.parts = []


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
    trainer.callbacks[:0] = [Keys(run), *callbacks()]  # type: ignore[attr-defined]
    session.fit(job, trainer, module, data)


def _child(run: Path, cache: Path, overrides: tuple[str, ...], die: tuple[str, int] | None, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.stderr = sys.stdout = (run.parent / f"{run.name}.log").open("a")
    fit(run, cache, *overrides, callbacks=lambda: [] if die is None else [Die(*die)])


def in_child(run: Path, cache: Path, *overrides: str, die: tuple[str, int] | None = None) -> int:
    """Run in a forked process; its exit code, -9 when it was killed."""
    (code,) = on_ranks(run, cache, *overrides, world=1, die=die)
    return code


def on_ranks(run: Path, cache: Path, *overrides: str, world: int, die: tuple[str, int] | None = None) -> list[int]:
    """Run in `world` forked processes that find each other as torchrun's do; their exit codes."""
    context, port = multiprocessing.get_context("fork"), free_port()
    words = {_START: str(len({path.name.split("_")[1] for path in run.glob("keys_*.txt")}))}
    if world > 1:
        words |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    ranks = [{**words, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"} if world > 1 else words for rank in range(world)]
    processes = [context.Process(target=_child, args=(run, cache, overrides, die, environment)) for environment in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
    return [-1000 if process.exitcode is None else process.exitcode for process in processes]


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def keys(run: Path) -> dict[int, str]:
    """Sample keys of the global batch by optimiser step: of every micro-batch the ranks in turn. A step that was run twice must have had the same."""
    seen: dict[int, str] = {}
    for first in sorted(run.glob("keys_*_0_of_*.txt")):
        world = int(first.stem.rpartition("_")[2])
        ranks = [_lines(first.with_name(first.name.replace("_0_of_", f"_{rank}_of_"))) for rank in range(world)]
        for step in sorted(set.intersection(*(set(rank) for rank in ranks))):
            names = " ".join(part for turn in zip(*(rank[step] for rank in ranks), strict=True) for part in turn)
            assert seen.setdefault(step, names) == names, f"step {step} saw other samples when it was run again"
    return seen


def _lines(path: Path) -> dict[int, list[str]]:
    found = (line.split("|") for line in path.read_text().splitlines()) if path.exists() else ()
    return {int(step): parts for step, *parts in found}
