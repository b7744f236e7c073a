"""Finished shards under the magnifying glass: every kind of damage has its word, nothing whole is blamed, copies are found and strangers are not."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from shards import Members, jpeg, pair, tar_bytes, write_shards

from vlpkit.data.durable import ShardFile, write_json
from vlpkit.data.index import build_index
from vlpkit.data.inspect.duplicates import copies_in, copies_within, shared_captions, take_prints
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.near import RADIUS, Near, blocks, popcount, popcount_by_table
from vlpkit.data.inspect.sheet import Sheet, chosen
from vlpkit.data.inspect.spread import Common, Spread
from vlpkit.data.packing import Packing, pack
from vlpkit.data.shapes.detect import packed
from vlpkit.data.shapes.write import write_world
from vlpkit.data.sources import read_source

ROOT = Path(__file__).resolve().parents[2]
FLICKR = ROOT.parent / "shared" / "data" / "flickr900" / "captions.csv"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, standard output and standard error."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import inspect_shards

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = inspect_shards.main([*map(str, words), "--processes", "1"])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def damage(run: Run, *words: object) -> list[tuple[str, str, int]]:
    """(file, reason, count) that verify finds, and its exit code checked against it."""
    code, out, _ = run("verify", *words, "--json")
    found = json.loads(out)["damaged"]
    assert code == (1 if found else 0)
    return [(Path(path).name, reason, one["count"]) for path, reasons in found.items() for reason, one in reasons.items()]


# ---------------------------------------------------------------- verify: tars and samples


def test_whole_shards_are_whole(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [3, 2], captions=2)
    write_shards(tmp_path / "txt", [3])
    code, out, _ = run("verify", tmp_path / "train-*.tar", tmp_path / "txt" / "*.tar", "--decode")
    assert code == 0
    assert out.startswith("3 shards, 8 samples, ")
    assert "no damage found" in out


WHOLE = tar_bytes([member for number in range(3, 6) for member in pair(number)])
MIDDLE = WHOLE.index(b"000004.jpg")  # its header


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("truncated", WHOLE[: MIDDLE + 512 + 100]),
        ("truncated", WHOLE[: MIDDLE + 100]),
        ("bad_header", WHOLE[:MIDDLE] + b"x" * 512 + WHOLE[MIDDLE + 512 :]),
        ("no_end_marker", WHOLE[:MIDDLE]),
        ("empty_file", b""),
        ("empty_tar", tar_bytes([])),
        ("empty_tar", tar_bytes([("no-extension", b"x")])),
        ("html_page", b"<!DOCTYPE html><title>404</title>"),
        ("compressed", b"\x1f\x8b" + b"x" * 600),
        ("not_a_tar", b"version https://git-lfs.github.com/spec/v1\n"),
        ("data_after_end", WHOLE + WHOLE),
        ("zero_filled", WHOLE + bytes(2 << 20)),
        ("duplicate_key", tar_bytes([*pair(3), *pair(3)])),
        ("scattered_key", tar_bytes([*pair(3)[:1], *pair(4), *pair(3)[1:]])),
    ],
)
def test_damage_to_a_tar_is_named_and_its_neighbours_are_not_blamed(tmp_path: Path, run: Run, reason: str, content: bytes) -> None:
    write_shards(tmp_path, [3, 3, 3])
    (tmp_path / "train-001.tar").write_bytes(content)
    for options in ((), ("--quick",)):
        assert [one for one in damage(run, tmp_path / "*.tar", *options) if one[1] != "repeated_key"] == [("train-001.tar", reason, 1)]
    code, out, _ = run("verify", tmp_path / "*.tar")
    assert code == 1
    assert out.splitlines()[1].split()[:3] == ["train-001.tar", reason, "1"]


def png_bomb() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("reason", "sample"),
    [
        ("missing_image", pair(4, image=None)),
        ("empty_image", [("000004.jpg", b""), *pair(4)[1:]]),
        ("not_an_image", pair(4, image=b"<html>not found</html>")),
        ("unsupported_format", pair(4, image=b"GIF89a" + b"x" * 50)),
        ("too_many_pixels", [("000004.png", png_bomb()), *pair(4)[1:]]),
        ("truncated_image", pair(4, image=jpeg(4)[:-200])),
        ("missing_caption", pair(4, text=None)),
        ("empty_caption", pair(4, text=b" \n")),
        ("bad_utf8", pair(4, text="caf\u00e9".encode("latin-1"))),
        ("bad_record", [*pair(4)[:1], ("000004.json", b'{"captions": 3}')]),
        ("bad_record", [*pair(4)[:1], ("000004.json", b"{")]),
        ("broken_regions", [*pair(4), ("000004.regions.npz", b"PK\x03\x04 and nothing")]),
        ("broken_regions", [*pair(4), ("000004.regions.npz", pickle.dumps({"boxes": 1}))]),
        ("bad_regions", [*pair(4), ("000004.regions.npz", packed({"boxes": np.array([[3.0, 3, 1, 1]], np.float32), "size": np.array([24, 20])}))]),
    ],
)
def test_a_sample_that_training_would_refuse_is_counted_by_its_reason(tmp_path: Path, run: Run, reason: str, sample: Members) -> None:
    write_shards(tmp_path, [3, 3], odd={4: sample})
    assert damage(run, tmp_path / "*.tar", "--decode") == [("train-001.tar", reason, 1)]
    assert damage(run, tmp_path / "*.tar", "--quick") == []


def test_pixels_are_decoded_only_when_asked(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [3], odd={1: pair(1, image=jpeg(1)[:-200])})
    assert damage(run, tmp_path / "*.tar") == []
    assert damage(run, tmp_path / "*.tar", "--decode") == [("train-000.tar", "truncated_image", 1)]


def test_what_a_sample_must_have_depends_on_what_is_trained_on(tmp_path: Path, run: Run) -> None:
    asked = json.dumps({"questions": [{"question": "is it red?", "answer": "no"}]}).encode()
    write_shards(tmp_path, [4], odd={0: pair(0, text=None), 1: pair(1, image=None), 2: [pair(2)[0], ("000002.json", asked)], 3: [*pair(3), ("000003.right.jpg", b"x")]})
    assert damage(run, tmp_path / "*.tar") == [("train-000.tar", "missing_caption", 1), ("train-000.tar", "missing_image", 1), ("train-000.tar", "not_an_image", 1)]
    assert damage(run, tmp_path / "*.tar", "--holds", "images") == [("train-000.tar", "missing_image", 1), ("train-000.tar", "not_an_image", 1)]
    assert damage(run, tmp_path / "*.tar", "--holds", "texts") == [("train-000.tar", "missing_caption", 1)]


def test_a_key_that_stands_in_two_shards_of_a_folder_is_found(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [3, 2, 2])
    (tmp_path / "train-003.tar").write_bytes(tar_bytes([*pair(9), *pair(4), *pair(1)]))
    assert damage(run, tmp_path / "*.tar") == [("train-003.tar", "repeated_key", 2)]
    found = json.loads(run("verify", tmp_path / "*.tar", "--json")[1])["by_reason"]
    assert found["repeated_key"]["example"] == "train-003.tar: 000004 is also in train-001.tar"
    write_shards(tmp_path / "other", [3])
    assert damage(run, tmp_path / "train-000.tar", tmp_path / "other" / "*.tar") == []


def test_an_index_in_the_cache_that_is_not_that_of_the_file_is_found(tmp_path: Path, run: Run) -> None:
    (path,) = map(Path, write_shards(tmp_path, [3]))
    build_index([str(path)], cache=tmp_path / "cache")
    assert damage(run, path, "--cache", tmp_path / "cache") == []
    stamp = path.stat()
    path.write_bytes(path.read_bytes().replace(b"000001.", b"00000x.").replace(b"ustar", b"ustar"))
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 512):  # headers are signed with their own sum
        if content[at : at + 7] == b"00000x.":
            block = content[at : at + 512]
            content[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert damage(run, path, "--cache", tmp_path / "cache") == [("train-000.tar", "stale_index", 1)]


def test_members_that_run_code_or_name_other_places_do_neither(tmp_path: Path, run: Run) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    evil = pickle.dumps(Canary())
    folder = tmp_path / "a" / "b"
    members = [("../../evil.jpg", jpeg(1)), ("../../evil.txt", b"words"), ("k.jpg", jpeg(2)), ("k.txt", b"words"), ("k.pkl", evil), ("k.pyd", evil), ("k.regions.npz", evil)]
    folder.mkdir(parents=True)
    (folder / "x.tar").write_bytes(tar_bytes([*members, ("/root-evil.jpg", jpeg(3)), ("/root-evil.txt", b"words")]))
    before = sorted(tmp_path.rglob("*"))
    assert damage(run, folder / "x.tar") == [("x.tar", "broken_regions", 1)]
    assert run("stats", folder / "x.tar")[0] == 0
    assert run("duplicates", folder / "x.tar")[0] == 0
    assert run("sheet", folder / "x.tar", "--out", tmp_path / "sheet.png")[0] == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "sheet.png"])


# ---------------------------------------------------------------- verify: what is written down


def packed_shards(folder: Path, *, val: int = 3) -> Path:
    """Shards of 12 images as scripts/build_shards.py writes them: val-000000.tar and train-000000..2.tar with a manifest."""
    (folder / "images").mkdir(parents=True)
    for number in range(12):
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    (folder / "list.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,caption {n}\n" for n in range(12)))
    pack(read_source(folder / "list.csv"), folder / "out", Packing(samples_per_shard=3, val=val))
    return folder / "out"


def test_shards_are_held_against_their_manifest(tmp_path: Path, run: Run) -> None:
    out = packed_shards(tmp_path)
    assert damage(run, out / "*.tar") == []
    code, text, _ = run("verify", out / "train-*.tar")
    assert code == 0
    assert "the hash of all keys was not checked, since 3 of its 4 shards were looked at" in text
    train = out / "train-000001.tar"
    content = bytearray(train.read_bytes())
    content[512 + 300] ^= 1  # within the first image
    train.write_bytes(content)
    assert damage(run, out / "*.tar") == [("train-000001.tar", "altered", 1), ("train-000001.tar", "altered_image", 1)]
    assert damage(run, out / "*.tar", "--quick") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("lost", [("manifest.json", "missing_shard", 1)]),
        ("extra", [("manifest.json", "unlisted_shard", 1), ("train-000099.tar", "repeated_key", 3)]),
        ("broken", [("manifest.json", "bad_manifest", 1)]),
        ("longer", [("train-000000.tar", "manifest_disagrees", 1)]),
        ("keys", [("manifest.json", "keys_differ", 1)]),
        ("samples", [("train-000000.tar", "manifest_disagrees", 1)]),
        ("file", [("manifest.json", "missing_file", 1), ("manifest.json", "altered", 1)]),
    ],
)
def test_a_manifest_that_disagrees_is_damage(tmp_path: Path, run: Run, change: str, expected: list[tuple[str, str, int]]) -> None:
    out = packed_shards(tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    if change == "lost":
        (out / "train-000002.tar").unlink()
    elif change == "extra":
        shutil.copy(out / "train-000002.tar", out / "train-000099.tar")
    elif change == "broken":
        (out / "manifest.json").write_text("{")
    elif change == "longer":
        with (out / "train-000000.tar").open("ab") as file:
            file.write(bytes(512))
    elif change == "keys":
        write_json(out / "manifest.json", {**manifest, "keys_sha256": "0" * 64})
    elif change == "samples":
        shards = [{**one, "samples": 4} if one["name"] == "train-000000.tar" else one for one in manifest["shards"]]
        write_json(out / "manifest.json", {**manifest, "shards": shards})
    else:
        (out / "answers.txt").write_text("yes\n")
        write_json(out / "manifest.json", {**manifest, "files": {"gone.txt": "0" * 64, "answers.txt": "0" * 64, "../up.txt": "0" * 64}})
    assert damage(run, out / "*.tar") == expected


def test_another_order_of_keys_is_another_set(tmp_path: Path, run: Run) -> None:
    out = packed_shards(tmp_path, val=0)
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    first, second = (out / one["name"] for one in shards[:2])
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert [reason for _, reason, _ in damage(run, out / "*.tar", "--quick") if reason == "keys_differ"] == ["keys_differ"]


def described(number: int, **fields: object) -> Members:
    """A sample whose record speaks of its image."""
    return [(f"{number:06d}.jpg", jpeg(number)), (f"{number:06d}.json", json.dumps({"caption": "words", **fields}).encode())]


def test_records_that_speak_of_another_file_are_told_from_an_image_that_was_changed(tmp_path: Path, run: Run) -> None:
    true = {number: {"sha256": hashlib.sha256(jpeg(number)).hexdigest(), "width": 24, "height": 20} for number in range(3)}
    write_shards(tmp_path / "a", [3], odd={n: described(n, **true[n]) for n in range(3)})
    assert damage(run, tmp_path / "a" / "*.tar") == []
    write_shards(tmp_path / "b", [3], odd={n: described(n, **true[n] | ({"sha256": "0" * 64, "width": 25} if n == 1 else {})) for n in range(3)})
    assert damage(run, tmp_path / "b" / "*.tar") == [("train-000.tar", "altered_image", 1), ("train-000.tar", "wrong_size", 1)]
    write_shards(tmp_path / "c", [3], odd={n: described(n, sha256="0" * 64, width=640, height=480) for n in range(3)})  # of the downloads
    code, out, _ = run("verify", tmp_path / "c" / "*.tar")
    assert code == 0
    assert [line.partition("train-000.tar: ")[2].split()[0] for line in out.splitlines() if line.startswith("note:")] == ["sha256", "size"]


def test_counts_that_img2dataset_leaves_beside_a_shard_are_compared(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [3, 3], prefix="cc")
    (tmp_path / "cc-000_stats.json").write_text('{"count": 5, "successes": 3}')
    (tmp_path / "cc-001_stats.json").write_text('{"count": 5, "successes": 4}')
    assert damage(run, tmp_path / "*.tar") == [("cc-001.tar", "manifest_disagrees", 1)]


def test_thousands_of_damaged_shards_fit_a_screen_and_the_json_has_them_all(tmp_path: Path, run: Run) -> None:
    for number in range(60):
        (tmp_path / f"{number:03d}.tar").write_bytes(b"")
    code, out, _ = run("verify", tmp_path / "*.tar")
    assert code == 1
    assert len(out.splitlines()) < 50
    assert "in all: empty_file 60" in out
    assert len(damage(run, tmp_path / "*.tar")) == 60


def test_several_processes_find_the_same(tmp_path: Path, run: Run) -> None:
    out = packed_shards(tmp_path)
    with (out / "train-000001.tar").open("r+b") as file:
        file.truncate(3000)
    for command in ("verify", "stats", "duplicates"):
        code, alone, _ = run(command, out / "*.tar", "--json")
        import inspect_shards

        assert run(command, out / "*.tar", "--json")[1] == alone
        stream = io.StringIO()
        stdout, sys.stdout = sys.stdout, stream
        try:
            assert inspect_shards.main([command, str(out / "*.tar"), "--json", "--processes", "2"]) == code
        finally:
            sys.stdout = stdout
        assert stream.getvalue() == alone


# ---------------------------------------------------------------- stats


def test_statistics_of_a_tiny_set_are_exact(tmp_path: Path, run: Run) -> None:
    def image(size: tuple[int, int], kind: str) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, "teal").save(stream, kind)
        return stream.getvalue()

    images = [image((40, 30), "JPEG"), image((20, 50), "PNG"), image((64, 64), "WEBP"), image((16, 16), "JPEG")]
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


# ---------------------------------------------------------------- duplicates


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
    "half": lambda image: as_file(image.resize((160, 120), Image.Resampling.LANCZOS)),
    "double": lambda image: as_file(image.resize((640, 480), Image.Resampling.BICUBIC)),
    "square": lambda image: as_file(image.resize((224, 224), Image.Resampling.BICUBIC)),
    "cropped": lambda image: as_file(image.crop((6, 5, 314, 235))),
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


def test_damaged_shards_are_passed_over_and_counted(tmp_path: Path, run: Run) -> None:
    write_shards(tmp_path, [4, 4, 4], odd={1: pair(1, image=b"no"), 2: pair(2, text=b"\xff")})
    (tmp_path / "train-001.tar").write_bytes(b"<html>")
    for command in ("stats", "duplicates"):
        found = json.loads(run(command, tmp_path / "*.tar", "--json")[1])
        assert {reason: one["count"] for reason, one in found["left_out"].items()} == {"html_page": 1, "not_an_image": 1, "bad_utf8": 1}
    code, out, _ = run("sheet", tmp_path / "*.tar", "--out", tmp_path / "s.png")
    assert code == 0
    assert out.splitlines()[0].endswith("8 samples of 3 shards")
    assert "not_an_image 1" in out
    assert "html_page 1" in out


@pytest.mark.skipif(not FLICKR.exists(), reason="the 900 photographs of ../shared/data/flickr900 are not here")
def test_real_photographs_verify_and_are_no_copies_of_each_other(tmp_path: Path, run: Run) -> None:
    pack(read_source(FLICKR), tmp_path, Packing(val=100, samples_per_shard=200))
    code, out, _ = run("verify", tmp_path / "*.tar", "--decode")
    assert code == 0
    assert out.startswith("5 shards, 900 samples, 17.6 MB: no damage found")
    found = json.loads(run("duplicates", tmp_path / "train-*.tar", "--against", tmp_path / "val-*.tar", "--json", "--distance", 80)[1])
    assert [found["images"], found["copies"]["first"], found["against"]["images"], found["against"]["first"]] == [800, [], 100, []]
    assert run("sheet", tmp_path / "*.tar", "--out", tmp_path / "sheet.png")[0] == 0


# ---------------------------------------------------------------- sheet


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
    shard.add("k", {"png": as_file(Image.new("RGB", (40, 80), "yellow"), "PNG"), "regions.npz": stored, "txt": b"words"})
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


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "nowhere/*.tar"), "matches nothing"),
        (("verify", "gone.tar"), "gone.tar"),
        (("verify", "x.tar", "x.tar"), "more than once"),
        (("verify", "https://example.org/x.tar"), "not a local file"),
        (("verify", "pipe:cat x.tar"), "would run a shell command"),
        (("verify", "x.tar", "--quick", "--decode"), "give one of the two"),
        (("verify", "x.tar", "--holds", "pears"), "invalid choice"),
        (("stats", "x.tar", "--length", "0"), "--length is 0"),
        (("stats", "x.tar", "--tokenizer", "no/such/folder"), "no/such/folder"),
        (("stats", "x.tar", "--tokenizer", "wordpiece", "--vocab", "3"), "so at least"),
        (("duplicates", "x.tar", "--distance", "100"), "--distance is 100; it can be 0 to 80"),
        (("duplicates", "x.tar", "--out", "list.txt"), "must end in .csv or .jsonl"),
        (("duplicates", "x.tar", "--out", "no/list.csv"), "there is no folder no"),
        (("duplicates", "x.tar", "--against", "x.tar"), "an evaluation set must be another"),
        (("duplicates", "x.tar", "--against", "y*.tar"), "--against"),
        (("sheet", "x.tar", "--count", "0"), "--count is 0"),
        (("sheet", "x.tar", "--out", "sheet.jpg"), "must end in .png"),
        (("sheet", "empty.tar"), "none of 1 shards holds a sample"),
        (("look", "x.tar"), "invalid choice"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_two(tmp_path: Path, run: Run, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").write_bytes(tar_bytes(pair(1)))
    (tmp_path / "empty.tar").write_bytes(b"")
    code, out, err = run(*words)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.tar", "x.tar"]
