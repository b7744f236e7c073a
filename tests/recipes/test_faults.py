"""The command `train.py` on data that are too bad to train on, and with a reader that the system kills: how it ends, and with what words."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from tests.builders import CONF
from tests.data.shards import pair, write_shards
from tests.recipes.runs import NARROW
from vlpkit.compose import run_hydra
from vlpkit.program import check


def _command(argv: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("a", buffering=1) as sys.stderr:
        sys.stdout = sys.stderr
        code = run_hydra(train.train, conf=CONF, check=lambda cfg: check(cfg, conf=CONF), argv=argv)
    os._exit(code)


def started(folder: Path, *overrides: str) -> multiprocessing.Process:
    """`python train.py` on the folder's shards, in a forked process, which spares it the imports; what it says goes to `log`."""
    narrow = [word for word in NARROW if not word.startswith(("data.world", "data.batch"))]
    words = [
        "data=custom", "size=tiny", f"data.root={folder}", "data.shards=train-*.tar", "data.batch=64", f"run_dir={folder / 'run'}", f"paths.cache={folder / 'cache'}",
        "total=10000_steps", *narrow, *overrides,
    ]  # fmt: skip
    process = multiprocessing.get_context("fork").Process(target=_command, args=(words, folder / "log"))
    process.start()
    return process


def test_twice_the_bearable_share_of_bad_samples_ends_the_command_within_a_window(tmp_path: Path) -> None:
    odd = {number: pair(number, image=b"<html>", text=None if number % 100 else b"") for number in range(0, 1000, 50)}
    write_shards(tmp_path, [250] * 4, odd=odd)
    process = started(tmp_path, "data.workers=0", "data.max_bad_share=0.01")
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2, said[-3000:]
    told = re.search(r"\ndata\.shards: (\d+) of the last (\d+) samples could not be used, (\d\.\d\d) % where data\.max_bad_share=0\.01 permits 1 %\.\n(.*)\Z", said, re.DOTALL)
    assert told, said[-3000:]
    bad, seen = int(told[1]), int(told[2])
    assert seen <= 10_000
    assert 0.01 < bad / seen < 0.04
    assert re.search(r"  reason +refused +for example\n(  \w+ +\d+ +\d{6} in .*train-00\d\.tar\n)+Mend or leave out these shards, or raise data\.max_bad_share\.\n", told[4])
    assert "Traceback" not in said
    report = json.loads((tmp_path / "run" / "data_0.json").read_text())["train"]
    assert report["served"] == seen == report["read"] + sum(report["replaced"].values())


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children of a process are found in /proc")
def test_a_killed_reader_ends_the_command_with_its_number(tmp_path: Path) -> None:
    write_shards(tmp_path, [100] * 2)
    process = started(tmp_path, "data.workers=1")
    until = time.monotonic() + 100
    assert process.pid
    while not ((tmp_path / "run" / "metrics.csv").exists() and (readers := _children(process.pid))):
        assert process.is_alive() and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    os.kill(readers[0], signal.SIGKILL)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2, said[-3000:]
    assert re.search(rf"\ndata\.shards: a reading process ended or stalled \(.*pid.*{readers[0]}.*\) The usual cause is memory: lower data\.workers=1", said), said[-3000:]
    assert "Traceback" not in said
