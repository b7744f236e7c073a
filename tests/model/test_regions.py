"""What a detector found becomes a stream: three published forms, hidden features, padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlpkit.errors import AssemblyError
from vlpkit.layers.embed import PatchEmbed
from vlpkit.layers.regions import RegionEmbed
from vlpkit.types import ImageInput, is_full

SIZE, DIM = 6, 8


def found(*, rows: int = 2, many: int = 3) -> ImageInput:
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(rows, many, 2, generator=rng) / 2
    return ImageInput(regions=torch.randn(rows, many, SIZE, generator=rng), boxes=torch.cat([low, low + 0.3], -1))


def embed(**options: Any) -> RegionEmbed:
    torch.manual_seed(0)
    return RegionEmbed(DIM, size=SIZE, **options)


def test_regions_become_the_part_v_and_all_are_real_unless_a_mask_says_otherwise() -> None:
    s = embed()(found())
    assert (s.parts, tuple(s.x.shape), is_full(s.mask)) == ((("v", 3),), (2, 3, DIM), True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.equal(embed()(replace(found(), mask=mask)).mask, mask)


def test_features_boxes_and_type_are_normed_apart_and_together() -> None:
    e, given = embed(boxes="full", norms=True, segments=2, segment=1, norm=True), found()
    assert given.boxes is not None
    x1, y1, x2, y2 = given.boxes.unbind(-1)
    place = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], -1)
    apart = [F.layer_norm(y, (DIM,), eps=1e-12) for y in (e.feature(given.regions), e.box(place))]  # type: ignore[misc]
    assert torch.allclose(e(given).x, F.layer_norm(apart[0] + apart[1] + e.segment.weight[1], (DIM,), eps=1e-12), atol=1e-6)  # type: ignore[union-attr]


def test_features_and_boxes_may_count_half_each() -> None:
    e, whole, given = embed(boxes="corners", norms=True, halve=True), embed(boxes="corners", norms=True), found()
    assert torch.equal(e(given).x * 2, whole(given).x)


def test_without_boxes_only_features_position_and_type_count() -> None:
    e, given = embed(length=4, segments=2), found()
    there = e.feature(given.regions) + e.position.weight[0] + e.segment.weight[0]  # type: ignore[union-attr]
    assert torch.equal(e(given).x, there)
    assert torch.equal(e(replace(given, boxes=None)).x, there)


def test_a_hidden_feature_is_not_seen_but_its_box_is() -> None:
    e, given = embed(boxes="corners", norms=True), found()
    assert given.regions is not None and given.boxes is not None
    hidden = torch.zeros(2, 3, dtype=torch.bool)
    hidden[0, 1] = True
    before = e(replace(given, hidden=hidden)).x
    other = given.regions.clone()
    other[0, 1] += 1
    assert torch.equal(e(replace(given, regions=other, hidden=hidden)).x, before)
    moved = given.boxes.clone()
    moved[0, 1, 2:] += 0.1
    assert not torch.equal(e(replace(given, boxes=moved, hidden=hidden)).x[0, 1], before[0, 1])
    assert torch.equal(before[1], e(given).x[1])


def test_the_learned_feature_stands_where_one_is_hidden_and_learns_from_there_alone() -> None:
    e, given = embed(hide=True), found()
    hidden = torch.ones(2, 3, dtype=torch.bool)
    x = e(replace(given, hidden=hidden)).x
    assert e.hide is not None
    assert torch.allclose(x, e.feature(e.hide.weight[1]).expand_as(x), atol=1e-6)
    x.sum().backward()
    assert e.hide.weight.grad is not None
    assert e.hide.weight.grad[0].abs().sum() == 0 < e.hide.weight.grad[1].abs().sum()


def test_half_precision_features_are_read_as_they_are_stored() -> None:
    e, given = embed(), found()
    assert given.regions is not None
    half = given.regions.half()
    assert torch.equal(e(replace(given, regions=half)).x, e(replace(given, regions=half.float())).x)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (ImageInput(torch.zeros(1, 3, 8, 8)), {}, "data.regions"),
        (ImageInput(regions=torch.zeros(1, 2, SIZE)), {"boxes": "corners"}, "without them"),
    ],
)
def test_what_the_data_do_not_deliver_is_named(given: ImageInput, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssemblyError, match=message):
        embed(**options)(given)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="come with 5 numbers each, this encoder was built for 6"):
        embed()(ImageInput(regions=torch.zeros(1, 2, 5)))


def test_an_encoder_of_pixels_says_that_it_got_regions() -> None:
    with pytest.raises(AssemblyError, match="vision=regions"):
        PatchEmbed(DIM, image_size=8, patch=4)(found())


@pytest.mark.parametrize(("options", "message"), [({"halve": True}, "boxes is null"), ({"segments": 2, "segment": 2}, "no row")])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(**options)
