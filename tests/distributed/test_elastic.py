"""A run goes on with other processes: killed on one, continued on two and on one again, it sees the global batches of the run that nobody disturbed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from tests.data.shards import module, write_shards
from tests.recipes.runs import in_child, keys, on_ranks, rows
from tests.run.ranks import codes, start_two
from vlpkit import dist
from vlpkit.data.module import DataModule
from vlpkit.types import Batch

STEPS = 9
LENGTH = ("model=clip", f"total={STEPS}_steps", "trainer.checkpoint_every=1_steps", "seed=7")
MIX = ("++data.mix={shapes: 1.0, held: {shards: val-*.tar, weight: 2.5}}",)   # 120 and 40 samples an epoch: it ends in the eighth step
SETUPS = {"one set": (), "a mixture": MIX}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_run_continues_on_two_processes_and_on_one_again(setup: tuple[str, ...], cache: Path, tmp_path: Path) -> None:
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "run.log"
    command = (*LENGTH, *setup)
    assert in_child(whole, cache, *command) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert in_child(run, cache, *command, die=("on_after_backward", 2)) == -9, log.read_text()[-3000:]
    assert 0 not in on_ranks(run, cache, *command, "resume=auto", "data.workers=1", "trainer.micro_batch=4", world=2, die=("on_train_batch_start", 5)), log.read_text()[-3000:]
    assert on_ranks(run, cache, *command, "resume=auto", "data.workers=2", "total=7_steps", world=2) == [0, 0], log.read_text()[-3000:]
    assert in_child(run, cache, *command, "resume=auto", "data.workers=2") == 0, log.read_text()[-3000:]
    starts = sorted({path.name.split("_", 1)[1] for path in run.glob("keys_*.txt")})
    assert starts == ["0_0_of_1.txt", "1_0_of_2.txt", "1_1_of_2.txt", "2_0_of_2.txt", "2_1_of_2.txt", "3_0_of_1.txt"]
    assert list(keys(whole)) == list(range(1, STEPS + 1))
    assert sorted(keys(run).items()) == sorted(keys(whole).items())
    assert [row["train/samples_seen"] for row in rows(run)] == [row["train/samples_seen"] for row in rows(whole)]


class Least(pl.LightningModule):
    """Reads batches, and shares one weight with the other rank."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys: list[list[str]] = []

    def training_step(self, batch: dict[str, Batch], _: int) -> torch.Tensor:
        self.keys.append(list(batch["pairs"].keys))
        return self.weight * float(len(batch["pairs"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def uneven(folder: Path) -> DataModule:
    """Over shards of 1, 5 and no samples, the last of which counts as damaged."""
    return module(folder, val_shards=None, batch=4, max_bad_share=0.4)


def read(folder: Path) -> None:
    """This rank's part of six steps."""
    torch.set_num_threads(1)
    model, data = Least(), uneven(folder)
    data.plan(world=2, total=6)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    (folder / f"{dist.rank()}.json").write_text(json.dumps(model.keys))


def test_ranks_over_uneven_and_empty_shards_take_as_many_steps_and_end_together(tmp_path: Path) -> None:
    write_shards(tmp_path, [1, 5, 0])
    assert codes(*start_two(lambda: read(tmp_path))) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    whole = [list(step["pairs"].keys) for step in islice(uneven(tmp_path).train_dataloader(), 6)]
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == whole
    assert Counter(key for step in whole for key in step) == Counter({f"{number:06d}": 4 for number in range(6)})   # four epochs of six
