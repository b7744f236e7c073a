"""VisualBERT's one stack over words and regions with transformers' weights: states, both losses and every gradient, with padding on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import VisualBertConfig, VisualBertForPreTraining

from tests.parity.beside import CLOSE, LENGTH, VOCAB, Beside, apart, ours, shake
from tests.parity.beside import batch as pairs
from vlpkit.streams import Streams
from vlpkit.tables.visualbert import transformers_visualbert
from vlpkit.types import IGNORE, ImageInput, TextInput
from vlpkit.weights import load

REGIONS = torch.tensor([5, 3, 4])


class WithRegions(Beside):
    """Both models over texts of two sentences and regions."""

    def __init__(self) -> None:
        config = VisualBertConfig(
            vocab_size=VOCAB, hidden_size=48, visual_embedding_dim=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
            max_position_embeddings=2 * LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        )
        self.made, self.theirs = ours("model=visualbert", f"size.positions={2 * LENGTH}"), VisualBertForPreTraining(config).train()
        shake(self.theirs)
        self.report = load(self.made.model, {name: tensor.detach() for name, tensor in self.theirs.state_dict().items()}, transformers_visualbert())
        plain, rng = pairs(), torch.Generator().manual_seed(3)
        image = ImageInput(regions=torch.randn(3, 5, 64, generator=rng), boxes=torch.rand(3, 5, 4, generator=rng), mask=torch.arange(5) < REGIONS[:, None])
        first = plain.texts["clean"]
        self.batch = replace(plain, images={"clean": image}, texts={"clean": first, "second": TextInput(first.ids.flip(0), first.mask.flip(0))})
        self.image, self.s = image, Streams(self.made.model, self.batch, draws=self.made.draws, seed=(0,))
        self.text = self.s.text("mask.text")

    def answer(self, labels: torch.Tensor, match: torch.Tensor) -> object:
        """What theirs says of the drawn text and the regions."""
        assert self.image.mask is not None
        hidden = torch.full((3, 5), IGNORE)   # regions are never masked
        return self.theirs(
            input_ids=self.text.ids, attention_mask=self.text.mask.long(), token_type_ids=self.text.segment, visual_embeds=self.image.regions,
            visual_attention_mask=self.image.mask.long(), visual_token_type_ids=torch.zeros(3, 5, dtype=torch.int64),
            labels=torch.cat([labels, hidden], 1), sentence_image_labels=match,
        )


@pytest.fixture
def both() -> WithRegions:
    return WithRegions()


def test_the_same_states_logits_losses_and_gradients(both: WithRegions) -> None:
    labels, match = both.s.labels("mask.labels"), both.s.pairing("two.pairing").match
    assert (labels != IGNORE).sum() > 2
    answer = both.answer(labels, match)
    fused, length = both.s.fused("clean", "mask.text", "two.pairing"), both.text.ids.shape[1]
    real = both.text.mask
    assert apart(both.s.head("mlm", fused.w.x)[real], answer.prediction_logits[:, :length][real]) < CLOSE  # type: ignore[attr-defined]
    assert both.image.mask is not None
    assert apart(both.s.head("mlm", fused.v.x)[both.image.mask], answer.prediction_logits[:, length:][both.image.mask]) < CLOSE  # type: ignore[attr-defined]
    assert apart(both.made.objectives["itm"].logits(both.s, "two.pairing"), answer.seq_relationship_logits) < CLOSE  # type: ignore[operator, attr-defined]
    total = both.loss("mlm") + both.loss("itm")
    assert apart(total, answer.loss) < 1e-6  # type: ignore[attr-defined]
    assert both.gradients_apart(total, answer.loss) == {}  # type: ignore[attr-defined]
    assert both.report.fresh == ()
    assert both.s.counts["fusion"] == 1


def test_the_type_of_regions_is_row_0_as_in_the_original_and_not_what_theirs_does_unless_told(both: WithRegions) -> None:
    assert both.image.mask is not None
    given = {"input_ids": both.text.ids, "attention_mask": both.text.mask.long(), "token_type_ids": both.text.segment,
             "visual_embeds": both.image.regions, "visual_attention_mask": both.image.mask.long()}  # fmt: skip
    length, real = both.text.ids.shape[1], both.image.mask
    found = both.s.head("mlm", both.s.fused("clean", "mask.text", "two.pairing").v.x)[real]
    assert apart(found, both.theirs(**given).prediction_logits[:, length:][real]) > 100 * CLOSE
    assert apart(found, both.theirs(**given, visual_token_type_ids=torch.zeros(3, 5, dtype=torch.int64)).prediction_logits[:, length:][real]) < CLOSE
