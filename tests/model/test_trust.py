"""Nothing that somebody else wrote is ever executed: not a pickle behind any of the names that are read, not a name in a configuration,
not the code beside a tokenizer. Each way in is tried with a file that would leave a mark."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from tests.builders import CONF
from tests.evals.runs import saved, world
from tests.model.test_convert import SMALL
from tests.parity.beside import LENGTH, SPECIAL, VOCAB, ours
from tests.recipes.runs import NARROW
from tests.test_readme import run as train
from tests.vocabulary import numbered_words
from vlpkit.checkpoint import SafeCheckpointIO, load_checkpoint
from vlpkit.conversion import convert, main
from vlpkit.data.vocabulary import from_transformers
from vlpkit.errors import DataError, VlpError
from vlpkit.start import start

WORDS = numbered_words(VOCAB, SPECIAL, length=LENGTH)


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def evil(mark: Path) -> dict[str, object]:
    return {"state_dict": {"visual.class_embedding": torch.zeros(3)}, "extra": Canary(mark)}


def in_a_file(where: Path, mark: Path) -> Path:
    torch.save(evil(mark), where / "weights.pth")
    return where / "weights.pth"


def as_a_bare_pickle(where: Path, mark: Path) -> Path:
    (where / "weights.bin").write_bytes(pickle.dumps(evil(mark)))
    return where / "weights.bin"


def in_a_folder(where: Path, mark: Path) -> Path:
    torch.save(evil(mark), where / "pytorch_model.bin")
    return where


def in_a_folder_of_open_clip(where: Path, mark: Path) -> Path:
    torch.save(evil(mark), where / "open_clip_pytorch_model.bin")
    return where


def behind_an_index(where: Path, mark: Path) -> Path:
    torch.save(evil(mark), where / "part.bin")
    (where / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"visual.class_embedding": "part.bin"}}))
    return where


def in_a_run(where: Path, mark: Path) -> Path:
    """A checkpoint whose sidecar vouches for it."""
    saved(where / "run", world(where), "model=clip")
    path = where / "run" / "checkpoints" / "step_00000007.ckpt"
    SafeCheckpointIO().save_checkpoint(load_checkpoint(path) | {"extra": Canary(mark)}, path)
    return where / "run"


HIDDEN: list[Callable[[Path, Path], Path]] = [in_a_file, as_a_bare_pickle, in_a_folder, in_a_folder_of_open_clip, behind_an_index, in_a_run]


@pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)
def test_no_pickle_is_unpickled_whatever_it_is_called(hide: Callable[[Path, Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    source = hide(tmp_path, mark)
    with pytest.raises(VlpError):
        start(ours("model=clip").model, {"vision": str(source)}, words=WORDS)
    assert main([str(source), str(tmp_path / "out"), *([] if hide is in_a_run else ["model=clip", *SMALL])], conf=CONF) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_a_command_that_names_such_a_file_ends_before_data_are_touched(tmp_path: Path) -> None:
    source = in_a_file(tmp_path, tmp_path / "mark")
    code, said = train(["model=clip", f"weights={source}", f"run_dir={tmp_path / 'run'}", f"paths.cache={tmp_path / 'cache'}", *NARROW], tmp_path / "log")
    assert code == 2
    assert said.startswith(f"{source}: holds more than tensors and plain types, and reading that could run code, so it was not read.\n")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "cache").exists()


def test_no_name_in_the_configuration_of_a_folder_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "run", world(tmp_path), "model=clip")
    convert(tmp_path / "run", tmp_path / "ours", conf=CONF)
    path = tmp_path / "ours" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["vision"]["embed"] = {"_target_": "os.mkdir", "path": str(tmp_path / "mark")}
    path.write_text(yaml.safe_dump(config))
    assert main([str(tmp_path / "ours"), str(tmp_path / "out")], conf=CONF) == 2
    assert "its configuration names 'os.mkdir' at model.vision.embed, which is no part of a model" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


def test_no_tag_in_the_configuration_of_a_folder_is_followed(tmp_path: Path) -> None:
    saved(tmp_path / "run", world(tmp_path), "model=clip")
    convert(tmp_path / "run", tmp_path / "ours", conf=CONF)
    (tmp_path / "ours" / "config.yaml").write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'mark'}']\n")
    assert main([str(tmp_path / "ours"), str(tmp_path / "out")], conf=CONF) == 2
    assert not (tmp_path / "mark").exists()


def test_no_code_beside_a_tokenizer_is_imported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil.Evil"}}))
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass Evil: pass\n")
    with pytest.raises(DataError, match=r"model\.text\.words\.name is "):
        from_transformers(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_what_is_saved_here_is_read_again_without_trust(tmp_path: Path) -> None:
    """The other side of the coin: our own files need no more than tensors and plain types."""
    saved(tmp_path / "run", world(tmp_path), "model=clip")
    path = tmp_path / "run" / "checkpoints" / "step_00000007.ckpt"
    assert set(torch.load(path, weights_only=True)) == set(load_checkpoint(path))
    assert isinstance(SafeCheckpointIO().load_checkpoint(path, weights_only=False), dict)
