"""The index finds every sample that webdataset finds, and names every way in which a shard is not whole."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset
from shards import jpeg, pair, tar_bytes, write_shards

from vlpkit.data.index import Index, build_index
from vlpkit.data.reader import Reader
from vlpkit.data.shardlist import braces, expand
from vlpkit.errors import DataError

THREE = pair(0) + pair(1) + pair(2)


def index_of(folder: Path, payload: bytes, *, max_bad_share: float = 1.0) -> Index:
    """The index of one good shard and one made of `payload`."""
    good, odd = folder / "good.tar", folder / "odd.tar"
    good.write_bytes(tar_bytes(pair(90) + pair(91)))
    odd.write_bytes(payload)
    return build_index([str(good), str(odd)], cache=folder / "cache", max_bad_share=max_bad_share)


def keys(index: Index) -> list[str]:
    return [index.key(number) for number in range(len(index))]


def reasons(index: Index) -> list[str]:
    return [flaw.reason for flaw in index.shards[1].flaws]


def start_of(payload: bytes, name: str) -> int:
    """Byte at which the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
        return tar.getmember(name).offset


def contents(index: Index) -> list[tuple[str, dict[str, bytes]]]:
    reader = Reader(index)
    return [(index.key(number), reader.read(number)) for number in range(len(index))]


def by_webdataset(paths: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    found = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    return [(sample["__key__"], {ext: data for ext, data in sample.items() if not ext.startswith("__")}) for sample in found]


def test_a_tar_written_by_webdataset_gives_the_samples_that_webdataset_reads(tmp_path: Path) -> None:
    path = str(tmp_path / "w.tar")
    with webdataset.TarWriter(path) as sink:
        for number in range(7):
            sink.write({"__key__": f"a.b/{number:03d}", "jpg": jpeg(number), "txt": f"number {number}", "json": {"n": number}, "seg.npy": b"12"})
    assert contents(build_index([path], cache=None)) == by_webdataset([path])


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_dialect(tmp_path: Path, kind: int) -> None:
    long = "folder/" * 12 + "k" * 60 if kind == tarfile.USTAR_FORMAT else "folder/" * 40 + "k" * 200
    path = tmp_path / "long.tar"
    path.write_bytes(tar_bytes([(f"{long}.jpg", jpeg(1)), (f"{long}.txt", b"one"), ("./\u00e9t\u00e9.JPG", jpeg(2)), ("./\u00e9t\u00e9.txt", b"two")], kind=kind))
    found = contents(build_index([str(path)], cache=None))
    assert found == by_webdataset([str(path)])
    assert [key for key, _ in found] == [long, "./\u00e9t\u00e9"]


def test_folders_links_and_members_about_the_shard_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "d/9.jpg"), (tarfile.FIFOTYPE, "pipe.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name, payload in (("__meta__", b"x"), ("README", b"x"), ("../evil.txt", b"text"), ("d/1.jpg", jpeg(1)), ("d/1.txt", b"one")):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    found = build_index([str(path)], cache=None)
    assert keys(found) == ["../evil", "d/1"]
    assert [list(found.entry(n).members) for n in range(2)] == [["txt"], ["jpg", "txt"]]  # type: ignore[union-attr]


@pytest.mark.parametrize("dialect", ["x", "g"])
def test_a_pax_size_wins_over_the_header(tmp_path: Path, dialect: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"} if dialect == "g" else None) as tar:
        member = tarfile.TarInfo("0.txt")
        member.size, member.pax_headers = 5, {"size": "5", "comment": "c"}
        tar.addfile(member, io.BytesIO(b"hello"))
    path = tmp_path / "pax.tar"
    path.write_bytes(stream.getvalue())
    assert contents(build_index([str(path)], cache=None)) == [("0", {"txt": b"hello"})]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut inside an image", "truncated"),
        ("cut at the header of a caption", "truncated"),
        ("cut inside the header of a caption", "truncated"),
        ("garbage in a header", "bad_header"),
        ("no bytes", "empty_file"),
        ("a web page", "html_page"),
        ("compressed", "compressed"),
        ("random bytes", "not_a_tar"),
        ("an empty tar", "empty_tar"),
        ("tars joined end to end", "data_after_end"),
        ("zeros in place of the end", "zero_filled"),
        ("a key twice", "duplicate_key"),
        ("a key torn apart", "scattered_key"),
    ],
)
def test_a_shard_that_is_not_whole_is_named_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    whole = tar_bytes(THREE)
    image, text = start_of(whole, "000002.jpg"), start_of(whole, "000002.txt")
    payload = {
        "cut inside an image": whole[: image + 512 + 100],
        "cut at the header of a caption": whole[:text],
        "cut inside the header of a caption": whole[: text + 200],
        "garbage in a header": whole[:image] + b"\xa7" * 512 + whole[image + 512 :],
        "no bytes": b"",
        "a web page": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
        "compressed": b"\x1f\x8b" + bytes(range(200)) * 6,
        "random bytes": bytes(range(256)) * 8,
        "an empty tar": tar_bytes([]),
        "tars joined end to end": whole + whole,
        "zeros in place of the end": whole + bytes(2 << 20),
        "a key twice": tar_bytes(THREE + pair(1)),
        "a key torn apart": tar_bytes([THREE[0], *THREE[2:], THREE[1]]),
    }[name]
    found = index_of(tmp_path, payload)
    assert reasons(found) == [reason]
    with pytest.raises(DataError, match=rf"1 of 2 shards are damaged(.|\n)*odd\.tar: {reason} \((.|\n)*max_bad_share=0\.5"):
        index_of(tmp_path, payload, max_bad_share=0.4)
    assert found.flaws == {reason: 1}


def test_what_is_readable_of_a_cut_shard_is_kept(tmp_path: Path) -> None:
    whole = tar_bytes(THREE)
    found = index_of(tmp_path, whole[: start_of(whole, "000002.jpg") + 600])
    assert keys(found) == ["000090", "000091", "000000", "000001"]


def test_a_missing_end_marker_alone_is_a_note_and_not_a_flaw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tar_bytes(THREE)
    found = index_of(tmp_path, whole[: start_of(whole, "000002.txt") + 1024], max_bad_share=0.0)
    assert (len(found), reasons(found)) == (5, [])
    assert "no end marker" in caplog.text


def test_a_last_payload_without_its_padding_is_whole(tmp_path: Path) -> None:
    whole = tar_bytes(THREE)
    found = index_of(tmp_path, whole[: start_of(whole, "000002.txt") + 512 + len(THREE[-1][1])], max_bad_share=0.0)
    assert contents(found)[-1][1]["txt"] == THREE[-1][1]


def test_the_first_of_two_equal_keys_is_kept(tmp_path: Path) -> None:
    found = index_of(tmp_path, tar_bytes(THREE + [("000001.txt", b"another")]))
    assert contents(found)[3] == ("000001", dict(zip(("jpg", "txt"), (THREE[2][1], THREE[3][1]))))


def test_missing_members_of_a_sample_are_no_flaw_of_the_shard(tmp_path: Path) -> None:
    found = index_of(tmp_path, tar_bytes(pair(0, text=None) + pair(1, image=None) + pair(2)), max_bad_share=0.0)
    assert len(found) == 5


def test_shards_without_any_sample_are_refused_even_when_all_may_be_bad(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([]))
    with pytest.raises(DataError, match="hold no sample"):
        build_index([str(tmp_path / "a.tar")], cache=None, max_bad_share=1.0)


def test_random_damage_never_hangs_the_scan_nor_escapes_it(tmp_path: Path) -> None:
    import numpy as np

    whole = tar_bytes(THREE, kind=tarfile.PAX_FORMAT) + tar_bytes([("n" * 300 + ".txt", b"x")])
    rng = np.random.default_rng(0)
    path = tmp_path / "fuzz.tar"
    for _ in range(300):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        for at in rng.integers(0, len(damaged), int(rng.integers(0, 8))):
            damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            found = build_index([str(path)], cache=None, max_bad_share=1.0)
        except DataError:
            continue
        assert all(offset + size <= len(damaged) for n in range(len(found)) for offset, size in found.entry(n).members.values())  # type: ignore[union-attr]


def test_the_cache_is_used_until_the_shard_changes(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [4])
    stat = os.stat(path)
    first = build_index([path], cache=tmp_path / "cache")
    body = bytearray(Path(path).read_bytes())
    body[0:6] = b"000009"  # damage that size and time stamp do not tell
    Path(path).write_bytes(body)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = build_index([path], cache=tmp_path / "cache")
    assert (keys(again), again.fingerprint) == (keys(first), first.fingerprint)
    Path(path).write_bytes(tar_bytes(pair(7)))
    assert keys(build_index([path], cache=tmp_path / "cache")) == ["000007"]


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    paths = write_shards(tmp_path, [4, 3])
    cache = tmp_path / "cache"
    first = contents(build_index(paths, cache=cache))
    index = build_index(paths, cache=cache)  # its tables are read later, from files that are damaged now
    for file in (cache / "index").iterdir():
        body = file.read_bytes()
        file.write_bytes({"cut": body[:-9], "flip": body[:-9] + b"\xff" + body[-8:], "garbage": b"garbage", "gone": b""}[damage])
        if damage == "gone":
            file.unlink()
    assert contents(index) == first
    assert contents(build_index(paths, cache=cache)) == first


def test_a_cache_folder_that_cannot_be_written_costs_time_but_no_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_shards(tmp_path, [3])
    (tmp_path / "file").write_text("in the way")
    found = build_index(paths, cache=tmp_path / "file")
    assert len(contents(found)) == 3
    assert "paths.cache" in caplog.text


def test_the_fingerprint_follows_names_sizes_keys_and_their_order(tmp_path: Path) -> None:
    a, b = write_shards(tmp_path, [3, 2])
    prints = [build_index(paths, cache=None).fingerprint for paths in ([a, b], [b, a], [a])]
    moved = write_shards(tmp_path / "elsewhere", [3, 2])
    assert len(set(prints)) == 3
    assert build_index(moved, cache=None).fingerprint == prints[0]


def test_a_thousand_cached_shards_load_in_well_under_two_seconds(tmp_path: Path) -> None:
    import time

    payload = tar_bytes(THREE)
    paths = []
    for number in range(1000):
        paths.append(str(tmp_path / f"{number:04d}.tar"))
        Path(paths[-1]).write_bytes(payload)
    build_index(paths, cache=tmp_path / "cache")
    then = time.monotonic()
    found = build_index(paths, cache=tmp_path / "cache")
    assert len(found) == 3000
    assert time.monotonic() - then < 2.0


def test_shard_patterns_expand_in_order(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [1] * 12)
    assert expand("train-*.tar", str(tmp_path)) == paths
    assert expand("train-{000..011}.tar", str(tmp_path)) == paths
    assert expand(["train-00{0,1}.tar", "train-{002..009}.tar::" + paths[10] + "::train-011.tar"], str(tmp_path)) == paths


def test_the_left_end_of_a_brace_range_sets_the_width() -> None:
    assert braces("{8..11}") == ["8", "9", "10", "11"]
    assert braces("a{098..100}b{x,y}") == ["a098bx", "a098by", "a099bx", "a099by", "a100bx", "a100by"]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("train-{000..004}.tar", r"^data\.shards: 3 of 5 shards are missing: .*train-\{002\.\.004\}\.tar\. .*glob"),
        ("none-*.tar", r"^data\.shards: 'none-\*\.tar' matches nothing; .* has no such file\..*data\.root"),
        ("nowhere/*.tar", r"^data\.shards: .* the folder .*nowhere does not exist\."),
        ("train-000.tar::train-*.tar", r"^data\.shards names 1 shard more than once"),
        ("", r"^data\.shards names no shards\. Accepted: a path, a glob"),
        ([], r"^data\.shards names no shards"),
        ("pipe:touch canary", r"^data\.shards: 'pipe:touch canary' would run a shell command"),
        ("train-{004..000}.tar", r"runs backwards"),
        ("train-{000.tar", r"unbalanced brace"),
        (".", r"is a folder, not a shard\. Name its files"),
    ],
)
def test_a_shard_list_that_cannot_be_met_is_refused_by_name(tmp_path: Path, shards: object, message: str) -> None:
    write_shards(tmp_path, [1, 1])
    with pytest.raises(DataError, match=message):
        expand(shards, str(tmp_path))  # type: ignore[arg-type]


def test_the_shard_list_needs_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, vlpkit.data.shardlist, vlpkit.data.share; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
