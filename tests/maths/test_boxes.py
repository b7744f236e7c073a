"""Box vectors against numbers done by hand."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from vlpkit.maths.boxes import WIDTHS, box_vectors, centred, corners, extended, overlap

BOX = torch.tensor([[[0.25, 0.5, 0.75, 0.625]]])


def test_the_full_vector_is_corners_then_size_then_area() -> None:
    assert box_vectors(BOX, "full").flatten().tolist() == [0.25, 0.5, 0.75, 0.625, 0.5, 0.125, 0.0625]


@pytest.mark.parametrize(("layout", "tail"), [("corners", []), ("area", [0.0625]), ("size", [0.5, 0.125]), ("full", [0.5, 0.125, 0.0625])])
def test_each_layout_ends_as_its_system_has_it(layout: str, tail: list[float]) -> None:
    vector = box_vectors(BOX, layout)  # type: ignore[arg-type]
    assert vector.flatten().tolist() == [0.25, 0.5, 0.75, 0.625, *tail]
    assert vector.shape[-1] == WIDTHS[layout]  # type: ignore[index]


def test_the_whole_image_is_zeros_and_ones() -> None:
    assert box_vectors(torch.tensor([0.0, 0.0, 1.0, 1.0]), "full").tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_corners_and_centres_are_two_ways_to_say_the_same() -> None:
    assert centred(BOX).flatten().tolist() == [0.5, 0.5625, 0.5, 0.125]
    torch.testing.assert_close(corners(centred(BOX)), BOX)


def test_overlap_is_what_torchvision_finds_and_what_is_done_by_hand() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(200, 2, 2, generator=rng).sort(1).values.flatten(1) for _ in range(2))
    iou, giou = overlap(a, b)
    torch.testing.assert_close(iou, box_iou(a, b).diagonal())
    torch.testing.assert_close(giou, generalized_box_iou(a, b).diagonal())
    # two unit squares side by side with a gap of one: nothing shared, two of three units of the hull filled
    iou, giou = overlap(torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1]))
    assert (float(iou), float(giou)) == (0.0, pytest.approx(-1 / 3))
    assert [float(x) for x in overlap(BOX[0, 0], BOX[0, 0])] == [1.0, 1.0]


def test_boxes_without_extent_have_finite_overlaps_and_gradients() -> None:
    box = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    iou, giou = overlap(box, torch.zeros(1, 4))
    (iou + giou).sum().backward()
    assert iou.isfinite().all() and giou.isfinite().all() and box.grad is not None and box.grad.isfinite().all()


def test_a_box_without_width_or_height_has_no_extent() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.1, 0.2], [0.1, 0.1, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0]])
    assert extended(boxes).tolist() == [True, False, False, False]
