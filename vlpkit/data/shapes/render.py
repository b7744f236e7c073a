"""Draws a scene at a few times its size and shrinks it, so that eight shapes stay distinct at 64 pixels.
Light, hue and grain vary a little from image to image, so that no pixel value alone gives a scene away."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vlpkit.data.shapes.scenes import Generator, Scene, Thing

_OVER = 4  # pixels drawn for each pixel kept, along each side
_PAINT = {
    "red": (222, 38, 38),
    "green": (34, 158, 58),
    "blue": (40, 78, 222),
    "yellow": (246, 216, 34),
    "orange": (246, 132, 16),
    "purple": (130, 42, 172),
    "pink": (252, 140, 196),
    "cyan": (48, 206, 220),
}
_GROUND = {
    "white": (242, 242, 240),
    "gray": (128, 128, 128),
    "black": (24, 24, 26),
    "beige": (226, 206, 168),
    "brown": (92, 62, 42),
}

Points = NDArray[np.float64]


@cache
def _unit(shape: str) -> tuple[Points, Points | None]:
    """Outline of a shape around the origin, and that of its hole; y points down."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if shape == "circle":
        return disc, None
    if shape == "ring":
        return disc, 0.58 * disc
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64), None
    if shape == "diamond":
        return np.array([(0, -1), (1, 0), (0, 1), (-1, 0)], dtype=np.float64), None
    if shape == "triangle":
        return np.array([(0, -1), (1, 0.85), (-1, 0.85)], dtype=np.float64), None
    if shape == "cross":
        w = 0.32
        corners = [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
        return np.array(corners, dtype=np.float64), None
    if shape == "star":
        spokes = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return np.stack([reach * np.cos(spokes), reach * np.sin(spokes)], axis=1), None
    x = 16 * np.sin(turn) ** 3
    y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([x / 16, -(y + 2.5) / 15], axis=1), None  # the heart


def outline(shape: str, tilt: float) -> tuple[Points, Points | None]:
    """(P, 2) corners in [-1, 1] that touch all four sides, tilted by `tilt` degrees, and those of its hole, if any."""
    points, hole = _unit(shape)
    angle = np.deg2rad(tilt)
    spin = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    points = points @ spin
    low, high = points.min(axis=0), points.max(axis=0)
    middle, reach = (low + high) / 2, (high - low) / 2
    return (points - middle) / reach, None if hole is None else (hole @ spin - middle) / reach


def draw(scene: Scene, rng: Generator, *, image_size: int) -> NDArray[np.uint8]:
    """The scene as (image_size, image_size, 3) RGB; `rng` chooses light, hue, grain and how the textures lie."""
    side = image_size * _OVER
    canvas = Image.new("RGB", (side, side), _GROUND[scene.background])
    for thing in scene.things:
        _paint(canvas, thing, rng)
    pixels = np.asarray(canvas.reduce(_OVER), dtype=np.float32)
    ramp = np.linspace(-1, 1, image_size, dtype=np.float32)
    slope = rng.uniform(-10, 10, size=2).astype(np.float32)
    light = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    grain = rng.standard_normal((image_size, image_size, 1), dtype=np.float32) * np.float32(rng.uniform(2, 7))
    shaded = pixels * np.float32(rng.uniform(0.88, 1.06)) + light[:, :, None] + grain
    return np.clip(shaded + np.float32(rng.uniform(-8, 8)), 0, 255).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], *, quality: int = 92) -> bytes:
    """JPEG with full chroma, because colours are what the captions speak of."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _paint(canvas: Image.Image, thing: Thing, rng: Generator) -> None:
    side = canvas.width
    reach = thing.radius * side
    left, top = round(thing.x * side - reach), round(thing.y * side - reach)
    span = round(2 * reach) + 1
    points, hole = outline(thing.shape, thing.tilt)
    paint = np.asarray(_PAINT[thing.colour], dtype=np.float64) + rng.uniform(-12, 12, size=3)
    canvas.paste(_tuple(paint), (left, top), _mask(points, hole, reach, span, rim=0.0))
    if thing.texture != "plain":  # the rim stays plain, so that the silhouette never dissolves into the background
        rim = side * 0.014 / reach
        canvas.paste(_texture(thing, paint, span, side, rng), (left, top), _mask(points, hole, reach, span, rim=rim))


def _mask(points: Points, hole: Points | None, reach: float, span: int, *, rim: float) -> Image.Image:
    """255 inside the outline, shrunk by `rim` (a fraction of half the box)."""
    mask = Image.new("L", (span, span), 0)
    pen = ImageDraw.Draw(mask)
    pen.polygon([(float(x), float(y)) for x, y in points * reach * (1 - rim) + reach], fill=255)
    if hole is not None:
        pen.polygon([(float(x), float(y)) for x, y in hole * reach * (1 + rim) + reach], fill=0)
    return mask


def _tuple(paint: Points) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(paint, 0, 255))
    return red, green, blue


def _texture(thing: Thing, paint: Points, span: int, side: int, rng: Generator) -> Image.Image:
    """A square of the object's colour with its texture in a lighter or darker shade, whichever stands out."""
    bright = float(paint @ np.array([0.3, 0.59, 0.11])) > 140
    shade = _tuple(paint * 0.3 if bright else paint * 0.25 + 185)
    fill = Image.new("RGB", (span, span), _tuple(paint))
    pen = ImageDraw.Draw(fill)
    period = side * (0.085 if thing.size == "large" else 0.066)
    shift = float(rng.uniform(0, period))
    if thing.texture == "striped":
        for start in np.arange(-span - shift, span, period):
            band = [(start, 0), (start + period * 0.42, 0), (start + span + period * 0.42, span), (start + span, span)]
            pen.polygon([(float(x), float(y)) for x, y in band], fill=shade)
    elif thing.texture == "dotted":
        dot = period * 0.3
        for row, y in enumerate(np.arange(shift / 2, span + dot, period * 0.9)):
            for x in np.arange(shift / 2 + (row % 2) * period / 2, span + dot, period):
                pen.ellipse((float(x - dot), float(y - dot), float(x + dot), float(y + dot)), fill=shade)
    return fill
