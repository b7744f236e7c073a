"""Released layouts are recognised by the keys of the recorded original models, and fill the recipe they belong to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden import test_meter, test_multiway
from tests.golden.recorded import Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.layouts import recognise
from vlpkit.weights import convert, everything

MADE = {"meter": test_meter.build, "vlmo": test_multiway.build, "beit3": test_multiway.beit3_parts}


def fill(made: Assembly, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a file with these keys gives a model, found by its keys alone."""
    ours = everything(made.model)
    tensors, _ = convert(theirs, recognise(theirs, place="recorded").rows(ours, theirs), ours)
    return tensors


@pytest.mark.parametrize("name", MADE)
def test_a_released_layout_is_known_by_its_keys_and_every_key_has_its_place(name: str) -> None:
    r = recording(f"{name}_a")
    build: Callable[[Recording], Assembly] = MADE[name]
    theirs = r.group("param/")
    assert recognise(theirs, place="recorded").name == name
    filled = fill(build(r), theirs)
    assert sum(t.numel() for t in filled.values()) > 0.9 * sum(t.numel() for t in theirs.values())
    assert all(t.isfinite().all() for t in filled.values())


@pytest.mark.parametrize("kept", ["trunk", "words", "contrast"])
def test_beit3_takes_what_a_released_file_holds(kept: str) -> None:
    """Files come with the head of words, with that of contrast, or with neither; the recipe has the former alone."""
    r = recording("beit3_a")
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 1, "cls": 101, "sep": 102, "mask": 103}, length=z["text_len"])
    made = assemble(composed(
        "model=beit3", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['layers']}", f"size.image={z['image']}", f"size.patch={z['patch']}",
        f"size.positions={z['max_positions'] - 2}", f"+model.vision.trunk.ratio={z['ffn'] / z['hidden']}",
    ), words=words, clock=CLOCK)  # fmt: skip
    contrast = ("vision_head.weight", "language_head.weight", "logit_scale")
    theirs = {name: t for name, t in r.group("param/").items() if kept == "contrast" or name not in contrast}
    if kept == "words":
        theirs |= {"mlm_head.weight": torch.randn(z["vocab"], z["hidden"]), "mlm_head.bias": torch.randn(z["vocab"])}
    filled = fill(made, theirs)
    assert ("heads.mlm.out.weight" in filled) == (kept == "words")
    assert torch.equal(filled["text.embed.word.weight"], theirs["beit3.text_embed.weight"])
    assert not any(name.startswith(("codebook", "align")) for name in filled)
