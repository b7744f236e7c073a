"""What a detector found in an image, as KEY.regions.npz keeps it: features, boxes, classes; read member by member, without pickle.
A zip may claim anything, so sizes are judged before a byte is unpacked and shapes before an array is made.
Letters: M regions, F numbers of a feature, C classes."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlpkit.data.decode import Refused
from vlpkit.types import IGNORE, ImageInput

MEMBER = "regions.npz"
MAX_BYTES = 32 << 20  # of the archive, and of what is read of it when unpacked
MAX_REGIONS = 4096  # stored for one image
Target = Literal["class", "confidence", "soft", "attribute", "attribute_confidence"]
# The array each target is made of, its dimensions, and the kinds of numbers that are understood.
_STORED: Mapping[str, tuple[str, int, str]] = {
    "class": ("classes", 1, "iu"), "confidence": ("confidences", 1, "f"), "soft": ("soft", 2, "f"),
    "attribute": ("attributes", 1, "iu"), "attribute_confidence": ("attribute_confidences", 1, "f"),
}  # fmt: skip
# All that the parsers of zips and arrays were seen to raise on damaged files.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, AttributeError, RuntimeError,
    NotImplementedError, MemoryError, OverflowError, RecursionError, struct.error, tokenize.TokenError,
)  # fmt: skip


class Found(NamedTuple):
    """The regions of one image, the surest first."""

    features: Tensor  # (M, F) fp16
    boxes: Tensor  # (M, 4) fp32 corners as fractions of the image, in [0, 1]
    targets: Mapping[str, Tensor]  # by name in a batch, such as region_class: (M,) or (M, C)


class Detections:
    """Which regions of an image count, and what is read of them.

    A KEY.regions.npz holds `boxes` (M, 4) corners x1, y1, x2, y2 in pixels, `features` (M, F), and any of `confidences` (M,), `classes` (M,),
    `soft` (M, C) distributions over classes, `attributes` (M,), `attribute_confidences` (M,); the size of the image in pixels is its member
    `size` (width, height), or `width` and `height` of KEY.json. Of `soft` with a background in column 0, classes are derived where there are none.

    Args:
        size: F, numbers of one feature.
        most: regions of an image that are kept, the surest ones.
        least: regions that are kept, if there are so many, however unsure they are.
        threshold: confidence below which a region is left out, but for `least`.
        targets: what becomes a target: class, confidence, soft, attribute, attribute_confidence.
        classes: C, classes with the background; needed for the targets class and soft.
        attributes: number of attributes, none included; needed for the target attribute.
    """

    def __init__(
        self, *, size: int, most: int = 36, least: int = 10, threshold: float = 0.2, targets: Sequence[Target] = (), classes: int | None = None,
        attributes: int | None = None,
    ) -> None:
        if size < 1 or not 1 <= most <= MAX_REGIONS:
            raise ValueError(f"size={size} must be at least 1, and most={most} between 1 and {MAX_REGIONS}")
        if not 0 <= least <= most:
            raise ValueError(f"least is {least}; it must be at least 0 and at most most={most}")
        if wrong := [name for name in targets if name not in get_args(Target)]:
            raise ValueError(f"targets name {wrong[0]!r} (there are: {', '.join(get_args(Target))})")
        if classes is None and {"class", "soft"} & set(targets):
            raise ValueError("the targets class and soft need classes, the number of classes with the background")
        if attributes is None and "attribute" in targets:
            raise ValueError("the target attribute needs attributes, their number")
        self.size, self.most, self.least, self.threshold = size, most, least, threshold
        self.targets: tuple[Target, ...] = tuple(targets)
        self.classes, self.attributes = classes, attributes

    def __call__(self, payload: bytes | None, record: Mapping[str, Any]) -> Found:
        """The regions of one image; of its archive only what is asked for is unpacked.

        Raises:
            Refused: missing_regions, too_many_bytes, broken_regions (no readable archive), bad_regions (arrays that do not fit each other or
                what the recipe reads) or no_regions.
        """
        if payload is None:
            raise Refused("missing_regions", f"no KEY.{MEMBER}")
        stored = _Archive(payload)
        boxes = stored.array("boxes", 2, "f iu")
        many = len(boxes)
        if not many:
            raise Refused("no_regions")
        if many > MAX_REGIONS or boxes.shape[1] != 4:
            raise Refused("bad_regions", f"boxes are {boxes.shape}; they must be (M, 4) with M at most {MAX_REGIONS}")
        features = stored.array("features", 2, "f", many)
        if features.shape[1] != self.size:
            raise Refused("bad_regions", f"features of {features.shape[1]} numbers, where the recipe reads {self.size} (data.regions.size)")
        kept = self._kept(stored, many)
        if not len(kept):
            raise Refused("no_regions", f"none of {many} reaches a confidence of {self.threshold:g}")
        shape = _shape(stored, record)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            found = features[kept].astype(np.float16)
        if not np.isfinite(found).all():
            raise Refused("bad_regions", "a feature is not finite, or too large for 16 bits")
        return Found(torch.from_numpy(found), _fractions(boxes[kept], shape), {f"region_{name}": self._target(name, stored, many, kept) for name in self.targets})

    def blank(self, rows: int) -> tuple[ImageInput, dict[str, Tensor]]:
        """R images and their targets as a batch has them, all zeros."""
        zeros = torch.zeros(rows, self.most)
        image = ImageInput(
            regions=torch.zeros(rows, self.most, self.size), boxes=torch.zeros(rows, self.most, 4), mask=torch.ones(rows, self.most, dtype=torch.bool),
        )  # fmt: skip
        made = {"class": zeros.long(), "attribute": zeros.long(), "soft": torch.zeros(rows, self.most, self.classes or 1)}
        return image, {f"region_{name}": made.get(name, zeros) for name in self.targets}

    def _kept(self, stored: _Archive, many: int) -> NDArray[np.int64]:
        """Rows of the regions that count; without confidences the first ones are the surest."""
        if "confidences" not in stored:
            return np.arange(min(many, self.most))
        confidence = stored.array("confidences", 1, "f", many).astype(np.float64)
        if not np.isfinite(confidence).all():
            raise Refused("bad_regions", "a confidence is not finite")
        order = np.argsort(-confidence, kind="stable")
        sure = int((confidence >= self.threshold).sum())
        return order[: min(max(sure, self.least), self.most)]

    def _target(self, name: Target, stored: _Archive, many: int, kept: NDArray[np.int64]) -> Tensor:
        key, ndim, kinds = _STORED[name]
        if name == "class" and key not in stored and "soft" in stored:
            soft = self._soft(stored, many)
            return torch.from_numpy(1 + soft[kept, 1:].argmax(-1).astype(np.int64))
        if name == "soft":
            return torch.from_numpy(self._soft(stored, many)[kept].astype(np.float32))
        array = stored.array(key, ndim, kinds, many)[kept]
        if kinds == "f":
            values = array.astype(np.float32)
            if not np.isfinite(values).all():
                raise Refused("bad_regions", f"{key} are not all finite")
            return torch.from_numpy(values)
        limit = self.classes if name == "class" else self.attributes
        assert limit is not None
        ids = array.astype(np.int64)
        if ids.min() < 0 or ids.max() >= limit:
            raise Refused("bad_regions", f"{key} reach from {ids.min()} to {ids.max()}, where the recipe knows 0 to {limit - 1} (data.regions.{key})")
        return torch.from_numpy(ids)

    def _soft(self, stored: _Archive, many: int) -> NDArray[Any]:
        soft = stored.array("soft", 2, "f", many)
        if soft.shape[1] != self.classes:
            raise Refused("bad_regions", f"soft has {soft.shape[1]} classes, where the recipe knows {self.classes} (data.regions.classes)")
        if not np.isfinite(soft).all():
            raise Refused("bad_regions", "soft is not all finite")
        return soft


def pad(found: Sequence[Found]) -> tuple[ImageInput, dict[str, Tensor]]:
    """R images padded to the most regions of any: regions, boxes and mask, and their targets.

    Added regions are zeros; their class and attribute is IGNORE, so that no loss counts them.
    """
    rows, most = len(found), max(len(one.features) for one in found)

    def laid(tensors: Sequence[Tensor], missing: float) -> Tensor:
        first = tensors[0]
        out = torch.full((rows, most, *first.shape[1:]), missing, dtype=first.dtype)
        for row, t in enumerate(tensors):
            out[row, : len(t)] = t
        return out

    mask = torch.arange(most) < torch.tensor([len(one.features) for one in found])[:, None]
    image = ImageInput(regions=laid([one.features for one in found], 0), boxes=laid([one.boxes for one in found], 0), mask=mask)
    names = found[0].targets
    return image, {name: laid(ts := [one.targets[name] for one in found], 0 if ts[0].is_floating_point() else IGNORE) for name in names}


def _shape(stored: _Archive, record: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height in pixels of the image that boxes are measured in."""
    if "size" in stored:
        size = stored.array("size", 1, "f iu")
        if len(size) != 2:
            raise Refused("bad_regions", f"size holds {len(size)} numbers; it is width and height")
        width, height = (float(edge) for edge in size)
    else:
        width, height = (float(edge) if isinstance(edge := record.get(word), int | float) else math.nan for word in ("width", "height"))
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise Refused("bad_regions", "the image's size in pixels is unknown: neither `size` beside the boxes nor `width` and `height` of KEY.json")
    return width, height


def _fractions(boxes: NDArray[Any], shape: tuple[float, float]) -> Tensor:
    """(M, 4) pixels to fractions of the image; what reaches out of it by rounding is cut off."""
    corners = boxes.astype(np.float64)
    if not np.isfinite(corners).all():
        raise Refused("bad_regions", "a box is not finite")
    if (corners[:, :2] > corners[:, 2:]).any():
        raise Refused("bad_regions", "a box ends before it begins; its corners are x1, y1, x2, y2")
    return torch.from_numpy((corners / np.array([*shape, *shape])).clip(0, 1).astype(np.float32))


class _Archive:
    """The arrays of an npz by name, each unpacked when it is asked for. Raises Refused("too_many_bytes" | "broken_regions" | "bad_regions")."""

    def __init__(self, payload: bytes) -> None:
        if len(payload) > MAX_BYTES:
            raise Refused("too_many_bytes", f"{len(payload)} bytes of regions, at most {MAX_BYTES}")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(payload))
            self._members = {info.filename: info for info in self._zip.infolist()}
        except _BROKEN as error:
            raise Refused("broken_regions", str(error)) from None
        self._left = MAX_BYTES

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._members

    def array(self, name: str, ndim: int, kinds: str, many: int | None = None) -> NDArray[Any]:
        """One array of so many dimensions, of a kind of number among `kinds` and, where told, with `many` rows."""
        if name not in self:
            raise Refused("bad_regions", f"there is no array {name!r} (there are: {', '.join(sorted(self._members)) or 'none'})")
        info = self._members[f"{name}.npy"]
        if info.file_size > self._left:
            raise Refused("too_many_bytes", f"{name} unpacks to {info.file_size} bytes; at most {MAX_BYTES} are read of one image")
        self._left -= info.file_size
        try:
            array = _parse(self._zip.read(info))
        except _BROKEN as error:
            raise Refused("broken_regions", f"{name}: {error}") from None
        if array.ndim != ndim or array.dtype.kind not in kinds or (many is not None and len(array) != many):
            rows = "M" if many is None else many
            raise Refused("bad_regions", f"{name} is {array.dtype} {array.shape}; it must be ({', '.join([str(rows), '...'][:ndim])}) of the kind {kinds}")
        return array


def _parse(raw: bytes) -> NDArray[Any]:
    """An npy file of plain numbers whose header says no more than there is. Raises ValueError."""
    wide = raw[6:7] != b"\x01"  # version 2 has four bytes for the header's length
    start = 10 + 2 * wide + int.from_bytes(raw[8 : 10 + 2 * wide], "little")
    shape, column_major, dtype = _header(raw[:start])
    body = raw[start:]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"{shape} of {dtype} do not fill {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if column_major else "C")


@lru_cache(maxsize=4096)  # headers are few, and reading one takes longer than all the rest
def _header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an npy file. Raises ValueError, or what numpy raises on a damaged header."""
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, column_major, dtype = read(stream)
    if dtype.kind not in "fiu" or min(shape, default=0) < 0:
        raise ValueError(f"{shape} of {dtype} are no numbers that are read")
    return shape, column_major, dtype
