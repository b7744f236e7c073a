"""Parameters of whole recipes at the size of the paper, beside the number that was published or that the reference library counts."""

from __future__ import annotations

import pytest

from tests.builders import CLOCK, composed
from tests.vocabulary import numbered_words
from vlpkit.assemble import dry_step
from vlpkit.card import count

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": 4, "enc": 5, "dec": 6}

PUBLISHED = {   # recipe, size, words of the paper's tokenizer: millions of parameters
    ("clip", "base", 49408): 149.62,    # open_clip's model profile, ViT-B-16
    ("align", "base", 30522): 171.53,    # transformers' AlignModel at its defaults (EfficientNet-B7, BERT-base): 172.12 with BERT's pooler, which the loss never reads
    ("siglip", "base", 32000): 203.16,  # open_clip's model profile, ViT-B-16-SigLIP: 92.88 of the image and 110.27 of the text
    ("vilt", "base", 30522): 135.66,    # transformers' ViltForMaskedLM at its defaults: 112.22, and 23.44 of an output table that is not that of the words
}


@pytest.mark.parametrize(("recipe", "size", "vocab"), PUBLISHED)
def test_a_recipe_has_the_published_number_of_parameters(recipe: str, size: str, vocab: int) -> None:
    cfg = composed(f"model={recipe}", f"size={size}")
    words = numbered_words(vocab, SPECIAL, length=cfg["model"]["text"]["words"]["length"])
    made = dry_step(cfg, words=words, clock=CLOCK)[0]
    assert count(made.model)[0] / 1e6 == pytest.approx(PUBLISHED[recipe, size, vocab], rel=0.01)


def test_vilt_has_the_published_number_of_parameters_without_its_words() -> None:
    """The paper (recalled) counts 87.4 million: patches and blocks, neither the table of words nor heads."""
    cfg = composed("model=vilt", "size=base")
    made = dry_step(cfg, words=numbered_words(100, SPECIAL, length=cfg["model"]["text"]["words"]["length"]), clock=CLOCK)[0]
    assert sum(count(made.model.part(part))[0] for part in ("vision", "fusion")) / 1e6 == pytest.approx(87.4, rel=0.01)
