"""Contestants that read the same shards, by images a second of one thread: this pipeline, open_clip's, a plain walk over the tars, the decoder.
Seconds are processor time, the files being in memory; all take turns in short rounds, so that a busy machine slows them alike."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
import webdataset
from numpy.typing import NDArray

from vlpkit.data.module import DataModule
from vlpkit.data.order import sample_rng, set_rng
from vlpkit.data.scratch import Scratch
from vlpkit.data.tokenize import Words
from vlpkit.data.transforms import TrainTransform, canvas, cut, resize
from vlpkit.errors import DataError, MissingExtra

BATCH = 64
ROUNDS = 9
_JPEG = ("jpg", "jpeg")
_IMAGES = (*_JPEG, "png", "webp")


class Task(NamedTuple):
    """What every contestant does.

    Args:
        shards: paths.
        size: S, pixels a side.
        scale: least and largest share of the image's area in a crop.
        words: the tokenizer.
    """

    shards: Sequence[str]
    size: int
    scale: tuple[float, float]
    words: Words


def pipeline(task: Task, cache: Path) -> Iterator[int]:
    """The data module's training batches, read in this process."""
    module = DataModule(
        name="bench", shards=list(task.shards), val_shards=None, batch=BATCH, augment={"scale": task.scale, "flip": 0.0, "randaugment": None},
        safe={"min_crop": 0.0, "mirror": True, "randaugment": True}, eval_resize="squash", root=".", cache=str(cache), image_size=task.size, seed=0, words=task.words,
    )  # fmt: skip
    for batches in module.train_dataloader():
        yield len(batches["pairs"])


def open_clip_pipeline(task: Task) -> Iterator[int]:
    """open_clip's training transform behind webdataset and Pillow, in the steps of its own pipeline; the same tokenizer and the same batches.

    Raises:
        MissingExtra: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError:
        raise MissingExtra("the comparison of scripts/bench_data.py", "open_clip", extra="parity") from None
    prepare = open_clip.image_transform(task.size, is_train=True, aug_cfg={"scale": task.scale})
    samples = webdataset.WebDataset(list(task.shards), shardshuffle=False, empty_check=False).repeat().decode("pilrgb")
    images: list[torch.Tensor] = []
    captions: list[str] = []
    for sample in samples:
        images.append(prepare(next(sample[name] for name in _IMAGES if name in sample)))
        captions.append(_captions(sample)[0])
        if len(images) == BATCH:
            torch.stack(images)
            task.words.encode(captions)
            yield BATCH
            images, captions = [], []


def plain(task: Task) -> Iterator[int]:
    """The same decoding, resizing, random numbers and batches on a bare walk over the tars: no index, no length, header or text is checked."""
    crop, scratch, rng = TrainTransform(image_size=task.size, scale=task.scale).crop, Scratch(), sample_rng(0, 0, 0)
    captions: list[str] = []
    rows, position = canvas(BATCH, task.size, task.size).split(1), 0
    for path in itertools.cycle(task.shards):
        for sample in _walk(path):
            payload = next((sample[name] for name in _JPEG if name in sample), None)
            if payload is None:
                continue
            set_rng(rng, 0, 0, position)
            found = _captions(sample)
            captions.append(found[int(rng.integers(len(found)))])
            image, box = decode_only(payload, task.size, crop, rng, scratch)
            resize(cut(image, box), "bicubic", rows[len(captions) - 1])
            position += 1
            if len(captions) == BATCH:
                task.words.encode(captions)
                yield BATCH
                rows, captions = canvas(BATCH, task.size, task.size).split(1), []


def decoder(task: Task, *, reuse: bool) -> Iterator[int]:
    """Only simplejpeg, on bytes in memory, at the scales that the pipeline's crops ask for.

    Args:
        reuse: write every image to the same memory, as the pipeline does; otherwise each gets its own, as the library does by itself.
    """
    crop, rng = TrainTransform(image_size=task.size, scale=task.scale).crop, np.random.default_rng(0)
    found = (sample[name] for path in task.shards for sample in _walk(path) for name in _JPEG if name in sample)
    payloads, scratch = list(itertools.islice(found, 512)), Scratch() if reuse else None
    while payloads:
        for payload in payloads:
            decode_only(payload, task.size, crop, rng, scratch)
        yield len(payloads)


def decode_only(
    payload: bytes, size: int, crop: Callable[[int, int, np.random.Generator], tuple[int, int, int, int]], rng: np.random.Generator, scratch: Scratch | None
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """The image at the smallest power-of-two scale at which a random crop covers the output, and that crop in its pixels."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(payload)
    x, y, w, h = crop(width, height, rng)
    factor = next((f for f in (8, 4, 2) if min(w, h) >= f * size), 1)
    rows, columns = -(-height // factor), -(-width // factor)
    least = {"min_height": rows, "min_width": columns, "min_factor": factor} if factor > 1 else {}
    pixels = simplejpeg.decode_jpeg(payload, "RGB", buffer=None if scratch is None else scratch.lend(3 * rows * columns), **least)
    return pixels, (x / factor, y / factor, (x + w) / factor, (y + h) / factor)


def rates(contestants: dict[str, Iterator[int]], seconds: float) -> dict[str, float]:
    """Median images per second of each over alternating rounds; the first item of each is not timed. Raises DataError when one has nothing to read."""
    for name, steps in contestants.items():
        if next(steps, None) is None:
            raise DataError(f"{name}: these shards hold no JPEG with a caption, which is what is measured")
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, steps in contestants.items():
            images, start, spent = 0, time.process_time(), 0.0
            while spent < seconds / ROUNDS:
                images += next(steps)
                spent = time.process_time() - start
            found[name].append(images / spent)
    return {name: statistics.median(values) for name, values in found.items()}


def _captions(sample: dict[str, Any]) -> list[str]:
    """The captions as the shards have them."""
    record = sample.get("json")
    record = json.loads(record) if isinstance(record, bytes) else record or {}
    found = record.get("captions") or [record.get("caption") or sample.get("txt", "")]
    return [text.decode() if isinstance(text, bytes) else text for text in found]


def _walk(path: str) -> Iterator[dict[str, bytes]]:
    """Samples of a tar of plain headers, by extension."""
    sample: dict[str, bytes] = {}
    last = b""
    with open(path, "rb") as tar:
        while (header := tar.read(512))[:1].strip(b"\0"):
            size = int(header[124:135], 8)
            payload = tar.read(size + -size % 512)[:size]
            key, _, extension = header[:100].partition(b"\0")[0].rpartition(b".")
            if key != last and sample:
                yield sample
                sample = {}
            last, sample[extension.decode()] = key, payload
    if sample:
        yield sample
