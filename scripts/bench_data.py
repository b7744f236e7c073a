#!/usr/bin/env python
"""Images per second and core: the whole pipeline, a Pillow + torchvision pipeline on the same shards, and the bare decoder.
One JSON line a case. Seconds are processor time of this one thread, the files being in memory; the cases take turns in short
rounds and the median round is shown, so that a busy machine slows them alike."""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from vlpkit.data.durable import ShardFile
from vlpkit.data.module import DataModule
from vlpkit.data.shardlist import expand
from vlpkit.data.tokenize import Words, load_words
from vlpkit.data.transforms import TrainTransform
from vlpkit.errors import VlpError

BATCH = 64
SCALE = (0.9, 1.0)
ROUNDS = 5
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
TALK = ["a", "the", "of", "and", "two", "small", "large", "old", "young", "man", "dog", "street", "red", "blue", "near", "on", "riding", "with"]


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of quality 90 whose detail falls off towards fine scales about as a photograph's does."""
    total = np.full((height, width, 3), 128.0, np.float32)
    for level in range(2, 9):
        cells = rng.normal(size=(2**level, 2**level, 3)).astype(np.float32)
        cells[..., 1:] = 0.6 * cells[..., :1] + 0.4 * cells[..., 1:]  # colours vary less than brightness
        planes = [Image.fromarray(cells[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += 55 * 0.68 ** (level - 2) * np.stack([np.asarray(plane) for plane in planes], -1)
    file = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_shards(folder: Path, short_side: int, *, distinct: int = 40, samples: int = 320) -> None:
    """Shards of 4:3 photographs with a ten-word caption each."""
    rng = np.random.default_rng(0)
    images = [photograph(rng, short_side * 4 // 3, short_side) for _ in range(distinct)]
    for shard in range(4):
        file = ShardFile(folder / f"{shard:05d}.tar")
        for number in range(shard * samples // 4, (shard + 1) * samples // 4):
            caption = " ".join(rng.choice(TALK, 10))
            file.add(f"{number:06d}", {"jpg": images[number % distinct], "txt": caption.encode()})
        file.close()


def ours(shards: list[str], size: int, words: Words, cache: Path) -> Iterator[int]:
    """The data module's training batches, read in this process."""
    module = DataModule(
        name="bench",
        shards=shards,
        val_shards=None,
        batch=BATCH,
        augment={"scale": SCALE, "flip": 0.0, "randaugment": None},
        safe={"min_crop": 0.0, "mirror": True, "randaugment": True},
        eval_resize="squash",
        root=".",
        cache=str(cache),
        image_size=size,
        seed=0,
        words=words,
    )
    for batches in module.train_dataloader():
        yield len(batches["pairs"])


def usual(shards: list[str], size: int, words: Words) -> Iterator[int]:
    """webdataset, Pillow, torchvision's crop, float tensors; the same tokenizer and the same batches."""
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=SCALE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images, captions = [], []
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).repeat():
        payload = next(sample[name] for name in ("jpg", "jpeg", "png", "webp") if name in sample)
        images.append(prepare(Image.open(io.BytesIO(payload)).convert("RGB")))
        record = json.loads(sample["json"]) if "json" in sample else {}
        captions.append((record.get("captions") or [record.get("caption") or sample.get("txt", b"").decode()])[0])
        if len(images) == BATCH:
            torch.stack(images)
            words.encode(captions)
            yield BATCH
            images, captions = [], []


def bare(shards: list[str], size: int) -> Iterator[int]:
    """Only simplejpeg, on bytes in memory, at the scales that the pipeline's crops ask for."""
    crop, rng = TrainTransform(image_size=size, scale=SCALE).crop, np.random.default_rng(0)
    payloads = [s["jpg"] for s in webdataset.WebDataset(shards[:4], shardshuffle=False, empty_check=False) if "jpg" in s][:512]
    if not payloads:
        return
    while True:
        for payload in payloads:
            decode_only(payload, size, crop, rng)
        yield len(payloads)


def decode_only(
    payload: bytes, size: int, crop: Callable[[int, int, np.random.Generator], tuple[int, int, int, int]], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The smallest power-of-two scale at which a random crop covers the output."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(payload)
    _, _, w, h = crop(width, height, rng)
    factor = next((f for f in (8, 4, 2) if min(w, h) >= f * size), 1)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor} if factor > 1 else {}
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(payload, "RGB", **least)
    return pixels


def rates(cases: dict[str, Iterator[int]], seconds: float) -> dict[str, float]:
    """Median images per second of each case over alternating rounds; the first item of each is not timed."""
    cases = {name: steps for name, steps in cases.items() if next(steps, None) is not None}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, steps in cases.items():
            images, start = 0, time.process_time()
            while (spent := time.process_time() - start) < seconds / ROUNDS:
                images += next(steps)
            found[name].append(images / spent)
    return {name: statistics.median(values) for name, values in found.items()}


def measure(label: str, shards: list[str], size: int, seconds: float, cache: Path) -> None:
    """Prints one JSON line a case."""
    words = load_words(name="", kind="wordpiece", size=400, length=30, captions=lambda: [" ".join(TALK)] * 9)
    found = rates({"vlpkit": ours(shards, size, words, cache), "pillow_torchvision": usual(shards, size, words), "decoder": bare(shards, size)}, seconds)
    for name, rate in found.items():
        line = {"bench": "data", "case": name, "shards": label, "image_size": size, "images_per_s_core": round(rate, 1)}
        if name == "vlpkit":
            line |= {f"x_{other}": round(rate / found[other], 2) for other in found if other != name}
        print(json.dumps(line), flush=True)


def main() -> int:
    """Exit code: 0 measured, 2 a mistake that the message explains."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shards", metavar="PATTERN", help="real shards, such as 'data/cc3m/{00000..00003}.tar'; default: photographs of 256 and 512 pixels are made up")
    p.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: %(default)s")
    p.add_argument("--seconds", type=float, default=5.0, help="for each case (default: %(default)s)")
    options = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.shards:
                measure(options.shards, expand(options.shards, "."), options.image_size, options.seconds, Path(folder))
                return 0
            for short_side in (256, 512):
                made = Path(folder, str(short_side))
                made.mkdir()
                make_shards(made, short_side)
                measure(f"synthetic, short side {short_side}", sorted(map(str, made.glob("*.tar"))), options.image_size, options.seconds, made)
        except VlpError as error:
            print(f"bench_data: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
