"""What shards hold, in numbers that are exact where they can be and bounded where they must be, and as a picture to look at."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspecting import Run
from PIL import Image
from shards import Members, tar_bytes, write_shards

from vlpkit.data.durable import ShardFile
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.said import boxes_in, tasks_of
from vlpkit.data.inspect.sheet import Sheet, chosen
from vlpkit.data.inspect.spread import Common, Spread
from vlpkit.data.shapes.detect import packed


def filled(size: tuple[int, int], kind: str, colour: str = "teal") -> bytes:
    """An image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def test_statistics_of_a_tiny_set_are_exact(tmp_path: Path, run: Run) -> None:
    images = [filled((40, 30), "JPEG"), filled((20, 50), "PNG"), filled((64, 64), "WEBP"), filled((16, 16), "JPEG")]
    regions = packed({"boxes": np.array([[0, 0, 9, 9], [3, 3, 9, 9]], np.float32), "size": np.array([16, 16])})
    record = {"captions": ["image 1 of 2", "a very red square"], "questions": [{"question": "a?", "answer": "b"}] * 3, "width": 64}
    samples: list[Members] = [
        [("a.jpg", images[0]), ("a.txt", b"image 1 of 2")],
        [("b.png", images[1]), ("b.txt", b"IMAGE one")],
        [("c.webp", images[2]), ("c.json", json.dumps(record).encode())],
        [("d.jpg", images[3]), ("d.regions.npz", regions)],
        [("e.jpg", b"broken"), ("e.txt", b"never counted")],
    ]
    (tmp_path / "0.tar").write_bytes(tar_bytes([member for sample in samples[:4] for member in sample]))
    (tmp_path / "1.tar").write_bytes(tar_bytes(samples[4]))
    found = json.loads(run("stats", tmp_path / "*.tar", "--json")[1])
    assert found["samples"] == 4
    assert found["left_out"] == {"not_an_image": {"count": 1, "example": "e: starts with b'broken'"}}
    assert found["members"] == {"jpg": 3, "txt": 3, "png": 1, "webp": 1, "json": 1, "regions.npz": 1}
    assert found["formats"] == {"JPEG": 2, "PNG": 1, "WEBP": 1}
    assert found["width"]["histogram"] == [[16, 17, 1], [20, 21, 1], [40, 41, 1], [64, 65, 1]]
    assert (found["width"]["min"], found["width"]["mean"], found["width"]["max"], found["width"]["quantiles"]["0.5"]) == (16, 35.0, 64, 20)
    assert found["short_side"]["histogram"] == [[16, 17, 1], [20, 21, 1], [30, 31, 1], [64, 65, 1]]
    assert found["image_bytes"]["mean"] == sum(map(len, images)) / 4
    assert found["captions"]["histogram"] == [[0, 1, 1], [1, 2, 2], [2, 3, 1]]
    assert found["words"]["histogram"] == [[2, 3, 1], [4, 5, 3]]
    assert found["regions"]["histogram"] == [[2, 3, 1]]
    assert found["lists"] == {"questions": found["lists"]["questions"]}
    assert found["lists"]["questions"]["histogram"] == [[3, 4, 1]]
    assert found["fields"] == {"captions": 1, "questions": 1, "width": 1}
    assert found["common_captions"] == {"top": [["image 1 of 2", 2]], "repeated": 2, "uncounted": 0}
    assert found["shards"]["samples"]["histogram"] == [[1, 2, 1], [4, 5, 1]]
    assert found["cut"] is None
    text = run("stats", tmp_path / "*.tar")[1]
    assert "2 shards, 5 samples" in text
    assert "left out: not_an_image 1" in text
    assert "  2  50.0 %  image 1 of 2" in text
    assert "the largest shard has 1.60 times the mean number of samples, the smallest 0.40 times" in text


def test_a_png_is_measured_without_its_pixels_and_turned_by_its_exif_tag_wherever_that_stands(tmp_path: Path, run: Run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG", exif=exif)
    turned = stream.getvalue()
    at = turned.index(b"eXIf") - 4
    size = 12 + int.from_bytes(turned[at : at + 4], "big")
    behind = turned[:at] + turned[at + size : -12] + turned[at : at + size] + turned[-12:]  # behind the pixels, in front of the end
    plain = bytearray(filled((50, 20), "PNG"))
    plain[plain.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "0.tar").write_bytes(tar_bytes([("a.png", turned), ("b.png", behind), ("c.png", bytes(plain))]))
    found = json.loads(run("stats", tmp_path / "0.tar", "--json")[1])
    assert found["width"]["histogram"] == [[30, 31, 2], [50, 51, 1]]
    assert found["height"]["histogram"] == [[20, 21, 1], [40, 41, 2]]
    assert run("verify", tmp_path / "0.tar", "--holds", "images", "--decode")[1].splitlines()[1].split()[1:3] == ["broken_image", "1"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_tokens_are_those_of_the_tokenizer_that_training_would_make(tmp_path: Path, run: Run, kind: str) -> None:
    from vlpkit.data.tokenize import load_words

    write_shards(tmp_path, [30, 30], captions=2)
    texts = [f"caption {c} of {n}" for n in range(60) for c in range(2)]
    words = load_words(name="", kind=kind, size=290, length=99, captions=lambda: texts)  # type: ignore[arg-type]
    lengths = Counter(int(words.encode([text]).ids.shape[1]) for text in texts)
    found = json.loads(run("stats", tmp_path / "*.tar", "--json", "--tokenizer", kind, "--vocab", 290, "--length", 7)[1])
    assert found["tokens"]["histogram"] == [[value, value + 1, count] for value, count in sorted(lengths.items())]
    assert found["cut"] == {"length": 7, "captions": sum(count for value, count in lengths.items() if value > 7)}
    words.save(tmp_path / "tokenizer")
    again = run("stats", tmp_path / "*.tar", "--json", "--tokenizer", tmp_path / "tokenizer", "--length", 7)[1]
    assert json.loads(again)["tokens"] == found["tokens"]
    code, _, err = run("stats", tmp_path / "*.tar", "--tokenizer", tmp_path / "tokenizer", "--clean", "blib")
    assert code == 2
    assert "Did you mean 'blip'?" in err


def test_a_spread_is_exact_for_small_numbers_close_for_large_ones_and_does_not_grow() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 4096, 5000).tolist(), (10 ** rng.uniform(3, 9, 200_000)).astype(int).tolist()
    spread, parts = Spread(), [Spread(), Spread()]
    for number, value in enumerate(small):
        spread.add(value)
        parts[number % 2].add(value)
    parts[0].merge(parts[1])
    assert parts[0] == spread
    assert [spread.quantile(q) for q in (0, 0.1, 0.5, 0.99, 1)] == [int(np.quantile(small, q, method="inverted_cdf")) for q in (0, 0.1, 0.5, 0.99, 1)]
    assert spread.above(4000) == sum(value > 4000 for value in small)
    assert sum(count for *_, count in spread.histogram()) == 5000
    wide = Spread()
    for value in large:
        wide.add(value)
    assert (len(wide), wide.total, wide.least, wide.most) == (200_000, sum(large), min(large), max(large))
    for q in (0.01, 0.5, 0.99):
        true = int(np.quantile(large, q, method="inverted_cdf"))
        assert true * (1 - 1 / 2048) <= wide.quantile(q) <= true
    assert len(wide.counts) < 21 * 2048
    assert all(low < high for low, high, _ in wide.histogram())


def test_frequent_texts_are_found_among_any_number_of_others() -> None:
    common, rest = Common(limit=50), iter(range(10**6))
    for turn in range(3000):
        common.add("boilerplate")
        common.add(f"unique {next(rest)}")
        if turn % 3 == 0:
            common.add("less so")
    assert len(common.counts) < 100
    assert [text for text, _ in common.top(2)] == ["boilerplate", "less so"]
    counts = dict(common.top(2))
    assert 3000 - common.missed <= counts["boilerplate"] <= 3000
    assert 1000 - common.missed <= counts["less so"] <= 1000


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_sheet_has_the_size_asked_for_and_depends_on_the_seed_alone(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [20, 20])
    pages = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, out, _ = run("sheet", tmp_path / "*.tar", "--out", tmp_path / f"{name}.png", "--seed", seed, "--count", 8, "--columns", 3, "--tile", 100)
        assert code == 0
        assert out == f"{tmp_path / f'{name}.png'}: 8 samples of 2 shards\n"
        pages.append((tmp_path / f"{name}.png").read_bytes())
    assert pages[0] == pages[1] != pages[2]
    page = Image.open(tmp_path / "a.png")
    assert page.width == 3 * 110 + 10
    assert (page.height - 10) % 3 == 0
    assert 3 * (110 + 40) < page.height < 3 * (110 + 90)
    run("sheet", tmp_path / "*.tar", "--out", tmp_path / "d.png", "--count", 100, "--columns", 8, "--tile", 48)
    assert Image.open(tmp_path / "d.png").size[0] == 8 * 58 + 10


def test_images_boxes_and_captions_stand_where_they_belong(tmp_path: Path, run: Run) -> None:
    shard = ShardFile(tmp_path / "0.tar")
    stored = packed({"boxes": np.array([[10, 10, 30, 40], [0, 0, 5, 5]], np.float32), "size": np.array([40, 80]), "confidences": np.array([0.9, 0.1], np.float16)})
    shard.add("k", {"png": filled((40, 80), "PNG", "yellow"), "regions.npz": stored, "txt": b"words"})
    shard.close()
    run("sheet", tmp_path / "0.tar", "--out", tmp_path / "a.png", "--tile", 160)
    page = pixels(tmp_path / "a.png")
    square = page[10:170, 10:170]
    assert (square[80, :38] == 238).all()  # beside an image that is taller than wide
    assert (square[150, 41:118] == [255, 255, 0]).all()
    assert (square[21, 62:98] == [230, 25, 75]).all()  # the upper edge of the sure box, and no other
    assert (square[5, 42:118] == [255, 255, 0]).all()
    assert (page[175:] < 128).any()  # the key and the caption
    run("sheet", tmp_path / "0.tar", "--out", tmp_path / "b.png", "--tile", 160, "--no-regions")
    assert (pixels(tmp_path / "b.png")[10:170, 52:128] == [255, 255, 0]).all()


def test_regions_with_phrases_are_drawn_and_a_question_stands_in_for_a_caption(tmp_path: Path, run: Run) -> None:
    record = {"regions": [{"phrase": "it", "box": [0.25, 0.5, 0.75, 1.0]}, {"box": [5, 5, 9, 9]}, "odd"], "questions": [{"question": "is it?", "answer": "yes"}]}
    assert boxes_in({}, record) == [((0.25, 0.5, 0.75, 1.0), "it")]
    assert tasks_of(record) == [("is it?", "yes")]
    (tmp_path / "0.tar").write_bytes(tar_bytes([("k.png", filled((80, 80), "PNG", "yellow")), ("k.json", json.dumps(record).encode())]))
    assert run("sheet", tmp_path / "0.tar", "--out", tmp_path / "a.png", "--tile", 160)[0] == 0
    page = pixels(tmp_path / "a.png")
    assert (page[10 + 81, 10 + 42 : 10 + 118] == [230, 25, 75]).all()
    assert (page[190:] < 128).any()


def test_of_many_shards_few_are_opened(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2] * 100)
    (tmp_path / "train-007.tar").write_bytes(b"")
    findings = Findings()
    found = chosen(paths, Sheet(count=12, seed=5), findings)
    assert sum(len(rows) for _, rows in found) == 12
    assert len(found) <= 12
    assert found != chosen(paths, Sheet(count=12, seed=6), findings)
    assert [rows for _, rows in found] == [rows for _, rows in chosen(paths, Sheet(count=12, seed=5), findings)]
    assert [one.shard.path for one, _ in found] == sorted(one.shard.path for one, _ in found)
    assert sum(len(rows) for _, rows in chosen(paths, Sheet(count=2000), findings)) <= 198
