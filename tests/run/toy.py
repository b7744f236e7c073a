"""A small module and data module that keep the contracts of the run engine.
`python -m tests.run.toy RUNS` trains them in a new folder under RUNS."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from vlpkit import dist
from vlpkit.callbacks import LoaderClock
from vlpkit.loggers import CsvLogger
from vlpkit.runfolder import Run, open_run, record
from vlpkit.trainer import Settings, build_callbacks, build_trainer
from vlpkit.types import Steps

BATCH = 8


class Data(pl.LightningDataModule):
    """Sample i is a function of i; the loader yields exactly what remains, in micro-batches of this rank."""

    def __init__(self, *, total: int, micro: int, world: int = 1, sized: bool = False) -> None:
        super().__init__()
        self.total, self.micro, self.world, self.sized = total, micro, world, sized
        self.samples_seen = 0

    def train_dataloader(self) -> Any:
        return SizedLoader(self) if self.sized else Loader(self)

    def state_dict(self) -> dict[str, Any]:
        return {"samples_seen": self.samples_seen, "fingerprint": "abc"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples_seen = state_dict["samples_seen"]


class Loader:
    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        d = self.data
        for start in range(d.samples_seen, d.total * BATCH, d.micro * d.world):
            yield torch.arange(start + dist.rank() * d.micro, start + (dist.rank() + 1) * d.micro)


class SizedLoader(Loader):
    def __len__(self) -> int:
        return (self.data.total * BATCH - self.data.samples_seen) // (self.data.micro * self.data.world)


class Toy(pl.LightningModule):
    """Learns a random linear map; dropout is seeded by where it stands in the run. `bad` names steps with a NaN loss."""

    def __init__(self, *, bad: tuple[int, ...] = (), lr: float = 1e-2, width: int = 6, nap: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 2))
        self.average = nn.Linear(4, width).requires_grad_(False)
        self.bad, self.lr, self.nap = bad, lr, nap
        self.micro, self.nonfinite_streak = 0, 0
        self.last_metrics: dict[str, Tensor] = {}
        self.last_keys: list[str] = []
        self.seen: list[list[int]] = []

    def training_step(self, index: Tensor, _: int) -> Tensor:
        if self.micro == 0:
            self.last_keys, self.last_metrics = [], {}
        self.last_keys += [str(i) for i in index.tolist()]
        self.seen.append([self.global_step, *index.tolist()])
        torch.manual_seed(1000 * self.global_step + 10 * self.micro + dist.rank())
        time.sleep(self.nap)
        x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(int(i))) for i in index])
        loss = (self.net(x) - x[:, :2].cumsum(1)).square().mean()
        if self.global_step in self.bad:
            loss = loss * float("nan")
        old = self.last_metrics.get("train/loss", torch.zeros(()))
        self.last_metrics["train/loss"] = (old * self.micro + loss.detach()) / (self.micro + 1)
        self.micro += 1
        return loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        grads = [p.grad for p in self.net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        self.last_metrics["train/grad_norm"] = norm
        if bool(dist.maximum((~torch.isfinite(norm)).float())):
            self.nonfinite_streak += 1
            for p in self.parameters():
                p.grad = None
        else:
            self.nonfinite_streak = 0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.micro = 0
        self.trainer.datamodule.samples_seen += BATCH  # type: ignore[attr-defined]
        self.last_metrics["train/lr"] = torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in zip(self.average.parameters(), self.net[0].parameters()):
                ours.lerp_(theirs, 0.1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vlpkit"] = {"format": 1, "version": "0", "config": {"seed": 1}, "card": "", "words": {}}


class Score:
    """An evaluator that draws random numbers, as a careless one might."""

    name = "toy"

    def __call__(self, module: Toy, data: Data) -> Iterator[tuple[str, float]]:
        torch.rand(3)
        assert not module.training and not torch.is_grad_enabled()
        yield "norm", float(sum(p.square().sum() for p in module.net.parameters()))


def engine(
    run: Run, *, total: int = 12, accumulate: int = 1, every: int = 4, world: int = 1, stop_at: int | None = None, module: Toy | None = None,
    loggers: list[Logger] | None = None, log_every: int = 1, keep: int = 2, eval_every: int | None = 3, sized: bool = False,
    callbacks: Sequence[pl.Callback] = (), evaluators: Sequence[Any] = (),
) -> tuple[Toy, pl.Trainer, Data]:  # fmt: skip
    """Fit (or go on fitting) a toy in a run folder; `stop_at` raises KeyError in the middle of that step, as a crash would."""
    module = module or Toy()
    data = Data(total=total, micro=BATCH // accumulate // world, world=world, sized=sized)
    settings = Settings(
        accelerator="cpu", precision="fp32", checkpoint_every=Steps(every), keep=keep, log_every=Steps(log_every), timeout=0.5,
        eval_every=None if eval_every is None else Steps(eval_every), nonfinite_patience=3,
    )  # fmt: skip
    clock = LoaderClock()
    standard = build_callbacks(settings, run_dir=run.folder, batch=BATCH, max_steps=total, loader=clock, evaluators=evaluators or [Score()])
    made = [CsvLogger(run_dir=run.folder, resumed=run.step), *(loggers or [])]
    trainer = build_trainer(settings, run_dir=run.folder, loggers=made, callbacks=[Crash(stop_at), *callbacks, *standard], max_steps=total, accumulate=accumulate, loader=clock)
    trainer.fit(module, datamodule=data, ckpt_path=run.checkpoint)
    return module, trainer, data


class Crash(pl.Callback):
    """Fails when the step `at` begins."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            raise KeyError("crash")


def opened(folder: Path | None, *, resume: str | None = "auto", runs: Path = Path("runs")) -> Run:
    run = open_run(folder, name="toy", resume=resume, config={"seed": 1}, runs=runs)
    record(run, config={"seed": 1}, card="toy")
    return run


class Herald(pl.Callback):
    """Tells a watching test that training has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            (self.folder / f"ready_{dist.rank()}").write_text("")


def run(folder: Path | None, *, total: int, nap: float = 0.0, bad: tuple[int, ...] = (), runs: Path = Path("runs")) -> None:
    """Start or go on, on as many ranks as the environment says; leave what each rank saw behind."""
    torch.set_num_threads(1)
    opened_run = opened(folder, runs=runs, resume=None if folder is None else "auto")
    module, where = Toy(nap=nap, bad=bad), opened_run.folder
    engine(opened_run, total=total, world=int(os.environ.get("WORLD_SIZE", "1")), module=module, callbacks=[Herald(where)])
    torch.save({"weights": module.state_dict(), "seen": module.seen}, where / f"end_{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    run(None, total=12, runs=Path(sys.argv[1]))
