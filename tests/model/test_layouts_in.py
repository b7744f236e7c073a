"""Files of transformers for parts that a recipe borrows: folders as `save_pretrained` writes them, filled to the numbers that they give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from tests.builders import CLOCK, CONF, composed
from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, apart, batch, ours, shake
from tests.parity.test_align import their_align
from tests.parity.test_clip import their_transformers as their_clip
from tests.parity.test_git import config as git_config
from tests.vocabulary import numbered_words
from vlpkit.assemble import assemble
from vlpkit.conversion import convert
from vlpkit.errors import WeightsError
from vlpkit.layouts import recognise
from vlpkit.model import VLModel
from vlpkit.restore import restore
from vlpkit.start import start
from vlpkit.types import TextInput
from vlpkit.weights import canonical, everything
from vlpkit.weights import convert as convert_tensors

WORDS = numbered_words(VOCAB, SPECIAL, length=LENGTH)
SIZES = ["size.dim=48", "size.heads=4", "size.depth=2", "size.half=2", f"size.image={IMAGE}", "size.patch=8", "size.vocab=null", f"size.words={LENGTH}",
         f"size.positions={LENGTH}"]  # fmt: skip
BERT = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
GPT2 = GPT2Config(n_layer=2, n_head=4, n_embd=48, vocab_size=VOCAB, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)
ROBERTA = RobertaConfig(**BERT, max_position_embeddings=LENGTH + 2, type_vocab_size=1, layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1)
FLAMINGO = ("model=flamingo", "objective=[lm_docs]", "model.text.words.template='[enc] {caption} [dec]'", "model.text.words.add=[enc,dec]", "model.text.embed.extra=[]",
            "draws.docs.start=cls", "draws.docs.images=1")  # fmt: skip


def folder(where: Path, theirs: PreTrainedModel) -> Path:
    """Their model with random weights, as its library saves it, with a tokenizer beside it."""
    shake(theirs)
    theirs.eval().save_pretrained(where)
    named = {f"{name}_token": f"word{SPECIAL[name]}" for name in ("cls", "sep", "mask", "pad")} | {"unk_token": f"word{SPECIAL['pad']}"}
    PreTrainedTokenizerFast(tokenizer_object=WORDS.tokenizer, **named).save_pretrained(where)
    return where


class Whole(NamedTuple):
    """A class of theirs that is a recipe of ours, and the words of a command line for it."""

    theirs: Callable[[], PreTrainedModel]
    words: list[str]


WHOLE = {
    "transformers_align": Whole(their_align, ["model=align", *SIZES, "+model.text.embed.segments=2"]),
    "transformers_git": Whole(lambda: GitForCausalLM(git_config()), ["model=git", *SIZES, "model.vision.embed.dim=32"]),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_a_saved_model_becomes_our_folder_without_anything_dropped_or_fresh(layout: str, tmp_path: Path) -> None:
    case = WHOLE[layout]
    theirs = case.theirs()
    told = convert(folder(tmp_path / "theirs", theirs), tmp_path / "out", overrides=case.words, conf=CONF)
    assert told[0] == f"weights: {tmp_path / 'theirs'} ({layout})"
    assert ", 0 fresh" in told[1]
    model, given = restore(tmp_path / "out").model, batch()
    text, pixels = given.texts["clean"], model.part("vision").embed.normalise(given.images["clean"].pixels)
    with torch.no_grad():
        if layout == "transformers_align":
            answer = theirs(input_ids=text.ids, attention_mask=text.mask.long(), token_type_ids=torch.zeros_like(text.ids), pixel_values=pixels)
            assert apart(model.encode_image(given.images["clean"]), answer.image_embeds) < CLOSE
            assert apart(model.encode_text(text), answer.text_embeds) < CLOSE
        else:
            answer = theirs(input_ids=text.ids, attention_mask=text.mask.long(), pixel_values=pixels)
            mine = model.next_words(model.memory(given.images["clean"], by="fusion"), ordered(text), by="fusion")
            assert apart(mine[text.mask], answer.logits[:, -LENGTH:][text.mask]) < CLOSE


def ordered(text: TextInput) -> TextInput:
    """A text whose words read those before them."""
    return TextInput(text.ids, text.mask, torch.arange(1, 1 + text.ids.shape[1]).expand_as(text.ids))


@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM])
def test_a_text_part_starts_from_a_roberta_whose_positions_count_from_two(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    theirs = kind(ROBERTA)
    path = folder(tmp_path / "theirs", theirs)
    model = ours("model=meter", "model.vision.trunk.depth=2").model
    taken, = start(model, {"text": str(path)}, words=WORDS)
    assert taken.layout.name == ("roberta" if kind is RobertaModel else "roberta_words")
    assert {name.rpartition(".")[0] for name in taken.report.fresh if name.startswith("text.")} == {"text.neck", "text.neck.out"}
    text = batch().texts["clean"]
    text = TextInput(torch.where(text.mask, text.ids.clamp(min=2), 1), text.mask)   # theirs finds places by what is no padding
    with torch.no_grad():
        expected = (theirs if kind is RobertaModel else theirs.roberta)(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
        encoder = model.eval().part("text")
        states = encoder.trunk.close(encoder.trunk(encoder.embed(text)))
    assert apart(states.x[text.mask], expected[text.mask]) < CLOSE


def test_a_bert_is_none() -> None:
    tensors = {"embeddings.word_embeddings.weight": torch.zeros(3, 2), "encoder.layer.0.attention.self.query.weight": torch.zeros(2, 2)}
    table = "embeddings.token_type_embeddings.weight"
    assert [recognise({**tensors, table: torch.zeros(rows, 2)}, place="x").name for rows in (1, 2)] == ["roberta", "bert"]
    assert recognise(tensors, place="x").name == "bert"


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
def test_a_frozen_language_model_is_gpt2_and_the_image_side_clip(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    gpt, clip = kind(GPT2), their_clip()
    files = {"vision": str(folder(tmp_path / "clip", clip)), "text": str(folder(tmp_path / "gpt", gpt))}
    model = ours(*FLAMINGO).model
    vision, text = start(model, files, words=WORDS)
    assert (vision.layout.name, text.layout.name) == ("transformers_clip", "gpt2" if kind is GPT2Model else "gpt2_words")
    fresh = {name for name, _ in model.named_parameters()} - {*vision.filled, *text.filled}
    assert {name.split(".")[0] for name in fresh} == {"vision", "decoder"}
    assert {name.partition(".neck")[0] for name in fresh if name.startswith("vision")} == {"vision"}   # the resampler is the recipe's own
    assert all(".cross." in name or ".ffn." in name for name in fresh if name.startswith("decoder"))    # and the gated layers
    body = gpt if kind is GPT2Model else gpt.transformer
    given = batch()
    with torch.no_grad():
        mine = model.eval().next_words(model.memory(given.images["clean"]), given.texts["clean"])
        ids, mask = given.texts["clean"].ids, given.texts["clean"].mask
        expected = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state @ body.wte.weight.T
    assert apart(mine[mask], expected[mask]) < CLOSE   # closed gates


# -- a BERT of 30,522 words into a BLIP of 30,524 ---------------------------------------------------------------------------


def blip_from_bert(where: Path, words: int) -> tuple[BertForMaskedLM, VLModel, VLModel, str]:
    """Their BERT with fewer words, our BLIP before and after, and the account."""
    theirs = BertForMaskedLM(BertConfig(**{**BERT, "vocab_size": words}, max_position_embeddings=2 * LENGTH, pad_token_id=0))
    special = {"pad": 0, "cls": 1, "sep": 2, "mask": 3, "unk": 4, "dec": VOCAB - 2, "enc": VOCAB - 1}
    tokenizer = numbered_words(VOCAB, special, length=LENGTH)
    before, after = (ours("model=blip", words=tokenizer).model for _ in range(2))
    taken, = start(after, {"text": str(folder(where, theirs))}, words=tokenizer)
    return theirs, before, after, taken.full()


def test_words_that_a_recipe_adds_keep_their_fresh_rows_and_are_listed(tmp_path: Path) -> None:
    theirs, before, after, account = blip_from_bert(tmp_path / "bert", VOCAB - 2)
    table, start_of, given = after.part("text").embed.word.weight, before.part("text").embed.word.weight, theirs.bert.embeddings.word_embeddings.weight
    assert torch.equal(table[:-2], given)
    assert torch.equal(table[-2:], start_of[-2:])
    assert "  fresh rows: [dec], [enc] of text.embed.word.weight\n" in account + "\n"
    assert "  fresh rows: [dec], [enc] of heads.lm.out.bias\n" in account + "\n"
    assert torch.equal(after.head("lm").out.bias[:-2], theirs.cls.predictions.bias)


def test_matcher_and_captioner_both_start_from_the_bert_and_only_their_reading_of_images_is_fresh(tmp_path: Path) -> None:
    theirs, before, after, _ = blip_from_bert(tmp_path / "bert", VOCAB - 2)
    for i, layer in enumerate(theirs.bert.encoder.layer):
        wanted = torch.cat([getattr(layer.attention.self, name).weight for name in ("query", "key", "value")])
        encoder, decoder = after.part("text").trunk.blocks[i], after.part("decoder").w.blocks[i]
        assert torch.equal(encoder.self.body.qkv.weight, wanted)
        assert torch.equal(decoder.self.body.qkv.weight, wanted)
        assert decoder.self.body.qkv.weight is not encoder.self.body.qkv.weight
        assert torch.equal(decoder.self.norm.bias, layer.attention.output.LayerNorm.bias)
        assert torch.equal(encoder.ffn.body.fc1.weight, layer.intermediate.dense.weight)
        assert torch.equal(encoder.cross.body.q.weight, before.part("text").trunk.blocks[i].cross.body.q.weight)
    assert torch.equal(after.head("lm").dense.weight, theirs.cls.predictions.transform.dense.weight)


@pytest.mark.parametrize("words", [VOCAB - 1, VOCAB - 3])
def test_a_vocabulary_that_lacks_other_words_is_refused(words: int, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"the file's vocabulary has {words} words, the tokenizer {VOCAB}"):
        blip_from_bert(tmp_path / "bert", words)


# -- files of the released sizes ---------------------------------------------------------------------------------------------


def clip_tower(name: str) -> nn.Module:
    return open_clip.model.CLIP(**open_clip.get_model_config(name))


RELEASED: dict[str, tuple[int, list[str], list[tuple[str | None, Callable[[], nn.Module]]]]] = {   # words, command line, whose file for which address
    "meter": (50265, ["model=meter"], [
        *((address, lambda: clip_tower("ViT-B-16")) for address in ("vision.embed", "vision.trunk.blocks.0-10", "vision.trunk.norm")),
        ("text", lambda: RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))),
    ]),
    "blip": (30524, ["model=blip"], [("vision", lambda: timm.create_model("vit_base_patch16_224")), ("text", lambda: BertForMaskedLM(BertConfig()))]),
    "flamingo": (50259, ["model=flamingo"], [
        ("vision", lambda: clip_tower("ViT-L-14")), ("text", lambda: GPT2LMHeadModel(GPT2Config(n_embd=2048, n_layer=24, n_head=16, n_positions=2048))),
    ]),
    "git": (30522, ["model=git"], [("vision", lambda: clip_tower("ViT-B-16"))]),   # its paper's start
    "git, trained": (30522, ["model=git"], [(None, lambda: GitForCausalLM(GitConfig()))]),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RELEASED)
def test_files_of_the_released_sizes_fit_the_recipe_at_its_own(recipe: str) -> None:
    vocab, words, files = RELEASED[recipe]
    settings = composed(*words, "size=base")
    special = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": 4, "dec": vocab - 2, "enc": vocab - 1, "image": vocab - 2, "chunk": vocab - 1}
    with torch.device("meta"):
        ours = everything(assemble(settings, words=numbered_words(vocab, special, length=64), clock=CLOCK, with_teacher=False).model)
        filled: set[str] = set()
        for address, theirs in files:
            state = theirs().state_dict()
            layout = recognise(state, place=recipe)
            made, _ = convert_tensors(state, layout.rows(ours, state, address), ours, asked=layout.asked(address), added=["[a]", "[b]"])
            filled |= made.keys()
    share = sum(ours[name].numel() for name in filled) / sum(ours[name].numel() for name, first in canonical(ours).items() if name == first)
    assert share > {"meter": 0.55, "blip": 0.8, "flamingo": 0.55, "git": 0.48}.get(recipe, 0.999)
