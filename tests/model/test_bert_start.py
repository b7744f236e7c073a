"""Recipes of one stack over words and regions start from BERT: without regions they are BERT, and what regions have of their own is said to be fresh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining

from tests.parity.beside import CLOSE, LENGTH, SPECIAL, VOCAB, apart, batch, ours, shake
from tests.vocabulary import numbered_words
from vlpkit.start import start
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput


@pytest.fixture
def theirs() -> BertForPreTraining:
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_position_embeddings=2 * LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    model = BertForPreTraining(config).eval()
    shake(model)
    return model


@pytest.mark.parametrize("recipe", ["uniter", "visualbert"])
def test_without_regions_they_are_bert(recipe: str, theirs: BertForPreTraining, tmp_path: Path) -> None:
    path = tmp_path / "bert.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in theirs.state_dict().items()}, path)
    made = ours(f"model={recipe}")   # positions are cut to its own length
    taken, = start(made.model, str(path), words=numbered_words(VOCAB, SPECIAL, length=LENGTH))
    assert taken.layout.name == "bert_words"
    fresh = {name.rpartition(".")[0] for name in taken.report.fresh}
    text, states = batch().texts["clean"], made.model.part("vision").embed
    none = ImageInput(regions=torch.rand(3, 2, 64), boxes=torch.rand(3, 2, 4), mask=torch.zeros(3, 2, dtype=torch.bool))
    s = Streams(made.model.eval(), Batch({"clean": none}, {"clean": text}, {}, torch.arange(3)))
    expected = theirs.bert(input_ids=text.ids, attention_mask=text.mask.long())
    fused = s.fused().w
    assert apart(fused.x[text.mask], expected.last_hidden_state[text.mask]) < CLOSE
    assert apart(made.model.head("itm").pool[0](fused), expected.pooler_output) < CLOSE
    assert apart(s.head("mlm", fused.x)[text.mask], theirs.cls.predictions(expected.last_hidden_state)[text.mask]) < CLOSE
    tables = theirs.bert.embeddings
    assert torch.equal(states.segment.weight, tables.token_type_embeddings.weight)
    if recipe == "visualbert":
        assert torch.equal(states.position.weight, tables.position_embeddings.weight[: len(states.position.weight)])
        assert states.position.weight is not made.model.part("text").embed.position.weight
        assert fresh == {"vision.embed.feature", "heads.itm.out"}
    else:
        assert "vision.embed.feature" in fresh
        assert not any(name.startswith(("text", "fusion", "heads.mlm", "vision.embed.segment")) for name in fresh)
