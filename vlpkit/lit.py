"""The LightningModule: it knows only when. Parts know shapes, objectives know maths, one file knows ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlpkit import __version__, dist, migrate
from vlpkit.assemble import Assembly
from vlpkit.data.state import check_words
from vlpkit.layers.trunk import Trunk
from vlpkit.optim import Optim
from vlpkit.streams import Streams, seed_of
from vlpkit.types import Batch, Loss

log = logging.getLogger(__name__)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from. `torch.manual_seed` would keep a stack trace a step for each kind of device that never starts."""
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


class PretrainModule(pl.LightningModule):
    """Runs an assembly: one Streams a source and micro-batch, the turn's objectives, the two hooks for side effects.

    Args:
        assembly: what the recipe became.
        optim: groups, rate and schedule.
        seed: of draws and dropout, together with step, micro-batch and rank.
        clip: largest gradient norm; None leaves gradients alone.
        recompute: activation checkpointing in every trunk.
        record: plain types that every checkpoint carries, enough to rebuild the model.
        loaded: parameters that outside weights filled, for optimiser groups; a checkpoint that is gone on from knows its own.
    """

    def __init__(
        self, assembly: Assembly, optim: Optim, *, seed: int, clip: float | None = None, recompute: bool = False, record: Mapping[str, Any] | None = None,
        loaded: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.assembly, self.optim, self.seed, self.clip, self.record = assembly, optim, seed, clip, dict(record or {})
        self.loaded = list(loaded)
        self.model = assembly.model
        self.objectives = nn.ModuleDict(assembly.objectives)
        self.teacher = assembly.teacher
        for module in self.model.modules():
            if isinstance(module, Trunk):
                module.recompute = recompute
        self.streams: dict[str, Streams] = {}
        self.micro = 0                       # micro-batches since the last optimiser step
        self.samples_seen = 0                # pairs of all ranks that optimiser steps have consumed
        self.nonfinite_streak = 0            # optimiser steps in a row that were skipped
        self.last_keys: list[str] = []       # sample keys of the current step, on this rank
        self.last_metrics: dict[str, Tensor] = {}

    # -- a step ----------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: dict[str, Batch], device: torch.device, dataloader_idx: int) -> dict[str, Batch]:
        """Batches know how to move."""
        return {source: b.to(device, non_blocking=True) for source, b in batch.items()}

    def open_streams(self, batch: Mapping[str, Batch]) -> dict[str, Streams]:
        """One Streams a source; their draws are seeded by (seed, step, micro-batch, rank, source)."""
        words = (self.seed, self.global_step, self.micro, dist.rank())
        teacher = None if self.teacher is None else self.teacher.model
        return {
            source: Streams(self.model, b, draws=self.assembly.draws, seed=(*words, source), step=self.global_step, teacher=teacher)
            for source, b in batch.items()
        }

    def training_step(self, batch: dict[str, Batch], index: int) -> Tensor:
        """The weighted sum () of the losses of this step's turn."""
        if self.micro == 0:
            self.last_keys = []
        self.last_keys += [key for b in batch.values() for key in b.keys]
        # Dropout is a pure function of where we are in the run, so nothing about it needs to be saved.
        _seed(seed_of(self.seed, self.global_step, self.micro, dist.rank(), "dropout"), self.device)
        self.streams = self.open_streams(batch)
        losses = {name: objective(s) for name, objective, s in self.assembly.ask(self.streams, self.global_step)}
        total = torch.stack([self.objectives[name].weight * loss.value for name, loss in losses.items()]).sum()  # type: ignore[operator]
        self._note(losses, total)
        self.samples_seen += dist.world() * len(next(iter(batch.values())))   # of the first source; the others keep step with it
        self.micro += 1
        return total

    def _note(self, losses: Mapping[str, Loss], total: Tensor) -> None:
        """Running means over the micro-batches of a step."""
        seen = {"train/loss": total.detach()}
        for name, loss in losses.items():
            seen[f"train/{name}/loss"] = loss.value.detach()
            seen.update({f"train/{name}/{key}": value.detach() for key, value in loss.logs.items()})
        old = self.last_metrics if self.micro else {}
        self.last_metrics = {key: (old[key] * self.micro + value) / (self.micro + 1) if key in old else value for key, value in seen.items()}

    def on_after_backward(self) -> None:
        """Queues and statistics, once a micro-batch."""
        for _, objective, s in self.assembly.ask(self.streams, self.global_step):
            objective.after_batch(s)
        self.streams = {}

    def configure_gradient_clipping(self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Measure the gradient; when it is not finite, drop it on all ranks alike, so that no weight moves."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.last_metrics["train/grad_norm"] = norm.detach()
        # Losses differ between ranks: a rank whose loss alone is not finite must stop the others, too.
        bad = dist.maximum((~torch.isfinite(norm) | ~torch.isfinite(self.last_metrics["train/loss"])).float())
        if bool(bad):
            self.nonfinite_streak += 1
            for p in self.model.parameters():
                p.grad = None
        else:
            self.nonfinite_streak = 0
            if self.clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        """Step the optimiser; then, and only then, teacher and clamps: step t reads the average of its start."""
        rate = optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["scale"]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.micro = 0
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            data.samples_seen = self.samples_seen
        self.last_metrics["train/lr"] = torch.tensor(rate, dtype=torch.float64)
        self.last_metrics["train/samples_seen"] = torch.tensor(self.samples_seen, dtype=torch.float64)
        if self.nonfinite_streak == 0:
            self.model.after_step()
            if self.teacher is not None:
                self.teacher.after_step(self.model)

    def configure_optimizers(self) -> Any:
        """One optimiser over all groups; the schedule moves once an optimiser step."""
        optimizer, schedule = self.optim.build(self.model, loaded=self.loaded)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """One extra entry: enough to rebuild the model, in plain types."""
        checkpoint["vlpkit"] = {"format": migrate.FORMAT, "version": __version__, "samples_seen": self.samples_seen, "loaded": self.loaded, **self.record}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stands, with the groups of parameters that it was trained in. Raises ResumeError for words of another tokenizer."""
        check_words(checkpoint["vlpkit"]["words"], self.record["words"])
        self.samples_seen, self.loaded = int(checkpoint["vlpkit"]["samples_seen"]), list(checkpoint["vlpkit"]["loaded"])
