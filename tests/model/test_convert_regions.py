"""Weights of LXMERT, VisualBERT and ViLT from transformers' classes and original files into our folder and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tests.builders import CONF
from tests.golden.recorded import recording
from tests.parity import test_lxmert, test_vilt, test_visualbert
from tests.parity.beside import LENGTH, SPECIAL, VOCAB, ours, shake
from tests.vocabulary import numbered_words
from vlpkit.account import plan
from vlpkit.conversion import convert
from vlpkit.layouts import recognise
from vlpkit.restore import restore
from vlpkit.rows import Row
from vlpkit.start import start
from vlpkit.tables.lxmert import lxmert
from vlpkit.tables.vilt import transformers_vilt
from vlpkit.tables.visualbert import transformers_visualbert
from vlpkit.weights import canonical, everything, revert

SIZES = ["size.dim=48", "size.heads=4", "size.depth=2", "size.half=2", "size.image=32", "size.patch=8", "size.vocab=null", f"size.words={LENGTH}"]


def lxmert_sizes() -> list[str]:
    return ["model=lxmert", "size.feature=64", f"size.positions={LENGTH}", f"size.classes={test_lxmert.OBJECTS + 1}", f"size.attributes={test_lxmert.ATTRIBUTES + 1}",
            f"size.answers={test_lxmert.ANSWERS}", "model.text.trunk.depth=3", "model.vision.trunk.depth=1"]  # fmt: skip


FRESH = {"transformers_vilt": {"heads.itm.out.weight", "heads.itm.out.bias"}}   # their class for words has no head for matching
CASES: dict[str, tuple[Callable[[], nn.Module], list[Row], list[str]]] = {
    "transformers_lxmert": (lambda: test_lxmert.WithRegions(padded=False).theirs, lxmert("lxmert."), lxmert_sizes()),
    "transformers_visualbert": (lambda: test_visualbert.WithRegions().theirs, transformers_visualbert(), ["model=visualbert", "size.feature=64", f"size.positions={2 * LENGTH}"]),
    "transformers_vilt": (test_vilt.with_words, transformers_vilt(), ["model=vilt", test_vilt.EPS, f"size.positions={LENGTH}"]),
}


def written(folder: Path, theirs: nn.Module) -> dict[str, Tensor]:
    """A folder with their weights, each random, and a tokenizer as it stands beside a released file."""
    shake(theirs)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in theirs.state_dict().items()}
    tensors.pop("cls.predictions.decoder.weight", None)   # tied to the words, and transformers writes a tied table once
    save_file(tensors, folder / "model.safetensors")
    words = numbered_words(VOCAB, SPECIAL, length=LENGTH)
    named = {f"{name}_token": f"word{SPECIAL[name]}" for name in ("cls", "sep", "mask", "pad")} | {"unk_token": f"word{SPECIAL['pad']}"}
    PreTrainedTokenizerFast(tokenizer_object=words.tokenizer, **named).save_pretrained(folder)
    return tensors


@pytest.mark.parametrize("layout", CASES)
def test_a_file_of_transformers_becomes_our_folder_and_goes_back_bit_for_bit(layout: str, tmp_path: Path) -> None:
    make, table, sizes = CASES[layout]
    (tmp_path / "theirs").mkdir()
    tensors = written(tmp_path / "theirs", make())
    told = convert(tmp_path / "theirs", tmp_path / "out", overrides=[*sizes, *SIZES], conf=CONF)
    assert told[0] == f"weights: {tmp_path / 'theirs'} ({layout})"
    held = everything(restore(tmp_path / "out").model)
    report = plan({name: tensor.shape for name, tensor in tensors.items()}, table, canonical(held))
    back = revert(held, report)
    assert back.keys() == tensors.keys() - set(report.dropped)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())
    assert set(report.fresh) == FRESH.get(layout, set())


def test_files_of_the_originals_are_recognised_and_no_other_layout_claims_them() -> None:
    names = {"lxmert": "lxmert_a", "vilt": "vilt_a"}
    assert {recognise(recording(name).group("param/"), place="x").name for name in names.values()} == names.keys()


def test_a_text_part_alone_starts_from_an_lxmert(tmp_path: Path) -> None:
    """Its stack over words has token types and no attention across, as ALBEF's text part."""
    path = tmp_path / "lxmert.safetensors"
    theirs = test_lxmert.WithRegions(padded=False).theirs
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(tensors, path)
    made = ours("model=albef", "model.text.trunk.depth=3")
    taken, = start(made.model, {"text": str(path)}, words=numbered_words(VOCAB, SPECIAL, length=LENGTH))
    assert taken.layout.name == "transformers_lxmert"
    assert torch.equal(made.model.part("text").trunk.blocks[2].ffn.body.fc1.weight, tensors["lxmert.encoder.layer.2.intermediate.dense.weight"])
    assert not [name for name in taken.report.fresh if name.startswith("text.")]
