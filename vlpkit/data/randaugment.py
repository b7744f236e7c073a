"""RandAugment restricted to changes that leave a caption true: no colour is turned, nothing is inverted.
The ten operations and their ranges are those of ALBEF's and BLIP's pre-training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)
MAX_MAGNITUDE = 10
SHEAR = 0.3  # at full magnitude: columns per row, or rows per column
TRANSLATE = 10.0  # at full magnitude, pixels whatever the image's size
ROTATE = 30.0  # at full magnitude, degrees

Change = Callable[[Image.Image, float], Image.Image]  # the image and a strength in [0, 1], or [-1, 1] for a geometric one


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _strength(magnitude: float) -> float:
    """Enhancement factor 0.1 .. 1.9, so that strength 0.5 leaves the image alone."""
    return 0.1 + 1.8 * magnitude


CHANGES: dict[str, Change] = {
    "identity": lambda image, m: image,
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(_strength(m)),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(_strength(m)),
    "shear_x": lambda image, m: _affine(image, 1, SHEAR * m, 0, 0, 1, 0),
    "shear_y": lambda image, m: _affine(image, 1, 0, 0, SHEAR * m, 1, 0),
    "translate_x": lambda image, m: _affine(image, 1, 0, TRANSLATE * m, 0, 1, 0),
    "translate_y": lambda image, m: _affine(image, 1, 0, 0, 0, 1, TRANSLATE * m),
    "rotate": lambda image, m: image.rotate(ROTATE * m, Image.Resampling.BILINEAR, fillcolor=FILL),
}
SIGNED = frozenset({"shear_x", "shear_y", "translate_x", "translate_y", "rotate"})


class RandAugment:
    """`draws` operations, drawn with replacement; each is then applied with probability one half.

    Args:
        draws: N, operations drawn for an image.
        magnitude: M of 10, the strength all share; a geometric one takes a random sign.
    """

    def __init__(self, draws: int, magnitude: float) -> None:
        self.draws, self.magnitude = draws, magnitude
        self._names = tuple(CHANGES)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The changed image; takes three numbers from `rng` for each operation, whether it is applied or not."""
        strength = self.magnitude / MAX_MAGNITUDE
        for choice, apply, sign in rng.random((self.draws, 3)):
            name = self._names[int(choice * len(self._names))]
            if apply < 0.5:
                image = CHANGES[name](image, -strength if name in SIGNED and sign < 0.5 else strength)
        return image
