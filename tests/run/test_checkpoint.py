"""A checkpoint is whole or it does not exist: kills, damage, full disks, other people's pickles."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.run.toy import Toy, engine, opened
from vlpkit.checkpoint import Checkpoints, SafeCheckpointIO, SaveError, load_checkpoint, whole
from vlpkit.errors import ResumeError, VlpError
from vlpkit.migrate import upgrade
from vlpkit.sidecar import find_checkpoint, read_sidecar, sidecar_path, step_files, step_name
from vlpkit.types import Steps

torch.set_num_threads(1)
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), r"bytes instead of \d+, cut short"),
    "flipped": (lambda path: flip(path), "altered, its sha256 is"),
    "empty": (lambda path: os.truncate(path, 0), "the file is empty"),
    "no sidecar": (lambda path: sidecar_path(path).unlink(), r"its sidecar step_\d+.ckpt.json is missing"),
}


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def content(step: int, size: int = 4) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.full((size,), float(step))}, "vlpkit": {"format": 1, "config": {"seed": 1}}}


def save(folder: Path, *steps: int, keep: int = 2, size: int = 4) -> None:
    """What the callback does for each of these steps."""
    for step in steps:
        path = folder / step_name(step)
        SafeCheckpointIO().save_checkpoint(content(step, size), path)
        assert Checkpoints(folder, every=Steps(1), keep=keep).settle(path) == []


def in_child(work: Callable[[], None]) -> int:
    """Fork; the child does `work` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_no_kill_leaves_an_unreadable_checkpoint(tmp_path: Path) -> None:
    chance = random.Random(0)
    announced = tmp_path / "announced"
    announced.write_text("0")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    seen = 0
    for _ in range(20):

        def work() -> None:
            step = int(announced.read_text())
            while True:
                step += 1
                save(folder, step, size=2_000_000)
                with open(announced, "r+b") as file:
                    file.write(str(step).encode())

        pid = in_child(work)
        time.sleep(chance.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found, _ = find_checkpoint(folder)
        done = int(announced.read_text())
        if done > 0:
            assert found is not None
            step = int(load_checkpoint(found)["state_dict"]["w"][0])
            assert done <= step <= done + 1
            seen = step
        announced.write_text(str(seen))
    assert seen > 5


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = DAMAGE[kind]
    engine(opened(tmp_path), total=8)
    newest = tmp_path / "checkpoints" / "step_00000008.ckpt"
    damage(newest)
    with caplog.at_level("WARNING"):
        run = opened(tmp_path)
    assert run.step == 4
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any(str(newest) in line for line in warned)
    assert any(re.search(reason, line) for line in warned)
    resumed, trainer, _ = engine(run, total=8)
    assert (resumed.seen[0][0], trainer.global_step) == (4, 8)
    assert find_checkpoint(tmp_path / "checkpoints") == (newest, [])


def test_the_kinds_of_damage_are_told_apart(tmp_path: Path) -> None:
    for i, (damage, reason) in enumerate(DAMAGE.values()):
        folder = tmp_path / str(i)
        save(folder, 1, 2)
        damage(folder / step_name(2))
        found, problems = find_checkpoint(folder)
        assert found == folder / step_name(1)
        assert len(problems) == 1 and str(folder / step_name(2)) in problems[0] and re.search(reason, problems[0])


def test_a_copy_named_last_is_judged_too(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    last = tmp_path / "last.ckpt"
    last.unlink()
    last.write_bytes(b"cut")
    found, problems = find_checkpoint(tmp_path)
    assert found == tmp_path / step_name(2)
    assert problems and "last.ckpt" in problems[0]
    for _, path in step_files(tmp_path):
        path.unlink()
    SafeCheckpointIO().save_checkpoint(content(2), last)
    assert find_checkpoint(tmp_path) == (last, [])


def test_without_a_whole_checkpoint_every_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    flip(tmp_path / step_name(1))
    os.truncate(tmp_path / step_name(2), 10)
    with pytest.raises(ResumeError, match=r"no checkpoint is whole(.|\n)*step_00000002.ckpt: 10 bytes(.|\n)*step_00000001.ckpt: altered(.|\n)*run_dir"):
        find_checkpoint(tmp_path)


def test_what_an_interrupted_save_left_is_named_and_then_swept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    stale = folder / ".step_00000004.ckpt.99.tmp"
    stale.write_bytes(b"half")
    found, problems = find_checkpoint(folder)
    assert found is None and problems == [f"{stale}: left over from a save that was interrupted"]
    engine(opened(tmp_path), total=2)
    assert not stale.exists()


def test_the_sidecar_says_what_is_inside(tmp_path: Path) -> None:
    engine(opened(tmp_path), total=4)
    sidecar = read_sidecar(tmp_path / "checkpoints" / step_name(4))
    assert (sidecar.step, sidecar.fingerprint, sidecar.format) == (4, "abc", 1)
    assert sidecar.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert len(sidecar.config_hash) == 64


def test_last_is_the_newest_step_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=3)
    assert [step for step, _ in step_files(tmp_path)] == [4, 3, 2]
    assert sorted(path.name for path in tmp_path.glob("step_*.json")) == [f"{step_name(step)}.json" for step in (2, 3, 4)]
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    assert (tmp_path / "last.ckpt").samefile(tmp_path / step_name(4))


def test_a_kill_between_the_link_and_its_sidecar_does_no_harm(tmp_path: Path) -> None:
    save(tmp_path, 1)
    old = sidecar_path(tmp_path / "last.ckpt").read_text()
    save(tmp_path, 2)
    sidecar_path(tmp_path / "last.ckpt").write_text(old)
    assert find_checkpoint(tmp_path) == (tmp_path / step_name(2), [])
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


def test_nothing_is_deleted_for_a_file_that_cannot_be_read_back(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    SafeCheckpointIO().save_checkpoint(content(3), tmp_path / step_name(3))
    flip(tmp_path / step_name(3))
    problems = Checkpoints(tmp_path, every=Steps(1)).settle(tmp_path / step_name(3))
    assert problems and "altered" in problems[0]
    assert [step for step, _ in step_files(tmp_path)] == [3, 2, 1]


def test_only_one_size_is_ever_seen_although_temporary_files_live_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    path, sizes, done = tmp_path / step_name(1), set[int](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if path.exists():
                sizes.add(path.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    SafeCheckpointIO().save_checkpoint(content(1, 4_000_000), path)
    time.sleep(0.01)
    done.set()
    watcher.join()
    assert sizes == {path.stat().st_size}


class Quota(pl.callbacks.Callback):
    """No file may grow beyond `limit` bytes after step `first`, until step `last`."""

    def __init__(self, first: int, last: int, limit: int) -> None:
        self.first, self.last, self.limit = first, last, limit

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if trainer.global_step in (self.first, self.last):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit if trainer.global_step == self.first else hard, hard))


@pytest.fixture
def limits() -> Any:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("limits")
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quota = Quota(5, 10, 100_000)
    _, trainer, _ = engine(opened(tmp_path), module=Toy(width=20_000), callbacks=[quota])
    assert trainer.global_step == 12
    folder = tmp_path / "checkpoints"
    assert [step for step, _ in step_files(folder)] == [12, 4]
    assert sorted(path.name for path in folder.iterdir() if "00008" in path.name) == []
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert "TRAINING GOES ON WITHOUT A CHECKPOINT OF STEP 8" in errors[0] and "File too large" in errors[0] and "GB are free" in errors[0]


@pytest.mark.usefixtures("limits")
def test_a_run_whose_last_checkpoint_cannot_be_written_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="its last checkpoint was not written"):
        engine(opened(tmp_path), total=6, module=Toy(width=20_000), callbacks=[Quota(5, -1, 100_000)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert opened(tmp_path).step == 4


def test_room_is_asked_for_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=100))
    with pytest.raises(SaveError, match=r"0.00 GB are free, 0.00 GB are wanted: 1.2 x the last one.*lower trainer.keep"):
        SafeCheckpointIO().save_checkpoint(content(2), tmp_path / step_name(2))
    assert [step for step, _ in step_files(tmp_path)] == [1]


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.file}",))


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / step_name(1)
    SafeCheckpointIO().save_checkpoint(content(1) | {"extra": Canary(canary)}, path)
    with pytest.raises(ResumeError, match="refused, since it cannot be loaded as tensors and plain types"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    path.write_bytes(pickle.dumps(Canary(canary)))
    sidecar_path(path).unlink()
    with pytest.raises(ResumeError, match="sidecar"):
        load_checkpoint(path)
    assert not canary.exists()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ResumeError, match=r"x.ckpt: written in format 7 by vlpkit 9.9, this version reads 2"):
        upgrade({"vlpkit": {"format": 7, "version": "9.9"}}, place="x.ckpt")
    with pytest.raises(ResumeError, match="no checkpoint of vlpkit"):
        upgrade({"state_dict": {}}, place="x.ckpt")


def test_a_checkpoint_of_the_first_format_has_no_parameters_that_were_loaded() -> None:
    assert upgrade({"vlpkit": {"format": 1, "config": {}}}, place="x.ckpt")["vlpkit"] == {"format": 2, "config": {}, "loaded": []}


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Poison(pl.callbacks.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step == 7:
                with torch.no_grad():
                    pl_module.net[0].weight[0, 0] = float("nan")

    module = Toy()
    assert whole(module)
    with pytest.raises(VlpError):
        engine(opened(tmp_path), module=module, callbacks=[Poison()])
    assert not whole(module)
    assert [step for step, _ in step_files(tmp_path / "checkpoints")] == [4]


def test_two_checkpoints_are_the_least() -> None:
    with pytest.raises(VlpError, match=r"trainer.keep: 1, .*Use trainer.keep=2"):
        Checkpoints(Path("x"), every=Steps(1), keep=1)


def test_a_sidecar_that_is_no_sidecar_is_damage(tmp_path: Path) -> None:
    for text in ("", "[1]", json.dumps({"sha256": "x"}), "{"):
        save(tmp_path, 1)
        sidecar_path(tmp_path / step_name(1)).write_text(text)
        with pytest.raises(ResumeError, match=r"its sidecar .* cannot be read"):
            load_checkpoint(tmp_path / step_name(1))
