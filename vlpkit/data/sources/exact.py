"""Regions that annotations know exactly, in the form in which a detector's are stored: KEY.regions.npz with confidence 1.
A feature is the sum of what its object is known to be, each trait a fixed random direction, as in the embedded world but without noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.shapes.detect import trait_table

SOFT_CLASSES = 256  # up to so many classes their distributions are stored; beyond, they would outweigh the image


@dataclass(frozen=True, slots=True)
class Things:
    """Objects with exact boxes. M objects.

    Args:
        shape: width and height of the image that the boxes are measured in.
        boxes: M corners x1, y1, x2, y2 in pixels.
        classes: M numbers from 1; 0 is the background.
        attributes: M numbers; 0 is none.
        traits: for each object, the rows of the table of traits that its feature adds up.
        known: number of classes with the background, and number of traits.
    """

    shape: tuple[int, int]
    boxes: tuple[tuple[float, ...], ...]
    classes: tuple[int, ...]
    attributes: tuple[int, ...]
    traits: tuple[tuple[int, ...], ...]
    known: tuple[int, int]


def arrays(things: Things, size: int) -> dict[str, NDArray[Any]]:
    """The arrays of a KEY.regions.npz, features of `size` numbers."""
    classes, traits = things.known
    table = trait_table(traits, size)
    many = len(things.boxes)
    sure = np.ones(many, np.float16)
    found: dict[str, NDArray[Any]] = {
        "size": np.array(things.shape, np.int32),
        "boxes": np.array(things.boxes, np.float32).reshape(many, 4),
        "features": np.maximum(np.array([table[list(rows)].sum(0) for rows in things.traits]), 0).astype(np.float16).reshape(many, size),
        "confidences": sure,
        "classes": np.array(things.classes, np.int32),
        "attributes": np.array(things.attributes, np.int32),
        "attribute_confidences": sure,
    }
    if classes <= SOFT_CLASSES:
        found["soft"] = np.eye(classes, dtype=np.float16)[list(things.classes)]
    return found
