"""Bytes to an upright RGB image and to clean captions; whatever cannot be trusted is refused with a counted reason.
The header is judged before a pixel is decoded, and a JPEG is decoded no larger than its reader needs."""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from vlpkit.data.scratch import Scratch

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_CAPTION = 2000  # characters; longer alternative texts are page dumps
MAX_RECORD = 4 << 20  # bytes of a KEY.json
ORIENTATION = 0x0112  # the Exif tag
_COMMENTS = 4 << 20  # bytes that the texts of a PNG may unpack to
_SCANNED = 1 << 34  # bytes times pixels above which the scans of a JPEG are counted
# All that Pillow's parsers were seen to raise on damaged files.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error)
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"adobe.xmp")  # chunks of a PNG that can tell an orientation
UPRIGHT = 1  # its value for an image stored as it is meant to be seen

# Images that the fast decoder would not take, by cause, since this process and its readers started; reports show it, nothing hangs on it.
slow_path: Counter[str] = Counter()


class Refused(Exception):
    """A sample that must not be trained on.

    Args:
        reason: the counted word: missing_image, empty_image, not_an_image, unsupported_format, truncated_image,
            broken_image, too_many_bytes, too_many_pixels, too_many_scans, too_small, extreme_aspect, missing_caption, empty_caption,
            bad_utf8, bad_record, missing_regions, broken_regions, bad_regions or no_regions.
        detail: what exactly was found, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # so that it crosses from a worker process intact


@dataclass(frozen=True)
class Limits:
    """What a header may claim before a pixel is decoded.

    Args:
        pixels: most pixels; side and small: longest and shortest side in pixels; aspect: longest over shortest side;
            bytes: most bytes of the encoded image; scans: most passes of a progressive JPEG, each of which costs its decoder all pixels.
    """

    pixels: int = 50_000_000
    side: int = 20_000
    small: int = 8
    aspect: float = 20.0
    bytes: int = 32 << 20
    scans: int = 100


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Args:
        format: JPEG, PNG or WEBP.
        width, height: pixels of the upright image, that is after its Exif rotation.
        quick: the fast decoder understands it: an upright JPEG in grey, RGB or YCbCr.
        opened: the lazily opened image when it is not `quick`.
    """

    format: str
    width: int
    height: int
    quick: bool
    opened: Image.Image | None = None


def read_header(payload: bytes | None, *, limits: Limits = LIMITS) -> Header:
    """Format and upright size of an encoded image, within `limits`. Raises Refused; decodes nothing."""
    if payload is None:
        raise Refused("missing_image")
    if not payload:
        raise Refused("empty_image")
    if len(payload) > limits.bytes:
        raise Refused("too_many_bytes", f"{len(payload)} bytes, at most {limits.bytes}")
    orientation, single = jpeg_layout(payload) if payload[:3] == b"\xff\xd8\xff" else (None, False)
    if orientation == UPRIGHT:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(payload)
        except ValueError:
            slow_path["header"] += 1
        else:
            if colours in ("YCbCr", "Gray", "RGB"):
                _judge(int(width), int(height), limits)
                if not single:
                    _judge_scans(payload, int(width) * int(height), limits)
                return Header("JPEG", int(width), int(height), quick=True)
            slow_path[colours] += 1
    return _open(payload, limits)


def decode(payload: bytes, header: Header, *, width: int = 0, height: int = 0, scratch: Scratch | None = None) -> NDArray[np.uint8]:
    """(h, w, 3) uint8, the whole upright image at the smallest of the scales 1, 1/2, 1/4, 1/8 that is still at least
    `width` x `height`; a JPEG only, and 0 asks for full size. With `scratch` the image may lie there until the next one.

    At full size the pixels are those of Pillow's decoder. The scales between (7/8, 3/4, ...) exist but take longer than
    full size; the decoder's faster transforms and chroma save some 6 % and cost a grey level, so they stay off. Raises Refused("truncated_image" | "broken_image").
    """
    if header.quick:
        factor = factor_for(header, width, height)
        rows, columns = -(-header.height // factor), -(-header.width // factor)
        least = {"min_height": rows, "min_width": columns, "min_factor": factor} if factor > 1 else {}
        room = None if scratch is None else scratch.lend(3 * rows * columns)
        try:
            return simplejpeg.decode_jpeg(payload, "RGB", buffer=room, **least)  # type: ignore[no-any-return]
        except ValueError:  # strict about what other decoders overlook, such as stray bytes between markers
            slow_path["strict"] += 1
    image = header.opened or _pillow(payload)
    if header.format == "JPEG" and width and height:
        turned = image.size != (header.width, header.height)
        factor = factor_for(header, width, height)
        reduced = (header.width // factor, header.height // factor)
        image.draft(None, reduced[::-1] if turned else reduced)  # type: ignore[arg-type]
    try:
        with _strictly():
            return np.asarray(to_rgb(image))
    except BROKEN as error:
        raise _broken(error, payload) from None


@contextmanager
def _strictly() -> Iterator[None]:
    """Pillow's switches as they must stand here: other libraries accept cut images for everybody, and a PNG may unpack 64 MB of comments."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY
    ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY = False, _COMMENTS
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY = before


def to_rgb(image: Image.Image) -> Image.Image:
    """The one rule for every mode: first frame, turned upright by its Exif tag, 16-bit scaled (not clipped) to 8 bits,
    transparency composited on white, then RGB (grey repeated, palette looked up, CMYK and YCCK converted)."""
    image.seek(0)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":  # grey of 16 bits; Pillow's own conversion would saturate
        grey = np.asarray(image).astype(np.float64)
        return Image.fromarray((grey.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def jpeg_layout(payload: bytes) -> tuple[int, bool]:
    """The Exif orientation 1..8 of a JPEG (1 if there is none), and whether one scan surely holds all of it, both read by walking the segments before
    the first scan: a decoder passes once over a sequential image whose first scan has all its components (ITU T.81, B.2.2 and B.2.3)."""
    orientation, components, at = None, 0, 2
    for _ in range(64):  # a file with more segments before its first scan has other troubles
        if at + 5 > len(payload) or payload[at] != 0xFF:
            break
        marker = payload[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return orientation or UPRIGHT, 0 < components == payload[at + 4]
        size = int.from_bytes(payload[at + 2 : at + 4], "big")
        if marker == 0xE1 and orientation is None and payload[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _tiff_orientation(payload[at + 10 : at + 2 + size])
        elif marker in (0xC0, 0xC1) and at + 9 < len(payload):
            components = payload[at + 9]
        at += 2 + max(2, size)
    return orientation or UPRIGHT, False


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return UPRIGHT
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    if first + 2 > len(tiff):
        return UPRIGHT
    (entries,) = struct.unpack_from(order + "H", tiff, first)
    for at in range(first + 2, min(first + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        if tag == ORIENTATION and kind == 3:
            (value,) = struct.unpack_from(order + "H", tiff, at + 8)
            return int(value) if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def _judge(width: int, height: int, limits: Limits) -> None:
    long, short = max(width, height), min(width, height)
    if width * height > limits.pixels or long > limits.side:
        raise Refused("too_many_pixels", f"{width} x {height}, at most {limits.pixels} pixels and {limits.side} a side")
    if short < limits.small:
        raise Refused("too_small", f"{width} x {height}, at least {limits.small} a side")
    if long > limits.aspect * short:
        raise Refused("extreme_aspect", f"{width} x {height}, at most {limits.aspect:g} to 1")


def _judge_scans(payload: bytes, pixels: int, limits: Limits) -> None:
    # a scan takes some 12 bytes and its decoder about a nanosecond a pixel: below this product all of them together stay under two seconds
    if len(payload) * pixels > _SCANNED and (scans := payload.count(b"\xff\xda")) > limits.scans:
        raise Refused("too_many_scans", f"{scans} passes over the image, at most {limits.scans}")


def factor_for(header: Header, width: int, height: int) -> int:
    """1, 2, 4 or 8: the largest by which `decode` may shrink an image that must still be `width` x `height`. Pixel i of the smaller image covers
    the pixels from i times that factor on, also where the last one is not filled."""
    fits = (f for f in (8, 4, 2) if header.format == "JPEG" and header.width >= f * width and header.height >= f * height)
    return next(fits, 1) if width > 0 and height > 0 else 1


def _pillow(payload: bytes) -> Image.Image:
    """Pillow's lazy image of an accepted format, its warning about decompression bombs taken seriously."""
    try:
        with warnings.catch_warnings(), _strictly():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(payload), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise Refused(_unidentified(payload), f"starts with {payload[:12]!r}") from None
    except BROKEN as error:
        raise _broken(error, payload) from None


def _unidentified(payload: bytes) -> str:
    """The reason when no accepted format claims the bytes: another format, ruins of an accepted one, or no image."""
    if payload[:3] == b"\xff\xd8\xff" or payload[:8] == b"\x89PNG\r\n\x1a\n" or payload[8:12] == b"WEBP":
        return "truncated_image" if _riff_cut(payload) else "broken_image"
    known = (b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"8BPS")
    return "unsupported_format" if payload.startswith(known) or payload[4:8] == b"ftyp" else "not_an_image"


def _broken(error: Exception, payload: bytes) -> Refused:
    cut = "truncated" in str(error).lower() or _riff_cut(payload)
    return Refused("truncated_image" if cut else "broken_image", str(error))


def _riff_cut(payload: bytes) -> bool:
    return payload[8:12] == b"WEBP" and int.from_bytes(payload[4:8], "little") + 8 > len(payload)


def _open(payload: bytes, limits: Limits) -> Header:
    image = _pillow(payload)
    _judge(*image.size, limits)  # before the tag is read: in a PNG it may stand behind the pixels
    name = "JPEG" if image.format in ("JPEG", "MPO") else str(image.format)
    if name == "JPEG":
        _judge_scans(payload, image.width * image.height, limits)
    told = image.format != "PNG" or any(mark in payload for mark in _PNG_EXIF)  # else the library decodes all pixels to look behind them
    try:
        with _strictly():
            turned = told and image.getexif().get(ORIENTATION, UPRIGHT) in (5, 6, 7, 8)
    except BROKEN as error:
        raise _broken(error, payload) from None
    width, height = image.size[::-1] if turned else image.size
    return Header(name, width, height, quick=False, opened=image)


# Control characters that are not white space, the byte-order mark, the zero-width space and lone surrogates: none is
# ever meant, and the last would stop the tokenizer.
_JUNK = {c: None for c in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF, 0x200B, 0x2060, *range(0xD800, 0xE000)) if not chr(c).isspace()}


def clean_caption(text: str) -> str:
    """One line without control characters, every run of Unicode white space one space, at most MAX_CAPTION characters."""
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_JUNK)
    return " ".join(text.split())[:MAX_CAPTION].rstrip()


def read_caption(txt: bytes | None, record: bytes | None, *, needed: bool = True) -> tuple[list[str], dict[str, Any]]:
    """The captions of a sample, cleaned and at least one, and its KEY.json as a dict ({} without one).

    `captions` of the record wins over its `caption`, and that over KEY.txt; blank ones are passed over. Where none is `needed` and there is
    none, [] takes the place of missing_caption. Raises Refused("missing_caption" | "empty_caption" | "bad_utf8" | "bad_record").
    """
    fields = read_record(record) if record is not None else {}
    found = False
    for candidates in (fields.get("captions"), fields.get("caption"), txt):
        if candidates is None:
            continue
        found = True
        if isinstance(candidates, bytes):
            candidates = [_utf8(candidates)]
        elif isinstance(candidates, str):
            candidates = [candidates]
        if not isinstance(candidates, list) or not all(isinstance(c, str) for c in candidates):
            raise Refused("bad_record", "captions must be text or a list of texts")
        kept = [text for text in map(clean_caption, candidates) if text]
        if kept:
            return kept, fields
    if found or needed:
        raise Refused("empty_caption" if found else "missing_caption")
    return [], fields


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("bad_utf8", str(error)) from None


def read_record(raw: bytes) -> dict[str, Any]:
    """A KEY.json as a dict. Raises Refused("bad_utf8" | "bad_record")."""
    if len(raw) > MAX_RECORD:
        raise Refused("bad_record", f"{len(raw)} bytes of JSON, at most {MAX_RECORD}")
    try:
        fields = json.loads(_utf8(raw))
    except (ValueError, RecursionError) as error:
        raise Refused("bad_record", str(error)) from None
    if not isinstance(fields, dict):
        raise Refused("bad_record", "the JSON is not an object")
    return fields
