"""CLIP with open_clip's and transformers' weights: points, loss and gradients."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from transformers import CLIPConfig, CLIPModel

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, ours
from vlpkit.assemble import Assembly
from vlpkit.tables.clip import open_clip as open_clip_table
from vlpkit.tables.clip import transformers_clip


@pytest.fixture
def made() -> Assembly:
    return ours("model=clip")


def their_open_clip(*, quick: bool = True) -> open_clip.CLIP:
    return open_clip.CLIP(
        32, vision_cfg={"layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "image_size": IMAGE},
        text_cfg={"context_length": LENGTH, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 2}, quick_gelu=quick,
    )


def their_transformers() -> CLIPModel:
    size = {"num_hidden_layers": 2, "projection_dim": 32, "attention_dropout": 0.0}
    return CLIPModel(CLIPConfig(
        text_config={**size, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "max_position_embeddings": LENGTH,
                     "eos_token_id": SPECIAL["sep"], "bos_token_id": SPECIAL["cls"], "pad_token_id": 0},
        vision_config={**size, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": 8},
        projection_dim=32,
    ))


def test_open_clip_gives_the_same_points_loss_and_gradients(made: Assembly) -> None:
    both = Beside(made, their_open_clip(), open_clip_table())
    v, w, scale = both.theirs(both.pixels, both.text.ids)
    z = both.s.aligned()
    assert apart(z.v, v) < CLOSE
    assert apart(z.w, w) < CLOSE
    loss, expected = both.loss("itc"), ClipLoss()(v, w, scale)
    assert apart(loss, expected) < 1e-6
    assert both.gradients_apart(loss, expected) == {}
    assert both.report.fresh == ()


def test_transformers_gives_the_same_points_loss_and_gradients(made: Assembly) -> None:
    both = Beside(made, their_transformers(), transformers_clip())
    answer = both.theirs(input_ids=both.text.ids, attention_mask=both.text.mask.long(), pixel_values=both.pixels, return_loss=True)
    z = both.s.aligned()
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    loss = both.loss("itc")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss) == {}
    assert both.report.fresh == ()


def test_users_get_the_points_that_training_sees(made: Assembly) -> None:
    both = Beside(made, their_open_clip(), open_clip_table())
    z = both.s.aligned()
    assert torch.equal(made.model.encode_image(both.batch.images["clean"]), z.v)
    assert torch.equal(made.model.encode_text(both.text), z.w)


def test_another_activation_is_seen(made: Assembly) -> None:
    both = Beside(made, their_open_clip(quick=False), open_clip_table())
    assert apart(both.s.aligned().v, both.theirs(both.pixels, both.text.ids)[0]) > 100 * CLOSE
