"""LXMERT with transformers' weights: states of both sides with padding on either, the six losses of one pass, and every gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LxmertConfig, LxmertForPreTraining

from tests.parity.beside import CLOSE, LENGTH, VOCAB, Beside, apart, ours, probe, shake
from tests.parity.beside import batch as pairs
from vlpkit.streams import Streams
from vlpkit.tables.lxmert import lxmert
from vlpkit.types import IGNORE, ImageInput
from vlpkit.weights import load

ROWS, MANY, SIZE, OBJECTS, ATTRIBUTES, ANSWERS = 3, 5, 64, 9, 7, 11
FEWER = torch.tensor([5, 3, 4])   # regions of each image where some have fewer


class WithRegions(Beside):
    """Both models over texts and regions.

    Args:
        padded: whether some images have fewer regions; then theirs divides its losses by more than are real.
        double: fp64. With weights so random all tokens end nearly alike, and what the last queries and keys are left with is rounding in fp32.
    """

    def __init__(self, *, padded: bool, double: bool = False) -> None:
        config = LxmertConfig(
            vocab_size=VOCAB, hidden_size=48, num_attention_heads=4, intermediate_size=192, max_position_embeddings=LENGTH, l_layers=3, r_layers=1, x_layers=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, visual_feat_dim=SIZE, num_object_labels=OBJECTS, num_attr_labels=ATTRIBUTES,
            num_qa_labels=ANSWERS, visual_loss_normalizer=1 / 0.15,   # 6.67 unless told
        )
        self.made = ours(
            "model=lxmert", f"size.feature={SIZE}", f"size.classes={OBJECTS + 1}", f"size.attributes={ATTRIBUTES + 1}", f"size.answers={ANSWERS}",
            "model.text.trunk.depth=3", "model.vision.trunk.depth=1", "model.freeze=[]", "draws.hole.rate=0.5", "draws.mask.rate=0.5",
        )
        self.theirs = LxmertForPreTraining(config).train()
        shake(self.theirs)
        self.report = load(self.made.model, {name: tensor.detach() for name, tensor in self.theirs.state_dict().items()}, lxmert("lxmert."))
        kind = torch.float64 if double else torch.float32
        self.made.model.to(kind)
        self.theirs.to(kind)
        rng = torch.Generator().manual_seed(3)
        real = torch.arange(MANY) < (FEWER if padded else torch.full((ROWS,), MANY))[:, None]
        regions, boxes = torch.randn(ROWS, MANY, SIZE, generator=rng), torch.rand(ROWS, MANY, 4, generator=rng)
        image = ImageInput(regions=regions.to(kind), boxes=boxes.to(kind), mask=real)
        targets = {
            "region_class": torch.randint(1, OBJECTS + 1, (ROWS, MANY), generator=rng), "region_confidence": torch.rand(ROWS, MANY, generator=rng),
            "region_attribute": torch.randint(1, ATTRIBUTES + 1, (ROWS, MANY), generator=rng), "region_attribute_confidence": torch.rand(ROWS, MANY, generator=rng),
            "answer": torch.tensor([4, IGNORE, 7]),
        }  # fmt: skip
        self.batch = replace(pairs(), images={"clean": image}, targets=targets)
        self.s = Streams(self.made.model, self.batch, draws=self.made.draws, seed=(1,))
        self.text = self.s.text("mask.text")

    def given(self) -> dict[str, Tensor]:
        """What theirs reads: hidden features as zeros, each text beside the image it was paired with."""
        image = self.s.image("hole.image")
        assert image.regions is not None
        assert image.boxes is not None
        assert image.mask is not None
        assert image.hidden is not None
        rows, features = self.s.pairing("mix.pairing").image, image.regions.masked_fill(image.hidden[..., None], 0.0)
        return {
            "input_ids": self.text.ids, "attention_mask": self.text.mask.long(), "visual_feats": features[rows], "visual_pos": image.boxes[rows],
            "visual_attention_mask": image.mask[rows].long(),
        }  # fmt: skip

    def asked(self) -> dict[str, Any]:
        """The labels in the form that theirs wants."""
        clean, targets = self.s.image(), self.batch.targets
        rows, _, match = self.s.pairing("mix.pairing")
        assert clean.regions is not None
        labels = {
            "obj": (targets["region_class"][rows] - 1, targets["region_confidence"][rows]),
            "attr": (targets["region_attribute"][rows] - 1, targets["region_attribute_confidence"][rows]),
            "feat": (clean.regions[rows], self.s.labels("hole.chosen")[rows].float()),
        }
        return {
            "labels": self.s.labels("mask.labels"), "matched_label": match, "obj_labels": labels, "ans": targets["answer"].masked_fill(match == 0, IGNORE),
        }  # fmt: skip


def test_the_same_states_of_both_sides_with_padding_on_both() -> None:
    both = WithRegions(padded=True)
    assert not both.text.mask.all()
    found = both.theirs.lxmert(**both.given())
    v, w = both.s.fused("hole.image", "mask.text", "mix.pairing")
    assert apart(w.x[w.mask], found.language_output[w.mask]) < CLOSE
    assert apart(v.x[v.mask], found.vision_output[v.mask]) < CLOSE
    assert apart(both.made.model.head("itm").pool[0](w), found.pooled_output) < CLOSE


def test_the_same_gradients_through_both_stacks_with_padding_on_both() -> None:
    both = WithRegions(padded=True, double=True)
    found = both.theirs.lxmert(**both.given())
    v, w = both.s.fused("hole.image", "mask.text", "mix.pairing")
    mine = probe(w.x[w.mask]) + probe(v.x[v.mask]) + probe(both.made.model.head("itm").pool[0](w))
    theirs = probe(found.language_output[w.mask]) + probe(found.vision_output[v.mask]) + probe(found.pooled_output)
    assert both.gradients_apart(mine, theirs) == {}


@pytest.fixture(scope="module")
def both() -> WithRegions:
    return WithRegions(padded=False)


def test_the_same_logits_and_losses(both: WithRegions) -> None:
    asked = both.asked()
    assert (asked["labels"] != IGNORE).sum() > 2
    assert asked["matched_label"].unique().tolist() == [0, 1]
    assert (asked["ans"] != IGNORE).any()
    answer = both.theirs(**both.given(), **asked)
    w = both.s.fused("hole.image", "mask.text", "mix.pairing").w
    assert apart(both.s.head("mlm", w.x)[w.mask], answer.prediction_logits[w.mask]) < CLOSE
    assert apart(both.s.head("itm", w), answer.cross_relationship_score) < CLOSE
    assert apart(both.s.head("answer", w), answer.question_answering_score) < CLOSE
    total = torch.stack([objective.weight * objective(both.s).value for objective in both.made.objectives.values()]).sum()
    assert apart(total, answer.loss) < 1e-6
    assert both.report.fresh == ()
    assert both.s.counts["fusion"] == 1


def test_the_same_gradients_of_all_losses() -> None:
    both = WithRegions(padded=False, double=True)
    asked = both.asked()
    asked["obj_labels"]["feat"] = tuple(t.double() for t in asked["obj_labels"]["feat"])
    total = torch.stack([objective.weight * objective(both.s).value for objective in both.made.objectives.values()]).sum()
    assert both.gradients_apart(total, both.theirs(**both.given(), **asked).loss) == {}


def test_every_key_of_theirs_has_a_place_here(both: WithRegions) -> None:
    assert both.report.dropped == ()
    assert sum(len(piece.sources) for piece in both.report.pieces) == len(both.theirs.state_dict())
