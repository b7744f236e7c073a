"""The arrays of a KEY.regions.npz, read member by member, without pickle and without torch.
A zip may claim anything, so sizes are judged before a byte is unpacked and shapes before an array is made. M: regions."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.decode import Refused

MEMBER = "regions.npz"
MAX_BYTES = 32 << 20  # of the archive, and of what is read of it when unpacked
MAX_REGIONS = 4096  # stored for one image

# All that the parsers of zips and arrays were seen to raise on damaged files.
BROKEN = (
    zipfile.BadZipFile, zlib.error, OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, AttributeError, RuntimeError,
    NotImplementedError, MemoryError, OverflowError, RecursionError, struct.error, tokenize.TokenError,
)  # fmt: skip


def boxes_of(stored: Archive) -> NDArray[Any]:
    """(M, 4) corners x1, y1, x2, y2 in pixels, M at least 1 and at most MAX_REGIONS. Raises Refused("no_regions" | "bad_regions" | ...)."""
    boxes = stored.array("boxes", 2, "f iu")
    if not len(boxes):
        raise Refused("no_regions")
    if len(boxes) > MAX_REGIONS or boxes.shape[1] != 4:
        raise Refused("bad_regions", f"boxes are {boxes.shape}; they must be (M, 4) with M at most {MAX_REGIONS}")
    return boxes


def shape_of(stored: Archive, record: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height in pixels of the image that boxes are measured in. Raises Refused("bad_regions")."""
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


def fractions(boxes: NDArray[Any], shape: tuple[float, float]) -> NDArray[np.float32]:
    """(M, 4) pixels to fractions of the image; what reaches out of it by rounding is cut off. Raises Refused("bad_regions")."""
    corners = boxes.astype(np.float64)
    if not np.isfinite(corners).all():
        raise Refused("bad_regions", "a box is not finite")
    if (corners[:, :2] > corners[:, 2:]).any():
        raise Refused("bad_regions", "a box ends before it begins; its corners are x1, y1, x2, y2")
    return (corners / np.array([*shape, *shape])).clip(0, 1).astype(np.float32)


class Archive:
    """The arrays of an npz by name, each unpacked when it is asked for. Raises Refused("too_many_bytes" | "broken_regions" | "bad_regions")."""

    def __init__(self, payload: bytes) -> None:
        if len(payload) > MAX_BYTES:
            raise Refused("too_many_bytes", f"{len(payload)} bytes of regions, at most {MAX_BYTES}")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(payload))
            self._members = {info.filename: info for info in self._zip.infolist()}
        except BROKEN as error:
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
        except BROKEN as error:
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
