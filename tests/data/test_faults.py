"""Every fault of the data is noticed, replaced without moving its neighbours, counted by its reason, and ends the run when there are too many."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from damage import BOMBS, ODD, WASHED, named, shard_damage
from shards import Members, jpeg, module, pair, tar_bytes, write_shards

from vlpkit.data.audit import Audit
from vlpkit.data.decode import Refused, read_caption
from vlpkit.data.durable import ShardFile
from vlpkit.data.faults import Fault
from vlpkit.data.index import Index, build_index
from vlpkit.data.module import DataModule
from vlpkit.data.order import Order
from vlpkit.data.reader import Reader
from vlpkit.data.share import divide
from vlpkit.errors import DataError

torch.set_num_threads(1)

PAIRS = 1000
BAD = {37 + 61 * n: (reason, named(37 + 61 * n, members)) for n, (reason, members) in enumerate(ODD.items())}  # sample faults by number


def epoch_of(data: DataModule) -> list[tuple[str, str, bytes]]:
    """Key, words and pixels of the samples of the first epoch, in order."""
    found = []
    for batch in islice(iter(data.train_dataloader()), PAIRS // data.batch):
        one = batch["pairs"]
        text, pixels = one.texts["clean"], one.images["clean"].pixels
        found += [(key, str(ids[mask].tolist()), image.numpy().tobytes()) for key, ids, mask, image in zip(one.keys, text.ids, text.mask, pixels)]
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 samples in ten shards with 17 faults: 14 samples, a repeated key, a key torn apart, a shard cut off. Beside it the same without a fault."""
    here = tmp_path_factory.mktemp("corpus")
    write_shards(here / "whole", [100] * 10)
    write_shards(here, [100] * 10, odd={number: members for number, (_, members) in BAD.items()})
    shards = {at: [member for number in range(100 * at, 100 * at + 100) for member in pair(number)] for at in (2, 4, 9)}
    for at in shards:
        shards[at] = [member for number in range(100 * at, 100 * at + 100) for member in (BAD[number][1] if number in BAD else pair(number))]
    twice, torn = shards[2] + [("000250.txt", b"another")], list(shards[4])
    torn.append(torn.pop(next(at for at, (name, _) in enumerate(torn) if name == "000470.txt")))
    (here / "train-002.tar").write_bytes(tar_bytes(twice))
    (here / "train-004.tar").write_bytes(tar_bytes(torn))
    cut = tar_bytes(shards[9] + pair(1000))
    (here / "train-009.tar").write_bytes(cut[: cut.index(b"001000.jpg") + 700])
    return here


@pytest.mark.parametrize("workers", [0, 2])
def test_seventeen_faults_in_a_thousand_samples_are_counted_exactly_and_the_rest_is_delivered(corpus: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data = module(corpus, max_bad_share=0.3, batch=50, workers=workers)
    with caplog.at_level(logging.INFO, logger="vlpkit"):
        found = epoch_of(data)
    report = data.report()
    assert report["train"]["replaced"] == dict.fromkeys(ODD, 1)
    assert report["damaged_shards"] == {"duplicate_key": 1, "scattered_key": 1, "truncated": 1}
    assert len(ODD) + len(report["damaged_shards"]) == 17
    assert (report["train"]["served"], report["train"]["read"], len(data)) == (1000, 1000 - len(ODD), 1000)
    whole = epoch_of(module(corpus / "whole", batch=50))
    wrong = {f"{number:06d}" for number in BAD}
    assert all((ours == theirs) == (theirs[0] not in wrong) for ours, theirs in zip(found, whole))
    assert not wrong & {key for key, _, _ in found}
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    assert line.startswith(f"epoch 0 of the data ends; on this rank 1000 samples due: {1000 - len(ODD)} read, {len(ODD)} replaced (")


# -- shards -----------------------------------------------------------------------------------------------------------------

THREE = pair(0) + pair(1) + pair(2) + pair(3) + pair(4)
WHOLE = tar_bytes(THREE)
DAMAGE = shard_damage(WHOLE, WHOLE.index(b"000002.jpg") // 512 * 512)


def said(folder: Path, payload: bytes, caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[Index, str]:
    """The index of three shards of five, the middle one damaged, and what was said of it."""
    paths = write_shards(folder, [5, 5, 5])
    Path(paths[1]).write_bytes(payload)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        index = build_index(paths, cache=None, max_bad_share=0.5, **options)
    return index, " ".join(record.getMessage() for record in caplog.records if paths[1] in record.getMessage())


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_shard_that_is_not_whole_passes_in_silence(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    payload, reason = DAMAGE[damage]
    index, words = said(tmp_path, payload, caplog)
    assert reason in words
    assert 10 <= len(index) <= 15
    read = Reader(index)
    assert {index.key(number) for number in range(len(index)) if read.read(number)} >= {f"{n:06d}" for n in (*range(5), *range(10, 15))}


@pytest.mark.parametrize("damage", ["cut at a header", "garbage in a header", "an empty tar"])
def test_webdataset_still_says_nothing_of_them(tmp_path: Path, damage: str) -> None:
    """The reason for an index; should this ever fail, the tables of this project can be shortened."""
    (tmp_path / "odd.tar").write_bytes(DAMAGE[damage][0])
    assert len(list(webdataset.WebDataset(str(tmp_path / "odd.tar"), shardshuffle=False, empty_check=False))) < 5


def packed(folder: Path, count: int = 5) -> Path:
    """A shard with its manifest, as the packer writes them."""
    folder.mkdir(exist_ok=True)
    shard = ShardFile(folder / "train-000000.tar")
    for number in range(count):
        shard.add(f"{number:06d}", {"jpg": jpeg(number), "txt": b"a picture of number %d" % number})
    (folder / "manifest.json").write_text(json.dumps({"shards": [shard.close()]}))
    return shard.path


def rot(path: Path) -> None:
    """Flip one bit of an image, as a disk does: neither size nor time stamp tell."""
    stat, payload = path.stat(), bytearray(path.read_bytes())
    payload[payload.index(b"\xff\xda") + 40] ^= 1
    path.write_bytes(payload)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("cache", [None, "cache"])
def test_a_flipped_bit_is_found_by_the_hash_that_was_taken_when_the_shard_was_written(tmp_path: Path, cache: str | None) -> None:
    path, folder = packed(tmp_path), None if cache is None else tmp_path / cache
    rot(path)
    assert build_index([str(path)], cache=folder).flaws == Counter()  # nothing else can tell
    with pytest.raises(DataError, match=rf"{path}: altered \(its sha256 is [0-9a-f]{{12}}\.\.\., where manifest\.json says"):
        build_index([str(path)], cache=folder, verify=True)


def test_a_shard_is_hashed_once_for_as_long_as_it_stays_the_same_file(tmp_path: Path) -> None:
    path = packed(tmp_path)
    build_index([str(path)], cache=tmp_path / "cache", verify=True)
    rot(path)
    build_index([str(path)], cache=tmp_path / "cache", verify=True)  # not read again
    os.utime(path)
    with pytest.raises(DataError, match="altered"):
        build_index([str(path)], cache=tmp_path / "cache", verify=True)


@pytest.mark.parametrize(("word", "value"), [("bytes", 12), ("samples", 6)])
def test_a_manifest_that_disagrees_is_told_with_both_numbers(tmp_path: Path, word: str, value: int) -> None:
    path = packed(tmp_path)
    said_of = json.loads((tmp_path / "manifest.json").read_text())
    said_of["shards"][0][word] = value
    (tmp_path / "manifest.json").write_text(json.dumps(said_of))
    with pytest.raises(DataError, match=rf"{path}: manifest_disagrees \(\d+ {word}, where manifest\.json says {value}\)"):
        build_index([str(path)], cache=None)


def test_hashes_that_nobody_has_cannot_be_asked_for(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 2])
    with pytest.raises(DataError, match=r"data\.verify=true, but no manifest\.json beside the shards holds the sha256 of 2 of 2, the first: .*train-000\.tar"):
        build_index(paths, cache=None, verify=True)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"shards": 3}', '{"shards": [{"name": 3}, 4, {"name": "train-000.tar"}]}'])
def test_a_manifest_of_another_kind_is_passed_over(tmp_path: Path, content: str) -> None:
    paths = write_shards(tmp_path, [2])
    (tmp_path / "manifest.json").write_text(content)
    assert len(build_index(paths, cache=None)) == 2


def test_shards_that_the_manifest_names_and_nobody_has_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = packed(tmp_path)
    entries = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [*entries, {"name": "train-000001.tar"}]}))
    build_index([str(path)], cache=None)
    assert "1 of the 2 shards in its manifest.json are not there, the first: train-000001.tar" in caplog.text


# -- samples ----------------------------------------------------------------------------------------------------------------


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    for number, (payload, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}").write_bytes(payload)
    program = """
import os, resource, sys, time
from pathlib import Path
from vlpkit.data.decode import Refused, read_header
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
for number in range(int(sys.argv[2])):
    payload = Path(sys.argv[1], str(number)).read_bytes()
    if os.fork() == 0:                         # a fresh process: its peak begins at what it holds
        before, started = peak(), time.process_time()
        try: read_header(payload); said = "nothing"
        except Refused as refused: said = refused.reason
        print(said, peak() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - started, flush=True)
        os._exit(0)
    os.wait()
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(len(BOMBS))], capture_output=True, text=True, check=True)
    found = [line.split() for line in run.stdout.splitlines()]
    assert [row[0] for row in found] == [reason for _, reason in BOMBS.values()]
    assert max(int(row[1]) for row in found) < 50_000, found  # kilobytes
    assert max(int(row[2]) for row in found) < 300_000, found  # with the interpreter and its libraries
    assert max(float(row[3]) for row in found) < 1, found  # seconds


def test_a_member_larger_than_any_reader_takes_is_never_read(tmp_path: Path) -> None:
    head = tarfile.TarInfo("000000.jpg")
    head.size = 3 << 30
    rest = tar_bytes(pair(1))
    path = tmp_path / "large.tar"
    with path.open("wb") as file:  # sparse: it takes no room
        file.write(head.tobuf(tarfile.GNU_FORMAT))
        file.seek(head.size, os.SEEK_CUR)
        file.write(rest)
    found = Reader(build_index([str(path)], cache=None))
    with pytest.raises(Refused, match=r"too_many_bytes: a member of 3221225472 bytes, at most 33554432"):
        found.read(0)
    assert found.read(1)["jpg"] == jpeg(1)


@pytest.mark.parametrize("kind", WASHED)
def test_a_caption_that_needs_washing_is_no_fault(kind: str) -> None:
    raw, clean = WASHED[kind]
    assert read_caption(raw, None)[0] == [clean]


# -- budgets ----------------------------------------------------------------------------------------------------------------


def garbage(numbers: range) -> dict[int, Members]:
    return {number: pair(number, image=np.random.default_rng(number).bytes(600)) for number in numbers}


def test_a_shard_of_garbage_ends_the_run_above_the_budget_and_is_replaced_below(tmp_path: Path) -> None:
    write_shards(tmp_path, [50] * 10, odd=garbage(range(100, 150)))
    with pytest.raises(DataError, match=r"permits 1 %\.\n +reason +refused +for example\n +not_an_image +\d+ +0001\d\d in .*train-002\.tar\n"):
        list(islice(iter(module(tmp_path, batch=50, max_bad_share=0.01).train_dataloader()), 100))
    data = module(tmp_path, batch=50, max_bad_share=0.2)
    served = [key for batch in islice(iter(data.train_dataloader()), 10) for key in batch["pairs"].keys]
    assert (len(served), data.report()["train"]["replaced"]) == (500, {"not_an_image": 50})


def test_a_shard_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [20, 20])
    data = module(tmp_path, batch=10, max_bad_share=1.0)
    assert len(data) == 40
    os.truncate(paths[1], 4000)
    list(islice(iter(data.train_dataloader()), 4))
    assert data.report()["train"]["replaced"] == {"shard_changed": 20}


# -- the sum ----------------------------------------------------------------------------------------------------------------


def audit(world: int = 1, rank: int = 0, turn: int = 0) -> Audit:
    return Audit(Order([7, 6], seed=1, window=2), divide(4, world=world, rank=rank), turn=turn, key="data.shards")


def served(book: Audit, turn: int) -> torch.Tensor:
    start = book.share.start(turn)
    return torch.from_numpy(book.order.samples(start, start + book.share.micro)[:, 1].copy())


@pytest.mark.parametrize("wrong", ["lost", "swapped", "unreported"])
def test_a_sample_out_of_its_place_stops_the_run(wrong: str) -> None:
    book = audit()
    numbers = served(book, 0)
    book.book(0, numbers, ())
    numbers = served(book, 1)
    if wrong == "lost":
        with pytest.raises(RuntimeError, match="the micro-batch of position 8 arrived where that of 4 was due"):
            book.book(8, served(book, 2), ())
        return
    numbers = numbers.roll(1) if wrong == "swapped" else numbers.index_fill(0, torch.tensor([2]), int(numbers[0]))
    with pytest.raises(RuntimeError, match="positions 4 to 7 some are neither those of the order nor reported substitutes"):
        book.book(4, numbers, ())


def test_an_epoch_that_does_not_add_up_stops_the_run() -> None:
    book = audit()
    for turn in range(4):
        book.book(4 * turn, served(book, turn), ())
    book._open[0].read -= 1
    with pytest.raises(RuntimeError, match="epoch 0 does not add up: 13 samples due: 12 read, 0 replaced"):
        book.closed()


@pytest.mark.parametrize("turn", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_is_due_on_all_ranks_is_the_index(world: int, turn: int) -> None:
    """Epochs of 13 in batches of 4, the first of them from where the run begins; on each rank one position is replaced."""
    due: Counter[int] = Counter()
    for rank in range(world):
        book = audit(world, rank, turn)
        for number in range(turn, 30):
            numbers, start = served(book, number), book.share.start(number)
            faults = [Fault(start, 0, "broken_image", "0", "a.tar", "")] if number == turn else []
            book.book(start, numbers, faults)
            for epoch, tally in book.closed().items():
                due[epoch] += tally.due
                assert tally.read + sum(tally.replaced.values()) == tally.due
                assert sum(tally.replaced.values()) == (epoch == turn * 4 // 13)
    first = 13 - turn * 4
    assert [due[epoch] for epoch in range(8)] == [first] + [13] * 7


def test_an_evaluation_adds_up_too(corpus: Path) -> None:
    data = module(corpus, val_shards="train-*.tar", max_bad_share=0.3)
    keys = [key for batch in data.eval_batches(batch=64) for key in batch.keys]
    report = data.report()["val"]
    assert (report["served"], report["read"], sum(report["replaced"].values())) == (1000, len(keys), len(ODD))
