"""Shards to measure with, made within seconds: photographs of a given size, and very many samples of hardly any bytes.
Both are plain tars as img2dataset writes them, so every contestant reads the same files."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlpkit.data.durable import ShardFile

TALK = ["a", "the", "of", "and", "two", "small", "large", "old", "young", "man", "dog", "street", "red", "blue", "near", "on", "riding", "with"]
_BLOCK = 512
_TINY = 16  # pixels a side


def photograph(rng: np.random.Generator, width: int, height: int, *, kind: str = "JPEG", quality: int = 90) -> bytes:
    """An encoded picture whose detail falls off towards fine scales about as a photograph's does."""
    total = np.full((height, width, 3), 128.0, np.float32)
    for level in range(2, 9):
        cells = rng.normal(size=(2**level, 2**level, 3)).astype(np.float32)
        cells[..., 1:] = 0.6 * cells[..., :1] + 0.4 * cells[..., 1:]  # colours vary less than brightness
        planes = [Image.fromarray(cells[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += 55 * 0.68 ** (level - 2) * np.stack([np.asarray(plane) for plane in planes], -1)
    file = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, kind, **({} if kind == "PNG" else {"quality": quality}))
    return file.getvalue()


def photographs(folder: Path, short_side: int, *, distinct: int = 40, samples: int = 320, shards: int = 4) -> list[str]:
    """Paths of new shards of 4:3 photographs with a ten-word caption each."""
    rng, paths = np.random.default_rng(0), [folder / f"{shard:05d}.tar" for shard in range(shards)]
    images = [photograph(rng, short_side * 4 // 3, short_side) for _ in range(distinct)]
    for shard, path in enumerate(paths):
        file = ShardFile(path)
        for number in range(shard * samples // shards, (shard + 1) * samples // shards):
            file.add(f"{number:06d}", {"jpg": images[number % distinct], "txt": " ".join(rng.choice(TALK, 10)).encode()})
        file.close()
    return list(map(str, paths))


def many(folder: Path, *, shards: int, samples: int) -> list[str]:
    """Paths of `shards` new shards of `samples` samples each, keys counted through, every one a tiny grey JPEG and a caption."""
    file = io.BytesIO()
    Image.new("L", (_TINY, _TINY), 90).save(file, "JPEG", quality=50)
    blocks = np.frombuffer(_member(b"jpg", file.getvalue()) + _member(b"txt", " ".join(TALK[:10]).encode()), np.uint8)
    at = [0, len(blocks) - 2 * _BLOCK]  # of the two headers
    paths = []
    for shard in range(shards):
        rows = np.tile(blocks, (samples, 1))
        for start in at:
            _name(rows[:, start : start + _BLOCK], shard * samples)
        path = folder / f"{shard:05d}.tar"
        with open(path, "wb") as tar:
            tar.write(rows.tobytes() + bytes(2 * _BLOCK))
        paths.append(os.fspath(path))
    return paths


def _member(extension: bytes, payload: bytes) -> bytes:
    """Header without name and checksum, payload and padding."""
    header = bytearray(_BLOCK)
    header[9 : 10 + len(extension)] = b"." + extension
    header[100:108] = b"0000644\0"
    header[108:124] = b"0000000\0" * 2
    header[124:148] = b"%011o\0%011o\0" % (len(payload), 0)
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    return bytes(header) + payload + bytes(-len(payload) % _BLOCK)


def _name(headers: NDArray[np.uint8], first: int) -> None:
    """Writes keys of nine digits, counted from `first`, and then the checksums; all headers at once."""
    numbers = np.arange(first, first + len(headers))
    for digit in range(9):
        headers[:, digit] = ord("0") + numbers // 10 ** (8 - digit) % 10
    headers[:, 148:156] = ord(" ")
    sums = headers.sum(1, dtype=np.int64)
    for digit in range(6):
        headers[:, 148 + digit] = ord("0") + sums // 8 ** (5 - digit) % 8
    headers[:, 154] = 0
