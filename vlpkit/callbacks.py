"""What happens beside the steps: metrics written, throughput measured, progress shown, evaluators run, a run without finite gradients ended.
Everything acts at optimiser-step boundaries, in the order of the callback list."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from vlpkit import dist
from vlpkit.errors import VlpError
from vlpkit.sidecar import write_text
from vlpkit.types import Steps

log = logging.getLogger(__name__)


class Diverged(VlpError):
    """Gradients stayed non-finite; the weights are those of the last good step."""


class Reports(Protocol):
    """What the callbacks read of a training module.

    Args:
        last_metrics: () tensors of the last optimiser step by name, means over its micro-batches.
        last_keys: sample keys of the last optimiser step on this rank.
        nonfinite_streak: optimiser steps in a row without an update, equal on all ranks.
    """

    last_metrics: Mapping[str, Tensor]
    last_keys: Sequence[str]
    nonfinite_streak: int


class Evaluator(Protocol):
    """One task: called on all ranks with the module in eval mode and without gradients; yields the same values on each."""

    name: str

    def __call__(self, module: Any, data: Any) -> Iterator[tuple[str, float]]: ...


Keep = Callable[[Any, Mapping[str, float], pl.Trainer, int], None]


class Boundary(pl.Callback):
    """Calls `after_step` once an optimiser step, also under accumulation."""

    _step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look whether a step is complete."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.after_step(trainer, pl_module, self._step)

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """`step` optimiser steps are done."""
        raise NotImplementedError


class LoaderClock(Profiler):
    """Seconds that the loop has waited for the loader; everything else passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.waited, self._since = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """An action ends."""
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._since


class Throughput(Boundary):
    """Samples per second and the share of time spent waiting for data, since they were last read.

    Args:
        batch: samples of one optimiser step over all ranks.
        loader: clock of the loader.
        clock: seconds; replaced in tests.
    """

    def __init__(self, *, batch: int, loader: LoaderClock, clock: Callable[[], float] = time.perf_counter) -> None:
        self._batch, self._loader, self._clock = batch, loader, clock
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited, self._steps, self._paused = self._clock(), self._loader.waited, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._restart()

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Count."""
        self._steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Evaluations and saves are not training time."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - started

    def read(self) -> dict[str, float]:
        """The values since the last call; empty before the first step."""
        seconds = self._clock() - self._since - self._paused
        if self._steps == 0 or seconds <= 0:
            return {}
        share = min(1.0, (self._loader.waited - self._waited) / seconds)
        values = {"perf/samples_per_s": self._batch * self._steps / seconds, "perf/data_wait_share": share}
        self._restart()
        return values


class StopOnNonFinite(Boundary):
    """Writes down the samples of every step without a finite gradient, and ends the run after `patience` of them in a row.

    Stands before the metrics and the checkpoints in the list, so the step that ends the run is not saved.
    """

    def __init__(self, run_dir: Path, *, patience: int = 5) -> None:
        self._folder, self._patience = Path(run_dir) / "nonfinite", patience

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Raises Diverged, on all ranks alike."""
        module = cast(Reports, pl_module)
        streak = module.nonfinite_streak
        if streak == 0:
            return
        keys = dist.gather_object(list(module.last_keys))
        if dist.once():
            self._folder.mkdir(parents=True, exist_ok=True)
            seen = {"step": step, "in_a_row": streak, "metrics": _floats(module.last_metrics), "keys_by_rank": keys}
            write_text(self._folder / f"step_{step}.json", json.dumps(seen, indent=1) + "\n")
        log.warning("step %d: the gradient is not finite, no weight was moved (%d in a row, %d end the run)", step, streak, self._patience)
        if streak >= self._patience:
            raise Diverged(
                f"{streak} steps in a row (to step {step}) had a loss or gradient that is not finite; the weights are still finite. Their samples are in "
                f"{self._folder}. Lower optim.lr, lengthen optim.warmup or use trainer.precision=fp32, then continue with resume=auto."
            )


class Metrics(Boundary):
    """Sends the module's metrics of a step to all loggers, as means over ranks, every `every` steps and at the last.

    Written here rather than by Lightning, which would do it after the checkpoint of the same step and count from 0.

    Args:
        every: optimiser steps.
        extra: further values, asked for when metrics are written, on this rank.
        pause: entered while trackers work, so that throughput does not count them.
    """

    def __init__(
        self, *, every: Steps, extra: Sequence[Callable[[], Mapping[str, float]]] = (), pause: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._every, self._extra, self._pause = max(1, every), extra, pause
        self.latest: dict[str, float] = {}
        self.step = -1

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Average, add the extra values, write."""
        if step % self._every and step < trainer.max_steps:
            return
        values = cast(Reports, pl_module).last_metrics
        mean = dist.mean(torch.stack([value.detach().to(pl_module.device, torch.float64) for value in values.values()])).tolist() if values else []
        self.latest = dict(zip(values, mean))
        for source in self._extra:
            self.latest.update(source())
        self.step = step
        with self._pause():
            write(trainer, self.latest, step)


def write(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Send values to all loggers under an optimiser step; first rank only."""
    if dist.once():
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=step)


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


class ProgressLine(Boundary):
    """A bar on a terminal, elsewhere one plain line whenever metrics were written. Stands after `metrics` in the list.

    Args:
        metrics: whose latest values are shown.
        total: optimiser steps of the run.
        terminal: None: whether stderr is one.
        clock: seconds; replaced in tests.
    """

    def __init__(self, metrics: Metrics, *, total: int, terminal: bool | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._metrics, self._total, self._clock = metrics, total, clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._began = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        super().on_train_start(trainer, pl_module)
        self._began = (self._clock(), trainer.global_step)
        if self._terminal and dist.once():
            self._bar = tqdm(total=self._total, initial=trainer.global_step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Show."""
        fresh = self._metrics.step == step
        if self._bar is not None:
            if fresh:
                self._bar.set_postfix_str(" ".join(shown(self._metrics.latest)), refresh=False)
            self._bar.update()
        elif fresh and dist.once():
            log.info("%s", "  ".join([f"step {step}/{self._total}", *shown(self._metrics.latest), f"eta {self._eta(step)}"]))

    def _eta(self, step: int) -> str:
        since, first = self._began
        seconds = int((self._clock() - since) / max(step - first, 1) * max(self._total - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def shown(values: Mapping[str, float]) -> list[str]:
    """The few values a person follows: loss, each objective's, rate, speed, waiting."""
    words = [f"loss {values['train/loss']:.4f}"] if "train/loss" in values else []
    words += [f"{name.split('/')[1]} {value:.4f}" for name, value in values.items() if name.startswith("train/") and name.count("/") == 2 and name.endswith("/loss")]
    for name, form in (("train/lr", "lr {:.2e}"), ("perf/samples_per_s", "{:.1f} samples/s"), ("perf/data_wait_share", "wait {:.0%}")):
        if name in values:
            words.append(form.format(values[name]))
    return words


class Evaluations(Boundary):
    """Runs evaluators every `every` steps and at the last, on all ranks; training goes on as if they had not been there.

    Args:
        evaluators: tasks.
        run_dir: `eval/<task>.json` is written here.
        every: optimiser steps; None: only at the end.
        pause: entered meanwhile, so that throughput does not count it.
        keep: writes the record of a task, given evaluator, values, trainer and step; None: a bare one is written.
    """

    def __init__(
        self, evaluators: Sequence[Evaluator], run_dir: Path, *, every: Steps | None = None,
        pause: Callable[[], AbstractContextManager[None]] = nullcontext, keep: Keep | None = None,
    ) -> None:
        self._evaluators, self._folder, self._every, self._pause, self._keep = evaluators, Path(run_dir) / "eval", every, pause, keep

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Evaluate when it is time."""
        due = step >= trainer.max_steps or (self._every is not None and self._every > 0 and step % self._every == 0)
        if due and self._evaluators:
            with self._pause():
                self.evaluate(trainer, pl_module, step)

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> dict[str, float]:
        """All values, `val/<task>/<metric>`, sent to the loggers and written under `eval/`."""
        everything: dict[str, float] = {}
        for evaluator in self._evaluators:
            with undisturbed(pl_module), trainer.precision_plugin.val_step_context():
                values = {metric: float(value) for metric, value in evaluator(pl_module, trainer.datamodule)}  # type: ignore[attr-defined]
            everything |= {f"val/{evaluator.name}/{metric}": value for metric, value in values.items()}
            if self._keep is not None:
                self._keep(evaluator, values, trainer, step)
            elif dist.once():
                self._folder.mkdir(parents=True, exist_ok=True)
                report = {"task": evaluator.name, "step": step, "metrics": values}
                write_text(self._folder / f"{evaluator.name}.json", json.dumps(report, indent=1) + "\n")
            log.info("step %d  %s  %s", step, evaluator.name, "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
        write(trainer, everything, step)
        return everything


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every submodule's mode and all random generators are as before."""
    modes = {part: part.training for part in module.modules()}
    python, arrays = random.getstate(), np.random.get_state()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            random.setstate(python)
            np.random.set_state(arrays)
