"""Who sees whom in generative models, by finite perturbation: what changes elsewhere may only change what may look there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.data.tokenize import Words
from vlpkit.types import Batch, ImageInput


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


