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


def extended(boxes: Tensor) -> Tensor:
    """(..., 4) corners to (...,) bool: whether there is anything inside; a target without extent asks for nothing."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def centred(boxes: Tensor) -> Tensor:
    """(..., 4) corners x1, y1, x2, y2 to centre, width and height: cx, cy, w, h."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) cx, cy, w, h to x1, y1, x2, y2."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes in pairs, (..., 4) corners each; 0 and -1 where both have no extent in one point.

    Returns:
        (...,) in [0, 1], and (...,) in [-1, 1], which also falls with the share of the common hull that neither fills.
    """
    least = torch.finfo(a.dtype).tiny
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    iou = shared / union.clamp(min=least)
    return iou, iou - 1 + union / hull.clamp(min=least)
