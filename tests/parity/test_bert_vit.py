"""Single encoders with transformers' BERT and timm's ViT: states of every token, and gradients."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, batch, ours, probe, shake
from vlpkit.streams import Streams
from vlpkit.tables.bert import bert
from vlpkit.tables.meter import roberta
from vlpkit.tables.timm import vit

BERT = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}


def test_bert_gives_the_same_states_and_gradients() -> None:
    both = Beside(ours("model=clip", "text=bert", "align=first", "+model.text.embed.segments=2"), BertModel(BertConfig(**BERT), add_pooling_layer=False), bert(segments=True))
    expected = both.theirs(input_ids=both.text.ids, attention_mask=both.text.mask.long()).last_hidden_state
    states, real = both.s.w().x, both.text.mask[..., None]
    assert apart(states, expected) < CLOSE
    assert both.gradients_apart(probe(states * real), probe(expected * real)) == {}


def test_a_roberta_of_our_own_gives_the_same_states_and_gradients() -> None:
    config = RobertaConfig(**{**BERT, "max_position_embeddings": LENGTH + 2, "pad_token_id": SPECIAL["pad"], "type_vocab_size": 1, "layer_norm_eps": 1e-5})
    both = Beside(ours("model=clip", "text=roberta_trunk", "align=first"), RobertaModel(config, add_pooling_layer=False), roberta())
    real = both.text.mask
    places = torch.where(real, torch.arange(LENGTH) + 2, SPECIAL["pad"])   # theirs counts from its padding id on, which is 1 where it was trained
    expected = both.theirs(input_ids=both.text.ids, attention_mask=real.long(), position_ids=places).last_hidden_state
    states = both.s.w().x
    assert apart(states[real], expected[real]) < CLOSE
    assert both.gradients_apart(probe(states * real[..., None]), probe(expected * real[..., None])) == {}


def test_the_masked_words_head_gives_the_same_logits() -> None:
    both = Beside(ours("model=albef"), BertForMaskedLM(BertConfig(**{**BERT, "num_hidden_layers": 4})), bert(source="bert.", lower=2, head="heads.mlm", segments=True))
    fusion, text = both.made.model.part("fusion").w, both.s.w()
    states = fusion(text)   # without a memory the upper half is BERT's own
    expected = both.theirs(input_ids=both.text.ids, attention_mask=both.text.mask.long()).logits
    real = both.text.mask[..., None]
    logits = both.s.head("mlm", states.x)
    assert apart(logits * real, expected * real) < CLOSE
    assert both.gradients_apart(probe(logits * real), probe(expected * real)) == {}


def test_vit_gives_the_same_states_and_gradients() -> None:
    both = Beside(ours("model=albef"), VisionTransformer(img_size=IMAGE, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0), vit())
    states, expected = both.s.v().x, both.theirs.forward_features(both.pixels)
    assert apart(states, expected) < CLOSE
    assert both.gradients_apart(probe(states), probe(expected)) == {}


def test_a_wrapped_roberta_is_roberta() -> None:
    made = ours("model=clip", "text=roberta", "align=first")
    theirs = RobertaModel(RobertaConfig(**{**BERT, "max_position_embeddings": LENGTH + 2, "pad_token_id": 0, "layer_norm_eps": 1e-12}), add_pooling_layer=False)
    net = made.model.part("text").embed.net.eval()
    shake(theirs.eval())
    net.load_state_dict(theirs.state_dict())
    text = batch().texts["clean"]
    states = Streams(made.model, batch()).w()
    assert apart(states.x, theirs(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state) < CLOSE
    assert net.config.pad_token_id == SPECIAL["pad"]
