"""What an image looks like, in some 400 bytes with what its bytes and captions are: enough to find copies among millions.
The signs of an image's lowest frequencies and its colours in 100 places survive another size, another quality and a little cropping."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlpkit.data.decode import Refused, decode, read_header
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.opened import open_shard
from vlpkit.data.inspect.said import texts_of
from vlpkit.data.reader import TEXTS

SIDE = 32  # pixels of the grey square that is looked at
COARSE, FINE = 8, 16  # frequencies a side: 64 bits to search by and 256 to judge by
WORDS = FINE * FINE // 64
PLACES = 10  # a side, in which colours are compared
CONTRAST = 48  # what one standard deviation of an image's own values becomes in its colours
_DECODED = 64  # pixels a side that a JPEG is decoded to at least
_FLAT = 2.0  # grey levels of standard deviation below which an image is too even for its frequencies to mean anything


class Print(NamedTuple):
    """One image.

    Args:
        coarse: uint64.
        fine: (4,) uint64.
        colours: (300,) uint8, the mean of red, green and blue in 10 x 10 places, of an image brought to the same mean and contrast as all others.
        flat: the image is even, and all of these are noise.
    """

    coarse: np.uint64
    fine: NDArray[np.uint64]
    colours: NDArray[np.uint8]
    flat: bool


class Prints(NamedTuple):
    """The N images and C captions of a shard; of a set, once `joined`.

    Args:
        samples: number of samples, those without a usable image included.
        rows: (N,) int64 sample of each image, within the shard or the set.
        coarse: (N,) uint64; fine: (N, 4) uint64; colours: (N, 300) uint8; flat: (N,) bool, as of `Print`.
        exact: (N, 2) uint64, half of the sha256 of its bytes.
        captions: (C,) uint64 hash of each caption; owners: (C,) int64 sample of each.
        left_out: samples that could not be read.
    """

    samples: int
    rows: NDArray[np.int64]
    coarse: NDArray[np.uint64]
    fine: NDArray[np.uint64]
    colours: NDArray[np.uint8]
    flat: NDArray[np.bool_]
    exact: NDArray[np.uint64]
    captions: NDArray[np.uint64]
    owners: NDArray[np.int64]
    left_out: Findings


def print_of(payload: bytes) -> Print:
    """What an encoded image looks like: which of its 8 x 8 and 16 x 16 lowest frequencies exceed their median, and its colours. Raises Refused."""
    image = Image.fromarray(decode(payload, read_header(payload), width=_DECODED, height=_DECODED))
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    waves = _COSINES @ grey @ _COSINES.T
    low = waves[:COARSE, :COARSE].ravel()
    places = np.asarray(image.resize((PLACES, PLACES), Image.Resampling.BOX), np.float64).ravel()
    even = (places - places.mean()) / max(places.std(), _FLAT) * CONTRAST + 128
    return Print(
        _packed(low > np.median(low[1:]))[0], _packed(waves.ravel() > np.median(waves.ravel()[1:])), even.clip(0, 255).round().astype(np.uint8),
        bool(grey.std() < _FLAT),
    )  # fmt: skip


def prints_of_shard(path: str) -> Prints:
    """The prints of one shard; what cannot be read is left out and counted."""
    opened, left_out = open_shard(path), Findings()
    left_out.flaws(opened.shard.flaws)
    rows, found, exact, captions, owners = [], [], [], [], []
    images = opened.images
    for row, key, members in opened.samples(left_out, only=[*images, *TEXTS]):
        for hashed in _captions(key, members, left_out):
            captions.append(hashed)
            owners.append(row)
        for payload in (members[ext] for ext in images if ext in members):
            try:
                found.append(print_of(payload))
            except Refused as refused:
                left_out.refuse(key, refused)
                continue
            rows.append(row)
            exact.append(hashlib.sha256(payload).digest()[:16])
    return Prints(
        samples=len(opened.table.keys),
        rows=np.array(rows, np.int64),
        coarse=np.array([one.coarse for one in found], np.uint64),
        fine=np.array([one.fine for one in found], np.uint64).reshape(-1, WORDS),
        colours=np.array([one.colours for one in found], np.uint8).reshape(-1, 3 * PLACES**2),
        flat=np.array([one.flat for one in found], bool),
        exact=np.frombuffer(b"".join(exact), np.uint64).reshape(-1, 2),
        captions=np.frombuffer(b"".join(captions), np.uint64),
        owners=np.array(owners, np.int64),
        left_out=left_out,
    )


def joined(parts: Sequence[Prints]) -> Prints:
    """The prints of a set, its samples numbered on from shard to shard."""
    starts = np.cumsum([0, *(part.samples for part in parts)])
    left_out = Findings()
    for part in parts:
        left_out.merge(part.left_out)
    return Prints(
        samples=int(starts[-1]),
        rows=np.concatenate([part.rows + start for part, start in zip(parts, starts)]),
        coarse=np.concatenate([part.coarse for part in parts]),
        fine=np.concatenate([part.fine for part in parts]),
        colours=np.concatenate([part.colours for part in parts]),
        flat=np.concatenate([part.flat for part in parts]),
        exact=np.concatenate([part.exact for part in parts]),
        captions=np.concatenate([part.captions for part in parts]),
        owners=np.concatenate([part.owners + start for part, start in zip(parts, starts)]),
        left_out=left_out,
    )


def caption_hash(caption: str) -> bytes:
    """8 bytes that equal captions share, whatever their case."""
    return hashlib.blake2b(caption.lower().encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _captions(key: str, members: dict[str, bytes], left_out: Findings) -> list[bytes]:
    try:
        captions, _ = texts_of(members)
    except Refused as refused:
        left_out.refuse(key, refused)
        return []
    return list({caption_hash(caption): None for caption in captions})


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(bits).view(np.uint64)


def _cosines() -> NDArray[np.float64]:
    """(16, 32) rows of the discrete cosine transform, of equal length but for the first."""
    places, frequencies = np.arange(SIDE), np.arange(FINE)
    return np.cos(np.pi * (2 * places[None] + 1) * frequencies[:, None] / (2 * SIDE))


_COSINES = _cosines()
