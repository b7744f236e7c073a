"""Who sees whom in generative models, by finite perturbation: what changes elsewhere may only change what may look there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.data.tokenize import Words
from vlpkit.types import IGNORE, Batch, ImageInput, TextInput


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def changed_word(batch: Batch, words: Words, place: int) -> Batch:
    """The batch with another word at one place of every text."""
    text = batch.texts["clean"]
    ids = text.ids.clone()
    ids[:, place] = (ids[:, place] + 7) % words.size
    return replace(batch, texts={"clean": replace(text, ids=ids)})


def changed_image(batch: Batch) -> Batch:
    """The batch with other pictures."""
    pixels = batch.images["clean"].pixels
    assert pixels is not None
    return replace(batch, images={"clean": ImageInput(255 - pixels)})


def moved(a: Tensor, b: Tensor) -> list[bool]:
    """Which of the L positions of (B, L, D) differ."""
    return [bool(x) for x in (a - b).abs().amax((0, 2)) > 1e-5]


class TestGit:
    """One stack: the image sees itself, each word the image and what stands before it."""

    @pytest.fixture
    def made(self) -> tuple[Assembly, Words]:
        found = tiny_model("model=git")
        found[0].model.eval()
        return found

    @pytest.mark.parametrize("place", [2, 5])
    def test_a_word_moves_itself_and_what_follows_and_never_the_image(self, made: tuple[Assembly, Words], place: int) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b).fused("clean", "caption.text") for b in (batch, changed_word(batch, words, place)))
        real = before.w.mask.all(0)
        assert torch.equal(before.v.x, after.v.x)
        shifts = moved(before.w.x, after.w.x)
        assert shifts[:place] == [False] * place
        assert all(shift for i, shift in enumerate(shifts) if i >= place and real[i])

    def test_the_image_moves_everything(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b).fused("clean", "caption.text") for b in (batch, changed_image(batch)))
        assert all(moved(before.v.x, after.v.x))
        assert all(moved(before.w.x, after.w.x))

    def test_only_words_carry_positions(self, made: tuple[Assembly, Words]) -> None:
        assembly, _ = made
        assert assembly.model.part("fusion").joint.types is None
        assert assembly.model.part("text").trunk is None

    def test_the_output_table_is_the_word_table(self, made: tuple[Assembly, Words]) -> None:
        assembly, _ = made
        assert assembly.model.head("lm").out.weight is assembly.model.part("text").embed.word.weight




class TestCoca:
    """A causal text tower with a class token at its end, and a decoder over it that reads the image."""

    @pytest.fixture(params=["vit_pool", "vit_cascade"])
    def made(self, request: pytest.FixtureRequest) -> tuple[Assembly, Words]:
        found = tiny_model("model=coca", f"vision={request.param}")
        found[0].model.eval()
        return found

    @pytest.mark.parametrize("place", [2, 5])
    def test_a_word_moves_itself_what_follows_and_the_class_token(self, made: tuple[Assembly, Words], place: int) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b) for b in (batch, changed_word(batch, words, place)))
        real = batch.texts["clean"].mask.all(0)
        assert before.w().parts == (("w", len(real)), ("w_cls", 1))
        for a, b in ((before.w(), after.w()), (before.fused(by="decoder").w, after.fused(by="decoder").w)):
            shifts = moved(a.part("w").x, b.part("w").x)
            assert shifts[:place] == [False] * place
            assert all(shift for i, shift in enumerate(shifts) if i >= place and real[i])
        assert moved(before.w().part("w_cls").x, after.w().part("w_cls").x) == [True]

    def test_no_word_reads_the_class_token(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before = tiny_streams(assembly, batch).w()
        with torch.no_grad():
            assembly.model.part("text").embed.cls.normal_()
        after = tiny_streams(assembly, batch).w()
        assert torch.equal(before.part("w").x, after.part("w").x)
        assert moved(before.part("w_cls").x, after.part("w_cls").x) == [True]

    def test_the_image_moves_every_word_of_the_decoder_and_none_of_the_text_tower(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        before, after = (tiny_streams(assembly, b) for b in (batch, changed_image(batch)))
        assert torch.equal(before.w().x, after.w().x)
        assert all(moved(before.fused(by="decoder").w.x, after.fused(by="decoder").w.x))

    def test_the_first_query_is_for_contrast_and_the_others_for_words(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        s = tiny_streams(assembly, tiny_batch(words))
        chained = assembly.model.part("vision").trunk.norm is not None   # the cascade has a norm before its pools, and all queries for the words
        assert s.v().parts == (("v_cls", 1), ("v", 32 if chained else 31))
        assert len(s.fused(by="decoder").v) == (32 if chained else 31)

    def test_the_queries_for_words_learn_from_contrast_only_in_the_cascade(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        assembly.objectives["itc"](tiny_streams(assembly, tiny_batch(words))).value.backward()
        neck = assembly.model.part("vision").neck
        chained = assembly.model.part("vision").trunk.norm is not None
        query = (neck.necks[0] if chained else neck).query.grad[0]
        assert [bool(row.any()) for row in query] == ([True] * 32 if chained else [True, *[False] * 31])

    def test_a_text_is_one_token_shorter_than_the_position_table(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        length = assembly.model.part("text").embed.length
        batch = tiny_batch(words)
        ids = torch.ones(len(batch), length, dtype=torch.int64)
        longer, fitting = (replace(batch, texts={"clean": TextInput(ids[:, :n], ids[:, :n].bool())}) for n in (length, length - 1))
        assert tiny_streams(assembly, fitting).w().at[0, -2:, 0].tolist() == [length - 2, length - 1]
        with pytest.raises(ValueError, match=f"texts of {length} tokens do not fit the position table of {length}, whose last row is the class token's"):
            tiny_streams(assembly, longer).w()

    def test_the_class_token_has_the_last_place_behind_a_text_of_any_length(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        w = tiny_streams(assembly, tiny_batch(words)).w()
        assert w.part("w_cls").at[:, 0, 0].tolist() == [assembly.model.part("text").embed.length - 1] * 4

    def test_an_order_of_the_text_s_own_keeps_the_class_token_behind_it(self, made: tuple[Assembly, Words]) -> None:
        assembly, words = made
        batch = tiny_batch(words)
        text = batch.texts["clean"]
        backwards = replace(text, order=torch.arange(text.ids.shape[1]).flip(0).expand_as(text.ids))
        s = tiny_streams(assembly, replace(batch, texts={"clean": backwards}))
        assert s.w().order[0, -1] == text.ids.shape[1]
        assert s.w().order[0, 0] == text.ids.shape[1] - 1


def test_the_words_of_the_text_itself_are_what_its_captions_ask_for() -> None:
    """As a draw that opens the text with the word it has already would ask for them."""
    clean, words = tiny_model("model=coca")
    drawn, _ = tiny_model("model=coca", "objective=[itc,lm]")
    drawn.model.load_state_dict(clean.model.state_dict())
    batch = tiny_batch(words)
    s, t = tiny_streams(clean, batch), tiny_streams(drawn, batch)
    a, b = clean.objectives["lm"](s).value, drawn.objectives["lm"](t).value
    assert torch.allclose(a, b, atol=1e-6)
    drawn.objectives["itc"](t)
    assert (s.counts["text"], t.counts["text"]) == (1, 2)   # the drawn text is another tensor, and its pass another pass
    assert torch.equal(s.text("clean").ids[:, 0], torch.full((4,), words.special["cls"]))


def test_masked_words_of_a_text_tower_leave_its_class_token_out() -> None:
    made, words = tiny_model("model=coca", "objective=[itc,mlm,lm_clean]", "++objectives.mlm.by=text")
    s = tiny_streams(made, tiny_batch(words))
    loss, labels = made.objectives["mlm"](s).value, s.labels("mask.labels")
    states = s.w("mask.text").part("w").x[labels != IGNORE]
    expected = torch.nn.functional.cross_entropy(s.head("mlm", states), labels[labels != IGNORE])
    assert torch.allclose(loss, expected, atol=1e-6)
