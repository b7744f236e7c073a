"""Lightning's Trainer set up the way runs here need it: no loop of its own for validation, our checkpoints, our logging, one pass over the loader.
The class `Settings` is the schema of `conf/trainer/*.yaml`."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from vlpkit import dist
from vlpkit.callbacks import (
    Evaluations,
    Evaluator,
    Keep,
    LoaderClock,
    Metrics,
    ProgressLine,
    StopOnNonFinite,
    Throughput,
)
from vlpkit.checkpoint import Checkpoints, SafeCheckpointIO
from vlpkit.errors import ConfigError
from vlpkit.fits import NO_CUDA
from vlpkit.precision import resolve_precision
from vlpkit.runfolder import CHECKPOINTS
from vlpkit.types import Steps

log = logging.getLogger(__name__)

_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"  # renamed in newer versions of torch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; nothing here changes what is learned, but for precision, clipping and micro-batches.

    Args:
        accelerator: auto takes CUDA devices when there are any.
        devices: processes a node; auto: what torchrun says, else all CUDA devices under ddp, else one.
        num_nodes: machines; torchrun's word counts more.
        strategy: auto: ddp when there are several processes.
        precision: auto, bf16, fp32 or fp16.
        clip: largest gradient norm, read by the training module; None: no clipping.
        micro_batch: samples a device takes at a time; None: its whole share of data.batch.
        recompute: activation checkpointing, read by the training module.
        checkpoint_every: between two checkpoints.
        keep: step files to keep, at least 2.
        eval_every: between two evaluations; None: only at the end.
        log_every: between two rows of metrics.
        nonfinite_patience: steps in a row without a finite gradient that end the run.
        deterministic: refuse operations without a deterministic implementation.
        benchmark: let cuDNN try its algorithms first.
        sync_batchnorm: batch statistics over all CUDA devices.
        timeout: minutes that a rank waits for another.
        sampled: the plan samples a turn, so that a step may leave parameters out; finding them costs ddp some time.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    clip: float | None = None
    micro_batch: int | None = None
    recompute: bool = False
    checkpoint_every: Steps = Steps(500)  # noqa: RUF009
    keep: int = 2
    eval_every: Steps | None = None
    log_every: Steps = Steps(10)  # noqa: RUF009
    nonfinite_patience: int = 5
    deterministic: bool = False
    benchmark: bool = False
    sync_batchnorm: bool = False
    timeout: float = 5.0
    sampled: bool = False

    def cuda(self) -> bool:
        """Whether the run uses CUDA devices. Raises ConfigError when it should and there are none."""
        there = torch.cuda.is_available()
        if self.accelerator == "cuda" and not there:
            raise ConfigError(f"trainer.accelerator: {NO_CUDA}")
        return there and self.accelerator != "cpu"

    def layout(self) -> tuple[int, int]:
        """Processes a node and nodes. Raises ConfigError where the launcher and the configuration disagree."""
        if "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ:
            local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
            if self.devices not in ("auto", local):
                raise ConfigError(f"trainer.devices: {self.devices}, but torchrun started {local} processes on this node. Use trainer.devices=auto or {local}")
            return local, world // local
        several = self.strategy == "ddp" and self.cuda()
        local = self.devices if self.devices != "auto" else torch.cuda.device_count() if several else 1
        if local < 1 or self.num_nodes < 1:
            raise ConfigError(f"trainer.devices={self.devices}, trainer.num_nodes={self.num_nodes}: each must be at least 1")
        return local, self.num_nodes

    def world(self) -> int:
        """G, the number of ranks."""
        local, nodes = self.layout()
        return local * nodes


def build_callbacks(
    settings: Settings,
    *,
    run_dir: Path,
    batch: int,
    max_steps: int,
    loader: LoaderClock,
    evaluators: Sequence[Evaluator] = (),
    extra: Sequence[Callable[[], Mapping[str, float]]] = (),
    keep: Keep | None = None,
) -> list[pl.Callback]:
    """The callbacks of a run in the order that makes a checkpoint of step s hold everything that was logged at step s.

    Args:
        settings: of the trainer.
        run_dir: run folder.
        batch: `data.batch`.
        max_steps: optimiser steps of the run.
        loader: also handed to `build_trainer`.
        evaluators: tasks.
        extra: further metrics, such as `data/bad_share`.
        keep: writes the record of an evaluation.
    """
    speed = Throughput(batch=batch, loader=loader)
    metrics = Metrics(every=settings.log_every, extra=[speed.read, *extra], pause=speed.pause)
    return [
        speed,
        StopOnNonFinite(run_dir, patience=settings.nonfinite_patience),
        metrics,
        ProgressLine(metrics, total=max_steps),
        Evaluations(evaluators, run_dir, every=settings.eval_every, pause=speed.pause, keep=keep),
        Checkpoints(run_dir / CHECKPOINTS, every=settings.checkpoint_every, keep=settings.keep, pause=speed.pause),
    ]


def build_trainer(
    settings: Settings,
    *,
    run_dir: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[pl.Callback],
    max_steps: int,
    accumulate: int,
    loader: LoaderClock | None = None,
) -> pl.Trainer:
    """A Trainer whose `fit` is one pass over a loader that yields exactly the micro-batches that remain.

    Call `fit(module, datamodule=data, ckpt_path=run.checkpoint)`. Clipping belongs to the module.

    Args:
        settings: of the trainer.
        run_dir: run folder.
        loggers: from `build_loggers`.
        callbacks: from `build_callbacks`.
        max_steps: optimiser steps of the run.
        accumulate: micro-batches of an optimiser step.
        loader: measures waiting for data.
    """
    local, nodes = settings.layout()
    dist.set_timeout(settings.timeout)
    _quiet()
    trainer = pl.Trainer(
        accelerator="cuda" if settings.cuda() else "cpu",
        devices=local,
        num_nodes=nodes,
        strategy=_strategy(settings, local * nodes),
        precision=resolve_precision(settings.precision, cuda=settings.cuda()),
        max_steps=max_steps,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        plugins=[SafeCheckpointIO()],
        profiler=loader,
        default_root_dir=run_dir,
        log_every_n_steps=0,          # metrics are written by a callback, before the checkpoint of the same step
        limit_val_batches=0,          # evaluation is a callback, too
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        sync_batchnorm=settings.sync_batchnorm,
        deterministic=settings.deterministic,
        benchmark=settings.benchmark,
    )
    # Lightning asks rank 0 for a SIGTERM before every micro-batch, on the device; our flag is asked for once a step, beside it.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(settings: Settings, world: int) -> str | Strategy:
    if world == 1:
        return "auto"
    # queues are equal on all ranks already, and batch statistics each rank's own: sending buffers at every step is not free
    buffers: dict[str, Any] = {_BUFFERS: False}
    return DDPStrategy(
        timeout=timedelta(minutes=settings.timeout), gradient_as_bucket_view=True, find_unused_parameters=settings.sampled, static_graph=False, **buffers
    )


def _quiet() -> None:
    """Silence advice that does not apply here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for words in (
        ".*does not have many workers", ".*dataloader is not resumable", ".*module.s. in eval mode", ".*smaller than the logging interval",
        ".*overridden `transfer_batch_to_device`", ".*treespec, LeafSpec",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=words)
