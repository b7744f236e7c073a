"""Tokenizers whose class wants sentencepiece, which is no part of the environment: SigLIP's, by tokenizer.json or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.builders import CLOCK, NARROW, composed
from vlpkit.build import build
from vlpkit.data.tokenize import load_words
from vlpkit.dry import dry_step
from vlpkit.errors import ConfigError, DataError

PIECES = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581a", -1.0), ("\u2581red", -2.0), ("\u2581circle", -2.5), ("s", -3.0)]


def siglip_folder(where: Path, *, fast: bool) -> Path:
    """As released: a class of its own, a sentencepiece model, and tokenizer.json where `fast`."""
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer", **special}))
    (where / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    (where / "spiece.model").write_bytes(b"pieces")
    if fast:
        tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=0))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        tokenizer.add_special_tokens(["<unk>", "</s>"])
        tokenizer.save(str(where / "tokenizer.json"))
    return where


def test_siglips_pieces_are_read_from_tokenizer_json(tmp_path: Path) -> None:
    words = load_words(name=str(siglip_folder(tmp_path, fast=True)), kind="bpe", size=None, length=8, template="{caption} [sep]", clean="siglip")
    assert words.encode(["A red circles!"]).ids.tolist() == [[2, 3, 4, 5, 1]]
    assert (words.special["sep"], words.pad, words.size) == (1, 1, 6)
    assert words.starts == (True, True, True, True, True, False)


def test_what_opens_a_text_is_added_where_a_template_asks_for_it(tmp_path: Path) -> None:
    folder = str(siglip_folder(tmp_path, fast=True))
    with pytest.raises(ConfigError, match=r"there is no special \[cls\], only \[sep\], \[unk\], \[pad\]"):
        load_words(name=folder, kind="bpe", size=None, length=8)
    words = load_words(name=folder, kind="bpe", size=None, length=8, add=["cls"])
    assert words.encode(["a red circle"]).ids.tolist() == [[6, 2, 3, 4, 1]]


@pytest.mark.parametrize("recipe", ["siglip", "simvlm"])
def test_recipes_of_siglips_pieces_build_with_them(recipe: str, tmp_path: Path) -> None:
    settings = composed(f"model={recipe}", *NARROW, "size.vocab=null", f"model.text.words.name={siglip_folder(tmp_path, fast=True)}")
    words = build(settings["model"]["text"]["words"], None, where="model.text.words")
    assert dry_step(settings, words=words, clock=CLOCK)[0].model.name == recipe


def test_a_bare_sentencepiece_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = str(siglip_folder(tmp_path, fast=False))
    with pytest.raises(DataError, match=re.escape(f"model.text.words.name is {folder!r}, whose tokenizer has no tokenizer.json, as a bare sentencepiece model; ")):
        load_words(name=folder, kind="bpe", size=None, length=8)
