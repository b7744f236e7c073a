"""Builders of tiny real shards and of the data module over them; a sample's key is its number with six digits."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # heavy, and of no use to tests of index, order and reader or to the processes they start
    from vlpkit.data.module import DataModule
    from vlpkit.data.tokenize import Words

Members = list[tuple[str, bytes]]


@functools.lru_cache(maxsize=512)
def jpeg(number: int) -> bytes:
    """A 24 x 20 JPEG whose colours tell its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def pair(number: int, *, image: bytes | None = b"", text: bytes | None = b"", captions: int = 0) -> Members:
    """Members of one sample; `image` or `text` None leaves the member out, b"" stands for a good one."""
    key = f"{number:06d}"
    members: Members = []
    if image is not None:
        members.append((f"{key}.jpg", image or jpeg(number)))
    if captions:
        members.append((f"{key}.json", json.dumps({"captions": [f"caption {c} of {number}" for c in range(captions)]}).encode()))
    elif text is not None:
        members.append((f"{key}.txt", text or f"a picture of number {number}".encode()))
    return members


def tar_bytes(members: Iterable[tuple[str, bytes]], *, kind: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar as a byte string, so that a test may damage it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return stream.getvalue()


def write_shards(
    folder: Path, sizes: Iterable[int], *, prefix: str = "train", odd: Mapping[int, Members] | None = None, captions: int = 0, first: int = 0
) -> list[str]:
    """Shards of the given sizes with samples numbered on from `first`; `odd` replaces the members of some numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], first
    for at, size in enumerate(sizes):
        members: Members = []
        for _ in range(size):
            members += pair(number, captions=captions) if odd is None or number not in odd else odd[number]
            number += 1
        path = folder / f"{prefix}-{at:03d}.tar"
        path.write_bytes(tar_bytes(members))
        paths.append(str(path))
    return paths


def samples(folder: Path, pattern: str = "*.tar") -> dict[str, dict[str, bytes]]:
    """Members of all samples by key and suffix, in the order of the shards."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None
                found.setdefault(key, {})[suffix] = stream.read()
    return found


@functools.cache
def words() -> Words:
    """A small tokenizer trained on captions like those of `pair`."""
    from vlpkit.data.tokenize import load_words

    return load_words(name="none", kind="wordpiece", size=120, length=12, captions=lambda: [f"a picture of number {n}" for n in range(100)])


def module(folder: Path, **changes: object) -> DataModule:
    """A data module over `folder`'s train-*.tar and val-*.tar, with gentle augmentation."""
    from vlpkit.data.module import DataModule

    settings: dict[str, object] = {
        "name": "tiny",
        "shards": "train-*.tar",
        "val_shards": "val-*.tar",
        "batch": 8,
        "augment": {"scale": [0.5, 1.0], "flip": 0.5, "randaugment": [2, 5]},
        "safe": {"min_crop": 0.0, "mirror": True, "randaugment": True},
        "eval_resize": "squash",
        "root": str(folder),
        "cache": str(folder / "cache"),
        "image_size": 16,
        "seed": 3,
        "words": words(),
        "window": 2,
    }
    return DataModule(**{**settings, **changes})  # type: ignore[arg-type]


def never(seconds: float) -> None:
    """A clock that does not sleep."""
