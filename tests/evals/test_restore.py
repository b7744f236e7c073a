"""A checkpoint is enough to have the model back, and nothing in it can make us do anything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evals.runs import Model, data_of, saved, world
from vlpkit.checkpoint import SafeCheckpointIO, load_checkpoint
from vlpkit.data.tokenize import Words
from vlpkit.errors import ConfigError, ResumeError, WeightsError
from vlpkit.evals.pairs import HardPairs
from vlpkit.evals.retrieval import Retrieval
from vlpkit.restore import Restored, restore

torch.set_num_threads(1)
Run = tuple[Path, Path, Model, Words]


@pytest.fixture(scope="module", params=["clip", "albef", "blip"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("restore")
    where = world(folder)
    return folder / "run", where, *saved(folder / "run", where, f"model={request.param}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    saved(folder, world(folder), "model=clip")
    return folder


def changed(clip: Path, folder: Path, change: Any) -> Path:
    """The same checkpoint, changed and with a proper hash."""
    checkpoint = copy.deepcopy(load_checkpoint(clip / "checkpoints" / "step_00000007.ckpt"))
    change(checkpoint)
    path = folder / "step_00000007.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def test_a_restored_model_gives_the_numbers_of_the_one_in_memory(run: Run) -> None:
    folder, where, model, words = run
    found = restore(folder)
    data = data_of(where, words)
    for task in (Retrieval(batch=8, k_test=0 if found.model.name == "clip" else 10), HardPairs(batch=8)):
        expected = dict(task(model, data))
        data.words = found.words
        assert dict(task(found, data)) == expected


def test_every_weight_comes_back_and_ties_stay(run: Run) -> None:
    folder, _, model, words = run
    found = restore(folder)
    expected = model.assembly.model.state_dict()
    assert found.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.model.state_dict().items())
    assert len(list(found.model.parameters())) == len(list(model.assembly.model.parameters()))
    assert (found.step, found.samples_seen, found.words.fingerprint) == (7, 56, words.fingerprint)
    assert not any(part.training for part in found.model.modules())
    assert found.assembly.teacher is None


@pytest.mark.parametrize("at", ["", "checkpoints", "checkpoints/step_00000007.ckpt"])
def test_a_run_its_checkpoints_or_a_file_may_be_named(clip: Path, at: str) -> None:
    found = restore(clip / at)
    assert isinstance(found, Restored)
    assert found.path.name == "step_00000007.ckpt"


def test_restoring_leaves_the_random_numbers_alone(clip: Path) -> None:
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    restore(clip)
    assert torch.equal(torch.get_rng_state(), expected)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing: there is no such file or folder \(accepted: a run folder or a checkpoint file\)"):
        restore(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"holds no checkpoint"):
        restore(tmp_path)


def test_a_flipped_byte_is_found(clip: Path, tmp_path: Path) -> None:
    path = changed(clip, tmp_path, lambda checkpoint: None)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(ResumeError, match="altered, its sha256"):
        restore(path)


@pytest.mark.parametrize(
    ("block", "key", "target"),
    [
        ("model", "vision", "vlpkit.data.shapes.write.write_world"), ("objectives", "itc", "os.system"), ("draws", "extra", "subprocess.run"),
        ("teacher", "extra", "vlpkit.data.shapes.write.write_world"),
        ("model", "vision", "vlpkit.encoders.encoder.torch.hub.load"),
    ],
)  # fmt: skip
def test_a_configuration_that_calls_anything_but_a_part_is_refused(clip: Path, tmp_path: Path, block: str, key: str, target: str) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        config = checkpoint["vlpkit"]["config"]
        config[block] = config[block] or {}   # a CLIP has no teacher
        config[block].setdefault(key, {})["_target_"] = target

    with pytest.raises(ConfigError) as caught:
        restore(changed(clip, tmp_path, change))
    assert f"{block}.{key}" in str(caught.value)
    assert target.rpartition(".")[2] in str(caught.value)


def test_weights_of_another_model_are_refused_with_their_names(clip: Path, tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        state["model.odd"] = state.pop("model.align.v.out.weight")
        state["model.align.w.out.weight"] = torch.zeros(3, 5)

    message = (
        r"its weights do not fit the model that its configuration describes\.\n  model\.align\.v\.out\.weight is missing\n  model\.odd has no place\n"
        r"  model\.align\.w\.out\.weight is \(3, 5\), the model's \(\d+, 32\)\n"
    )
    with pytest.raises(WeightsError, match=message):
        restore(changed(clip, tmp_path, change))


def test_a_checkpoint_without_a_configuration_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no config, so the model cannot be rebuilt from it"):
        restore(changed(clip, tmp_path, lambda checkpoint: checkpoint["vlpkit"].pop("config")))
