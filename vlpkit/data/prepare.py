"""One candidate to the members of one sample: its image checked as training will check it, reduced if asked, its record and its regions.
Many of them, in their order, by several processes; what comes out does not depend on how many."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vlpkit.data.decode import LIMITS, Refused, decode, read_header
from vlpkit.data.shapes.detect import packed
from vlpkit.data.sources.exact import arrays
from vlpkit.data.sources.listing import Candidate
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
SLICE = 256  # images that one round of the worker processes looks at
ROUNDING = 2  # pixels by which a reduced copy may miss the ratio that its annotations claim


@dataclass(frozen=True)
class Packing:
    """How shards are made; everything here and the listing decide their bytes.

    Args:
        samples_per_shard: most samples of a shard.
        val: validation samples wanted; they are the first usable ones in the order of a hash of seed and key, and those that go with the last.
        seed: of that order.
        short_side, max_side: pixels to which larger images are reduced, keeping their ratio; 0 copies the bytes.
        quality: of the JPEG then written.
        features: F, numbers of the feature of an exact region; 0: no regions are written.
    """

    samples_per_shard: int = 1000
    val: int = 0
    seed: int = 0
    short_side: int = 0
    max_side: int = 0
    quality: int = 90
    features: int = 64

    def __post_init__(self) -> None:
        limits = {"samples_per_shard": (1, 10**6), "val": (0, 10**9), "short_side": (0, 10**5), "max_side": (0, 10**5), "quality": (1, 100), "features": (0, 2**14)}
        for name, (low, high) in limits.items():
            if not low <= (found := getattr(self, name)) <= high:
                raise DataError(f"--{name.replace('_', '-')} is {found}; it can be {low} to {high}")


@dataclass(frozen=True)
class Sample:
    """The members of a checked candidate by suffix, or the reason there will be none."""

    members: dict[str, bytes] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class _Checked:
    suffix: str
    payload: bytes
    width: int
    height: int

    def facts(self) -> dict[str, Any]:
        return {"width": self.width, "height": self.height, "sha256": hashlib.sha256(self.payload).hexdigest()}


def prepare(one: Candidate, packing: Packing) -> Sample:
    """Reads, checks and if asked reduces one image; refused reasons are those of `members_of`."""
    try:
        if one.refused:
            raise Refused(one.refused)
        return Sample(members_of(one, _bytes(one.path, one.span), packing))
    except Refused as refused:
        log.debug("%s: %s", one.path, refused)
        return Sample(refused=refused.reason)


def members_of(one: Candidate, payload: bytes, packing: Packing) -> dict[str, bytes]:
    """The members of a sample by suffix: the image whose bytes these are first, the record last.

    Raises:
        Refused: as `decode` does, or with wrong_shape: not the image that the boxes were measured in.
    """
    image = _checked(payload, packing, one.shape)
    found, record = {image.suffix: image.payload}, {**one.fields, **({"captions": one.captions} if one.captions else {}), **image.facts()}
    if one.right:
        right = _checked(_bytes(one.right, None), packing)
        found[f"right.{right.suffix}"] = right.payload
        record["right"] = right.facts()
    if one.things is not None and packing.features:
        found["regions.npz"] = packed(arrays(one.things, packing.features))
    return {**found, "json": json.dumps(record).encode()}


def _checked(payload: bytes, packing: Packing, shape: tuple[int, int] | None = None) -> _Checked:
    header = read_header(payload)
    if shape is not None and not _fits(header.width, header.height, shape):
        raise Refused("wrong_shape", f"{header.width} x {header.height}, where annotations measure in {shape[0]} x {shape[1]}")
    target = _reduced(header.width, header.height, packing)
    if target is None:
        decode(payload, header, width=1, height=1)  # all of it is parsed, little of it is computed
        return _Checked(SUFFIX[header.format], payload, header.width, header.height)
    pixels = Image.fromarray(decode(payload, header, width=2 * target[0], height=2 * target[1]))
    small = simplejpeg.encode_jpeg(np.asarray(pixels.resize(target, Image.Resampling.BICUBIC)), packing.quality, "RGB", "420")
    return _Checked("jpg", small, *target)


def _bytes(path: str, span: tuple[int, int] | None) -> bytes:
    try:
        offset, size = span or (0, os.path.getsize(path))
        if size > LIMITS.bytes:
            raise Refused("too_many_bytes", f"{size} bytes")
        if span is None:
            return Path(path).read_bytes()
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except (OSError, ValueError) as error:
        raise Refused("missing_image", str(error)) from None


def _fits(width: int, height: int, shape: tuple[int, int]) -> bool:
    """Whether an image may be the one of that shape, or a reduced copy of it."""
    return min(shape) > 0 and abs(width / shape[0] - height / shape[1]) * min(shape) <= ROUNDING


def _reduced(width: int, height: int, packing: Packing) -> tuple[int, int] | None:
    shares = [1.0]
    if packing.short_side:
        shares.append(packing.short_side / min(width, height))
    if packing.max_side:
        shares.append(packing.max_side / max(width, height))
    share = min(shares)
    return None if share == 1 else (max(1, round(width * share)), max(1, round(height * share)))


class Crew:
    """Prepares candidates in their order, in this process or in several."""

    def __init__(self, work: Callable[[Candidate], Sample], processes: int) -> None:
        self._work = work
        self._pool = ProcessPoolExecutor(processes) if processes > 1 else None
        self._ahead: dict[int, Sample] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, candidates: Sequence[Candidate], span: range) -> Iterator[tuple[Candidate, Sample]]:
        """The candidates of a span of positions, each with its sample."""
        for at in span:
            if self._pool is None:
                yield candidates[at], self._work(candidates[at])
                continue
            if at not in self._ahead:
                batch = candidates[at : min(at + SLICE, span.stop)]
                self._ahead = dict(enumerate(self._pool.map(self._work, batch, chunksize=16), at))
            yield candidates[at], self._ahead.pop(at)
