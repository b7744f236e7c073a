"""Shards of other machines are the shards they would be here: same samples, same order, whatever the server does on the way."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hydra.core.override_parser.overrides_parser import OverridesParser
from inspecting import Run
from shards import jpeg, never, pair, tar_bytes, write_shards
from webserver import (
    Reply,
    Server,
    asks_for_patience,
    away,
    busy,
    cut,
    denied,
    drips,
    flipped,
    page,
    silent,
    stalls,
    without_ranges,
)  # fmt: skip

from vlpkit.data import place, wire
from vlpkit.data.decode import Refused
from vlpkit.data.index import Index, build_index
from vlpkit.data.published import write_index
from vlpkit.data.reader import LocalStore, Reader
from vlpkit.data.remote import Remote
from vlpkit.data.shardlist import expand, quoted
from vlpkit.errors import DataError, MissingExtra

SIZES = [4, 3, 5]
THREE = "train-{000..002}.tar"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves three shards."""
    write_shards(tmp_path / "served", SIZES)
    with Server(tmp_path / "served") as found:
        yield found
        found.close()


def remote(folder: Path, *, timeout: float = 5.0, tries: int = 3, **options: Any) -> Remote:
    return Remote(folder / "cache", timeout=timeout, tries=tries, sleep=never, **options)


def index_of(server: Server, folder: Path, *, shards: str = THREE, max_bad_share: float = 0.0, opener: Remote | None = None) -> Index:
    return build_index(expand(f"{server.url}/{shards}", "."), cache=folder / "cache", max_bad_share=max_bad_share, remote=opener or remote(folder))


def reader(server: Server, folder: Path, **options: Any) -> Reader:
    """Of indexed shards whose copies are gone, so that each has to be fetched."""
    index = index_of(server, folder)
    for path in (folder / "cache" / "shards").glob("*.tar"):
        path.unlink()
    server.fetched.clear()
    server.seen.clear()
    return Reader(index, store=LocalStore(remote(folder, **options).open), sleep=never)


def contents(found: Reader) -> list[tuple[str, dict[str, bytes]]]:
    return [(found.index.key(number), found.read(number)) for number in range(len(found.index))]


def expected() -> list[tuple[str, dict[str, bytes]]]:
    return [(f"{number:06d}", {"jpg": jpeg(number), "txt": b"a picture of number %d" % number}) for number in range(sum(SIZES))]


# addresses


@pytest.mark.parametrize(
    ("where", "shown", "name"),
    [
        ("/data/a.tar", "/data/a.tar", "a.tar"),
        ("s3://bucket/cc3m/a.tar", "s3://bucket/cc3m/a.tar", "a.tar"),
        ("https://me:secret@host:8000/x/a%20b.tar", "https://host:8000/x/a%20b.tar", "a b.tar"),
        ("https://host/a.tar?X-Amz-Signature=secret&X-Amz-Expires=60", "https://host/a.tar?***", "a.tar"),
        ("https://host/get?file=3&token=secret", "https://host/get?***", "get?file=3"),
    ],
)
def test_an_address_is_shown_without_secrets_and_named_as_its_file(where: str, shown: str, name: str) -> None:
    assert (place.shown(where), place.name(where)) == (shown, name)
    assert "secret" not in place.identity(where)


def test_an_address_that_is_signed_anew_is_the_same_one() -> None:
    one, two = (f"https://host/a.tar?X-Goog-Signature={word}&Expires=1" for word in ("a", "b"))
    assert place.digest(one) == place.digest(two) == place.digest("https://host/a.tar")
    assert place.digest("https://host/get?file=3") != place.digest("https://host/get?file=4")


def test_runs_of_missing_numbers_are_written_as_ranges() -> None:
    names = [f"/d/x-{number:03d}.tar" for number in (2, 3, 4, 7, 9, 10, 12)]
    assert place.folded(names) == "/d/x-{002..004}.tar, /d/x-007.tar, /d/x-{009..010}.tar and 1 more"
    assert place.folded([f"s3://b/{number}.tar" for number in range(8, 12)]) == "s3://b/{8..11}.tar"
    assert place.folded(["one.tar", "two.tar"]) == "one.tar, two.tar"


# the shard list


def test_addresses_and_paths_stand_in_one_list_in_the_order_given(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [1])
    found = expand(["https://host/a-{1..2}.tar::train-*.tar", "http://[::1]:80/b.tar::http://h/c.tar", f"file://{path[:-7]}000.tar"][:2], str(tmp_path))
    assert found == ["https://host/a-1.tar", "https://host/a-2.tar", path, "http://[::1]:80/b.tar", "http://h/c.tar"]
    assert expand(f"file://{path}", "/elsewhere") == [path]


def test_names_are_relative_to_a_root_elsewhere_but_absolute_paths_are_not(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [1])
    assert expand(["cc3m/{0..1}.tar", path, "http://h/x.tar"], "https://host/data/") == ["https://host/data/cc3m/0.tar", "https://host/data/cc3m/1.tar", path, "http://h/x.tar"]


def test_a_pattern_is_looked_up_where_the_store_can_list() -> None:
    store = MemoryFileSystem()
    for name in ("b-001.tar", "b-000.tar", "note.txt"):
        store.pipe_file(f"/listed/{name}", b"x")
    assert expand("memory://listed/*.tar", ".") == ["memory:///listed/b-000.tar", "memory:///listed/b-001.tar"]
    with pytest.raises(DataError, match=r"^data\.shards: 'memory://listed/c-\*\.tar' matches nothing"):
        expand("memory://listed/c-*.tar", ".")


def test_a_pattern_on_a_web_server_needs_an_index_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.shards: 'http://.*/train-\*\.tar' is a pattern, and a web server cannot be asked for its files\. .*brace range.*shards\.index"):
        expand(f"{server.url}/train-*.tar", ".")
    write_index([str(server.folder / f"train-{number:03d}.tar") for number in range(3)])
    assert expand(f"{server.url}/train-*.tar", ".") == [f"{server.url}/train-{number:03d}.tar" for number in range(3)]
    with pytest.raises(DataError, match=r"val-\*\.tar' matches nothing"):
        expand(f"{server.url}/val-*.tar", ".")


@pytest.mark.parametrize(
    ("shards", "kind", "message"),
    [
        ("s3://bucket/{000..009}.tar", MissingExtra, r"^data\.shards: s3://bucket/000\.tar: s3:// needs s3fs: pip install 'vlpkit\[s3\]'$"),
        ("gs://bucket/*.tar", MissingExtra, r"gs:// needs gcsfs: pip install 'vlpkit\[gcs\]'$"),
        ("htps://host/a.tar", DataError, r"^data\.shards: htps://host/a\.tar: nothing is known that reads htps:// addresses\. Did you mean 'https'\?"),
        ("pipe:curl https://host/a.tar", DataError, r"^data\.shards: 'pipe:.*' would run a shell command, .*Name what the command reads: https://"),
        ("https://me:secret@host/{3..1}.tar", DataError, r"'https://host/\{3\.\.1\}\.tar' runs backwards"),
        ("https://me:secret@host/{1.tar?sig=secret", DataError, r"unbalanced brace in 'https://host/\{1\.tar\?\*\*\*'"),
        ("https://me:secret@h/a.tar::https://me:secret@h/a.tar", DataError, r"names 1 shard more than once, the first: https://h/a\.tar"),
    ],
)
def test_addresses_that_nobody_can_read_are_refused_at_once(shards: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpkit.data.stores.find_spec", lambda name: None)  # as on a machine without them
    with pytest.raises(kind, match=message) as refused:
        expand(shards, ".")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "hydra"),
    [
        ("data.shards=https://host/cc3m/{00000..00331}.tar", 'data.shards="https://host/cc3m/{00000..00331}.tar"'),
        ("data.shards=cc3m/{0,1}.tar", 'data.shards="cc3m/{0,1}.tar"'),
        ("data.val_shards=https://h/a.tar?sig=x&part=1", 'data.val_shards="https://h/a.tar?sig=x&part=1"'),
        ("data.shards=[s3://b/{0,1}.tar,x.tar]", 'data.shards=["s3://b/{0,1}.tar","x.tar"]'),
        ("data.shards=a-{0..1}.tar,http://h/b.tar", 'data.shards="a-{0..1}.tar","http://h/b.tar"'),
        ("+data.sources.texts.shards='gs://b/*.tar'", "+data.sources.texts.shards='gs://b/*.tar'"),
        ("data.shards=*.tar", "data.shards=*.tar"),
        ("data.root=https://host", "data.root=https://host"),
    ],
)
def test_shards_are_named_on_the_command_line_as_they_are(typed: str, hydra: str) -> None:
    assert quoted(typed) == hydra
    OverridesParser.create().parse_override(hydra)


# the index


def test_remote_shards_have_the_samples_and_the_fingerprint_of_the_same_files_here(server: Server, tmp_path: Path) -> None:
    opener = remote(tmp_path)
    found = index_of(server, tmp_path, opener=opener)
    here = build_index(expand(str(server.folder / THREE), "."), cache=None)
    assert found.fingerprint == here.fingerprint
    assert contents(Reader(found, store=LocalStore(opener.open))) == contents(Reader(here)) == expected()
    assert server.fetched == {f"/train-{number:03d}.tar": 1 for number in range(3)} | {"/shards.index": 1, "/manifest.json": 1}


def test_local_and_remote_shards_stand_in_one_index(server: Server, tmp_path: Path) -> None:
    opener = remote(tmp_path)
    paths = expand([f"{server.url}/train-000.tar", str(server.folder / "train-001.tar"), f"{server.url}/train-002.tar"], ".")
    found = build_index(paths, cache=tmp_path / "cache", remote=opener)
    assert contents(Reader(found, store=LocalStore(opener.open))) == expected()


def test_a_second_start_asks_for_sizes_and_fetches_nothing(server: Server, tmp_path: Path) -> None:
    first = index_of(server, tmp_path)
    asked = sum(server.asked.values())
    server.fetched.clear()
    again = index_of(server, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert (sum(server.asked.values()) - asked, sum(server.fetched.values())) == (3, 0)


def test_an_index_beside_the_shards_saves_fetching_them(server: Server, tmp_path: Path) -> None:
    here = expand(str(server.folder / THREE), ".")
    assert write_index(here) == server.folder / "shards.index"
    found = index_of(server, tmp_path)
    assert found.fingerprint == build_index(here, cache=None).fingerprint
    assert server.fetched == {"/shards.index": 1}
    assert contents(Reader(found, store=LocalStore(remote(tmp_path).open))) == expected()
    assert all(shard.sha256 for shard in found.shards)


def test_the_command_writes_the_index_beside_the_shards(server: Server, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("index", server.folder / "*.tar")
    assert (code, re.sub(r"\d+ bytes", "N bytes", out)) == (0, f"{server.folder}/shards.index: 3 shards, N bytes\n")
    assert len(index_of(server, tmp_path)) == 12
    assert server.fetched == {"/shards.index": 1}
    write_shards(tmp_path / "other", [1], prefix="x")
    code, _, err = run("index", server.folder / "*.tar", tmp_path / "other" / "*.tar")
    assert (code, err.startswith("inspect_shards: shards.index speaks of the shards of one folder, and these lie in 2: ")) == (2, True)


def test_a_damaged_index_beside_the_shards_is_left_aside(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_index(expand(str(server.folder / THREE), "."))
    body = file.read_bytes()
    file.write_bytes(body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])
    assert len(index_of(server, tmp_path)) == 12
    assert re.search(r"shards\.index is left aside: its sha256 is not the one it names", caplog.text)


def test_an_index_beside_the_shards_that_is_of_another_time_is_named(server: Server, tmp_path: Path) -> None:
    write_index(expand(str(server.folder / THREE), "."))
    (server.folder / "train-001.tar").write_bytes(tar_bytes([*pair(4), *pair(5), *pair(6), ("x.txt", bytes(20_000))]))
    with pytest.raises(DataError, match=r"1 of 3 shards are damaged(.|\n)*train-001\.tar: index_disagrees \(\d+ bytes in shards\.index, \d+ in the shard: .*inspect_shards\.py index"):
        index_of(server, tmp_path)
    assert len(index_of(server, tmp_path, max_bad_share=0.5)) == 9


def test_a_manifest_beside_the_shards_tells_what_their_bytes_must_be(server: Server, tmp_path: Path) -> None:
    stat = {f"train-{number:03d}.tar": (server.folder / f"train-{number:03d}.tar").stat().st_size for number in range(3)}
    shards = [{"name": name, "samples": samples, "bytes": size, "sha256": "0" * 64} for samples, (name, size) in zip(SIZES, stat.items())]
    (server.folder / "manifest.json").write_text(json.dumps({"shards": shards[:1]}))
    with pytest.raises(DataError, match=r"1 of 3 shards are damaged(.|\n)*train-000\.tar: shard_altered \(its sha256 is [0-9a-f]{12}\.\.\. instead of 000000000000\.\.\.\)"):
        index_of(server, tmp_path)
    assert server.fetched["/train-000.tar"] == 3  # as often as one tries
    (server.folder / "manifest.json").write_text(json.dumps({"shards": [{**shards[0], "bytes": 17}]}))
    with pytest.raises(DataError, match=r"train-000\.tar: manifest_disagrees \(17 bytes in manifest\.json, \d+ in the shard"):
        index_of(server, tmp_path)


def test_a_shard_that_the_server_has_replaced_is_indexed_anew(server: Server, tmp_path: Path) -> None:
    first = index_of(server, tmp_path)
    old = (server.folder / "train-001.tar").read_bytes()
    (server.folder / "train-001.tar").write_bytes(old.replace(b"000004", b"000044").replace(b"number 4", b"number 7"))
    for name in ("000044.jpg", "000044.txt"):
        assert name.encode() in (server.folder / "train-001.tar").read_bytes()
    (server.folder / "train-001.tar").write_bytes(tar_bytes([(f"{int(name[:6]) + 40:06d}{name[6:]}", body) for name, body in pair(4) + pair(5) + pair(6)]))
    assert (server.folder / "train-001.tar").stat().st_size == len(old)
    again = index_of(server, tmp_path)
    assert [again.key(number) for number in range(4, 7)] == ["000044", "000045", "000046"]
    assert again.fingerprint != first.fingerprint
    assert server.fetched["/train-000.tar"] == 1


def test_missing_numbers_of_a_range_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.shards: 4 of 7 shards are missing: http://.*/train-\{003\.\.006\}\.tar\. Put them there, or leave them out"):
        index_of(server, tmp_path, shards="train-{000..006}.tar")


def test_a_server_that_is_not_there_is_named_before_long(tmp_path: Path) -> None:
    then = time.monotonic()
    with pytest.raises(DataError, match=r"^data\.shards: http://127\.0\.0\.1:9/0\.tar cannot be read: Connection refused\. Look at the address, the network and the credentials"):
        build_index(expand("http://127.0.0.1:9/{0..500}.tar", "."), cache=tmp_path, remote=remote(tmp_path))
    assert time.monotonic() - then < 5


def test_shards_that_may_not_be_read_are_not_asked_for_again_and_again(server: Server, tmp_path: Path) -> None:
    server.always = {f"/train-{number:03d}.tar": denied for number in range(3)}
    with pytest.raises(DataError, match=r"train-000\.tar cannot be read: the server answers 403 Forbidden"):
        index_of(server, tmp_path)
    assert server.asked["/train-000.tar"] == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (page, r"shard_changed \(a web page is sent in place of the file\)"),
        (busy, r"shard_unreachable \(the server answers 503 Service Unavailable\)"),
        (denied, r"shard_unreachable \(the server answers 403 Forbidden\)"),
    ],
)
def test_one_shard_that_is_none_counts_as_damaged(server: Server, tmp_path: Path, reply: Reply, words: str) -> None:
    server.always["/train-001.tar"] = reply
    with pytest.raises(DataError, match=rf"1 of 3 shards are damaged, (.|\n)*http://.*train-001\.tar: {words}"):
        index_of(server, tmp_path)
    assert len(index_of(server, tmp_path, max_bad_share=0.5)) == 9


def test_a_web_page_under_the_name_of_a_shard_is_damaged_there_as_here(server: Server, tmp_path: Path) -> None:
    (server.folder / "train-001.tar").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    with pytest.raises(DataError, match=r"train-001\.tar: html_page \("):
        index_of(server, tmp_path)


def test_a_cut_tar_is_as_damaged_there_as_here(server: Server, tmp_path: Path) -> None:
    os.truncate(server.folder / "train-001.tar", 1500)
    with pytest.raises(DataError, match=r"train-001\.tar: truncated \("):
        index_of(server, tmp_path)


def test_a_table_that_has_gone_is_made_again_from_the_shard(server: Server, tmp_path: Path) -> None:
    opener = remote(tmp_path)
    index = index_of(server, tmp_path, opener=opener)
    for file in (tmp_path / "cache" / "index").glob("*.table"):
        file.unlink()
    assert contents(Reader(index, store=LocalStore(opener.open))) == expected()


def test_tables_stay_in_memory_where_no_file_can_hold_them(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index").write_text("in the way")
    opener = remote(tmp_path)
    assert contents(Reader(index_of(server, tmp_path, opener=opener), store=LocalStore(opener.open))) == expected()


def test_a_cache_too_small_for_the_window_is_refused_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.cache_bytes=30000 is too small for data\.shards: data\.window=2 shards are read at a time .* 3 largest have \d+ bytes"):
        index_of(server, tmp_path, opener=remote(tmp_path, window=2, limit=30_000))
    assert not server.fetched


# fetching


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        ([busy, busy], 3),
        ([asks_for_patience], 2),
        ([stalls(3000)], 2),
        ([silent], 2),
        ([drips], 2),
        ([cut(3000)], 2),
        ([cut(0), cut(0)], 3),
        ([cut(3000), without_ranges], 2),
        ([page], 2),
        ([flipped], 2),
        ([cut(3000), flipped], 3),
    ],
    ids=["busy twice", "patience", "stall", "silence", "drip", "cut", "cut at once", "cut, then all again", "page", "flipped bit", "cut, then flipped"],
)
def test_a_server_that_fails_for_a_while_costs_time_but_no_sample(server: Server, tmp_path: Path, script: list[Reply], requests: int) -> None:
    found = reader(server, tmp_path, timeout=0.3)
    server.script["/train-001.tar"].extend(script)
    assert contents(found) == expected()
    assert server.fetched == {"/train-000.tar": 1, "/train-001.tar": requests, "/train-002.tar": 1}
    assert not list((tmp_path / "cache" / "shards").glob("*.part"))


def test_a_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    found = reader(server, tmp_path)
    server.script["/train-000.tar"].append(cut(5000))
    found.read(0)
    tag = found.index.shards[0].version
    assert [headers.get("Range") for _, headers in server.seen] == [None, "bytes=5000-"]
    assert server.seen[1][1]["If-Range"] == tag != ""


@pytest.mark.parametrize(
    ("reply", "reason", "words"),
    [
        (busy, "shard_unreachable", "the server answers 503"),
        (silent, "shard_unreachable", "no answer in time"),
        (stalls(3000), "shard_unreachable", "no answer in time"),
        (drips, "shard_unreachable", r"only \d+ bytes in \d+ seconds"),
        (cut(3000), "shard_unreachable", r"3000 of \d+ bytes came"),
        (denied, "shard_unreachable", "the server answers 403"),
        (page, "shard_changed", r"34 bytes of a web page are sent in place of \d+"),
        (flipped, "shard_altered", r"its sha256 is [0-9a-f]{12}\.\.\. instead of [0-9a-f]{12}"),
        (lambda handler, body: handler.answer(404, b""), "shard_missing", "the server answers 404 Not Found"),
        (lambda handler, body: handler.answer(200, body + bytes(512)), "shard_changed", r"\d+ bytes are sent in place of \d+"),
    ],
    ids=["busy", "silent", "stalls", "drips", "cut", "denied", "page", "flipped", "gone", "longer"],
)
def test_a_shard_that_never_comes_is_refused_by_its_reason_and_left_alone(server: Server, tmp_path: Path, reply: Reply, reason: str, words: str) -> None:
    found = reader(server, tmp_path, timeout=0.15)
    server.always["/train-001.tar"] = reply
    for number in (4, 5):
        with pytest.raises(Refused, match=rf"{server.url}/train-001\.tar: {words}") as refused:
            found.read(number)
        assert refused.value.reason == reason
    assert server.fetched["/train-001.tar"] <= 3  # nobody asks for the second sample
    assert [path.name[:32] for path in (tmp_path / "cache" / "shards").glob("*.*") if path.suffix != ".lock"] == []
    assert found.read(7)["jpg"] == jpeg(7)


def test_a_shard_that_is_back_is_read_again_after_a_rest(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reader(server, tmp_path)
    server.always["/train-001.tar"] = busy
    with pytest.raises(Refused):
        found.read(4)
    server.always.clear()
    with pytest.raises(Refused):
        found.read(4)
    monkeypatch.setattr("vlpkit.data.remote._REST", 0.0)
    now = time.monotonic() + 301
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert found.read(4)["jpg"] == jpeg(4)


def test_progress_is_worth_another_try_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    big = [("000000.jpg", jpeg(0)), ("000000.txt", b"x"), ("000000.bin", os.urandom(5 << 20))]
    (server.folder / "train-000.tar").write_bytes(tar_bytes(big))
    found = reader(server, tmp_path, tries=2)

    def a_part(handler: Any, body: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        tag = {"span": f"bytes {start}-{len(body) - 1}/{len(body)}", "tag": found.index.shards[0].version}
        handler.answer(206 if start else 200, body[start : start + (3 << 19)], length=len(body) - start, **tag)

    server.always["/train-000.tar"] = a_part
    assert found.read(0)["bin"] == big[2][1]
    assert server.fetched["/train-000.tar"] == 4  # of 1.5 MiB each


def test_pauses_grow_are_bounded_differ_and_heed_the_server(server: Server, tmp_path: Path) -> None:
    for attempt, longest in ((1, 0.5), (2, 1.0), (5, 8.0), (12, 60.0), (40, 60.0)):
        pauses = {wire.pause(attempt, OSError()) for _ in range(20)}
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(pauses) > 10
    slept: list[float] = []
    index = index_of(server, tmp_path)
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()
    server.script["/train-000.tar"].extend([asks_for_patience, busy])
    Reader(index, store=LocalStore(Remote(tmp_path / "cache", sleep=slept.append).open)).read(0)
    assert len(slept) == 2
    assert (slept[0], 0.5 <= slept[1] <= 1.0) == (7.0, True)


def test_an_interrupted_question_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.asking["/train-001.tar"].extend([busy, page])
    server.asking["/train-002.tar"].append(cut(0))
    server.script["/shards.index"].append(busy)
    assert len(index_of(server, tmp_path)) == 12


# secrets


def test_passwords_and_signatures_are_sent_and_never_told(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = f"http://me:p%40ss-secret@127.0.0.1:{server.server_address[1]}/train-{{000..002}}.tar?X-Amz-Signature=sig-secret"
    opener = remote(tmp_path)
    index = build_index(expand(address, "."), cache=tmp_path / "cache", remote=opener)
    found = Reader(index, store=LocalStore(opener.open))
    assert contents(found) == expected()
    assert {headers["Authorization"] for _, headers in server.seen} == {"Basic bWU6cEBzcy1zZWNyZXQ="}
    assert all(path.endswith("?X-Amz-Signature=sig-secret") for path, _ in server.seen)
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()
    server.always = {f"/train-{number:03d}.tar": reply for number, reply in enumerate((busy, flipped, denied))}
    words = []
    for number in (0, 4, 7):
        with pytest.raises(Refused) as refused:
            Reader(index, store=LocalStore(opener.open)).read(number)
        words.append(str(refused.value))
    with pytest.raises(DataError) as stopped:
        build_index(expand(address.replace("002", "004"), "."), cache=tmp_path / "fresh", remote=remote(tmp_path))
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in "".join(words) + str(stopped.value) + caplog.text
    assert b"secret" not in on_disk


def test_a_password_is_not_passed_on_to_where_a_server_sends_us(server: Server, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Server(tmp_path / "other") as front:
        front.always["/train-000.tar"] = away(f"{server.url}/train-000.tar")
        address = f"http://me:secret@127.0.0.1:{front.server_address[1]}/train-000.tar"
        assert len(build_index([address], cache=tmp_path / "cache", remote=remote(tmp_path))) == 4
        front.close()
    assert {headers.get("Authorization") for path, headers in server.seen if path == "/train-000.tar"} == {None}


# other stores


class Odd(MemoryFileSystem):
    """A store whose files can be told to stall."""

    protocol = "odd"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    stalls = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("odd://", "memory://"))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            time.sleep(Odd.stalls)
        return super().open(path, mode, **options)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[type[Odd]]:
    fsspec.register_implementation("odd", Odd, clobber=True)
    Odd.stalls, Odd.store = 0.0, {}
    for path in write_shards(tmp_path / "odd", SIZES):
        Odd().pipe_file(f"/bucket/{os.path.basename(path)}", Path(path).read_bytes())
    yield Odd
    Odd.stalls = 0.0


def test_any_store_that_fsspec_reads_will_do(odd: type[Odd], tmp_path: Path) -> None:
    opener = remote(tmp_path)
    index = build_index(expand("odd://bucket/train-*.tar", "."), cache=tmp_path / "cache", remote=opener)
    assert contents(Reader(index, store=LocalStore(opener.open))) == expected()
    assert index.fingerprint == build_index(expand(str(tmp_path / "odd" / THREE), "."), cache=None).fingerprint
    with pytest.raises(DataError, match=r"2 of 5 shards are missing: odd://bucket/train-\{003\.\.004\}\.tar"):
        build_index(expand("odd://bucket/train-{000..004}.tar", "."), cache=tmp_path / "cache", remote=opener)


def test_a_store_that_stalls_is_left(odd: type[Odd], tmp_path: Path) -> None:
    index = build_index(expand(f"odd://bucket/{THREE}", "."), cache=tmp_path / "cache", remote=remote(tmp_path))
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()
    odd.stalls = 0.5
    then = time.monotonic()
    with pytest.raises(Refused, match=r"odd://bucket/train-000\.tar: nothing in 0\.1 seconds"):
        Reader(index, store=LocalStore(remote(tmp_path, timeout=0.1, tries=2).open)).read(0)
    assert time.monotonic() - then < 2


def test_a_store_that_changes_a_file_without_a_word_is_found_out(odd: type[Odd], tmp_path: Path) -> None:
    index = build_index(expand(f"odd://bucket/{THREE}", "."), cache=tmp_path / "cache", remote=remote(tmp_path))
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()
    body = bytearray((tmp_path / "odd" / "train-000.tar").read_bytes())
    body[700] ^= 1
    odd().pipe_file("/bucket/train-000.tar", bytes(body))
    with pytest.raises(Refused, match=r"its sha256 is") as refused:
        Reader(index, store=LocalStore(remote(tmp_path).open)).read(0)
    assert refused.value.reason == "shard_altered"


# processes


def test_what_opens_remote_shards_travels_to_another_process(server: Server, tmp_path: Path) -> None:
    found = reader(server, tmp_path)
    moved: Reader = pickle.loads(pickle.dumps(Reader(found.index, store=LocalStore(Remote(tmp_path / "cache").open))))
    assert contents(moved) == expected()


def test_a_store_that_is_done_with_closes_its_files(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, SIZES)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        contents(Reader(build_index(paths, cache=tmp_path / "cache")))
    assert len(os.listdir("/proc/self/fd")) == before
