"""A valid shard, damaged at random, put through the whole way of a sample: it must end in pixels and words, a counted refusal, or a DataError.
Each trial runs in a process that is watched, so that a crash or a hang of a decoder is an outcome like any other."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlpkit.data.arrays import MEMBER
from vlpkit.data.decode import ORIENTATION, Refused
from vlpkit.data.index import build_index
from vlpkit.data.look import Look, rows_of
from vlpkit.data.order import sample_rng
from vlpkit.data.reader import Reader
from vlpkit.data.regions import Detections
from vlpkit.data.transforms import TrainTransform
from vlpkit.errors import DataError

FEATURE = 8  # numbers of a region's feature
_STALL = 30.0  # seconds without an answer after which a trial counts as hung
_DIALECTS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


class Trial(NamedTuple):
    """What became of one damaged shard."""

    number: int
    seconds: float  # of processor time
    outcomes: dict[str, int]  # samples delivered, refused by reason; or shard_refused; or an error that nobody declared


@dataclass
class Fuzzed:
    """All trials together.

    Args:
        trials: that ended, in order.
        lost: numbers of those that killed or hung their process.
    """

    trials: list[Trial] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    @property
    def undeclared(self) -> dict[int, str]:
        """Trials that ended in an exception that is no refusal, by number."""
        return {trial.number: word for trial in self.trials for word in trial.outcomes if word.startswith("undeclared")}

    @property
    def slowest(self) -> float:
        """Seconds of the slowest trial."""
        return max((trial.seconds for trial in self.trials), default=0.0)

    @property
    def outcomes(self) -> Counter[str]:
        """Samples and shards by outcome."""
        return sum((Counter(trial.outcomes) for trial in self.trials), Counter())


@functools.lru_cache(maxsize=8)
def valid_shard(seed: int) -> bytes:
    """A tar in one of three dialects with eleven samples: each format and mode that is decoded, captions as text and as JSON, regions."""
    rng = np.random.default_rng(seed)
    pictures = list(_pictures(rng))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=_DIALECTS[seed % 3]) as tar:
        for number, (ext, payload) in enumerate(pictures):
            key = f"{number:04d}" if number else "folder/" * 12 + "first"
            caption = f"a picture of number {number}, caf\u00e9".encode()
            record = json.dumps({"captions": ["one", "two"], "width": 48, "height": 40}).encode()
            members = {ext: payload, **({"json": record} if number % 2 else {"txt": caption}), MEMBER: _regions(rng)}
            for suffix, body in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return stream.getvalue()


def _pictures(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    still: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("jpg", image, {}), ("jpg", image, {"progressive": True}), ("jpg", image, {"exif": turned}), ("jpg", image.convert("CMYK"), {}), ("jpg", image.convert("L"), {}),
        ("png", image, {}), ("png", deep, {}), ("png", image.convert("P"), {"transparency": 0}), ("png", image.convert("LA"), {}),
        ("webp", image, {}), ("webp", image, {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}),
    ]  # fmt: skip
    for ext, picture, options in still:
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ext], **options)
        yield ext, stream.getvalue()


def _regions(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    corners = np.sort(rng.integers(0, 40, (3, 2, 2)), axis=1).reshape(3, 4)
    np.savez(stream, boxes=corners, features=rng.normal(size=(3, FEATURE)).astype(np.float16), confidences=rng.random(3).astype(np.float32), size=np.array([48, 40]))
    return stream.getvalue()


def mutate(payload: bytes, rng: np.random.Generator) -> bytes:
    """One to fifteen random changes: bytes, blocks, lengths, and pieces that look like headers or numbers."""
    found = bytearray(payload)
    for _ in range(int(rng.integers(1, 16))):
        if not found:
            break
        at = int(rng.integers(len(found)))
        if rng.random() < 0.5:  # headers are few, and most of what can go wrong is in them
            at = at // 512 * 512 + int(rng.integers(min(512, len(found) - at // 512 * 512)))
        _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](found, at, rng)
    return bytes(found)


def _flip(found: bytearray, at: int, rng: np.random.Generator) -> None:
    found[at] ^= 1 << int(rng.integers(8))


def _overwrite(found: bytearray, at: int, rng: np.random.Generator) -> None:
    found[at : at + 16] = rng.bytes(len(found[at : at + 16]))


def _cut(found: bytearray, at: int, rng: np.random.Generator) -> None:
    del found[at:]


def _take_out(found: bytearray, at: int, rng: np.random.Generator) -> None:
    del found[at : at + int(rng.integers(1, 2000))]


def _put_in(found: bytearray, at: int, rng: np.random.Generator) -> None:
    found[at:at] = rng.bytes(int(rng.integers(1, 600)))


def _double(found: bytearray, at: int, rng: np.random.Generator) -> None:
    start = at // 512 * 512
    found[start:start] = found[start : start + 512 * int(rng.integers(1, 8))]


def _blank(found: bytearray, at: int, rng: np.random.Generator) -> None:
    stop = min(len(found), at + int(rng.integers(1, 1500)))
    found[at:stop] = bytes(stop - at)


def _large_number(found: bytearray, at: int, rng: np.random.Generator) -> None:
    word = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"77777777777\0", b"\x80" + b"\xff" * 11, b"\0\0\0\0")[int(rng.integers(5))]
    found[at : at + len(word)] = word[: len(found) - at]


_MUTATIONS: tuple[Callable[[bytearray, int, np.random.Generator], None], ...] = (_flip, _flip, _overwrite, _cut, _take_out, _put_in, _double, _blank, _large_number)


def survey(path: Path) -> dict[str, int]:
    """Every sample of one shard, read as training reads it: counts of `delivered`, of reasons, or `shard_refused`."""
    try:
        index = build_index([str(path)], cache=None, max_bad_share=1.0)
    except DataError:
        return {"shard_refused": 1}
    transform = TrainTransform(image_size=16, scale=(0.5, 1.0), flip=0.5, randaugment=(2, 5))
    look = Look(Reader(index, sleep=lambda _: None), transform=transform, regions=Detections(size=FEATURE), questions=None)
    (row,) = rows_of(look.canvas(1), 1)
    counts: Counter[str] = Counter()
    for number in range(len(index)):
        try:
            rng = sample_rng(0, 0, number)
            look.draw(look(number, rng, choose=True), rng, row)
            counts["delivered"] += 1
        except Refused as refused:
            counts[refused.reason] += 1
    return dict(counts)


def fuzz(folder: Path, *, mutations: int, seed: int, shard: Callable[[int], bytes] = valid_shard) -> Fuzzed:
    """Damage valid shards `mutations` times and survey each, in processes that are replaced when they die or hang.

    Args:
        folder: where the damaged shard of the moment lies.
        seed: of everything; trial `number` depends on it and on its number alone.
        shard: makes the valid one.
    """
    found, number = Fuzzed(), 0
    while number < mutations:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_trials, args=(folder, range(number, mutations), seed, shard, theirs))
        process.start()
        theirs.close()
        while number < mutations:
            try:
                trial = ours.recv() if ours.poll(_STALL) else None
            except EOFError:
                trial = None
            if trial is None:
                found.lost.append(number)
            else:
                found.trials.append(trial)
            number += 1
            if trial is None:
                break
        process.kill()
        process.join()
        ours.close()
    return found


def _trials(folder: Path, numbers: range, seed: int, shard: Callable[[int], bytes], answers: Connection) -> None:
    path = folder / "damaged.tar"
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        path.write_bytes(mutate(shard(number % 7), rng))
        started = time.process_time()
        try:
            outcomes = survey(path)
        except Exception as error:  # what this is looking for
            outcomes = {f"undeclared {type(error).__name__}: {error}": 1}
        answers.send(Trial(number, time.process_time() - started, outcomes))
