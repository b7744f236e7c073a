"""ViLT with transformers' weights: states, pooled state, words and loss, ranking, gradients; squares and images of several shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForMaskedLM, ViltModel

from tests.parity.beside import CLOSE, IMAGE, LENGTH, VOCAB, Beside, apart, ours, probe
from vlpkit.streams import Streams
from vlpkit.tables.vilt import transformers_vilt
from vlpkit.types import Batch, ImageInput

EPS = "model.fusion.joint.trunk.eps=1e-12"   # transformers' default; the original code has 1e-6
FRAMES = {"squares": [(4, 4)] * 3, "shapes": [(5, 6), (3, 6), (5, 2)]}   # rows and columns of patches; positions are known on 4 x 4


@pytest.fixture(autouse=True)
def in_raster_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs shuffles the patches of the largest images, with their places; ours keeps them as they lie."""
    monkeypatch.setattr(torch, "multinomial", lambda chances, count, replacement=False: torch.arange(int(count)))


def config() -> ViltConfig:
    return ViltConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_position_embeddings=LENGTH,
        image_size=IMAGE, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )


def with_words() -> ViltForMaskedLM:
    """With an output table of its own, as in the original code; transformers' class ties it to the word table."""
    theirs = ViltForMaskedLM(config())
    theirs.mlm_score.decoder.weight = nn.Parameter(theirs.mlm_score.decoder.weight.detach().clone())
    return theirs


def framed(shapes: list[tuple[int, int]]) -> tuple[ImageInput, Tensor]:
    """Random images in a common frame, and their real pixels (R, H, W)."""
    rows, columns = (max(side) for side in zip(*shapes))
    pixels, real = torch.rand(len(shapes), 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(3)), torch.zeros(len(shapes), rows, columns)
    for frame, (high, wide) in zip(real, shapes):
        frame[:high, :wide] = 1
    return ImageInput(pixels, mask=real.bool().flatten(1)), real.repeat_interleave(8, 1).repeat_interleave(8, 2).long()


def beside(theirs: ViltForMaskedLM | ViltModel, frame: str) -> tuple[Beside, dict[str, Tensor]]:
    """Both models, and what theirs is called with but for the words."""
    source = "vilt." if isinstance(theirs, ViltForMaskedLM) else ""
    both = Beside(ours("model=vilt", EPS, "draws.mask.rate=0.4"), theirs, transformers_vilt(source=source))
    image, real = framed(FRAMES[frame])
    batch: Batch = replace(both.batch, images={"clean": image})
    both.s = Streams(both.made.model, batch, draws=both.made.draws, seed=(0,))
    pixels = both.made.model.part("vision").embed.normalise(image.pixels)
    return both, {"pixel_values": pixels, "pixel_mask": real, "attention_mask": both.text.mask.long()}


@pytest.mark.parametrize("frame", FRAMES)
def test_the_same_states_pooled_state_and_gradients(frame: str) -> None:
    both, given = beside(ViltModel(config()), frame)
    answer = both.theirs(input_ids=both.text.ids, **given)
    fused = both.s.fused()
    words, real = answer.last_hidden_state[:, :LENGTH], fused.v.mask
    patches, pooled = answer.last_hidden_state[:, LENGTH:], both.made.model.head("itm").pool[0](fused.w)
    assert apart(fused.w.x[both.text.mask], words[both.text.mask]) < CLOSE
    assert apart(fused.v.x[:, 0], patches[:, 0]) < CLOSE
    for row, count in enumerate(real.sum(1)):   # theirs puts the real patches first
        assert apart(fused.v.x[row][real[row]], patches[row, :count]) < CLOSE
    assert apart(pooled, answer.pooler_output) < CLOSE
    assert both.gradients_apart(probe(fused.w.x[both.text.mask]) + probe(pooled), probe(words[both.text.mask]) + probe(answer.pooler_output)) == {}


@pytest.mark.parametrize("frame", FRAMES)
def test_the_same_words_loss_and_gradients(frame: str) -> None:
    both, given = beside(with_words(), frame)
    text, labels = both.s.text("mask.text"), both.s.labels("mask.labels")
    assert (labels != -100).sum() > 5
    answer = both.theirs(input_ids=text.ids, labels=labels, **given)
    assert apart(both.s.head("mlm", both.s.fused("clean", "mask.text").w.x)[text.mask], answer.logits[text.mask]) < CLOSE
    loss = both.loss("mlm")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss) == {}
    assert sorted(both.report.fresh) == ["heads.itm.out.bias", "heads.itm.out.weight"]


def test_ranking_is_the_row_of_matching_that_says_they_belong_together() -> None:
    theirs = ViltForImageAndTextRetrieval(config())
    both, given = beside(theirs.vilt, "shapes")
    classes = both.made.model.head("itm").out
    with torch.no_grad():
        theirs.rank_output.weight.copy_(classes.weight[1:])
        theirs.rank_output.bias.copy_(classes.bias[1:])
    answer = theirs(input_ids=both.text.ids, **given)
    assert apart(both.s.head("itm", both.s.fused().w)[:, 1:], answer.logits) < CLOSE
