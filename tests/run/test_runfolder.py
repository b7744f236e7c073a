"""Which folder a run lives in, and whether a changed configuration may go on there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.run.test_checkpoint import save
from vlpkit.errors import ConfigError, ResumeError
from vlpkit.identity import check_same_run, compare_configs, identity_hash, kind_of
from vlpkit.runfolder import Run, open_run, record, redact

CONFIG: dict[str, Any] = {
    "name": "clip",
    "model": {"vision": {"dim": 64, "words": None}, "ties": ["a -> b", "c -> d"]},
    "objectives": {"itc": {"weight": 1.0}},
    "data": {"name": "shapes", "batch": 128, "workers": 2},
    "optim": {"lr": 1e-3},
    "trainer": {"precision": "auto", "devices": "auto"},
    "logger": {"csv": {}},
    "total": "300_steps",
    "seed": 1,
}


def changed(key: str, value: Any) -> dict[str, Any]:
    new = yaml.safe_load(yaml.safe_dump(CONFIG))
    *path, word = key.split(".")
    node = new
    for part in path:
        node = node[part]
    node[word] = value
    return new


def start(folder: Path | None, resume: str | None = None, config: dict[str, Any] = CONFIG, **more: Any) -> Run:
    run = open_run(folder, name="clip_shapes", resume=resume, config=config, **more)
    record(run, config=config, card="card")
    return run


def trained(folder: Path, *steps: int) -> Path:
    start(folder)
    save(folder / "checkpoints", *(steps or (4, 8)))
    return folder


def test_a_new_folder_is_named_by_time_model_and_data(tmp_path: Path) -> None:
    one, two = start(None, runs=tmp_path), start(None, runs=tmp_path)
    assert one.folder.parent == tmp_path and one.folder.name.endswith("_clip_shapes")
    assert one.folder != two.folder
    assert (one.checkpoint, one.step) == (None, 0)
    assert yaml.safe_load((one.folder / "config.yaml").read_text()) == CONFIG
    assert (one.folder / "card.txt").read_text() == "card\n"
    assert "torch: " in (one.folder / "env.txt").read_text()


def test_a_folder_that_holds_a_run_is_not_started_again(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    with pytest.raises(ResumeError, match=r"run_dir: .*/a already holds a run. Continue it with resume=auto, or choose another run_dir"):
        start(tmp_path / "a")


def test_a_start_that_was_refused_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    start(tmp_path / "a")
    assert start(tmp_path / "a").step == 0


def test_auto_continues_or_starts(tmp_path: Path) -> None:
    assert start(tmp_path / "a", "auto") == Run(tmp_path / "a", None, 0)
    save(tmp_path / "a" / "checkpoints", 4, 8)
    run = start(tmp_path / "a", "auto")
    assert run == Run(tmp_path / "a", tmp_path / "a" / "checkpoints" / "step_00000008.ckpt", 8)
    assert (tmp_path / "a" / "env.txt").read_text().count("started: ") == 2
    with pytest.raises(ConfigError, match=r"run_dir is null. Name it: run_dir=runs/NAME resume=auto"):
        start(None, "auto", runs=tmp_path)


def test_a_path_names_a_run_or_one_of_its_checkpoints(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    file = tmp_path / "a" / "checkpoints" / "step_00000004.ckpt"
    assert start(None, str(tmp_path / "a")).step == 8
    assert start(None, str(file)) == Run(tmp_path / "a", file, 4)
    assert start(tmp_path / "b", str(file)) == Run(tmp_path / "b", file, 4)
    with pytest.raises(ConfigError, match=r"resume: there is no .*/nowhere \(accepted: null, auto, a run folder or a checkpoint file\)"):
        start(None, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResumeError, match="holds no checkpoint"):
        start(None, str(tmp_path / "empty"))
    trained(tmp_path / "c")
    with pytest.raises(ResumeError, match="already holds a run"):
        start(tmp_path / "c", str(file))


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir: .*/file cannot be used"):
        start(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"run_dir: .*/file/a cannot be used \(Not a directory\). Give a folder that can be read and written"):
        start(tmp_path / "file" / "a")
    with pytest.raises(ConfigError, match=r"run_dir: /proc/nothing/a cannot be used"):
        start(Path("/proc/nothing/a"))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.vision.dim", 128, "model.vision.dim: 64 -> 128"),
        ("data.name", "cc3m", "data.name: 'shapes' -> 'cc3m'"),
        ("data.batch", 64, "data.batch: 128 -> 64"),
        ("seed", 2, "seed: 1 -> 2"),
        ("objectives.itm", {"weight": 1.0}, r"objectives.itm.weight: \(absent\) -> 1.0"),
        ("model.ties", ["a -> b"], "model.ties: "),
    ],
)
def test_what_makes_another_run_is_refused_with_both_values(tmp_path: Path, key: str, value: Any, line: str) -> None:
    trained(tmp_path / "a")
    before = (tmp_path / "a" / "config.yaml").read_bytes()
    with pytest.raises(ResumeError, match=rf"belongs to another run.\n  {line}(.|\n)*Put these back, or start a new run"):
        start(tmp_path / "a", "auto", changed(key, value))
    assert (tmp_path / "a" / "config.yaml").read_bytes() == before


def test_what_may_be_tuned_is_a_warning_and_the_rest_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path / "a")
    assert start(tmp_path / "a", "auto", changed("optim.lr", 5e-4)).step == 8
    assert "changed from here on: optim.lr: 0.001 -> 0.0005" in caplog.text
    caplog.clear()
    assert start(tmp_path / "a", "auto", changed("optim.lr", 5e-4) | {"logger": {"wandb": {}}}).step == 8
    assert caplog.text == ""


def test_all_differences_are_told_apart() -> None:
    new = changed("optim.lr", 2e-3) | {"seed": 2, "logger": None}
    new["data"] |= {"workers": 8}
    assert {(d.key, d.kind) for d in compare_configs(CONFIG, new)} == {("data.workers", "free"), ("optim.lr", "tunable"), ("seed", "identity")}
    assert compare_configs(CONFIG, yaml.safe_load(yaml.safe_dump(CONFIG))) == []
    assert kind_of("trainer.precision") == "tunable" and kind_of("trainer.devices") == "free" and kind_of("something.new") == "identity"
    assert check_same_run(None, CONFIG, place="x") == []
    assert identity_hash(CONFIG) == identity_hash(new | {"seed": 1}) != identity_hash(new)


def test_secrets_never_reach_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "f4k3-t0ken"
    config = CONFIG | {
        "logger": {"wandb": {"api_key": secret, "WANDB_API_KEY": secret, "project": "p"}},
        "data": {"root": f"s3://user:{secret}@host/x", "shards": [f"https://h/{{0..9}}.tar?X-Amz-Signature={secret}&part=1"], "storage": {"secret_access_key": secret, "auth_token": secret}},
    }
    monkeypatch.setattr(sys, "argv", ["train.py", f"logger.wandb.api_key={secret}", f"data.root=s3://user:{secret}@host/x", f"data.val_shards=https://h/a.tar?sig={secret}"])
    run = start(tmp_path / "a", config=config)
    for file in run.folder.rglob("*"):
        assert not file.is_file() or secret not in file.read_text(), file
    assert "https://h/{0..9}.tar?X-Amz-Signature=***&part=1" in (run.folder / "config.yaml").read_text()
    assert redact({"tokens": 5, "tokenizer": "bert", "author": "x", "password": None}) == {"tokens": 5, "tokenizer": "bert", "author": "x", "password": None}


def test_other_ranks_take_what_the_first_one_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(None, runs=tmp_path)
    (run.folder / "metrics.csv").write_text("step\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start(None, runs=tmp_path).folder == run.folder            # launched by the trainer: the environment says
    assert start(run.folder).folder == run.folder                     # explicit: the first rank has asked whether it is taken
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    agreed = start(None, runs=tmp_path / "mine", agree=lambda mine: str(tmp_path / "theirs"))
    assert agreed.folder == tmp_path / "theirs"


def test_the_checks_need_no_torch() -> None:
    code = "import sys, vlpkit.runfolder; sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
