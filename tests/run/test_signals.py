"""A signal ends the run after the step in progress, with a checkpoint, on all ranks; two ranks train as one would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.run import toy
from tests.run.ranks import codes, start, start_two
from tests.run.test_resume import by_step, rows, same, weights
from tests.run.toy import BATCH, Data, Score, Toy, engine, opened
from vlpkit.checkpoint import Checkpoints, Stopped
from vlpkit.sidecar import find_checkpoint, read_sidecar, step_files

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]


class Ring(pl.Callback):
    """Sends this process a signal at some moment of step `at`."""

    def __init__(self, number: int, at: int, *, times: int = 1, moment: str = "start") -> None:
        self.number, self.at, self.times, self.moment = number, at, times, moment

    def ring(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if self.moment == "start" and trainer.global_step == self.at and pl_module.micro == 0:
            self.ring()

    def on_save_checkpoint(self, trainer: pl.Trainer, *rest: Any) -> None:
        if self.moment == "save" and trainer.global_step == self.at:
            self.ring()


@pytest.mark.parametrize(
    ("ring", "step", "code"),
    [
        (Ring(signal.SIGTERM, 5), 6, 143),
        (Ring(signal.SIGUSR1, 5), 6, 143),
        (Ring(signal.SIGTERM, 5, times=2), 6, 143),
        (Ring(signal.SIGINT, 5), 6, 130),
        (Ring(signal.SIGTERM, 4, moment="save"), 5, 143),
        (Ring(signal.SIGTERM, 4, times=2, moment="save"), 5, 143),
    ],
    ids=["term", "usr1", "twice", "ctrl_c", "in_save", "twice_in_save"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_saves_and_leaves_with_its_code(tmp_path: Path, ring: Ring, step: int, code: int, accumulate: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        engine(opened(tmp_path / "parts"), callbacks=[ring], accumulate=accumulate)
    assert stopped.value.code == code
    assert opened(tmp_path / "parts").step == step
    assert signal.getsignal(signal.SIGTERM) is before
    resumed, *_ = engine(opened(tmp_path / "parts"), accumulate=accumulate)
    whole, *_ = engine(opened(tmp_path / "whole"), accumulate=accumulate)
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_signal_during_evaluation_is_heard_after_it(tmp_path: Path) -> None:
    class Rung(Score):
        def __call__(self, module: Toy, data: Data) -> Iterator[tuple[str, float]]:
            os.kill(os.getpid(), signal.SIGTERM)
            yield from super().__call__(module, data)

    with pytest.raises(Stopped):
        engine(opened(tmp_path), evaluators=[Rung()])
    assert opened(tmp_path).step == 3
    assert rows(tmp_path)[-1]["val/toy/norm"]


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        engine(opened(tmp_path), callbacks=[Ring(signal.SIGINT, 5, times=2)])
    assert not isinstance(left.value, Stopped)
    assert opened(tmp_path).step == 4


def test_handlers_are_put_back_after_a_run(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    engine(opened(tmp_path), total=2)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


# -- processes of their own -----------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def run_toy(folder: Path, total: int, nap: float = 0.0) -> None:
    toy.run(folder, total=total, nap=nap)


def test_two_ranks_stop_together_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    pids = start_two(lambda: run_toy(tmp_path, 2000, nap=0.01))
    wait_for(lambda: step_files(tmp_path / "checkpoints"))
    os.kill(pids[1], signal.SIGTERM)  # one rank hears it, both must stop
    assert codes(*pids) == [143, 143]
    found, problems = find_checkpoint(tmp_path / "checkpoints")
    assert found is not None and problems == []

    stopped = read_sidecar(found).step
    assert codes(*start_two(lambda: run_toy(tmp_path, stopped + 4))) == [0, 0]
    ends = [torch.load(tmp_path / f"end_{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(ends[0]["weights"], ends[1]["weights"])
    for rank, end in enumerate(ends):
        first = BATCH * stopped + rank * BATCH // 2
        assert by_step(end["seen"]) == {stopped + i: [list(range(first + BATCH * i, first + BATCH * i + BATCH // 2))] for i in range(4)}
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(1, stopped + 5))


def test_ranks_that_see_no_finite_gradient_end_together(tmp_path: Path) -> None:
    assert codes(*start_two(lambda: toy.run(tmp_path, total=12, bad=(5, 6, 7)))) == [2, 2]
    seen = json.loads((tmp_path / "nonfinite" / "step_8.json").read_text())
    assert seen["keys_by_rank"] == [["56", "57", "58", "59"], ["60", "61", "62", "63"]]
    assert find_checkpoint(tmp_path / "checkpoints")[0] == tmp_path / "checkpoints" / "step_00000004.ckpt"


def test_a_rank_that_dies_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    pids = start_two(lambda: run_toy(tmp_path, 2000, nap=0.01))
    wait_for(lambda: step_files(tmp_path / "checkpoints"))
    started = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    assert codes(*pids) == [1, -9]
    assert time.monotonic() - started < 30 + 5  # the collective timeout of the toy, and some
    assert find_checkpoint(tmp_path / "checkpoints")[0] is not None


def test_the_exit_code_is_that_of_the_process(tmp_path: Path) -> None:
    pid = start(lambda: run_toy(tmp_path, 2000, nap=0.01))
    wait_for(lambda: (tmp_path / "ready_0").exists())
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert codes(pid) == [143]
    assert time.monotonic() - started < 10
    assert find_checkpoint(tmp_path / "checkpoints")[0] is not None


def test_torchrun_starts_ranks_that_agree_on_a_new_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-m", "tests.run.toy", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    ends = [torch.load(folder / f"end_{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(ends[0]["weights"], ends[1]["weights"])
    assert [end["seen"][0] for end in ends] == [[0, 0, 1, 2, 3], [0, 4, 5, 6, 7]]
    assert [int(row["step"]) for row in rows(folder)] == list(range(1, 13))


def test_the_callback_stands_behind_all_others() -> None:
    from pytorch_lightning.trainer.connectors.callback_connector import _CallbackConnector

    ours = Checkpoints(Path("x"), every=1)  # type: ignore[arg-type]
    assert _CallbackConnector._reorder_callbacks([ours, pl.Callback()])[-1] is ours
