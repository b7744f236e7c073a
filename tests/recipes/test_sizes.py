"""Parameters of whole recipes at the size of the paper, beside the number that was published or that the reference library counts."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn
from transformers import GitConfig, GitForCausalLM

from tests.builders import CLOCK, composed
from tests.vocabulary import numbered_words
from vlpkit.card import count
from vlpkit.dry import dry_step
from vlpkit.model import VLModel

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": 4, "enc": 5, "dec": 6}

PUBLISHED = {   # recipe, size, words of the paper's tokenizer: millions of parameters
    ("clip", "base", 49408): 149.62,    # open_clip's model profile, ViT-B-16
    ("align", "base", 30522): 171.53,    # transformers' AlignModel at its defaults (EfficientNet-B7, BERT-base): 172.12 with BERT's pooler, which the loss never reads
    ("siglip", "base", 32000): 203.16,  # open_clip's model profile, ViT-B-16-SigLIP: 92.88 of the image and 110.27 of the text
    ("visualbert", "base", 30522): 112.07,  # transformers' VisualBertForPreTraining at its defaults, features of 2048 numbers
    ("vilt", "base", 30522): 135.66,    # transformers' ViltForMaskedLM at its defaults: 112.22, and 23.44 of an output table that is not that of the words
    ("lxmert", "base", 30522): 228.05,  # transformers' LxmertForPreTraining at its defaults
}


@pytest.mark.parametrize(("recipe", "size", "vocab"), PUBLISHED)
def test_a_recipe_has_the_published_number_of_parameters(recipe: str, size: str, vocab: int) -> None:
    cfg = composed(f"model={recipe}", f"size={size}")
    words = numbered_words(vocab, SPECIAL, length=cfg["model"]["text"]["words"]["length"])
    made = dry_step(cfg, words=words, clock=CLOCK)[0]
    assert count(made.model)[0] / 1e6 == pytest.approx(PUBLISHED[recipe, size, vocab], rel=0.01)


def built(vocab: int, *overrides: str) -> VLModel:
    """A command line, on the meta device."""
    cfg = composed(*overrides)
    return dry_step(cfg, words=numbered_words(vocab, SPECIAL, length=cfg["model"]["text"]["words"]["length"]), clock=CLOCK)[0].model


def millions(*modules: nn.Module) -> float:
    """Parameters, one that is shared counted once."""
    return count(nn.ModuleList(modules))[0] / 1e6


def test_beit3_has_the_published_number_of_parameters() -> None:
    """276 million as released with both heads; the codebook, which stays out of the released file, is frozen here."""
    model = built(64010, "model=beit3", "size=base")
    assert millions(*(model.part(name) for name in ("vision", "text", "fusion")), *model.heads.values()) == pytest.approx(276, rel=0.01)


def test_vlmo_has_the_published_number_of_parameters() -> None:
    """175 million in table 3 of the paper (recalled), without projections and heads."""
    model = built(30522, "model=vlmo", "size=base")
    assert millions(*(model.part(name) for name in ("vision", "text", "fusion"))) == pytest.approx(175, rel=0.01)


def test_git_has_the_parameters_of_transformers_model_but_for_its_own_output_table() -> None:
    """Theirs holds an output table that is not tied; ours is the word table."""
    with torch.device("meta"):
        theirs = GitForCausalLM(GitConfig())
    expected = millions(theirs) - millions(theirs.output) + theirs.output.out_features / 1e6
    assert millions(built(30522, "model=git", "size=base")) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("size", "encoder", "decoder"), [("base", 86, 297), ("large", 303, 484)])
def test_coca_in_the_form_of_its_paper_has_the_published_number_of_parameters(size: str, encoder: int, decoder: int) -> None:
    """Table 1 counts an encoder of the image and a decoder of 64k words in two halves; pools and projections stand between and beside them."""
    made = built(64000, "model=coca", f"size={size}", "vision=vit_cascade", "model.decoder.w.block=[self,cross,ffn]", "model.decoder.w.memory_norm=false")
    parts = {name: sum(p.numel() for p in made.get_submodule(name).parameters()) / 1e6 for name in ("vision", "vision.neck", "text", "decoder", "heads")}
    assert parts["vision"] - parts["vision.neck"] == pytest.approx(encoder, rel=0.01)
    assert parts["text"] + parts["decoder"] + parts["heads"] == pytest.approx(decoder, rel=0.01)


@pytest.mark.parametrize(("theirs", "ours"), [
    ("coca_ViT-B-32", ("size=base", "size.image=224", "size.patch=32", "size.narrow.dim=512", "size.narrow.heads=8")),
    ("coca_ViT-L-14", ("size=large", "size.image=224", "size.patch=14", "size.narrow.dim=768", "size.narrow.heads=12")),
])  # fmt: skip
def test_coca_in_the_form_of_open_clip_has_as_many_parameters(theirs: str, ours: tuple[str, ...]) -> None:
    settings = open_clip.get_model_config(theirs)
    with torch.device("meta"):
        other = open_clip.CoCa(**{key: value for key, value in settings.items() if key != "custom_text"})
    assert count(built(49408, "model=coca", *ours))[0] == sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize(("size", "published"), [("base", 86), ("large", 303)])   # the paper (recalled), which leaves out words and heads
def test_uniter_has_the_published_number_of_parameters_beside_its_words(size: str, published: int) -> None:
    model = built(28996, "model=uniter", f"size={size}")
    assert millions(model.part("vision"), model.part("fusion")) == pytest.approx(published, rel=0.01)


def test_vilt_has_the_published_number_of_parameters_without_its_words() -> None:
    """The paper (recalled) counts 87.4 million: patches and blocks, neither the table of words nor heads."""
    model = built(100, "model=vilt", "size=base")
    assert millions(model.part("vision"), model.part("fusion")) == pytest.approx(87.4, rel=0.01)
