"""Addresses become shards: what the web does to a list is counted line by line, and no kind of death costs more than a shard."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shards import module, tar_bytes
from test_build_shards import ROOT, SCRIPT, samples
from web import PAGE, picture, web

from vlpkit.data.addresses import find_addresses
from vlpkit.data.arrivals import pack_part, reason
from vlpkit.data.download import download
from vlpkit.data.img2dataset import Fetching, environment
from vlpkit.data.parts import Part, draw_up
from vlpkit.data.prepare import Packing
from vlpkit.errors import DataError

LAUNCHER = ROOT / "vlpkit" / "data" / "launch_img2dataset.py"
# What the server does with so many addresses of the list, and the word that the manifest has for it.
WEB = {
    "good": (292, "written"), "large": (20, "written"), "turned": (8, "written"), "png": (16, "written"), "webp": (8, "written"), "moved": (8, "written"),
    "missing": (48, "http_404"), "failing": (8, "http_503"), "silent": (5, "timeout"), "trickle": (1, "timeout"), "cutoff": (8, "cut_off"),
    "forbidden": (4, "opted_out"), "page": (20, "not_an_image"), "empty": (8, "empty_image"), "truncated": (12, "truncated_image"), "tiny": (6, "too_small"),
    "ribbon": (4, "extreme_aspect"), "gif": (4, "unsupported_format"),
}  # fmt: skip
REFUSED = [" \thttp://127.0.0.1/1.jpg", "a\tftp://127.0.0.1/1.jpg", "a\tfile:///etc/passwd", "a\thttp://me:word@127.0.0.1/1.jpg", "a tab\ttoo many\thttp://127.0.0.1/1.jpg"]
AGAIN = 15  # lines about addresses that stand in the list already


class Built(NamedTuple):
    out: Path
    manifest: dict[str, Any]
    said: str
    asked: Counter[str]  # by path, over the killed and the finished run
    before: set[str]  # shards when the first run was killed
    survivors: list[str]


def write_list(path: Path, base: str) -> Path:
    """500 lines like CC3M's: caption, tab, address; in an order that mixes all kinds."""
    given = [f"{kind} number {number}\t{base}/{kind}/{number}.jpg" for kind, (count, _) in WEB.items() for number in range(count)]
    given = [given[at * 199 % len(given)] for at in range(len(given))]
    given += [f"another word for {number}\t{base}/good/{number}.jpg" for number in range(AGAIN)] + REFUSED
    path.write_text("".join(f"{line}\n" for line in given))
    return path


def command(source: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(source), str(out), *words]


def processes(word: str) -> list[str]:
    """Command lines of living processes of the group of the one whose command line holds `word`."""
    found, groups = [], set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            found.append((group, line))
            groups |= {group} if word in line and "launch" in line else set()
    return [line for group, line in found if group in groups]


def until(what: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(what())


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return environment(ROOT / ".cache")
    except DataError as error:
        pytest.skip(f"no package index to get img2dataset from: {error}")


@pytest.fixture(scope="module")
def built(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The 500 lines, made into shards by a command that is killed after its first shard and given again."""
    here = tmp_path_factory.mktemp("web")
    out = here / "out"
    with web() as (base, asked):
        how = ["--val", "40", "--samples-per-shard", "100", "--timeout", "2", "--retries", "0", "--threads", "16", "--processes", "2", "--img2dataset", str(python.parents[1])]
        words = command(write_list(here / "cc3m.tsv", base), out, *how)
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as first:
            assert until(lambda: list(out.glob("download/done/*.json")) or first.poll() is not None, 300)
            first.kill()
        before = {path.name for path in out.glob("*.tar")}
        until(lambda: not processes(str(out)), 10)
        survivors = processes(str(out))
        second = subprocess.run(words, capture_output=True, text=True, timeout=400)
        assert second.returncode == 0, second.stderr
        yield Built(out, json.loads((out / "manifest.json").read_text()), second.stdout + second.stderr, Counter(asked), before, survivors)


def test_the_manifest_accounts_for_all_500_lines(built: Built) -> None:
    wanted: Counter[str] = Counter()
    for count, word in WEB.values():
        wanted[word] += count
    assert built.manifest["images"] == dict(sorted(wanted.items()))
    assert built.manifest["rows"] == {"bad_address": 3, "bad_row": 1, "empty_caption": 1, "same_address": AGAIN, "used": sum(count for count, _ in WEB.values())}
    assert sum(built.manifest["rows"].values()) == 500
    assert sum(built.manifest["images"].values()) == built.manifest["rows"]["used"]
    assert sum(built.manifest["samples"].values()) == wanted["written"] == sum(shard["samples"] for shard in built.manifest["shards"])
    assert built.manifest["kind"] == "addresses"
    assert f"{built.manifest['samples']['train']} samples to train on" in built.said
    assert "left out: http_404 48" in built.said


def test_only_the_shards_and_their_manifest_remain(built: Built) -> None:
    assert sorted(path.name for path in built.out.iterdir()) == sorted(["manifest.json", *(shard["name"] for shard in built.manifest["shards"])])
    assert [shard["name"] for shard in built.manifest["shards"]] == ["val-000000.tar", *(f"train-{number:06d}.tar" for number in range(5))]


def test_a_sample_is_the_bytes_as_they_came_under_the_number_of_its_line(built: Built) -> None:
    given = find_addresses(built.out.parent / "cc3m.tsv")
    assert given is not None
    wanted = {f"{row.number:09d}": row for row in given if row.number <= 480 and WEB[row.address.split("/")[-2]][1] == "written"}
    found = samples(built.out)
    assert sorted(found) == sorted(wanted)
    for key, members in found.items():
        kind, name = wanted[key].address.split("/")[-2:]
        number = int(name.partition(".")[0])
        suffix = kind if kind in ("png", "webp") else "jpg"
        size = {"large": (200, 100)}.get(kind, (48, 36))
        assert members[suffix] == picture(number, size, kind={"png": "PNG", "webp": "WEBP"}.get(kind, "JPEG"), orientation=6 if kind == "turned" else 1)
        record = json.loads(members["json"])
        again = [f"another word for {number}"] if kind == "good" and number < AGAIN else []
        assert record["captions"] == [f"{kind} number {number}", *again]
        assert record["url"] == wanted[key].address
        assert (record["width"], record["height"]) == (size[::-1] if kind == "turned" else size)


def test_a_killed_command_leaves_nobody_and_the_next_goes_on(built: Built) -> None:
    assert built.survivors == []
    assert built.before
    assert "going on after" in built.said
    finished = {key for name in built.before for key in samples(built.out, name)}
    assert finished
    given = find_addresses(built.out.parent / "cc3m.tsv")
    assert given is not None
    asked = {f"{row.number:09d}": built.asked["/" + "/".join(row.address.split("/")[-2:])] for row in given}
    assert {asked[key] for key in finished} == {1}


def test_the_shards_stream_and_a_run_trains_on_them(built: Built) -> None:
    data = module(built.out, val_shards="val-*.tar", cache=str(built.out.parent / "cache"))
    assert len(data) == built.manifest["samples"]["train"]
    assert len(data.val_index) == built.manifest["samples"]["val"]
    epoch = list(islice(data.train_dataloader(), len(data) // 8))
    assert len({key for step in epoch for key in step["pairs"].keys}) == 8 * len(epoch)
    assert data.report()["train"]["replaced"] == {}
    train = next(word for word in built.said.split("\n") if word.startswith("python train.py")).replace("'", "").split()[1:]
    small = ["size.dim=32", "size.heads=2", "size.depth=2", "size.image=32", "size.vocab=300", "data.batch=16", "data.workers=0", "evals=[]", "total=2_steps"]
    where = [f"run_dir={built.out.parent / 'run'}", f"paths.cache={built.out.parent / 'cache'}"]
    run = subprocess.run([sys.executable, *train, *small, *where], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr
    assert "step 2/2" in run.stdout + run.stderr


def test_a_finished_list_is_not_fetched_again(built: Built, python: Path) -> None:
    addresses = find_addresses(built.out.parent / "cc3m.tsv")
    assert addresses is not None
    settings = Packing(val=40, samples_per_shard=100)
    assert download(addresses, built.out, settings, Fetching(), cache=Path("nowhere"), own=Path("nowhere")) == built.manifest
    with pytest.raises(DataError, match=r"holds .* of another source"):
        download(addresses, built.out, Packing(val=41, samples_per_shard=100), Fetching(), cache=Path("nowhere"))


def test_a_dead_network_is_said_and_the_next_try_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("".join(f"word {number}\thttp://127.0.0.1:9/{number}.jpg\n" for number in range(3)))
    addresses = find_addresses(tmp_path / "list.tsv")
    assert addresses is not None
    work = tmp_path / "out" / "download"
    draw_up(addresses, Packing()).write_lists(addresses, work)
    for name in ("raw", "done"):
        (work / name).mkdir()
    (work / "raw" / "0000000_stats.json").write_text("{}")
    (work / "done" / "0000000.json").write_text(json.dumps({"outcomes": {"no_connection": 3}, "shard": None}))
    with pytest.raises(DataError, match=r"not one of 3 addresses gave an image to train on \(no_connection 3\)"):
        download(addresses, tmp_path / "out", Packing(), Fetching(), cache=tmp_path)
    assert not (work / "raw").exists() and not (work / "done").exists()


# What img2dataset leaves of a shard, made by hand: 8 rows, of which one is in none of its counts.
STATISTICS = {"count": 8, "successes": 4, "status_dict": {"success": 4, "HTTP Error 404: Not Found": 2, "timed out": 1}}
PART = Part("0000000", "train", "train-000000.tar", 8)


def raw(out: Path) -> None:
    """The list, the tar and the statistics of `PART`."""
    work = out / "download"
    for name in ("lists", "raw", "done"):
        (work / name).mkdir(parents=True, exist_ok=True)
    lines = [{"url": f"http://a.example/{n}.jpg", "row": n, "captions": [f"word {n}"]} for n in range(1, 9)]
    (work / "lists" / "0000000.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    came = {5: picture(5), 2: picture(2), 7: PAGE, 3: b""}
    members = [(f"0000000{at:03d}.{suffix}", content) for at, body in came.items() for suffix, content in (("jpg", body), ("json", json.dumps({"row": at}).encode()))]
    (work / "raw" / "0000000.tar").write_bytes(tar_bytes(members))
    (work / "raw" / "0000000_stats.json").write_text(json.dumps(STATISTICS))


def test_the_counts_of_a_part_sum_to_its_addresses(tmp_path: Path) -> None:
    raw(tmp_path)
    receipt = pack_part(PART, tmp_path, Packing())
    assert receipt is not None
    assert receipt["outcomes"] == {"http_404": 2, "timeout": 1, "written": 2, "not_an_image": 1, "empty_image": 1, "fetch_error": 1}
    assert receipt["shard"]["samples"] == receipt["shard"]["captions"] == 2
    assert list(samples(tmp_path)) == ["000000002", "000000005"]  # in the order of the list, not in that of arrival
    first = (tmp_path / "train-000000.tar").read_bytes()
    assert pack_part(PART, tmp_path, Packing()) == receipt
    assert (tmp_path / "train-000000.tar").read_bytes() == first


def test_images_are_reduced_keeping_their_ratio_and_upright(tmp_path: Path) -> None:
    raw(tmp_path)
    tar = [("1.jpg", picture(1, (200, 100), orientation=6)), ("1.json", b'{"row": 1}')]
    (tmp_path / "download" / "raw" / "0000000.tar").write_bytes(tar_bytes(tar))
    (tmp_path / "download" / "raw" / "0000000_stats.json").write_text('{"status_dict": {"success": 1}}')
    assert pack_part(PART, tmp_path, Packing(short_side=40)) is not None
    record = json.loads(samples(tmp_path)["000000001"]["json"])
    assert (record["width"], record["height"]) == (40, 80)


def test_what_is_not_whole_is_not_packed(tmp_path: Path) -> None:
    raw(tmp_path)
    place = tmp_path / "download" / "raw"
    more = json.dumps({**STATISTICS, "status_dict": {"success": 5}}).encode()
    cut = (place / "0000000.tar").read_bytes()[:-11000]
    for name, content in (("0000000.tar", cut), ("0000000_stats.json", b'{"count": 8, "stat'), ("0000000_stats.json", more)):
        raw(tmp_path)
        (place / name).write_bytes(content)
        assert pack_part(PART, tmp_path, Packing()) is None
    (place / "0000000_stats.json").unlink()
    assert pack_part(PART, tmp_path, Packing()) is None
    assert list(tmp_path.glob("*.tar")) == []


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.", "http_302"),
        ("timed out", "timeout"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error _ssl.c:990: The handshake operation timed out>", "timeout"),
        ("<urlopen error [Errno 110] Connection timed out>", "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", "no_host"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "no_host"),
        ("<urlopen error [Errno 8] nodename nor servname provided, or not known>", "no_host"),
        ("<urlopen error [Errno 111] Connection refused>", "no_connection"),
        ("<urlopen error [Errno 101] Network is unreachable>", "no_connection"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)>", "tls_error"),
        ("Remote end closed connection without response", "cut_off"),
        ("IncompleteRead(532 bytes read, 533 more expected)", "cut_off"),
        ("[Errno 104] Connection reset by peer", "cut_off"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("too many bytes, at most 33554432", "too_many_bytes"),
        ("<urlopen error unknown url type: ftp>", "bad_address"),
        ("something new", "fetch_error"),
    ],
)
def test_each_way_to_fail_has_its_word(message: str, word: str) -> None:
    assert reason(message) == word


def test_a_download_has_a_size_and_an_end(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"seconds": 1, "bytes": 1100, "download": {}}))
    ask = """
import runpy, sys, time, urllib.request
sys.argv[1:] = sys.argv[2:]
runpy.run_path(LAUNCHER, run_name="__mp_main__")
for address in sys.argv[2:]:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(address, timeout=1) as answer:
            said = f"{len(answer.read())} bytes"
    except Exception as error:
        said = str(error)
    print(said, "soon" if time.monotonic() - began < 4 else "late")
""".replace("LAUNCHER", repr(str(LAUNCHER)))
    with web() as (base, _):
        kinds = ("good", "moved", "large", "trickle", "silent", "cutoff", "empty")
        addresses = [f"{base}/{kind}/1.jpg" for kind in kinds] + ["file:///etc/passwd", "ftp://127.0.0.1/1.jpg"]
        run = subprocess.run([sys.executable, "-I", "-c", ask, "-", str(tmp_path / "settings.json"), *addresses], capture_output=True, text=True, timeout=60)
    size = len(picture(1))
    assert size < 1100 < len(picture(1, (200, 100)))
    assert run.stdout.splitlines() == [
        f"{size} bytes soon", f"{size} bytes soon", "too many bytes, at most 1100 soon", "timed out soon", "timed out soon",
        f"IncompleteRead({size // 2} bytes read, {size - size // 2} more expected) soon", "0 bytes soon",
        "<urlopen error unknown url type: file> soon", "<urlopen error unknown url type: ftp> soon",
    ], run.stderr  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list.tsv", "out", "--img2dataset", "nowhere"), "--img2dataset nowhere is no environment with img2dataset: "),
        (("list.tsv", "out", "--timeout", "0"), "--timeout is 0; it can be 1 to 3600"),
        (("list.tsv", "out", "--threads", "9999"), "--threads is 9999"),
        (("list.tsv", "out[1]"), "which img2dataset takes for patterns; choose another folder"),
        (("list.tsv", "out", "--val", "3"), "leaves nothing to train on: there are 3 addresses"),
        (("list.tsv", "list.tsv/out"), "cannot write"),
        (("bare.txt", "out"), "holds addresses without captions"),
        (("list.tsv", "out", "--split", "val"), "--split does not go with a list of addresses"),
        (("files.tsv", "out", "--kind", "addresses"), "files.tsv is no list of addresses"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_two(
    tmp_path: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.tsv").write_text("".join(f"word\thttp://127.0.0.1:9/{number}.jpg\n" for number in range(3)))
    (tmp_path / "files.tsv").write_text("image\tcaption\n1.jpg\ta cat\n")
    (tmp_path / "bare.txt").write_text("http://127.0.0.1:9/1.jpg\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import build_shards

    assert build_shards.main(list(words)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_two_runs_do_not_meet_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("word\thttp://127.0.0.1:9/1.jpg\n")
    addresses = find_addresses(tmp_path / "list.tsv")
    assert addresses is not None
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is at work in"):
            download(addresses, tmp_path, Packing(), Fetching(), cache=tmp_path)
    finally:
        os.close(descriptor)


def test_without_a_package_index_the_way_by_hand_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "uv")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=r"cannot make an environment for img2dataset in .*pip install .*--img2dataset"):
        environment(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
