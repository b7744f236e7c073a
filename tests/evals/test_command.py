"""evaluate.py as a user meets it: refusals at once with code 2, files and a table otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.builders import CONF, ROOT
from tests.evals.runs import VAL, Model, data_of, saved, world
from vlpkit.data.tokenize import Words
from vlpkit.errors import ConfigError
from vlpkit.evals.command import main, table
from vlpkit.evals.pairs import HardPairs
from vlpkit.evals.request import TASKS, help_text, read
from vlpkit.evals.retrieval import Retrieval
from vlpkit.sidecar import digest

torch.set_num_threads(1)
Run = tuple[Path, Path, Model, Words]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("blip")
    where = world(folder)
    return folder / "run", where, *saved(folder / "run", where, "model=blip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    saved(folder / "run", world(folder), "model=clip")
    return folder / "run"


def test_all_tasks_of_a_model_are_measured_and_written(blip: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, where, model, words = blip
    assert main([f"run={folder}", "batch=8", "k_test=10", "length=6"], conf=CONF) == 0
    data = data_of(where, words)
    record = json.loads((folder / "eval" / "retrieval.json").read_text())
    assert record["metrics"] == dict(Retrieval(batch=8, k_test=10)(model, data))
    assert (record["task"], record["step"], record["world"], record["precision"]) == ("retrieval", 7, 1, "fp32")
    assert record["protocol"] == "retrieval-all-pessimistic-itm10@1"
    assert record["checkpoint"] == {"file": "step_00000007.ckpt", "sha256": digest(folder / "checkpoints" / "step_00000007.ckpt"), "samples_seen": 56}
    assert (record["data"]["samples"], record["data"]["left_out"]) == (VAL, {})
    assert json.loads((folder / "eval" / "pairs.json").read_text())["metrics"] == dict(HardPairs(batch=8)(model, data))
    predictions = json.loads((folder / "predictions" / "caption.json").read_text())
    assert [one["key"] for one in predictions] == [f"val{i:07d}" for i in range(VAL)]
    out = capsys.readouterr().out
    assert out.startswith(f"blip after 7 steps, 56 pairs seen, on {VAL} samples of tiny (fp32, cpu)\n  retrieval  i2t_R@1 ")
    assert out.splitlines()[-1].split() == ["count", str(VAL)]


def test_other_shards_and_other_data_do_not_overwrite_the_runs_own(blip: Run) -> None:
    folder, where, *_ = blip
    words = [f"run={folder}", "task=retrieval", "data=custom", f"data.root={where}", "data.val_shards=train-*.tar", "limit=6"]
    assert main(words, conf=CONF) == 0
    record = json.loads((folder / "eval" / "retrieval_custom.json").read_text())
    assert (record["facts"]["images"], record["data"]["samples"], record["data"]["name"]) == (6, 20, "custom")


def test_a_key_of_the_runs_own_data_may_be_changed(clip: Path) -> None:
    assert main([f"run={clip}", "task=retrieval", "data.val_shards=train-*.tar", "data.shards=gone-*.tar"], conf=CONF) == 0
    assert json.loads((clip / "eval" / "retrieval.json").read_text())["facts"]["images"] == 20


def test_a_task_that_the_model_cannot_do_is_named_when_asked_for_and_left_out_of_all(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={clip}", "task=caption"], conf=CONF) == 2
    assert capsys.readouterr().err.startswith("evals.caption: captions need a decoder and the objective 'lm', but 'clip' builds vision, text, align and has itc.")
    assert main([f"run={clip}", "limit=4"], conf=CONF) == 0
    assert "caption" not in capsys.readouterr().out
    assert main([f"run={clip}", "limit=4", "k_test=16"], conf=CONF) == 2
    assert "k_test=16 re-ranks with the matching objective 'itm', but 'clip' has itc" in capsys.readouterr().err


REFUSED = [
    ([], r"^run: which model is to be evaluated\? Write run=runs/NAME"),
    (["rum=x"], r"^rum: there is no such key \(there are: run, task, .*\)\. Did you mean 'run'\?$"),
    (["run={run}", "task=retreival"], r"^task: there is no 'retreival' \(there are: retrieval, pairs, caption, all\)\. Did you mean 'retrieval'\?$"),
    (["run={run}", "ktest=16"], r"^ktest: there is no such key .* Did you mean 'k_test'\?$"),
    (["run={run}", "task=caption", "k_test=16"], r"^k_test: is a key of retrieval, not of caption\."),
    (["run={run}", "k_test=many"], r"^evals\.retrieval\.k_test: Retrieval takes a whole number here, found 'many'"),
    (["run={run}", "data=custon"], r"^data: there is no option 'custon' .* Did you mean data=custom\?"),
    (["run={run}", "data=custom"], r"^data\.val_shards: 'custom' names no validation shards"),
    (["run={run}", "data=custom", "data.val_shard=x"], r"^data\.val_shard: .*val_shards"),
    (["run={run}", "data.val_shard=x"], r"^data\.val_shard: data has no key 'val_shard' .* Did you mean 'val_shards'\?$"),
    (["run={run}", "device=gpu"], r"^device: 'gpu' \(accepted: auto, cpu, cuda\)\."),
    (["run={run}", "precision=bf61"], r"^precision: 'bf61' \(accepted: fp32, bf16\)\. Did you mean 'bf16'\?$"),
    (["run={run}", "retrieval"], r"^'retrieval' is no key=value\."),
    (["run={run}s"], r"^run: there is no .*runs \(accepted: a run folder or a checkpoint file\)\. Did you mean 'run'\?$"),
    (["run={run}/checkpoints/../.."], r"holds no checkpoint"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) or "nothing" for words, _ in REFUSED])
def test_a_command_that_cannot_be_right_is_refused_in_words(clip: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read([word.replace("{run}", str(clip)) for word in words], conf=CONF)


def test_a_refusal_ends_with_code_2_before_torch_is_imported(clip: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vlpkit.evals.command import main\n"
        f"code = main(['run={clip}', 'k_tset=3'], conf=Path('conf')); code = code * main(['run={clip}', 'data=shape'], conf=Path('conf'))\n"
        "heavy = {'torch', 'torchvision', 'timm', 'transformers', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr  # 2 times 2
    assert "Did you mean 'k_test'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_task_and_every_key() -> None:
    text = help_text()
    assert all(task in text for task in TASKS)
    assert all(key in text for key in ("run=", "k_test", "limit", "data.KEY", "precision="))


def test_several_processes_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process"):
        read([f"run={clip}"], conf=CONF)


def test_the_table_is_aligned_and_names_a_task_once() -> None:
    assert table([("retrieval", "i2t_R@1", "53.20"), ("retrieval", "i2t_R@10", "100.00"), ("pairs", "count", "7")]) == (
        "  retrieval  i2t_R@1    53.20\n             i2t_R@10  100.00\n  pairs      count          7\n"
    )
