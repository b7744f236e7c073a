"""Every recipe and recombination builds on the meta device, takes a dry step there, and has the size that was published."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from tests.builders import CLOCK, NARROW, RECIPES, composed, tiny_words
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly
from vlpkit.card import count
from vlpkit.dry import dry_step
from vlpkit.errors import AssemblyError

RECOMBINED = [
    ("model=clip", "vision=resnet50"), ("model=clip", "vision=swin"), ("model=clip", "vision=efficientnet"), ("model=blip", "vision=resnet50"),
    ("model=albef", "fusion=co"), ("model=albef", "fusion=merged"), ("model=albef", "objective=[itc_momentum,mlm]"),
    ("model=blip", "objective=[itc_momentum,lm]"), ("model=albef", "objective=[itc_momentum,itm,mlm]"), ("model=clip", "text=roberta"),
    ("model=clip", "text=electra"), ("model=clip", "text=deberta"), ("model=albef", "text=roberta"), ("model=beit3", "vision=shared"),
]  # fmt: skip


def dry(*overrides: str) -> tuple[Assembly, Counter[str]]:
    cfg = composed(*NARROW, *overrides)
    made, counts = dry_step(cfg, words=tiny_words(cfg), clock=CLOCK)
    return made, counts["pairs"]


def at_full_size(recipe: str, size: str) -> Assembly:
    """The recipe at the paper's size, with the vocabulary of the paper's tokenizer."""
    cfg = composed(f"model={recipe}", f"size={size}")
    node = cfg["model"]["text"]["words"]
    vocab = {"bpe": 49408, "wordpiece": 30522}[node["kind"]] + len(node.get("add", ()))
    special = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": 4, "enc": 5, "dec": 6}
    return dry_step(cfg, words=numbered_words(vocab, special, length=node["length"]), clock=CLOCK)[0]


def millions(*modules: nn.Module) -> float:
    return count(nn.ModuleList(modules))[0] / 1e6


@pytest.mark.parametrize("overrides", [*((f"model={name}",) for name in RECIPES), *RECOMBINED], ids=" ".join)
def test_every_combination_takes_a_dry_step(overrides: tuple[str, ...]) -> None:
    made, passes = dry(*overrides)
    assert all(p.is_meta for p in made.model.parameters())
    mined = [draw for draw in made.draws.values() if getattr(draw, "scope", "rank") == "inputs"]   # raw inputs from elsewhere are embedded anew
    assert passes["vision.embed"] == 1 + len(mined)


def test_a_fusion_that_nobody_reads_is_refused() -> None:
    with pytest.raises(AssemblyError, match=r"reached by no objective \(itc\)[\s\S]*fusion\.w\.blocks\.0[\s\S]*drop the part, or freeze"):
        dry("model=clip", "fusion=cross")


def test_an_objective_without_its_part_is_refused_with_the_parts_there_are() -> None:
    with pytest.raises(AssemblyError, match=r"objectives\.itm asks for the part 'fusion', but 'clip' builds vision, text, align"):
        dry("model=clip", "objective=[itc,itm]")


def test_a_wrapped_encoder_never_shows_a_captioner_the_words_it_shall_predict() -> None:
    with pytest.raises(AssemblyError, match=r"objectives\.lm reads an ordered text, but text=roberta lets every word read every other"):
        dry("model=clip", "text=roberta", "decoder=cross", "objective=[itc,lm]")


def test_a_frozen_part_is_not_missed() -> None:
    made, _ = dry("model=clip", "+model.freeze=[vision]")
    assert not any(p.requires_grad for p in made.model.part("vision").parameters())
    assert all(p.requires_grad for p in made.model.part("text").parameters())


@pytest.mark.parametrize(("size", "published"), [("base", 149.62), ("large", 427.62)])   # open_clip's model profile: ViT-B-16, ViT-L-14
def test_clip_has_the_published_number_of_parameters(size: str, published: float) -> None:
    assert millions(at_full_size("clip", size).model) == pytest.approx(published, rel=1e-3)


def test_albef_has_the_published_number_of_parameters() -> None:
    model = at_full_size("albef", "base").model
    assert millions(model.part("vision")) == pytest.approx(85.8, rel=0.01)
    assert millions(model.part("text"), model.part("fusion")) == pytest.approx(123.7, rel=0.01)


@pytest.mark.parametrize(("size", "vision"), [("base", {}), ("large", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096})])
def test_blip_has_the_parameters_of_its_encoder_and_of_the_captioner_it_shares_them_with(size: str, vision: dict[str, int]) -> None:
    """Theirs holds what ours shares twice, so the count goes part by part."""
    width = vision.get("hidden_size", 768)
    config = BlipConfig(
        text_config={"vocab_size": 30524, "max_position_embeddings": 512, "encoder_hidden_size": width, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        vision_config={"image_size": 224, "patch_size": 16, **vision}, image_text_hidden_size=256,
    )
    with torch.device("meta"):
        retrieval, captioner = BlipForImageTextRetrieval(config), BlipForConditionalGeneration(config)
    model = at_full_size("blip", size).model
    assert millions(model.part("vision"), model.part("text"), model.part("align"), model.head("itm")) == pytest.approx(millions(retrieval) + 1e-6)   # and the temperature
    decoder = captioner.text_decoder
    own = [layer.attention for layer in decoder.bert.encoder.layer]
    assert millions(*(block.get_submodule("self") for block in model.part("decoder").w.blocks)) == pytest.approx(millions(*own))
    assert millions(model.part("decoder")) == pytest.approx(millions(decoder.bert.encoder))


def test_a_source_that_the_data_do_not_have_is_refused_with_those_there_are() -> None:
    with pytest.raises(AssemblyError, match=r"objectives\.lm_texts reads the source 'texts', but the data deliver pairs\. Add it \(\+data\.sources\.texts\.holds=texts\)"):
        dry("model=simvlm", "data.sources.texts=null")


def test_every_source_is_stepped_through_with_what_it_holds() -> None:
    cfg = composed(*NARROW, "model=simvlm")
    _, counts = dry_step(cfg, words=tiny_words(cfg), clock=CLOCK)
    assert {source: dict(passes) for source, passes in counts.items()} == {
        "pairs": {"vision.embed": 1, "text.embed": 2, "fusion": 1, "decoder": 1}, "texts": {"text.embed": 2, "fusion": 1, "decoder": 1},
    }
