"""BLIP's three roles of one text stack with transformers' weights: encoder, matcher, captioner; image and text of different width."""

from __future__ import annotations

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, ours, probe
from vlpkit.tables.blip import transformers_blip_captioning, transformers_blip_retrieval
from vlpkit.types import IGNORE

SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "attention_dropout": 0.0}
TEXT = {
    **SIZE, "vocab_size": VOCAB, "hidden_size": 48, "encoder_hidden_size": 32, "intermediate_size": 192, "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "bos_token_id": SPECIAL["dec"], "sep_token_id": SPECIAL["sep"],
    "eos_token_id": SPECIAL["sep"], "pad_token_id": 0, "label_smoothing": 0.1,
}
VISION = {**SIZE, "hidden_size": 32, "intermediate_size": 128, "image_size": IMAGE, "patch_size": 8, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}


def config() -> BlipConfig:
    return BlipConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=16)


@pytest.fixture
def retrieval() -> Beside:
    return Beside(ours("model=blip", "model.vision.embed.dim=32"), BlipForImageTextRetrieval(config()), transformers_blip_retrieval())


def test_encoders_give_the_same_states_points_and_gradients(retrieval: Beside) -> None:
    text, z = retrieval.text, retrieval.s.aligned()
    answer = retrieval.theirs(input_ids=text.ids, pixel_values=retrieval.pixels, attention_mask=text.mask.long(), use_itm_head=False)
    assert apart(retrieval.s.v().x, answer.last_hidden_state) < CLOSE
    assert apart(retrieval.s.w().x, answer.question_embeds) < CLOSE
    assert apart(z.v @ z.w.T, answer.itm_score) < CLOSE
    assert retrieval.gradients_apart(probe(z.v @ z.w.T), probe(answer.itm_score)) == {}


def test_matching_gives_the_same_states_logits_and_gradients(retrieval: Beside) -> None:
    text, fused = retrieval.text, retrieval.s.fused("clean", "clean").w   # their matcher opens with [cls], not with [enc]
    answer = retrieval.theirs(input_ids=text.ids, pixel_values=retrieval.pixels, attention_mask=text.mask.long(), use_itm_head=True)
    logits = retrieval.s.head("itm", fused)
    assert apart(fused.x, answer.question_embeds) < CLOSE
    assert apart(logits, answer.itm_score) < CLOSE
    assert retrieval.gradients_apart(probe(logits), probe(answer.itm_score)) == {}


def test_captioning_gives_the_same_logits_loss_and_gradients() -> None:
    both = Beside(ours("model=blip", "model.vision.embed.dim=32"), BlipForConditionalGeneration(config()), transformers_blip_captioning())
    spoken = both.s.text("caption.text")
    labels = torch.where(spoken.mask, spoken.ids, IGNORE)
    labels[:, 0] = IGNORE   # predicted from nothing, so never asked
    seen = both.theirs.vision_model(pixel_values=both.pixels).last_hidden_state
    answer = both.theirs.text_decoder(
        input_ids=spoken.ids, attention_mask=spoken.mask.long(), encoder_hidden_states=seen, labels=labels, reduction="mean", is_decoder=True,
    )
    logits = both.s.head("lm", both.s.fused("clean", "caption.text", by="decoder").w.x)
    assert apart(logits[spoken.mask], answer.logits[spoken.mask]) < CLOSE
    loss = both.loss("lm")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss) == {}
