"""Box vectors against numbers done by hand."""

from __future__ import annotations

import pytest
import torch

from vlpkit.maths.boxes import WIDTHS, box_vectors

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
