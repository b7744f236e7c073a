"""Boxes as vectors that a projection reads, as pure functions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["corners", "area", "size", "full"]
WIDTHS: dict[Layout, int] = {"corners": 4, "area": 5, "size": 6, "full": 7}


def box_vectors(boxes: Tensor, layout: Layout) -> Tensor:
    """Where a box lies, as numbers in [0, 1].

    Args:
        boxes: (..., 4) corners x1, y1, x2, y2 as fractions of the image.
        layout: corners (LXMERT); area adds the area w * h (ViLBERT); size adds w and h (OSCAR); full adds w, h and w * h (UNITER).

    Returns:
        (..., 4 to 7). A box that is the whole image gives 0, 0, 1, 1 and then ones.
    """
    if layout == "corners":
        return boxes
    size = boxes[..., 2:] - boxes[..., :2]
    area = size[..., :1] * size[..., 1:]
    return torch.cat({"area": [boxes, area], "size": [boxes, size], "full": [boxes, size, area]}[layout], -1)
