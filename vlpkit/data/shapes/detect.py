"""In place of a detector: exact boxes of what is in a scene and some of nothing, with noisy features, classes, attributes and confidences.
What a feature says of an object is what a caption says of it, in numbers; where it lies is left to the box."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Generator, Scene

CLASSES = ("background", *SHAPES)
ATTRIBUTES = ("none", *COLOURS)
_TRAITS = (*SIZES, *TEXTURES, *COLOURS, *SHAPES, *BACKGROUNDS)
_NOISE = 0.5  # standard deviation beside traits of 1
_TABLE = 20200  # seed of the traits' features: the same detector in every world


def detect(scene: Scene, rng: Generator, *, size: int, image_size: int) -> dict[str, NDArray[Any]]:
    """The arrays of a KEY.regions.npz, the surest region first.

    Args:
        size: F, numbers of a feature.
        image_size: pixels a side of the image that the boxes are measured in.
    """
    traits = dict(zip(_TRAITS, trait_table(len(_TRAITS), size)))
    rows: list[tuple[float, tuple[float, ...], NDArray[Any], int, float, int, NDArray[Any]]] = []
    for thing in scene.things:
        sure, known = float(rng.uniform(0.5, 0.97)), CLASSES.index(thing.shape)
        feature = sum(traits[name] for name in thing.look) + _NOISE * rng.standard_normal(size)
        rows.append((sure, thing.box, feature, ATTRIBUTES.index(thing.colour), float(rng.uniform(0.4, 0.95)), known, _soft(rng, known, sure)))
    for _ in range(int(rng.integers(2, 6))):  # parts of the background that look a little like something
        guess, sure = int(rng.integers(1, len(CLASSES))), float(rng.uniform(0.02, 0.3))
        (x, y), (wide, tall) = rng.uniform(0, 0.7, 2), rng.uniform(0.1, 0.3, 2)
        feature = traits[scene.background] + 0.5 * traits[CLASSES[guess]] + _NOISE * rng.standard_normal(size)
        soft = _soft(rng, guess, sure, background=0.6)
        rows.append((sure, (float(x), float(y), float(x + wide), float(y + tall)), feature, 0, float(rng.uniform(0.02, 0.3)), guess, soft))
    rows.sort(key=lambda row: -row[0])
    sure_, boxes, features, attributes, sure_of, classes, soft_ = zip(*rows)
    return {
        "size": np.array([image_size, image_size], np.int32),
        "boxes": (np.array(boxes) * image_size).round(3).astype(np.float32),
        "features": np.maximum(np.array(features), 0).astype(np.float16),  # as behind a rectifier
        "confidences": np.array(sure_, np.float16),
        "classes": np.array(classes, np.int32),
        "soft": np.array(soft_, np.float16),
        "attributes": np.array(attributes, np.int32),
        "attribute_confidences": np.array(sure_of, np.float16),
    }


@lru_cache(maxsize=4)
def trait_table(many: int, size: int) -> NDArray[np.float64]:
    """(many, size): a fixed random direction for each of so many traits, the same in every process."""
    return np.random.Generator(np.random.PCG64(_TABLE)).standard_normal((many, size))


def tags(found: Mapping[str, NDArray[Any]]) -> list[str]:
    """What the detector calls the objects, such as "red circle", the surest first; regions that it hardly believes in have no name."""
    return [f"{ATTRIBUTES[a]} {CLASSES[c]}" for a, c, sure in zip(found["attributes"], found["classes"], found["confidences"]) if sure >= 0.45]


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An npz whose bytes depend on the arrays alone."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            body = io.BytesIO()
            np.lib.format.write_array(body, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), body.getvalue())
    return stream.getvalue()


def _soft(rng: Generator, known: int, sure: float, *, background: float = 0.2) -> NDArray[Any]:
    """(C,) chances of the classes: `sure` for one, the rest for the background and, by chance, for the others; none of them surer."""
    others = rng.dirichlet(np.full(len(CLASSES) - 2, 4.0))
    soft = np.zeros(len(CLASSES))
    rest = min((1 - sure) * (1 - background), 0.9 * sure / float(others.max()))
    soft[[i for i in range(1, len(CLASSES)) if i != known]] = rest * others
    soft[known] = sure
    soft[0] = 1 - sure - rest
    return soft
