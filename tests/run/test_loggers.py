"""Metrics reach a file that can be trusted, and trackers that may fail."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import Logger

from tests.builders import composed
from tests.run.test_resume import rows
from tests.run.toy import engine, opened
from vlpkit.errors import ConfigError
from vlpkit.loggers import CsvLogger, Guarded, build_loggers, has_wandb_key

torch.set_num_threads(1)


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_floats_come_back_as_they_were(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": torch.tensor(1 / 3).item(), "c": 1e-300, "d": float("nan"), "e": 3.0}
    CsvLogger(run_dir=tmp_path).log_metrics(values, step=1)
    (row,) = read(tmp_path)
    assert all(float(row[name]) == value or math.isnan(value) for name, value in values.items())
    assert row["d"] == "nan"


def test_rows_are_on_disk_as_soon_as_they_are_logged_and_columns_grow(tmp_path: Path) -> None:
    logger = CsvLogger(run_dir=tmp_path)
    logger.log_metrics({"loss": 2.0, "epoch": 0}, step=1)
    assert read(tmp_path) == [{"step": "1", "loss": "2.0"}]
    logger.log_metrics({"loss": 1.0}, step=2)
    logger.log_metrics({"val/a,b": 5.0}, step=2)
    logger.log_metrics({"val/a,b": 6.0}, step=2)
    logger.log_metrics({"loss": 0.5}, step=3)
    assert read(tmp_path) == [
        {"step": "1", "loss": "2.0", "val/a,b": ""}, {"step": "2", "loss": "1.0", "val/a,b": "6.0"}, {"step": "3", "loss": "0.5", "val/a,b": ""},
    ]  # fmt: skip


def test_rows_after_the_resumed_step_are_cut_when_the_first_new_one_comes(tmp_path: Path) -> None:
    first = CsvLogger(run_dir=tmp_path)
    for step in (1, 2, 3, 4):
        first.log_metrics({"loss": float(step), **({"late": 1.0} if step == 4 else {})}, step=step)
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole + b"5,0.")  # a kill cut this line
    second = CsvLogger(run_dir=tmp_path, resumed=2)
    assert (tmp_path / "metrics.csv").read_bytes() == whole + b"5,0."
    second.log_metrics({"loss": 3.0}, step=3)
    assert read(tmp_path) == [{"step": str(step), "loss": f"{step}.0"} for step in (1, 2, 3)]
    second.log_metrics({"loss": 4.0, "late": 1.0}, step=4)
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_a_closed_file_is_continued(tmp_path: Path) -> None:
    logger = CsvLogger(run_dir=tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    logger.log_metrics({"val": 2.0}, step=1)
    logger.log_metrics({"loss": 3.0}, step=2)
    assert read(tmp_path) == [{"step": "1", "loss": "1.0", "val": "2.0"}, {"step": "2", "loss": "3.0", "val": ""}]


class Broken(Logger):
    """Raises whenever it can."""

    name = "broken"
    version = ""
    calls = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        Broken.calls += 1
        raise ConnectionError("no route to the tracker")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None


def no_tracker() -> Logger:
    raise ImportError("no such tracker")


@pytest.mark.parametrize("make", [Broken, no_tracker])
def test_a_tracker_that_fails_is_silenced_and_training_goes_on(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    Broken.calls = 0
    _, trainer, _ = engine(opened(tmp_path), loggers=[Guarded(make, word="tracker", config={})])
    assert trainer.global_step == 12
    assert [r.getMessage() for r in caplog.records if "logger.tracker" in r.getMessage()] == [
        "logger.tracker failed and is silent from now on; training goes on "
        + ("(ConnectionError: no route to the tracker)" if make is Broken else "(ImportError: no such tracker)")
    ]
    assert Broken.calls == (make is Broken)
    assert len(rows(tmp_path)) == 12


def blocks(word: str, **keys: Any) -> dict[str, Any]:
    return {"csv": {"_target_": "vlpkit.loggers.CsvLogger"}, word: {"_target_": f"vlpkit.loggers.{word}", **keys}}


def test_tensorboard_writes_under_the_run_folder(tmp_path: Path) -> None:
    run = opened(tmp_path)
    made = build_loggers(blocks("tensorboard"), run_dir=tmp_path, resumed=0, config={"optim": {"lr": 0.1}})
    assert len(made) == 2
    engine(run, total=2, loggers=made[1:])
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert events and events[0].stat().st_size > 100


def test_wandb_stays_offline_without_a_key_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody" / "netrc"))
    assert not has_wandb_key()
    config = {"optim": {"lr": 0.1}, "logger": {"wandb": {"api_key": "s3cret-key"}}}
    ids = []
    for resumed in (0, 2):
        (logger,) = build_loggers(blocks("wandb", tags=["a"]), run_dir=tmp_path, resumed=resumed, config=config)[1:]
        logger.log_metrics({"train/loss": 1.0}, step=resumed + 1)
        assert isinstance(logger, Guarded) and logger._inner is not None, "wandb could not start"
        logger.finalize("success")
        ids.append((tmp_path / "wandb_id.txt").read_text().strip())
        import wandb

        wandb.finish()
    assert ids[0] == ids[1]
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and all(f"-{ids[0]}" in run.name for run in runs)  # wandb numbers the second folder of one second
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cret-key" not in file.read_bytes(), file


def test_a_misspelt_key_of_a_tracker_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"logger.wandb(.|\n)*projekt"):
        composed("logger=wandb", "++logger.wandb.projekt=x")
    assert set(composed("logger=all")["logger"]) == {"csv", "tensorboard", "wandb"}


def test_evaluations_are_rows_and_files(tmp_path: Path) -> None:
    engine(opened(tmp_path), total=6)
    report = json.loads((tmp_path / "eval" / "toy.json").read_text())
    assert (report["task"], report["step"]) == ("toy", 6)
    assert float(rows(tmp_path)[-1]["val/toy/norm"]) == report["metrics"]["norm"]
