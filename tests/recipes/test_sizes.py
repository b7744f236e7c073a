"""Parameters of whole recipes at the size of the paper, beside the number that was published or that the reference library counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GitConfig, GitForCausalLM

from tests.builders import CLOCK, composed
from tests.vocabulary import numbered_words
from vlpkit.assemble import dry_step
from vlpkit.card import count
from vlpkit.model import VLModel

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": 4, "enc": 5, "dec": 6}

PUBLISHED = {   # recipe, size, words of the paper's tokenizer: millions of parameters
    ("clip", "base", 49408): 149.62,    # open_clip's model profile, ViT-B-16
    ("align", "base", 30522): 171.53,    # transformers' AlignModel at its defaults (EfficientNet-B7, BERT-base): 172.12 with BERT's pooler, which the loss never reads
    ("siglip", "base", 32000): 203.16,  # open_clip's model profile, ViT-B-16-SigLIP: 92.88 of the image and 110.27 of the text
    ("visualbert", "base", 30522): 112.07,  # transformers' VisualBertForPreTraining at its defaults, features of 2048 numbers
}


@pytest.mark.parametrize(("recipe", "size", "vocab"), PUBLISHED)
def test_a_recipe_has_the_published_number_of_parameters(recipe: str, size: str, vocab: int) -> None:
    cfg = composed(f"model={recipe}", f"size={size}")
    words = numbered_words(vocab, SPECIAL, length=cfg["model"]["text"]["words"]["length"])
    made = dry_step(cfg, words=words, clock=CLOCK)[0]
    assert count(made.model)[0] / 1e6 == pytest.approx(PUBLISHED[recipe, size, vocab], rel=0.01)


def at_base(recipe: str, vocab: int, *, size: str = "base") -> VLModel:
    """The recipe at the size of its paper, on the meta device."""
    cfg = composed(f"model={recipe}", f"size={size}")
    return dry_step(cfg, words=numbered_words(vocab, SPECIAL, length=cfg["model"]["text"]["words"]["length"]), clock=CLOCK)[0].model


def millions(*modules: nn.Module) -> float:
    """Parameters, one that is shared counted once."""
    return count(nn.ModuleList(modules))[0] / 1e6


def test_beit3_has_the_published_number_of_parameters() -> None:
    """276 million as released with both heads; the codebook, which stays out of the released file, is frozen here."""
    model = at_base("beit3", 64010)
    assert millions(*(model.part(name) for name in ("vision", "text", "fusion")), *model.heads.values()) == pytest.approx(276, rel=0.01)


def test_vlmo_has_the_published_number_of_parameters() -> None:
    """175 million in table 3 of the paper (recalled), without projections and heads."""
    model = at_base("vlmo", 30522)
    assert millions(*(model.part(name) for name in ("vision", "text", "fusion"))) == pytest.approx(175, rel=0.01)


def test_git_has_the_parameters_of_transformers_model_but_for_its_own_output_table() -> None:
    """Theirs holds an output table that is not tied; ours is the word table."""
    with torch.device("meta"):
        theirs = GitForCausalLM(GitConfig())
    expected = millions(theirs) - millions(theirs.output) + theirs.output.out_features / 1e6
    assert millions(at_base("git", 30522)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("size", "published"), [("base", 86), ("large", 303)])   # the paper (recalled), which leaves out words and heads
def test_uniter_has_the_published_number_of_parameters_beside_its_words(size: str, published: int) -> None:
    model = at_base("uniter", 28996, size=size)
    assert millions(model.part("vision"), model.part("fusion")) == pytest.approx(published, rel=0.01)
