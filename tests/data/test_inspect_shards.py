"""Finished shards under the magnifying glass: every kind of damage has its word, and nothing whole is blamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspecting import ROOT, Run
from PIL import Image
from shards import Members, jpeg, pair, tar_bytes, write_shards

from vlpkit.data.durable import write_json
from vlpkit.data.index import build_index
from vlpkit.data.inspect.pool import each
from vlpkit.data.packing import Packing, pack
from vlpkit.data.shapes.detect import packed
from vlpkit.data.sources import read_source
from vlpkit.errors import DataError

FLICKR = ROOT.parent / "shared" / "data" / "flickr900" / "captions.csv"


def damage(run: Run, *words: object) -> list[tuple[str, str, int]]:
    """(file, reason, count) that verify finds, and its exit code checked against it."""
    code, out, _ = run("verify", *words, "--json")
    found = json.loads(out)["damaged"]
    assert code == (1 if found else 0)
    return [(Path(path).name, reason, one["count"]) for path, reasons in found.items() for reason, one in reasons.items()]


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
    seconds = {n: [*described(n, **true[n], right={**true[n], **({"height": 21} if n == 2 else {})}), (f"{n:06d}.right.jpg", jpeg(n))] for n in range(3)}
    write_shards(tmp_path / "d", [3], odd=seconds)
    assert damage(run, tmp_path / "d" / "*.tar") == [("train-000.tar", "wrong_size", 1)]
    reduced = {n: described(n, **true[n] | ({"sha256": "0" * 64, "original_width": 640, "original_height": 480} if n == 1 else {})) for n in range(3)}
    write_shards(tmp_path / "e", [3], odd=reduced)
    assert damage(run, tmp_path / "e" / "*.tar") == []
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


def test_a_worker_that_is_killed_ends_in_one_sentence() -> None:
    with pytest.raises(DataError, match="try fewer --processes"):
        list(each(int_or_die, ["1", "2", "die", "4"], processes=2, doing="tried"))
    assert list(each(int_or_die, ["1", "2", "3"], processes=2, doing="tried")) == [1, 2, 3]


def int_or_die(word: str) -> int:
    if word == "die":
        os._exit(9)
    return int(word)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "nowhere/*.tar"), "matches nothing; the folder {here}/nowhere does not exist. Patterns are relative to {here}.\n"),
        (("verify", "gone.tar"), "{here}/gone.tar. Paths are relative to {here}.\n"),
        (("verify", "x.tar", "x.tar"), "more than once"),
        (("verify", "https://example.org/x.tar"), "not a local file"),
        (("verify", "pipe:cat x.tar"), "would run a shell command"),
        (("verify", "x.tar", "--quick", "--decode"), "give one of the two"),
        (("verify", "x.tar", "--holds", "pears"), "invalid choice"),
        (("stats", "x.tar", "--length", "0"), "--length is 0"),
        (("stats", "x.tar", "--tokenizer", "no/such/folder"), "--tokenizer no/such/folder: "),
        (("stats", "x.tar", "--tokenizer", "wordpiece", "--vocab", "3"), "--tokenizer wordpiece: "),
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
    assert message.format(here=tmp_path) in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.tar", "x.tar"]
