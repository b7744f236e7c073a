"""A run that diverges ends with its samples written down; what a person sees; precision and devices."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.run.test_resume import rows, same, weights
from tests.run.toy import Toy, engine, opened
from vlpkit.callbacks import Diverged, LoaderClock, Metrics, ProgressLine, Throughput, shown, undisturbed
from vlpkit.checkpoint import whole
from vlpkit.errors import ConfigError
from vlpkit.precision import cpu_units, resolve_precision
from vlpkit.trainer import Settings
from vlpkit.types import Steps

torch.set_num_threads(1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_a_finite_gradient_moves_nothing_and_is_written_down(tmp_path: Path, accumulate: int) -> None:
    module, trainer, _ = engine(opened(tmp_path), module=Toy(bad=(5,)), accumulate=accumulate)
    assert trainer.global_step == 12 and whole(module)
    (file,) = (tmp_path / "nonfinite").iterdir()
    seen = json.loads(file.read_text())
    assert (file.name, seen["step"], seen["in_a_row"]) == ("step_6.json", 6, 1)
    assert seen["keys_by_rank"] == [[str(i) for i in range(40, 48)]]
    assert rows(tmp_path)[5]["train/loss"] == "nan"


def test_several_in_a_row_end_the_run_before_they_are_saved(tmp_path: Path) -> None:
    module = Toy(bad=(5, 6, 7))
    with pytest.raises(Diverged, match=r"3 steps in a row \(to step 8\).*nonfinite.*Lower optim.lr.*resume=auto"):
        engine(opened(tmp_path), module=module)
    assert whole(module)
    run = opened(tmp_path)
    assert run.step == 4
    resumed, *_ = engine(run)
    fresh, *_ = engine(opened(tmp_path / "fresh"))
    assert same(weights(resumed), weights(fresh))


def test_single_bad_steps_do_not_add_up(tmp_path: Path) -> None:
    _, trainer, _ = engine(opened(tmp_path), module=Toy(bad=(1, 2, 4, 5, 7, 8)))
    assert trainer.global_step == 12
    assert len(list((tmp_path / "nonfinite").iterdir())) == 6


class Ticks:
    """A clock that is told the time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_throughput_counts_samples_without_pauses() -> None:
    clock, loader = Ticks(), LoaderClock()
    speed = Throughput(batch=32, loader=loader, clock=clock)
    assert speed.read() == {}
    for step in (1, 2):
        speed.after_step(None, None, step)  # type: ignore[arg-type]
    loader.waited += 1.0
    clock.now = 2.0
    with speed.pause():
        clock.now = 10.0
    clock.now = 12.0
    assert speed.read() == {"perf/samples_per_s": 64 / 4.0, "perf/data_wait_share": 0.25}
    assert speed.read() == {}


def test_perf_is_logged_and_plausible(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import csv

    with caplog.at_level(logging.INFO):
        engine(opened(tmp_path), total=4, module=Toy(nap=0.02), log_every=2)
    with open(tmp_path / "metrics.csv") as file:
        found = list(csv.DictReader(file))
    assert [row["step"] for row in found if row["train/loss"]] == ["2", "4"]
    assert all(0 < float(row["perf/samples_per_s"]) < 8 / 0.02 for row in found if row["perf/samples_per_s"])
    assert all(0 <= float(row["perf/data_wait_share"]) < 0.5 for row in found if row["perf/data_wait_share"])
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step 2/4")]
    assert len(lines) == 1 and "loss" in lines[0] and "samples/s" in lines[0] and "eta 0:00:00" in lines[0]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Stand:
        global_step = 1

    metrics = Metrics(every=Steps(1))
    line = ProgressLine(metrics, total=3, terminal=True)
    line.on_train_start(Stand(), None)  # type: ignore[arg-type]
    metrics.latest, metrics.step = {"train/loss": 0.5}, 2
    line.after_step(None, None, 2)  # type: ignore[arg-type]
    line.on_train_end(None, None)  # type: ignore[arg-type]
    assert "2/3" in capsys.readouterr().err


def test_the_line_names_each_objective() -> None:
    values = {"train/loss": 3.0, "train/itc/loss": 1.0, "train/itc/accuracy": 0.5, "train/itm/loss": 2.0, "train/lr": 1e-4, "perf/samples_per_s": 100.0}
    assert shown(values) == ["loss 3.0000", "itc 1.0000", "itm 2.0000", "lr 1.00e-04", "100.0 samples/s"]


def test_evaluation_gives_back_modes_and_random_numbers() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    module[1].eval()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with pytest.raises(ZeroDivisionError), undisturbed(module):
        assert not module.training and not torch.is_grad_enabled()
        torch.rand(9), random.random(), np.random.rand(9)
        raise ZeroDivisionError
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert (module.training, module[0].training, module[1].training) == (True, True, False)


# -- precision and devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "expected", "reason"),
    [
        (set(), "32-true", "has no bf16 units"),
        ({"avx512_bf16"}, "32-true", "no faster than fp32"),
        ({"amx_bf16", "avx512_bf16"}, "bf16-mixed", "multiplies bf16 in tiles (amx_bf16)"),
    ],
)
def test_a_cpu_trains_in_bf16_only_where_that_pays(
    units: set[str], expected: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vlpkit.precision.cpu_units", lambda: units)
    with caplog.at_level(logging.INFO):
        assert resolve_precision("auto", cuda=False) == expected
    assert len(caplog.records) == 1 and expected in caplog.text and reason in caplog.text
    caplog.clear()
    assert resolve_precision("bf16", cuda=False) == "bf16-mixed"
    assert ("precision: bf16 as asked, but" in caplog.text) == (expected == "32-true")


def test_the_units_are_read_from_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nflags\t\t: fpu sse avx512_bf16 amx_tile\nflags: amx_bf16\n")
    assert cpu_units(file) == {"avx512_bf16"}
    assert cpu_units(tmp_path / "absent") == set()


def test_precision_words_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.precision: 'bf61' is unknown \(accepted: auto, bf16, fp32, fp16\). Did you mean 'bf16'\?"):
        resolve_precision("bf61", cuda=False)
    with pytest.raises(ConfigError, match=r"trainer.precision: fp16 needs a CUDA device"):
        resolve_precision("fp16", cuda=False)


def test_the_launcher_decides_how_many_ranks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(accelerator="cpu").world() == 1
    assert Settings(accelerator="cpu", devices=2, num_nodes=3).world() == 6
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Settings(accelerator="cpu").layout() == (4, 2)
    with pytest.raises(ConfigError, match=r"trainer.devices: 2, but torchrun started 4 processes on this node"):
        Settings(accelerator="cpu", devices=2).layout()


def test_trainer_options_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.builders import CLOCK, composed
    from vlpkit.build import build

    made: dict[str, Any] = {name: build(composed(f"trainer={name}")["trainer"], CLOCK, where="trainer") for name in ("default", "ddp", "ddp8")}
    assert (made["default"].checkpoint_every, made["default"].strategy) == (500, "auto")
    assert (made["ddp"].strategy, made["ddp"].devices, made["ddp8"].devices) == ("ddp", "auto", 8)
