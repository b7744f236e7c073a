"""Draws over regions, and answers to questions: what is hidden, what is swapped, what does not count."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.builders import tiny_batch, tiny_model, tiny_streams
from tests.golden.recorded import Given
from vlpkit.draws.images import HideRegions
from vlpkit.encoders.encoder import Encoder
from vlpkit.errors import AssemblyError
from vlpkit.fusion import Fusion
from vlpkit.joint import Merged
from vlpkit.layers.embed import WordEmbed
from vlpkit.layers.regions import RegionEmbed
from vlpkit.layers.trunk import Trunk
from vlpkit.model import VLModel
from vlpkit.objectives.answer import Answer
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, Batch, Dims, ImageInput, Pairing, TextInput

ROWS, MANY, SIZE, DIM = 40, 9, 5, 8
LENGTHS = torch.arange(ROWS) % MANY + 1


def batch(**targets: torch.Tensor) -> Batch:
    """Features that say where they come from: row, place."""
    mask = torch.arange(MANY) < LENGTHS[:, None]
    regions = torch.stack([torch.arange(ROWS)[:, None].expand(-1, MANY), torch.arange(MANY).expand(ROWS, -1)], -1).float()
    regions = torch.cat([regions, torch.ones(ROWS, MANY, SIZE - 2)], -1).masked_fill(~mask[..., None], -1)
    ids = torch.ones(ROWS, 3, dtype=torch.int64)
    image = ImageInput(regions=regions, boxes=torch.rand(ROWS, MANY, 4), mask=mask)
    return Batch({"clean": image}, {"clean": TextInput(ids, torch.ones_like(ids, dtype=torch.bool))}, targets, torch.arange(ROWS))


def streams(draw: HideRegions, *, corrupt: bool = True) -> Streams:
    return Streams(VLModel("none", {}, {}), batch(), draws={"hole": draw}, seed=(0,), corrupt=corrupt)


def test_all_chosen_regions_are_hidden_and_nothing_else_changes() -> None:
    s = streams(HideRegions(rate=0.3))
    image, chosen = s.image("hole.image"), s.labels("hole.chosen")
    assert torch.equal(image.hidden, chosen)  # type: ignore[arg-type]
    assert chosen.any(-1).all() and not (chosen & ~s.image().mask).any()  # type: ignore[operator]
    assert (image.regions, image.boxes, image.mask) == (s.image().regions, s.image().boxes, s.image().mask)


def test_eight_one_one_hides_swaps_and_keeps() -> None:
    s = streams(HideRegions(rate=1.0, keep=0.1, other=0.1))
    image, real = s.image("hole.image"), s.image().mask
    assert image.regions is not None and image.hidden is not None and real is not None
    swapped = (image.regions != s.image().regions).any(-1)
    assert not (swapped & image.hidden).any() and not (swapped & ~real).any()
    count = int(real.sum())
    deviation = math.sqrt(0.09 * count)
    assert abs(int(swapped.sum()) - 0.1 * count) < 4 * deviation
    assert abs(int(image.hidden.sum()) - 0.8 * count) < 4 * math.sqrt(0.16 * count)
    origin, own = image.regions[swapped], torch.arange(ROWS)[:, None].expand(-1, MANY)[swapped]
    assert (origin[:, 0] != own).all()
    assert (origin[:, 0] >= 0).all() and (origin[:, 1] < LENGTHS[origin[:, 0].long()]).all()   # a real region, never padding


def test_an_evaluation_sees_every_region() -> None:
    s = streams(HideRegions(rate=1.0), corrupt=False)
    assert s.image("hole.image") is s.image()
    assert not s.labels("hole.chosen").any()


def answers(labels: torch.Tensor, *, match: torch.Tensor | None = None, **options: Any) -> tuple[Answer, Streams]:
    torch.manual_seed(0)
    objective = Answer(classes=6, **options)
    head = objective.heads(Dims({"fusion.w": DIM}, 10))["answer"]
    nn.init.zeros_(head.out.weight)  # type: ignore[union-attr,arg-type]
    parts = {
        "vision": Encoder(RegionEmbed(DIM, size=SIZE)), "text": Encoder(WordEmbed(DIM, vocab=4, length=3)),
        "fusion": Fusion(reads={"v": "vision.embed", "w": "text.embed"}, steps=[{"joint": "all"}], joint=Merged(DIM, trunk=Trunk(DIM, depth=1, heads=2))),
    }
    rows = torch.arange(ROWS)
    drawn = {} if match is None else {"mix": Given({"pairing": Pairing(rows.roll(1), rows, match)})}
    return objective, Streams(VLModel("qa", parts, {"answer": head}), batch(answer=labels), draws=drawn)


def test_a_head_that_knows_nothing_loses_log_c_over_the_questions_alone() -> None:
    labels = torch.full((ROWS,), IGNORE)
    labels[3:7] = torch.arange(4)
    objective, s = answers(labels)
    assert float(objective(s).value.detach()) == pytest.approx(math.log(6), rel=1e-5)
    assert float(objective(s).logs["acc"]) == 0.25   # all logits are equal, so the first answer is said


def test_without_a_question_the_loss_is_zero() -> None:
    objective, s = answers(torch.full((ROWS,), IGNORE))
    assert float(objective(s).value.detach()) == 0


def test_a_question_beside_another_image_does_not_count() -> None:
    match = torch.zeros(ROWS, dtype=torch.int64)
    match[0] = 1
    objective, s = answers(torch.arange(ROWS) % 6, match=match, pairing="mix.pairing")
    value = objective(s).value
    (grad,) = torch.autograd.grad(value, [s.model.head("answer").out.bias])
    assert torch.allclose(grad, torch.tensor([1 / 6 - 1] + [1 / 6] * 5))   # the first question alone
    objective, s = answers(torch.zeros(ROWS, dtype=torch.int64), match=torch.zeros_like(match), pairing="mix.pairing")
    assert float(objective(s).value.detach()) == 0


def test_a_target_that_the_source_does_not_deliver_is_named() -> None:
    objective, s = answers(torch.zeros(ROWS, dtype=torch.int64), target="reply")
    with pytest.raises(AssemblyError, match="reads the target 'reply', but the source delivers answer"):
        objective(s)


def test_classes_before_the_first_are_no_target_and_have_no_row() -> None:
    made, words = tiny_model("model=lxmert")
    given = tiny_batch(words)
    head = made.model.head("mra")
    assert head.out.out_features == made.objectives["mra"].classes - 1 == 8  # type: ignore[operator]
    attribute, sure = torch.zeros_like(given.targets["region_attribute"]), torch.full_like(given.targets["region_attribute_confidence"], 0.5)
    seen = int(tiny_streams(made, given).pairing("mix.pairing").image[0])
    attribute[seen, 2] = 8   # the last of 1 to 8; all others have none
    s = tiny_streams(made, replace(given, targets={**given.targets, "region_attribute": attribute, "region_attribute_confidence": sure}))
    rows, v = s.pairing("mix.pairing").image, s.fused("hole.image", "mask.text", "mix.pairing").v
    logits = s.head("mra", v.x[rows == seen, 2])   # once for each text that stands beside this image
    expected = -0.5 * logits.log_softmax(-1)[:, 7].sum() / v.mask.sum()
    assert torch.allclose(made.objectives["mra"](s).value, expected)
    assert expected > 0
    none = tiny_streams(made, replace(given, targets={**given.targets, "region_attribute": torch.zeros_like(attribute)}))
    assert float(made.objectives["mra"](none).value) == 0.0


def test_what_was_masked_follows_its_text_into_the_pairing() -> None:
    made, words = tiny_model("model=lxmert", "draws.mask.rate=0.5")
    given, back = tiny_batch(words), torch.tensor([3, 2, 1, 0])
    rows = torch.arange(4)
    values = []
    for pairing in (Pairing(rows, rows, torch.ones_like(rows)), Pairing(back, back, torch.ones_like(rows))):
        made.draws["mix"] = Given({"pairing": pairing})
        values.append(made.objectives["mlm"](tiny_streams(made, given)).value)
    assert torch.allclose(*values)
