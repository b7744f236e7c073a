"""Decoding with a cache gives the words and logits of decoding without; also where the decoder is the one merged trunk."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.generate import Decoded, greedy
from vlpkit.types import TextInput

MERGED = ("model=albef", "fusion=merged", "objective=[itc_momentum,lm]", "++objectives.lm.by=fusion", "++model.text.words.add=[dec]", "model.ties=[]", "teacher.parts=[vision,text,align]")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def decode(overrides: tuple[str, ...], *, cached: bool, by: str, start: str, length: int = 8) -> Decoded:
    made, words = tiny_model(*overrides)
    made.model.eval()
    with torch.no_grad():   # a trained head would spread its words, too
        out = made.model.head("lm").out
        (out.weight if out.bias is None else out.bias).normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    images = tiny_batch(words).images["clean"]
    return greedy(made.model, images, start=words.special[start], stop=words.special["sep"], pad=words.pad, length=length, by=by, cached=cached)


@pytest.mark.parametrize(
    ("overrides", "by", "start"), [(("model=blip",), "decoder", "dec"), (MERGED, "fusion", "dec"), (("model=git",), "fusion", "cls"),
     (("model=coca",), "decoder", "cls"), (("model=coca", "vision=vit_cascade"), "decoder", "cls"),
     (("model=coca", "model.text.embed.cls=last_shifted"), "decoder", "cls"), (("model=simvlm",), "decoder", "cls"),
     (("model=flamingo",), "decoder", "image")],
    ids=["blip", "merged", "git", "coca", "coca cascade", "coca class shifted", "simvlm", "flamingo"],
)
def test_cached_decoding_equals_uncached(overrides: tuple[str, ...], by: str, start: str) -> None:
    kept, anew = (decode(overrides, cached=cached, by=by, start=start) for cached in (True, False))
    assert kept.ids.shape[1] == 9
    assert torch.equal(kept.ids, anew.ids)
    assert torch.allclose(kept.logits, anew.logits, atol=1e-5)


def test_the_words_are_the_best_of_a_plain_pass() -> None:
    made, words = tiny_model("model=blip")
    made.model.eval()
    images = tiny_batch(words).images["clean"]
    decoded = greedy(made.model, images, start=words.special["dec"], stop=words.special["sep"], pad=words.pad, length=6)
    ids = decoded.ids[:, :-1]
    text = TextInput(ids, torch.ones_like(ids, dtype=torch.bool), order=torch.arange(1, 1 + ids.shape[1]).expand_as(ids))
    logits = made.model.next_words(made.model.memory(images), text)
    assert torch.allclose(logits, decoded.logits, atol=1e-5)
    assert torch.equal(logits.argmax(-1), decoded.ids[:, 1:])


def test_decoding_stops_where_every_caption_has_ended() -> None:
    made, words = tiny_model("model=blip")
    with torch.no_grad():
        made.model.head("lm").out.bias[words.special["sep"]] = 1e3
    made.model.eval()
    decoded = greedy(made.model, tiny_batch(words).images["clean"], start=words.special["dec"], stop=words.special["sep"], pad=words.pad, length=6)
    assert decoded.ids[:, 1].tolist() == [words.special["sep"]] * 4
    assert decoded.ids.shape[1] == 2


def test_training_sees_the_logits_that_decoding_chooses_from() -> None:
    made, words = tiny_model("model=blip")
    made.model.eval()
    batch = tiny_batch(words)
    s = tiny_streams(made, batch)
    spoken = s.text("caption.text")
    logits = made.model.next_words(made.model.memory(batch.images["clean"]), spoken)
    assert torch.allclose(logits[spoken.mask], s.head("lm", s.fused("clean", "caption.text", by="decoder").w.x)[spoken.mask], atol=1e-6)


@pytest.mark.parametrize("cls", ["last", "last_shifted"])
def test_a_text_tower_with_a_class_token_decodes_what_training_sees(cls: str) -> None:
    """Pieces that are decoded have no class token; no word could have read it."""
    made, words = tiny_model("model=coca", f"model.text.embed.cls={cls}")
    made.model.eval()
    batch = tiny_batch(words)
    s, spoken = tiny_streams(made, batch), batch.texts["clean"]
    at = torch.arange(spoken.ids.shape[1]).expand_as(spoken.ids)
    piece = TextInput(spoken.ids, spoken.mask, at + 1, at)
    logits = made.model.next_words(made.model.memory(batch.images["clean"]), piece)
    seen = s.head("lm", s.fused(by="decoder").w.x)[:, : at.shape[1]]
    assert torch.allclose(logits[spoken.mask], seen[spoken.mask], atol=1e-5)
