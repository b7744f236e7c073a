"""What is cut off, mixed up or unknown in a published file is refused in one message, and no pickle is trusted."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published import coco, flickr8k, genome, karpathy, nlvr2, refcoco, references, snli, vqa, write

from vlpkit.data.sources import read_source
from vlpkit.data.sources.refer import convert_references
from vlpkit.errors import DataError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_shards.py"


def test_a_pickle_of_references_becomes_json_of_the_same(tmp_path: Path) -> None:
    refcoco(tmp_path)
    (tmp_path / "refs(unc).json").unlink()
    found = convert_references(tmp_path / "refs(unc).p")
    assert found == tmp_path / "refs(unc).json"
    assert json.loads(found.read_text()) == references()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([Evil()]), r"is refused: it names posix\.system, and only lists, dicts, texts and numbers are built"),
        (pickle.dumps(references())[:-20], r"is no whole pickle of plain types"),
        (pickle.dumps({"a": 1}), r"is refused: .*where a list stands"),
        (pickle.dumps([{**references()[0], "mask": {1}}]), r"is no whole pickle of plain types \(TypeError"),
        (b"", r"is no whole pickle"),
    ],
)
def test_a_pickle_that_asks_for_more_than_plain_types_is_refused_and_nothing_called(tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=message):
        convert_references(tmp_path / "refs(unc).p")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refs(unc).p"]


def spoil(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes what a JSON file holds."""
    return lambda folder: write(next(folder.rglob(name)), change(json.loads(next(folder.rglob(name)).read_text()))) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(name)).write_bytes(next(folder.rglob(name)).read_bytes()[:-40]) and None


def swap(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(name)).write_text(next(folder.rglob(name)).read_text().replace(old, new)) and None


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(name)).unlink()


def strange(content: Any) -> Any:
    content["annotations"].append({"image_id": 99, "id": 1, "caption": "x"})
    return content


def stranger(rows: Any) -> Any:
    rows[0]["image_id"] = 8
    return rows


WRONG: list[tuple[Callable[[Path], Path], Callable[[Path], None] | None, list[str], str]] = [
    (coco, None, ["--kind", "karpathy"], "--kind karpathy reads dataset_coco.json"),
    (coco, None, ["--kind", "karpathy"], "looks like coco"),
    (coco, None, ["--kind", "cocoo"], "--kind cocoo is not known. Did you mean 'coco'? There are:"),
    (coco, None, ["--split", "val"], "has no such split (it has: train)"),
    (coco, None, ["--captions", "x.json"], "--captions goes with --kind vqa"),
    (coco, cut("captions_train2017.json"), ["--kind", "coco"], "is no whole JSON file"),
    (coco, spoil("captions_train2017.json", strange), [], "a caption is about image 99, which `images` does not list"),
    (coco, spoil("captions_train2017.json", lambda c: {**c, "annotations": [{"image_id": "7", "caption": "x"}]}), [], "annotations, record 0: 'image_id' is '7', where published files have int"),
    (coco, spoil("captions_train2017.json", lambda c: {"images": c["images"]}), ["--kind", "coco"], "has no list 'annotations' (it has images)"),
    (karpathy, spoil("dataset_coco.json", lambda c: {**c, "images": [{**c["images"][0], "split": "trian"}]}), [], "the split 'trian' is not known"),
    (flickr8k, swap("Flickr_8k.testImages.txt", "3.jpg", "5.jpg"), [], "lists 5.jpg, of which"),
    (genome, gone("image_data.json"), [], "image_data.json does not exist; regions need the sizes of their images"),
    (genome, spoil("image_data.json", lambda c: c[1:]), [], "region_descriptions.json, record 0: a region is about image 1, which image_data.json does not list"),
    (vqa, gone("v2_mscoco_val2014_annotations.json"), [], "v2_mscoco_val2014_annotations.json does not exist; it holds the answers"),
    (vqa, spoil("v2_mscoco_val2014_annotations.json", lambda c: {**c, "annotations": c["annotations"][1:]}), [], "the question 7001 about image 7 has no answer"),
    (vqa, spoil("v2_OpenEnded_*", lambda c: {**c, "questions": c["questions"][1:]}), [], "answers the question 7001, which"),
    (nlvr2, cut("train.json"), [], "train.json, line 3: no JSON object"),
    (snli, swap("snli_ve_dev.jsonl", "entailment", "yes"), [], "line 1: the label 'yes' is not known"),
    (refcoco, gone("instances.json"), [], "instances.json does not exist; it holds the boxes"),
    (refcoco, spoil("refs(unc).json", stranger), [], "record 0: a reference is about image 8, which instances.json does not list"),
    (refcoco, spoil("refs(unc).json", lambda rows: [{**rows[0], "ann_id": 99}]), [], "instances.json has no object 99 in image 7"),
    (lambda folder: refcoco(folder).with_suffix(".p"), None, [], "python scripts/convert_refs.py"),
    (lambda folder: write(folder / "x.json", {"data": [1]}), None, [], "looks like no kind that is known (JSON with the fields data). Choose one with --kind:"),
]


@pytest.mark.parametrize(("make", "change", "arguments", "message"), WRONG, ids=[message[:50] for *_, message in WRONG])
def test_a_mistake_gets_one_message_and_nothing_is_written(
    tmp_path: Path, make: Callable[[Path], Path], change: Callable[[Path], None] | None, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = make(tmp_path / "in")
    if change is not None:
        change(tmp_path / "in")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import build_shards

    assert build_shards.main([str(source), str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_of_annotations_says_which_file_to_name(tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "captions.json", {"images": [{"file_name": "x"}], "annotations": [{"caption": "x"}]})
    with pytest.raises(DataError, match=r"name one of these files instead: captions\.json \(coco\)"):
        read_source(source.parent)


def test_the_converter_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    refcoco(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "convert_refs", raising=False)
    import convert_refs

    assert convert_refs.main([str(tmp_path / "refs(unc).p")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "refs(unc).json")
    assert convert_refs.main([str(tmp_path / "nothing.p")]) == 2
    assert "convert_refs: " in capsys.readouterr().err
