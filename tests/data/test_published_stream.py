"""Shards of published data are what the engine reads: pixels, regions and questions arrive as batches through the data module."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import SHAPE, image, karpathy, nlvr, refcoco, statements, vqa, write
from shards import module, samples

from vlpkit.data.decode import Refused
from vlpkit.data.packing import Packing, pack
from vlpkit.data.questions import Questions
from vlpkit.data.regions import Detections
from vlpkit.data.sources import read_source
from vlpkit.data.sources.nlvr import ATTRIBUTES, CLASSES
from vlpkit.data.tokenize import load_words
from vlpkit.errors import DataError
from vlpkit.types import IGNORE

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_shards.py"


def drawings(folder: Path, *, val: int = 11) -> Path:
    rows = [{**statements()[n % 2], "sentence": f"Statement number {n}.", "identifier": f"{n}-0"} for n in range(6)]
    pack(read_source(nlvr(folder, rows)), folder / "out", Packing(val=val, features=16))
    return folder / "out"


def test_exact_regions_stream_with_their_classes_and_attributes(tmp_path: Path) -> None:
    out = drawings(tmp_path)
    asked = Detections(size=16, most=4, least=1, targets=["class", "soft", "attribute", "confidence"], classes=len(CLASSES), attributes=len(ATTRIBUTES))
    data = module(out, batch=6, image_size=None, regions=asked)
    batch = next(iter(data.train_dataloader()))["pairs"]
    regions, boxes, mask = batch.images["clean"].regions, batch.images["clean"].boxes, batch.images["clean"].mask
    assert regions is not None
    assert boxes is not None
    assert mask is not None
    assert regions.shape == (6, 4, 16)
    for row in range(6):
        known = [CLASSES[number] for number in batch.targets["region_class"][row][mask[row]].tolist()]
        colours = [ATTRIBUTES[number] for number in batch.targets["region_attribute"][row][mask[row]].tolist()]
        assert sorted(known) in (["large black circle", "medium blue square", "medium blue square", "small yellow triangle"], ["small yellow triangle"])
        assert colours == [name.split()[1] for name in known]
        widths = ((boxes[row, :, 2] - boxes[row, :, 0])[mask[row]] * 400).round().tolist()
        assert widths == [{"large": 30, "medium": 20, "small": 10}[name.split()[0]] for name in known]
    assert torch.equal(batch.targets["region_soft"].argmax(-1)[mask], batch.targets["region_class"][mask])
    found, = data.eval_batches(batch=20)
    assert len(found.keys) == 11   # two statements, one of which lacks a drawing


def test_statements_are_told_with_their_verdicts(tmp_path: Path) -> None:
    out = drawings(tmp_path)
    asked = Questions(count=2, answers=str(out / "answers.txt"), chance=1.0)
    data = module(out, batch=12, questions=asked)
    data.words = load_words(name="", kind="wordpiece", size=200, length=16, captions=lambda: [f"statement number {n} ." for n in range(6)])
    batch = next(iter(data.train_dataloader()))["pairs"]
    told = data.words.decode(batch.texts["clean"].ids)
    assert [int(text.split()[2].rstrip(".")) % 2 == 0 for text in told] == (batch.targets["answer"] == 1).tolist()   # even statements are true
    assert set(batch.targets["answer"].tolist()) == {0, 1}


def test_questions_without_captions_are_served_where_questions_are_read_and_refused_elsewhere(tmp_path: Path) -> None:
    pack(read_source(vqa(tmp_path)), tmp_path / "out", Packing())
    asked = Questions(count=2, answers=["dog", "2"], chance=1.0)
    data = module(tmp_path / "out", shards="val-*.tar", val_shards="val-*.tar", batch=2, questions=asked)
    assert sorted(data.captions()) == ["How many?", "Is it red?", "What is it?"]
    batch = next(iter(data.train_dataloader()))["pairs"]
    assert len(batch) == 2
    assert set(batch.targets["answer"].tolist()) <= {0, 1, IGNORE}   # "yes" is not in the list
    found, = data.eval_batches(batch=4)
    assert [[text for text, _ in row] for row in found.questions] == found.captions
    plain = module(tmp_path / "out", shards="val-*.tar", val_shards="val-*.tar", batch=2)
    with pytest.raises(DataError, match="missing_caption"):
        list(plain.eval_batches(batch=4))


def test_a_sample_with_neither_caption_nor_question_is_refused(tmp_path: Path) -> None:
    from vlpkit.data.look import said_of

    with pytest.raises(Refused) as error:
        said_of({"json": b'{"questions": []}'}, Questions(count=1, answers=["yes"]))
    assert error.value.reason == "missing_caption"
    with pytest.raises(Refused) as error:
        said_of({"json": b'{"captions": [" "]}'}, Questions(count=1, answers=["yes"]))
    assert error.value.reason == "empty_caption"


@pytest.mark.parametrize("make", [karpathy, refcoco])
def test_photographs_with_their_captions_stream(tmp_path: Path, make: Any) -> None:
    pack(read_source(make(tmp_path)), tmp_path / "out", Packing())
    data = module(tmp_path / "out", shards="*.tar", val_shards="*.tar", batch=2)
    batch = next(iter(data.train_dataloader()))["pairs"]
    pixels = batch.images["clean"].pixels
    assert pixels is not None
    assert pixels.shape == (2, 3, 16, 16)
    found, = data.eval_batches(batch=8)
    assert found.keys == list(samples(tmp_path / "out"))
    assert all(captions == record["captions"] for captions, record in zip(found.captions, found.records))


def many(folder: Path, count: int = 90) -> Path:
    """Karpathy's form with many images in three splits."""
    rows = []
    for number in range(count):
        image(folder / f"{number}.jpg", number)
        rows.append({"sentids": [number], "filename": f"{number}.jpg", "split": ("train", "val", "test")[number % 3], "sentences": [{"raw": f"number {number}"}]})
    return write(folder / "dataset_flickr30k.json", {"images": rows, "dataset": "flickr30k"})


def test_killed_between_published_splits_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    source, arguments = many(tmp_path), ["--samples-per-shard", "4", "--processes", "1"]
    pack(read_source(source), tmp_path / "whole", Packing(samples_per_shard=4))
    out, finished = tmp_path / "killed", 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(source), str(out), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.tar"))) < finished + 6:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = len(list(out.glob("*.tar")))
    assert subprocess.run([sys.executable, str(SCRIPT), str(source), str(out), *arguments], capture_output=True, check=False).returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert finished > 12


def test_boxes_of_a_record_hold_for_an_image_that_was_reduced(tmp_path: Path) -> None:
    import json

    pack(read_source(refcoco(tmp_path)), tmp_path / "out", Packing(short_side=10))
    record = json.loads(samples(tmp_path / "out")["val_COCO_train2014_000000000007"]["json"])
    assert (record["width"], record["height"]) == (12, 10)
    assert np.array_equal(np.array(record["regions"][0]["box"]) * [*SHAPE, *SHAPE], [0, 5, 12, 15])
