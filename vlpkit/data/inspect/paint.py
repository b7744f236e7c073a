"""Puts tiles on a sheet: images fitted into squares, boxes over them, a key and a wrapped caption below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlpkit.data.inspect.findings import printable
from vlpkit.data.inspect.said import Box
from vlpkit.errors import DataError
from vlpkit.sidecar import replacing

_GAP = 10  # pixels between tiles
_LINES = 3  # of a caption
_PAPER, _EMPTY, _INK, _PALE, _ALARM = "white", "#eeeeee", "#202020", "#707070", "#b00020"
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")  # of boxes, in turn


@dataclass(frozen=True)
class Tile:
    """One sample.

    Args:
        pixels: (h, w, 3), None when there is no image.
        boxes: to draw over it.
        trouble: what is wrong with the sample, "" for nothing.
    """

    key: str
    caption: str
    pixels: NDArray[np.uint8] | None
    boxes: Sequence[Box]
    trouble: str = ""


def paint(tiles: Sequence[Tile], out: Path, *, columns: int, side: int) -> None:
    """Write a PNG of all tiles, `columns` in a row, images fitted into squares of `side` pixels. Raises DataError."""
    font = ImageFont.load_default(max(10, min(16, side // 14)))
    line = int(font.getbbox("Ag")[3]) + 4
    columns, rows = min(columns, len(tiles)), -(-len(tiles) // columns)
    wide, tall = side + _GAP, side + (1 + _LINES) * line + _GAP
    page = Image.new("RGB", (columns * wide + _GAP, rows * tall + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, tile in enumerate(tiles):
        x, y = _GAP + number % columns * wide, _GAP + number // columns * tall
        _image(page, draw, tile, x, y, side)
        head = f"{tile.trouble}: {tile.key}" if tile.trouble else tile.key
        texts = [(head, _ALARM if tile.trouble else _PALE, 1), (tile.caption, _INK, _LINES)]
        for text, ink, most in texts:
            for words in _wrapped(printable(text), font, side, most):
                y += line
                draw.text((x, y + side - line + 3), words, ink, font)
    try:
        with replacing(out) as file:
            page.save(file, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"--out: cannot write {out}: {error.strerror or error}") from None


def _image(page: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, side: int) -> None:
    """The image in the middle of its square, never cut; a small one is enlarged without smoothing."""
    draw.rectangle((x, y, x + side - 1, y + side - 1), _EMPTY)
    if tile.pixels is None:
        draw.line((x, y, x + side - 1, y + side - 1), _ALARM, 2)
        draw.line((x, y + side - 1, x + side - 1, y), _ALARM, 2)
        return
    height, width = tile.pixels.shape[:2]
    ratio = side / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    how = Image.Resampling.NEAREST if ratio >= 2 else Image.Resampling.BICUBIC
    left, top = x + (side - size[0]) // 2, y + (side - size[1]) // 2
    page.paste(Image.fromarray(tile.pixels).resize(size, how), (left, top))
    for number, (x1, y1, x2, y2) in enumerate(tile.boxes):
        corners = (left + x1 * size[0], top + y1 * size[1], left + max(x1, x2) * size[0] - 1, top + max(y1, y2) * size[1] - 1)
        draw.rectangle((corners[0], corners[1], max(corners[0], corners[2]), max(corners[1], corners[3])), outline=_COLOURS[number % len(_COLOURS)], width=2)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int, most: int) -> list[str]:
    """The text in at most `most` lines, always `most` of them; what does not fit ends in dots."""
    lines, words = [""], text.split(" ")
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= wide or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} ..."]
    return [*(_cut(one, font, wide) for one in lines), *[""] * (most - len(lines))]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int) -> str:
    if font.getlength(text) <= wide:
        return text
    text = text.removesuffix(" ...")
    while text and font.getlength(text + "...") > wide:
        text = text[:-1]
    return text + "..."
