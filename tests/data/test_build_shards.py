"""Lists and folders as people have them become shards that this and every other reader opens, with nothing lost silently."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from shards import samples

from vlpkit.data.index import build_index
from vlpkit.data.packing import Packing, pack
from vlpkit.data.reader import Reader
from vlpkit.data.sources import read_source
from vlpkit.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "build_shards.py"
FLICKR = ROOT.parent / "shared" / "data" / "flickr900" / "captions.csv"


def jpeg(number: int, size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def album(folder: Path, count: int = 12, captions: int = 2) -> Path:
    """captions.csv with `captions` rows for each of images/0.jpg, images/1.jpg, ..."""
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    return table(folder / "captions.csv", [(f"{n}.jpg", f"caption {c} of {n}") for n in range(count) for c in range(captions)])


def table(path: Path, rows: Iterable[tuple[str, str]], header: tuple[str, ...] = ("image", "caption"), **options: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **options)
        writer.writerows([header, *rows])
    return path


def built(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    how = {name: settings.pop(name) for name in ("processes", "overwrite") if name in settings}
    where = {name: settings.pop(name) for name in ("images", "image_column", "caption_column") if name in settings}
    return pack(read_source(source, **where), out, Packing(**settings), **how)


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_rows_about_one_image_become_one_sample_with_its_bytes_untouched(tmp_path: Path) -> None:
    manifest = built(album(tmp_path), tmp_path / "out")
    found = samples(tmp_path / "out")
    assert manifest["samples"] == {"train": 12, "val": 0}
    assert manifest["captions"] == 24
    assert found["7"]["jpg"] == jpeg(7)
    record = json.loads(found["7"]["json"])
    assert record == {"captions": ["caption 0 of 7", "caption 1 of 7"], "width": 32, "height": 24, "sha256": hashlib.sha256(jpeg(7)).hexdigest()}


def test_shards_are_full_and_the_split_has_the_size_asked_for(tmp_path: Path) -> None:
    manifest = built(album(tmp_path), tmp_path / "out", val=3, samples_per_shard=4)
    assert [(s["name"], s["samples"]) for s in manifest["shards"]] == [
        ("val-000000.tar", 3), ("train-000000.tar", 4), ("train-000001.tar", 4), ("train-000002.tar", 1)
    ]
    train, val = samples(tmp_path / "out", "train-*"), samples(tmp_path / "out", "val-*")
    assert not set(train) & set(val)
    assert len(train) + len(val) == 12
    assert list(train) != sorted(train)


def test_the_manifest_accounts_for_every_shard_and_key(tmp_path: Path) -> None:
    manifest = built(album(tmp_path), tmp_path / "out", val=3, samples_per_shard=4)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["manifest.json", *(s["name"] for s in manifest["shards"])])
    for shard in manifest["shards"]:
        content = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
    keys = [*samples(tmp_path / "out", "val-*"), *samples(tmp_path / "out", "train-*")]
    assert manifest["keys_sha256"] == hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def test_our_reader_and_webdataset_see_the_same_samples(tmp_path: Path) -> None:
    built(album(tmp_path), tmp_path / "out", samples_per_shard=5)
    shards = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    index = build_index(shards, cache=tmp_path / "cache")
    reader = Reader(index)
    ours = {index.key(n): reader.pair(n) for n in range(len(index))}
    theirs = {s["__key__"]: (s["jpg"], None, s["json"]) for s in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)}
    assert ours == theirs
    assert len(ours) == 12


@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_command_writes_the_same_bytes_anywhere_with_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    built(album(tmp_path / "a"), tmp_path / "a" / "out", val=3, samples_per_shard=4)
    built(album(tmp_path / "b"), tmp_path / "b" / "out", val=3, samples_per_shard=4, processes=processes)
    assert hashes(tmp_path / "a" / "out") == hashes(tmp_path / "b" / "out")


def test_another_seed_is_another_order_and_split(tmp_path: Path) -> None:
    source = album(tmp_path)
    for seed in (0, 1):
        built(source, tmp_path / str(seed), val=4, seed=seed)
    assert set(samples(tmp_path / "0", "val-*")) != set(samples(tmp_path / "1", "val-*"))
    assert set(samples(tmp_path / "0")) == set(samples(tmp_path / "1"))


def test_more_images_keep_the_old_ones_in_their_relative_order(tmp_path: Path) -> None:
    built(album(tmp_path / "a", 8), tmp_path / "few")
    built(album(tmp_path / "b", 12), tmp_path / "many")
    few = list(samples(tmp_path / "few"))
    assert [key for key in samples(tmp_path / "many") if key in few] == few


def test_every_bad_image_and_caption_is_left_out_and_counted(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, content in (
        ("good.jpg", jpeg(0)),
        ("cut.jpg", jpeg(1)[:-100]),
        ("page.jpg", b"<html></html>"),
        ("zero.jpg", b""),
        ("thin.jpg", jpeg(2, (4, 64))),
        ("mute.jpg", jpeg(3)),
        ("half.jpg", jpeg(4)),
    ):
        (images / name).write_bytes(content)
    names = ["good.jpg", "cut.jpg", "page.jpg", "zero.jpg", "thin.jpg", "gone.jpg", "half.jpg"]
    source = table(tmp_path / "list.csv", [*((n, "words") for n in names), ("half.jpg", " "), ("mute.jpg", " \u2028"), ("", "nobody")])
    source.write_bytes(source.read_bytes() + "half.jpg,caf\u00e9\r\n".encode("latin-1") + b"short\r\n")
    manifest = built(source, tmp_path / "out")
    assert manifest["images"] == {
        "empty_caption": 1, "empty_image": 1, "missing_image": 1, "not_an_image": 1, "too_small": 1, "truncated_image": 1, "written": 2
    }
    assert manifest["rows"] == {"bad_row": 2, "bad_utf8": 1, "empty_caption": 2, "used": 7}
    found = samples(tmp_path / "out")
    assert json.loads(found["half"]["json"])["captions"] == ["words"]
    assert set(found) == {"good", "half"}


def test_validation_is_filled_with_usable_images_only(tmp_path: Path) -> None:
    source = album(tmp_path, 12)
    for number in range(0, 12, 2):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"broken")
    manifest = built(source, tmp_path / "out", val=4)
    assert manifest["samples"] == {"train": 2, "val": 4}
    assert manifest["images"] == {"not_an_image": 6, "written": 6}


def test_keys_hold_no_path_and_no_dot_and_never_coincide(tmp_path: Path) -> None:
    names = ["a/b.jpg", "a_b.jpg", "A_B.jpg", "x.y.z.jpg", "../images/up.jpg", "sp ace!.jpg", "\u00fc.jpg", "l" * 200 + ".jpg"]
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number, name in enumerate(names):
        (tmp_path / "images" / name).write_bytes(jpeg(number))
    built(table(tmp_path / "list.csv", [(name, f"caption {n}") for n, name in enumerate(names)]), tmp_path / "out")
    found = samples(tmp_path / "out")
    assert len(found) == len(names)
    assert all(set(members) == {"jpg", "json"} for members in found.values())
    assert all(key.replace("-", "").replace("_", "").isalnum() and key.isascii() and len(key) <= 80 for key in found)
    assert {"x_y_z", "images_up", "sp_ace", "image"} <= set(found)


def test_jsonl_takes_lists_of_captions_and_keeps_other_fields(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    lines = [
        {"image": "0.jpg", "captions": ["one", "two"], "hard": [["one", "eno"]], "width": 5},
        {"image": "1.jpg", "caption": "three"},
        {"image": "1.jpg", "caption": ["four", "three"]},
        {"image": "1.jpg", "caption": 3},
        {"caption": "no image"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join([*map(json.dumps, lines), "{broken", "", "[1]"]))
    manifest = built(tmp_path / "list.jsonl", tmp_path / "out")
    assert manifest["rows"] == {"bad_row": 4, "used": 3}
    found = {key: json.loads(members["json"]) for key, members in samples(tmp_path / "out").items()}
    assert found["0"]["captions"] == ["one", "two"]
    assert found["0"]["hard"] == [["one", "eno"]]
    assert found["0"]["width"] == 32
    assert found["1"]["captions"] == ["three", "four"]


def test_tsv_with_other_column_names_and_stray_quotes(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.tsv").write_text('\ufefftext\tfile\n"quoted start\t0.jpg\nsecond\t0.jpg\n')
    built(tmp_path / "list.tsv", tmp_path / "out", image_column="file", caption_column="text")
    assert json.loads(samples(tmp_path / "out")["0"]["json"])["captions"] == ['"quoted start', "second"]


def test_a_folder_with_text_files_is_a_source(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "sub" / f"{name}.JPG").write_bytes(jpeg(1))
    (tmp_path / "in" / "sub" / "a.txt").write_text("first\n\nsecond\n")
    (tmp_path / "in" / "sub" / "b.txt").write_text(" \n")
    (tmp_path / "in" / "sub" / "c.txt").write_bytes(b"\xff\xff")
    manifest = built(tmp_path / "in", tmp_path / "out")
    assert manifest["images"] == {"bad_utf8": 1, "empty_caption": 1, "missing_caption": 1, "written": 1}
    found = samples(tmp_path / "out")
    assert json.loads(found["sub_a"]["json"])["captions"] == ["first", "second"]


def test_formats_keep_their_suffix_and_large_images_are_reduced_on_request(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (images / "big.jpg").write_bytes(jpeg(0, (400, 300)))
    (images / "turned.jpg").write_bytes(jpeg(0, (400, 300), exif=exif))
    (images / "small.jpg").write_bytes(jpeg(1, (90, 60)))
    Image.open(io.BytesIO(jpeg(2, (300, 100)))).save(images / "wide.png")
    Image.open(io.BytesIO(jpeg(2, (60, 60)))).save(images / "tiny.webp")
    source = table(tmp_path / "list.csv", [(path.name, "x") for path in images.iterdir()])
    built(source, tmp_path / "out", short_side=100, max_side=200)
    found = samples(tmp_path / "out")
    sizes = {key: (json.loads(m["json"])["width"], json.loads(m["json"])["height"]) for key, m in found.items()}
    assert sizes == {"big": (133, 100), "turned": (100, 133), "small": (90, 60), "wide": (200, 67), "tiny": (60, 60)}
    assert found["small"]["jpg"] == jpeg(1, (90, 60))
    assert set(found["wide"]) == {"jpg", "json"}
    assert set(found["tiny"]) == {"webp", "json"}
    reduced = np.asarray(Image.open(io.BytesIO(found["turned"]["jpg"])), int)
    expected = Image.open(io.BytesIO(jpeg(0, (400, 300)))).transpose(Image.Transpose.ROTATE_270).resize((100, 133), Image.Resampling.BICUBIC)
    assert np.abs(reduced - np.asarray(expected)).mean() < 3


def test_running_again_finds_the_work_done_and_touches_nothing(tmp_path: Path) -> None:
    source = album(tmp_path)
    first = built(source, tmp_path / "out", val=3, samples_per_shard=4)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert built(source, tmp_path / "out", val=3, samples_per_shard=4) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("change", ["setting", "caption", "image", "damage"])
def test_a_folder_of_other_shards_is_refused_unless_told_to_overwrite(tmp_path: Path, change: str) -> None:
    source, out = album(tmp_path), tmp_path / "out"
    built(source, out)
    (out / "notes.txt").write_text("mine")
    settings: dict[str, Any] = {"val": 2} if change == "setting" else {}
    if change == "caption":
        source.write_text(source.read_text().replace("caption 0 of 3", "another"))
    elif change == "image":
        (tmp_path / "images" / "3.jpg").unlink()
    elif change == "damage":
        with (out / "train-000000.tar").open("ab") as file:
            file.write(b"x")
    before = hashes(out)
    with pytest.raises(DataError, match="--overwrite"):
        built(source, out, **settings)
    assert hashes(out) == before
    built(source, out, overwrite=True, **settings)
    built(source, tmp_path / "fresh", **settings)
    assert (out / "notes.txt").read_text() == "mine"
    assert {k: v for k, v in hashes(out).items() if k != "notes.txt"} == hashes(tmp_path / "fresh")


def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    source = album(tmp_path, 400, captions=1)
    arguments = ["--val", "50", "--samples-per-shard", "20", "--processes", "1"]
    assert command(source, tmp_path / "whole", *arguments).returncode == 0
    out, finished = tmp_path / "killed", 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(source), str(out), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.tar"))) < finished + 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = len(list(out.glob("*.tar")))
    assert command(source, out, *arguments).returncode == 0
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_full_disk_is_said_and_the_same_command_continues(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    source, out = album(tmp_path, captions=1), tmp_path / "out"
    (tmp_path / "images" / "5.jpg").write_bytes(jpeg(5, (1500, 1000)))  # one image that does not fit
    arguments = [sys.executable, str(SCRIPT), str(source), str(out), "--samples-per-shard", "1", "--processes", "1"]
    run = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=small_files, timeout=120)
    assert run.returncode == 2
    assert "cannot write" in run.stderr
    assert "continues where it stopped" in run.stderr
    finished = hashes(out)
    assert 0 < len([name for name in finished if name.endswith(".tar")]) < 12
    assert command(*arguments[2:]).returncode == 0
    built(source, tmp_path / "fresh", samples_per_shard=1)
    assert hashes(out) == hashes(tmp_path / "fresh")


def test_a_failed_start_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    source = album(tmp_path)
    with pytest.raises(DataError, match="not one of 12 images"):
        built(source, tmp_path / "out", images=tmp_path)
    assert built(source, tmp_path / "out")["samples"]["train"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.csv", "out"), "nowhere.csv does not exist"),
        (("captions.txt", "out"), "captions.txt looks like no kind that is known (a file that ends in .txt). Choose one with --kind"),
        (("captions.csv", "out", "--caption-column", "captoin"), "Did you mean 'caption'? Name it with --caption-column"),
        (("captions.csv", "out", "--images", "nowhere"), "--images nowhere is not a folder"),
        (("captions.csv", "out", "--images", "."), "not one of 12 images can be used (missing_image 12)"),
        (("captions.csv", "out", "--val", "12"), "leaves nothing to train on: there are 12 images"),
        (("captions.csv", "out", "--val", "-1"), "--val is -1"),
        (("captions.csv", "out", "--val-share", "1.5"), "--val-share is 1.5"),
        (("captions.csv", "out", "--samples-per-shard", "0"), "--samples-per-shard is 0"),
        (("both.csv", "out"), "names files and addresses"),
        (("empty.csv", "out"), "no usable line"),
        (("utf16.csv", "out"), "save it as UTF-8"),
        (("bare", "out"), "no .jpg, .jpeg, .png, .webp file"),
        (("captions.csv", "captions.csv/out"), "cannot write"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_two(tmp_path: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    album(tmp_path)
    (tmp_path / "captions.txt").write_text("x")
    (tmp_path / "bare").mkdir()
    table(tmp_path / "both.csv", [("0.jpg", "x"), ("https://example.org/1.jpg", "x")])
    table(tmp_path / "empty.csv", [])
    (tmp_path / "utf16.csv").write_text("image,caption\n", encoding="utf-16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import build_shards

    assert build_shards.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.glob("out/*.tar"))


def test_the_command_prints_what_it_did_and_how_to_go_on(tmp_path: Path) -> None:
    source = album(tmp_path)
    (tmp_path / "images" / "3.jpg").unlink()
    run = command(source, tmp_path / "out", "--val-share", "0.25")
    assert run.returncode == 0
    assert "8 samples to train on, 3 to validate, 22 captions" in run.stdout
    assert "left out: missing_image 1" in run.stdout
    assert "python train.py data=custom" in run.stdout
    assert "--samples-per-shard" in command("--help").stdout


@pytest.mark.skipif(not FLICKR.exists(), reason="the 900 photographs of ../shared/data/flickr900 are not here")
def test_real_photographs_with_five_captions_each(tmp_path: Path) -> None:
    manifest = built(FLICKR, tmp_path, val=100, samples_per_shard=200)
    assert manifest["samples"] == {"train": 800, "val": 100}
    assert manifest["captions"] == 4500
    assert manifest["images"] == {"written": 900}
    assert len(build_index(sorted(map(str, tmp_path.glob("train-*.tar"))), cache=tmp_path / "cache")) == 800
