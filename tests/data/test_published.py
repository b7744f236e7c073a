"""Annotation files of published data sets become exactly these samples, whatever their form."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import (
    coco,
    flickr8k,
    flickr30k,
    flickr30k_bars,
    genome,
    karpathy,
    nlvr2,
    refcoco,
    snli,
    vqa,
    write,
)
from shards import jpeg, samples

from vlpkit.data.packing import Packing, pack
from vlpkit.data.sources import read_source
from vlpkit.data.sources.kinds import KINDS, guess
from vlpkit.errors import DataError

Records = dict[str, dict[str, Any]]


def built(source: Path, out: Path, *, settings: dict[str, Any] | None = None, **asked: Any) -> tuple[dict[str, Any], Records]:
    """The manifest, and the records by key in the order of keys, without what every image has."""
    manifest = pack(read_source(source, **asked), out, Packing(**settings or {}))
    found = {key: json.loads(members["json"]) for key, members in sorted(samples(out).items())}
    for record in found.values():
        assert (record.pop("width"), record.pop("height"), len(record.pop("sha256"))) == (24, 20, 64)
    return manifest, found


def question(text: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"question": text, "answer": answer, **more}


TEN = ["Yes!"] * 7 + ["red"] * 3
EXPECTED: list[tuple[str, Callable[[Path], Path], dict[str, int], dict[str, int], dict[str, int], Records]] = [
    (
        "coco", coco, {"train": 1, "val": 0}, {"empty_caption": 1, "missing_image": 1, "written": 1}, {"empty_caption": 1, "used": 4},
        {"000000000007": {"source": "coco", "image_id": 7, "captions": ["A cat sits.", "Two cats."]}},
    ),
    (
        "karpathy", karpathy, {"train": 2, "val": 1, "test": 1}, {"written": 4}, {"used": 8},
        {
            f"COCO_{year}_{n:012d}": {"source": "coco", "image_id": n, "captions": [f"A {split} 0.", f"A {split} 1."]}
            for split, year, n in (("train", "train2014", 1), ("restval", "val2014", 2), ("val", "val2014", 3), ("test", "val2014", 4))
        },
    ),
    (
        "flickr", flickr30k, {"train": 1, "val": 0}, {"missing_image": 1, "written": 1}, {"bad_row": 1, "used": 3},
        {"11": {"source": "flickr30k", "image_id": "11", "captions": ["Two men .", "Two people ."]}},
    ),
    (
        "flickr", flickr30k_bars, {"train": 1, "val": 0}, {"written": 1}, {"bad_row": 1, "used": 1},
        {"11": {"source": "flickr30k", "image_id": "11", "captions": ['Two men , "one" | old .']}},
    ),
    (
        "flickr", flickr8k, {"train": 1, "val": 1, "test": 1}, {"no_split": 1, "written": 3}, {"used": 7},
        {
            "1": {"source": "flickr8k", "image_id": "1", "captions": ["Number 1 , 0 .", "Number 1 , 1 ."]},
            "2": {"source": "flickr8k", "image_id": "2", "captions": ["Number 2 , 0 .", "Number 2 , 1 ."]},
            "3": {"source": "flickr8k", "image_id": "3", "captions": ["Number 3 ."]},
        },
    ),
    (
        "visual-genome", genome, {"train": 1, "val": 0}, {"empty_caption": 1, "written": 1}, {"bad_box": 1, "used": 3},
        {
            "1": {
                "source": "visual-genome", "image_id": 1,
                "regions": [
                    {"phrase": "the clock", "box": [0.25, 0.25, 0.5, 0.75], "id": 100},
                    {"phrase": "a street", "box": [0.0, 0.0, 1.0, 0.25], "id": 101},
                    {"phrase": "the clock", "box": [0.0, 0.0, 0.5, 0.5], "id": 102},
                ],
                "captions": ["the clock", "a street"],
            }
        },
    ),
    (
        "vqa", vqa, {"train": 0, "val": 2}, {"written": 2}, {"used": 3},
        {
            "COCO_val2014_000000000007": {
                "source": "coco", "image_id": 7,
                "questions": [
                    question("Is it red?", "yes", answers=TEN, kind="is it", answer_kind="yes/no", id=7001),
                    question("What is it?", "dog", answers=["a dog"] * 7 + ["red"] * 3, kind="is it", answer_kind="other", id=7002),
                ],
            },
            "COCO_val2014_000000000009": {
                "source": "coco", "image_id": 9,
                "questions": [question("How many?", "2", answers=["two"] * 7 + ["red"] * 3, kind="is it", answer_kind="number", id=9001)],
            },
        },
    ),
    (
        "nlvr2", nlvr2, {"train": 1, "val": 0}, {"missing_image": 1, "written": 1}, {"used": 3},
        {
            "train-10171-0": {
                "source": "nlvr2", "image_id": "train-10171-0",
                "statements": [
                    {"statement": "Statement train-10171-0-0.", "answer": "true", "id": "train-10171-0-0"},
                    {"statement": "Statement train-10171-0-1.", "answer": "false", "id": "train-10171-0-1"},
                ],
            }
        },
    ),
    (
        "snli-ve", snli, {"train": 0, "val": 1}, {"written": 1}, {"used": 6},
        {
            "3416050480": {
                "source": "flickr30k", "image_id": "3416050480",
                "questions": [
                    question("A person.", "entailment", id="3416050480.jpg#4r0", kind="entailment"),
                    question("A woman.", "contradiction", id="3416050480.jpg#4r1", kind="entailment"),
                    question("A father.", "neutral", id="3416050480.jpg#4r2", kind="entailment"),
                ],
                "captions": ["A man.", "Someone."],
            }
        },
    ),
    (
        "refcoco", refcoco, {"train": 0, "val": 1, "testA": 1}, {"written": 2}, {"used": 3},
        {
            "testA_COCO_train2014_000000000007": {
                "source": "coco", "image_id": 7, "regions": [{"phrase": "right one", "box": [0.5, 0.0, 1.0, 0.25], "id": 10, "object": 32}], "captions": ["right one"],
            },
            "val_COCO_train2014_000000000007": {
                "source": "coco", "image_id": 7,
                "regions": [
                    {"phrase": "left one", "box": [0.0, 0.25, 0.5, 0.75], "id": 0, "object": 31},
                    {"phrase": "the left one", "box": [0.0, 0.25, 0.5, 0.75], "id": 1, "object": 31},
                ],
                "captions": ["left one", "the left one"],
            },
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "make", "split", "images", "rows", "records"), EXPECTED, ids=[make.__name__ for _, make, *_ in EXPECTED])
def test_a_published_file_becomes_exactly_these_samples(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], split: dict[str, int], images: dict[str, int], rows: dict[str, int], records: Records,
) -> None:  # fmt: skip
    manifest, found = built(make(tmp_path), tmp_path / "out")
    assert (manifest["kind"], manifest["samples"], manifest["images"], manifest["rows"]) == (kind, split, images, rows)
    right = found.get("train-10171-0", {}).pop("right", None)
    assert found == records
    assert list(found) == list(records)
    members = samples(tmp_path / "out")
    expected = {"jpg", "json"} if right is None else {"jpg", "right.jpg", "json"}
    assert all(set(found) == expected for found in members.values())


def test_every_kind_is_recognised_by_its_look_and_read_by_its_name(tmp_path: Path) -> None:
    for number, (kind, make, *_) in enumerate(EXPECTED):
        source = make(tmp_path / str(number))
        found = guess(source)
        assert found is not None
        assert found.name == kind == read_source(source, kind=kind).kind
    assert {kind for kind, *_ in EXPECTED} == {kind.name for kind in KINDS} - {"nlvr", "list", "folder"}


def test_published_splits_go_to_shards_of_their_name(tmp_path: Path) -> None:
    source = karpathy(tmp_path)
    built(source, tmp_path / "all", settings={"samples_per_shard": 1})
    assert sorted(path.name for path in (tmp_path / "all").glob("*.tar")) == ["test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert set(samples(tmp_path / "all", "train-*")) == {"COCO_train2014_000000000001", "COCO_val2014_000000000002"}   # "restval" counts as train
    manifest, found = built(source, tmp_path / "some", split="val,test")
    assert manifest["samples"] == {"train": 0, "val": 1, "test": 1}
    assert list(found) == ["COCO_val2014_000000000003", "COCO_val2014_000000000004"]


def test_one_published_split_may_be_divided_but_not_several(tmp_path: Path) -> None:
    source = karpathy(tmp_path)
    manifest, _ = built(source, tmp_path / "out", split="train", settings={"val": 1})
    assert manifest["samples"] == {"train": 1, "val": 1}
    with pytest.raises(DataError, match=r"--val 1 would draw from several published splits \(train, val, test\)"):
        built(source, tmp_path / "more", settings={"val": 1})


def test_the_second_image_of_a_pair_stands_beside_the_first(tmp_path: Path) -> None:
    built(nlvr2(tmp_path), tmp_path / "out")
    members = samples(tmp_path / "out")["train-10171-0"]
    assert (members["jpg"], members["right.jpg"]) == (jpeg(0), jpeg(1))
    right = json.loads(members["json"])["right"]
    assert (right["width"], right["height"]) == (24, 20)
    assert right["sha256"] != json.loads(members["json"])["sha256"]


def test_lists_of_answers_stand_beside_the_shards(tmp_path: Path) -> None:
    for make, expected in ((snli, "contradiction\nneutral\nentailment\n"), (nlvr2, "false\ntrue\n")):
        manifest, _ = built(make(tmp_path / make.__name__), tmp_path / make.__name__ / "out")
        assert (tmp_path / make.__name__ / "out" / "answers.txt").read_text() == expected
        assert list(manifest["files"]) == ["answers.txt"]


@pytest.mark.parametrize(("times", "expected"), [(9, "yes\n"), (8, "")])
def test_answers_given_nine_times_in_train_and_val_make_the_list(tmp_path: Path, times: int, expected: str) -> None:
    built(vqa(tmp_path, times=times), tmp_path / "out")
    assert (tmp_path / "out" / "answers.txt").read_text() == expected   # "Yes!" of val counts for "yes"


def test_captions_of_coco_join_its_questions(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    _, found = built(vqa(tmp_path), tmp_path / "out", captions=coco(tmp_path))
    assert found["COCO_val2014_000000000007"]["captions"] == ["A cat sits.", "Two cats."]
    assert "captions" not in found["COCO_val2014_000000000009"]


def test_questions_without_published_answers_have_an_empty_one(tmp_path: Path) -> None:
    source = vqa(tmp_path, "test2015")
    (tmp_path / "v2_mscoco_test2015_annotations.json").unlink()
    manifest, found = built(source, tmp_path / "out")
    assert manifest["samples"] == {"train": 0, "val": 0, "test": 2}
    assert found["COCO_test2015_000000000009"]["questions"] == [question("How many?", "", id=9001)]


def test_named_objects_become_exact_regions_and_tags(tmp_path: Path) -> None:
    _, found = built(genome(tmp_path, objects=True), tmp_path / "out", settings={"features": 16})
    assert found["1"]["tags"] == ["green clock", "car", "tall clock"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "background\nclock\ncar\n"
    assert (tmp_path / "out" / "attributes.txt").read_text() == "none\ntall\ngreen\n"
    stored = dict(np.load(io.BytesIO(samples(tmp_path / "out")["1"]["regions.npz"])))
    assert stored["size"].tolist() == [48, 40]
    assert stored["boxes"].tolist() == [[12, 10, 24, 30], [40, 30, 48, 40], [0, 0, 6, 5]]
    assert (stored["classes"].tolist(), stored["attributes"].tolist()) == ([1, 2, 1], [2, 0, 1])
    assert (stored["features"].dtype, stored["features"].shape) == (np.float16, (3, 16))
    assert stored["confidences"].tolist() == [1, 1, 1]


def test_regions_can_be_left_out(tmp_path: Path) -> None:
    built(genome(tmp_path, objects=True), tmp_path / "out", settings={"features": 0})
    assert set(samples(tmp_path / "out")["1"]) == {"jpg", "json"}


def test_an_image_of_another_shape_than_its_boxes_were_measured_in_is_left_out(tmp_path: Path) -> None:
    source = genome(tmp_path)
    images = json.loads((tmp_path / "image_data.json").read_text())
    images[0]["height"] = 60
    write(tmp_path / "image_data.json", images)
    with pytest.raises(DataError, match=r"empty_caption 1, wrong_shape 1"):
        built(source, tmp_path / "out")
