"""Encoded image to a square uint8 tensor: crop before resize, decode no larger than the crop needs.
Everything random comes from the generator that is handed in, so an image depends on its position in the order alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlpkit.data.decode import Header, decode, factor_for, read_header
from vlpkit.data.randaugment import MAX_MAGNITUDE, RandAugment
from vlpkit.data.scratch import Scratch
from vlpkit.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

Interpolation = Literal["bicubic", "bilinear"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


# What torch's `interpolate` calls; called here because only this form writes to a row of a batch.
_KERNELS = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa.out, "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out}


class View(NamedTuple):
    """What is to be seen of an image that is not decoded yet: its header, and the part of it that fills the square."""

    header: Header
    box: tuple[int, int, int, int]  # left, top, width, height in pixels of the whole image


class Transform(Protocol):
    """Bytes of one encoded image to (3, S, S) uint8.

    In two steps, so that whoever has many images reads all headers before any image is decoded: each work then finds its code and tables in the
    processor's cache.

    Args:
        size: S, pixels a side.
    """

    size: int

    def look(self, payload: bytes, rng: np.random.Generator) -> View:
        """Reads the header and chooses what is seen. Raises Refused."""
        ...

    def draw(self, payload: bytes, view: View, rng: np.random.Generator, row: Tensor) -> None:
        """Writes that to `row` (1, 3, S, S), one of a `canvas`; `rng` is the generator that `look` left behind. Raises Refused."""
        ...

    def seen(self, view: View) -> Box:
        """Corners of what is seen, as fractions of the whole image."""
        ...


def canvas(count: int, height: int, width: int) -> Tensor:
    """(R, 3, height, width) uint8 of any content, in channels-last memory, as images come out of decoding and resizing."""
    return torch.empty((count, 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last)


class TrainTransform:
    """Random crop of a share of the area and an aspect ratio, resized to a square (Inception's crop, as in torchvision),
    then a mirror image by chance and RandAugment.

    Args:
        image_size: S, pixels a side.
        scale: least and largest share of the image's area, in (0, 1].
        ratio: least and largest width over height of the crop.
        flip: probability of the mirror image.
        randaugment: number of draws and magnitude of 10, or None.
    """

    def __init__(
        self,
        *,
        image_size: int,
        scale: Sequence[float] = (0.9, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
        randaugment: Sequence[int] | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.scale, self.flip, draws = check_augment(scale=scale, flip=flip, randaugment=randaugment)
        self.log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
        self.size, self.interpolation = _checked(image_size, interpolation)
        self.augment = RandAugment(*draws) if draws else None
        self._scratch = Scratch()

    def look(self, payload: bytes, rng: np.random.Generator) -> View:
        header = read_header(payload)
        return View(header, self.crop(header.width, header.height, rng))

    def draw(self, payload: bytes, view: View, rng: np.random.Generator, row: Tensor) -> None:
        (left, top, width, height), header, least = view.box, view.header, self.size
        # The decoded image may shrink as long as the crop inside it still covers S x S.
        whole = -(-header.width * least // width), -(-header.height * least // height)
        factor = factor_for(header, *whole)
        pixels = decode(payload, header, width=whole[0], height=whole[1], scratch=self._scratch)
        resize(cut(pixels, (left / factor, top / factor, (left + width) / factor, (top + height) / factor)), self.interpolation, row)
        if rng.random() < self.flip:
            row.copy_(row.flip(3))
        if self.augment is not None:
            array = row[0].permute(1, 2, 0).numpy()
            array[...] = np.asarray(self.augment(Image.fromarray(array), rng))

    def seen(self, view: View) -> Box:
        (left, top, width, height), (wide, tall) = view.box, (view.header.width, view.header.height)
        return left / wide, top / tall, (left + width) / wide, (top + height) / tall

    def crop(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """left, top, width, height of a crop: ten tries, then the largest centre crop of an allowed ratio."""
        area = width * height
        (least, most), (flat, tall) = self.scale, self.log_ratio
        for _ in range(10):
            a, b, x, y = rng.random(4).tolist()  # at once: single draws from a numpy generator are slow
            share, slant = least + (most - least) * a, math.exp(flat + (tall - flat) * b)
            w, h = round(math.sqrt(area * share * slant)), round(math.sqrt(area * share / slant))
            if 0 < w <= width and 0 < h <= height:
                return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
        low, high = math.exp(flat), math.exp(tall)
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (width - w) // 2, (height - h) // 2, w, h


class EvalTransform:
    """The same square for every call; `rng` is not used.

    A JPEG is decoded below full size only where twice the output remains, so results stay within a grey level or so of
    a full decode, and the usual evaluation sets (short side 640 pixels or less) are decoded in full.

    Args:
        image_size: S, pixels a side.
        resize: "squash" changes the aspect ratio to a square (ALBEF, BLIP); "crop" resizes the short side to S and takes
            the centre (CLIP).
    """

    def __init__(
        self, *, image_size: int, resize: Literal["squash", "crop"] = "squash", interpolation: Interpolation = "bicubic"
    ) -> None:
        if resize not in ("squash", "crop"):
            raise ConfigError(f"resize is {resize!r}; it can be squash or crop. {did_you_mean(resize, ('squash', 'crop'))}".rstrip())
        self.how = resize
        self.size, self.interpolation = _checked(image_size, interpolation)
        self._scratch = Scratch()

    def look(self, payload: bytes, rng: np.random.Generator) -> View:
        header = read_header(payload)
        return View(header, (0, 0, header.width, header.height))

    def draw(self, payload: bytes, view: View, rng: np.random.Generator, row: Tensor) -> None:
        pixels = decode(payload, view.header, width=2 * self.size, height=2 * self.size, scratch=self._scratch)
        if self.how == "squash":
            resize(pixels, self.interpolation, row)
            return
        width, height, left, top = self._centre(view.header)
        whole = canvas(1, height, width)
        resize(pixels, self.interpolation, whole)
        row.copy_(whole[:, :, top : top + self.size, left : left + self.size])

    def seen(self, view: View) -> Box:
        if self.how == "squash":
            return 0.0, 0.0, 1.0, 1.0
        width, height, left, top = self._centre(view.header)
        return left / width, top / height, (left + self.size) / width, (top + self.size) / height

    def _centre(self, header: Header) -> tuple[int, int, int, int]:
        """Width and height at which the short side is S, and the corner of the square in their middle."""
        short = min(header.width, header.height)
        width, height = self.size * header.width // short, self.size * header.height // short
        return width, height, round((width - self.size) / 2), round((height - self.size) / 2)


def resize(pixels: NDArray[np.uint8], interpolation: Interpolation, out: Tensor) -> None:
    """(h, w, 3) uint8 to `out` (1, 3, H, W) uint8 with antialiasing; equals Pillow's resize to within one grey level, and takes a seventh of its time."""
    height, width = out.shape[2:]
    if pixels.shape[:2] == (height, width):
        out[0].permute(1, 2, 0).numpy()[...] = pixels
        return
    # numpy copies a crop in a third of the time that the kernel takes to do so
    planes = torch.from_numpy(pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy()).permute(2, 0, 1)[None]
    _KERNELS[interpolation](planes, (height, width), False, None, None, out=out)


def safe_augment(augment: Mapping[str, Any], safe: Mapping[str, Any], *, place: str = "data.safe") -> dict[str, Any]:
    """What to do to an image: the recipe's wishes within what the captions of this data survive.

    Args:
        augment: scale (least and largest share of the area), flip (probability), randaugment ([draws, magnitude] or None).
        safe: min_crop (least share of the area a caption survives), mirror and randaugment (bool).
        place: configuration key of `safe`, named in refusals.

    Returns:
        The keyword arguments of `TrainTransform` of the same three names.
    """
    for name, found, wanted in (
        ("data.augment", augment, ("scale", "flip", "randaugment")),
        (place, safe, ("min_crop", "mirror", "randaugment")),
    ):
        if wrong := sorted(set(found) ^ set(wanted)):
            raise ConfigError(f"{name} has the keys {', '.join(found) or 'none'}; it needs exactly {', '.join(wanted)} (look at: {', '.join(wrong)})")
    scale, flip, draws = check_augment(**augment)
    least = float(safe["min_crop"])
    if not 0 <= least <= 1:
        raise ConfigError(f"{place}.min_crop is {least:g}; it is a share of the area, from 0 to 1")
    kept = {
        "scale": (max(scale[0], least), max(scale[1], least)),
        "flip": flip if safe["mirror"] else 0.0,
        "randaugment": draws if safe["randaugment"] else None,
    }
    asked = {"scale": scale, "flip": flip, "randaugment": draws}
    for key in (key for key in asked if asked[key] != kept[key]):
        log.info("data.augment.%s is %s here, not %s: the captions of this data would not stay true (%s)", key, kept[key], asked[key], place)
    return kept


def check_augment(
    *, scale: Sequence[float], flip: float, randaugment: Sequence[int] | None
) -> tuple[tuple[float, float], float, tuple[int, int] | None]:
    """The three settings as plain values. Raises ConfigError naming the key that is out of range."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"data.augment.scale is {list(scale)}; it needs two shares of the area, 0 < least <= largest <= 1")
    if not 0 <= flip <= 1:
        raise ConfigError(f"data.augment.flip is {flip}; it is a probability, from 0 to 1")
    if randaugment is None:
        return (float(scale[0]), float(scale[1])), float(flip), None
    if len(randaugment) != 2 or randaugment[0] < 0 or not 0 <= randaugment[1] <= MAX_MAGNITUDE:
        raise ConfigError(f"data.augment.randaugment is {list(randaugment)}; it needs [draws, magnitude 0..{MAX_MAGNITUDE}] or null")
    return (float(scale[0]), float(scale[1])), float(flip), (int(randaugment[0]), int(randaugment[1]))


def _checked(image_size: int, interpolation: Interpolation) -> tuple[int, Interpolation]:
    if image_size < 1:
        raise ConfigError(f"image_size is {image_size}; it is a number of pixels, at least 1")
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"interpolation is {interpolation!r}; it can be bicubic or bilinear")
    return image_size, interpolation


def cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The box to whole pixels, at least one a side; at most half a decoded pixel away from the box asked for."""
    left, top = min(round(box[0]), pixels.shape[1] - 1), min(round(box[1]), pixels.shape[0] - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    return pixels[top:bottom, left:right]
