"""Copies are found however they were stored, strangers are not, and what an evaluation set has, too, is listed."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inspecting import ROOT, Run
from PIL import Image, ImageFilter
from shards import jpeg

from vlpkit.data.durable import ShardFile
from vlpkit.data.inspect.duplicates import copies_in, copies_within, shared_captions, take_prints
from vlpkit.data.inspect.near import RADIUS, Near, blocks, popcount, popcount_by_table
from vlpkit.data.shapes.write import write_world

FLICKR = ROOT.parent / "shared" / "data" / "flickr900" / "images"


def test_no_near_pair_is_missed_and_none_is_found_twice() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    for _ in range(700):
        source, target = rng.integers(0, 3000, 2)
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 12), replace=False))
        words[target] = words[source] ^ np.uint64(flips)
    distance = popcount(words[:, None] ^ words[None])
    expected = [(int(a), int(b)) for a, b in np.argwhere(distance <= RADIUS) if b < a]
    near, found = Near(words), []
    for start, stop in blocks(len(words)):
        pairs = near.search(words[start:stop], before=start)
        found += [(int(query) + start, int(other)) for query, other in zip(pairs.query, pairs.found)]
    assert sorted(found) == expected
    assert len(expected) > 300
    assert (popcount_by_table(words) == popcount(words)).all()


@functools.cache
def photo(seed: int) -> Image.Image:
    """Something with the spectrum of a photograph: noise, the coarser the stronger, in colours."""
    rng = np.random.default_rng(seed)
    total = np.zeros((240, 320, 3))
    for octave in range(1, 7):
        layer = Image.fromarray(rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
        total += np.asarray(layer, float) / 2**octave
    return Image.fromarray((20 + 200 * (total - total.min()) / np.ptp(total)).astype(np.uint8))


def as_file(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, quality=quality)
    return stream.getvalue()


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "same": as_file,
    "quality": lambda image: as_file(image, quality=25),
    "png": lambda image: as_file(image, "PNG"),
    "webp": lambda image: as_file(image, "WEBP", 60),
    "half": lambda image: as_file(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)),
    "double": lambda image: as_file(image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)),
    "square": lambda image: as_file(image.resize((224, 224), Image.Resampling.BICUBIC)),
    "cropped": lambda image: as_file(image.crop((image.width // 50, image.height // 50, image.width * 49 // 50, image.height * 49 // 50))),
    "brighter": lambda image: as_file(image.point(lambda v: min(255, int(1.15 * v + 6)))),
    "blurred": lambda image: as_file(image.filter(ImageFilter.GaussianBlur(2))),
}


def album(path: Path, images: dict[str, bytes], captions: dict[str, list[str]] | None = None) -> Path:
    """One shard of images by key."""
    shard = ShardFile(path)
    for key, payload in images.items():
        shard.add(key, {"png" if payload[:4] == b"\x89PNG" else "webp" if payload[:4] == b"RIFF" else "jpg": payload, "json": json.dumps({"captions": (captions or {}).get(key, [key])}).encode()})
    shard.close()
    return path


def test_copies_are_found_however_they_were_stored_and_strangers_are_not(tmp_path: Path) -> None:
    originals = {f"{seed}": as_file(photo(seed)) for seed in range(40)}
    changed = {f"{seed}-{name}": change(photo(seed)) for seed in range(12) for name, change in CHANGES.items()}
    first, second = album(tmp_path / "0.tar", originals), album(tmp_path / "1.tar", changed)
    prints, _ = take_prints([str(first), str(second)], processes=1)
    copies = copies_within(prints)
    keys = [*originals, *changed]
    assert [keys[number] if number >= 0 else "" for number in copies.of] == [""] * 40 + [key.split("-")[0] for key in changed]
    assert [key for key, exact in zip(keys, copies.exact) if exact] == [f"{seed}-same" for seed in range(12)]
    assert max(copies.distance) <= 64


@pytest.mark.skipif(not FLICKR.exists(), reason="the 900 photographs of ../shared/data/flickr900 are not here")
def test_of_real_photographs_all_copies_are_found_and_nearly_all_that_are_cropped_a_little(tmp_path: Path) -> None:
    files = sorted(FLICKR.iterdir())[::12]
    album(tmp_path / "0.tar", {str(number): path.read_bytes() for number, path in enumerate(files)})
    prints, _ = take_prints([str(tmp_path / "0.tar")], processes=1)
    assert copies_within(prints).of.tolist() == [-1] * len(files)
    found = {}
    for name in ("quality", "half", "square", "brighter", "cropped"):
        stored = {str(number): CHANGES[name](Image.open(path).convert("RGB")) for number, path in enumerate(files)}
        changed, _ = take_prints([str(album(tmp_path / f"{name}.tar", stored))], processes=1)
        of = copies_in(changed, prints).of
        assert [int(one) for at, one in enumerate(of) if one not in (-1, at)] == []
        found[name] = float((of >= 0).mean())
    assert found == {"quality": 1, "half": 1, "square": 1, "brighter": 1, "cropped": found["cropped"]}
    assert found["cropped"] >= 0.93


def test_one_of_each_group_is_kept_and_it_is_the_first(tmp_path: Path) -> None:
    images = {"b": photo(1), "a": photo(2)}
    files = {key + name: CHANGES[name](image) for name in ("half", "quality", "same", "png") for key, image in images.items()}
    prints, _ = take_prints([str(album(tmp_path / "0.tar", files))], processes=1)
    assert copies_within(prints).of.tolist() == [-1, -1, 0, 1, 0, 1, 0, 1]


def test_even_images_are_compared_by_their_bytes_alone(tmp_path: Path) -> None:
    colours = ["white", "gray", "black", "white"]
    files = {f"{number}": as_file(Image.new("RGB", (40, 40), colour)) for number, colour in enumerate(colours)}
    prints, _ = take_prints([str(album(tmp_path / "0.tar", files))], processes=1)
    assert prints.flat.tolist() == [True] * 4
    assert copies_within(prints).of.tolist() == [-1, -1, -1, 0]
    assert copies_in(prints, prints).of.tolist() == [0, 1, 2, 0]


def test_scenes_of_a_synthetic_world_are_no_copies_of_each_other(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", train=300, val=1)
    prints, _ = take_prints([str(world / "train-000000.tar")], processes=1)
    assert copies_within(prints).of.tolist() == [-1] * 300


def test_equal_captions_of_different_samples_are_counted_once_each(tmp_path: Path) -> None:
    captions = {"0": ["Click here", "one"], "1": ["click HERE"], "2": ["click here", "click here", "two"], "3": ["three"], "4": ["three"]}
    files = {key: jpeg(int(key)) for key in captions}
    prints, _ = take_prints([str(album(tmp_path / "0.tar", files, captions))], processes=1)
    found = shared_captions(prints)
    assert (found.captions, found.distinct, found.samples, found.all_shared) == (7, 4, 5, 3)
    assert [count for count, *_ in found.top] == [3, 2]


def test_what_an_evaluation_set_has_too_is_listed_with_keys(tmp_path: Path, run: Run) -> None:
    train = album(tmp_path / "train-0.tar", {f"t{seed}": as_file(photo(seed)) for seed in range(6)} | {"twin": CHANGES["half"](photo(3))})
    album(tmp_path / "val-0.tar", {"v4": as_file(photo(4)), "v9": as_file(photo(9)), "v1": CHANGES["cropped"](photo(1))})
    expected = [("twin", "copy", "t3"), ("t1", "evaluation", "v1"), ("t4", "evaluation", "v4")]
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"list{suffix}"
        code, text, _ = run("duplicates", train, "--against", tmp_path / "val-*.tar", "--out", out)
        assert code == 0
        rows = list(csv.DictReader(out.open())) if suffix == ".csv" else [json.loads(line) for line in out.read_text().splitlines()]
        assert [(row["key"], row["why"], row["of_key"]) for row in rows] == expected
        assert [row["shard"] for row in rows] == ["train-0.tar"] * 3
        assert [str(row["exact"]).lower() for row in rows] == ["false", "false", "true"]
        assert [row["of_shard"] for row in rows] == ["train-0.tar", "val-0.tar", "val-0.tar"]
    assert "copies: 1 (14.3 %), 0 of the same bytes and 1 that look the same" in text
    assert "in the evaluation set, too: 2 (28.6 %), 1 of the same bytes and 1 that look the same, of its 3 images" in text
    assert "a suggestion of what to leave out" in text
