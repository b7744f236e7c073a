"""Builders of tiny annotation files in the form in which data sets are published, with their images; each returns the file to name."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from shards import jpeg, tar_bytes

SHAPE = (24, 20)  # of the images of `jpeg`


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number))


def coco(folder: Path) -> Path:
    """Three images, the last without a file and the second without a caption, in the folder that COCO's archive unpacks to."""
    names = {7: "000000000007.jpg", 9: "000000000009.jpg", 25: "000000000025.jpg"}
    for known in (7, 9):
        image(folder / "train2017" / names[known], known)
    images = [
        {"license": 3, "file_name": name, "coco_url": "x", "height": 20, "width": 24, "date_captured": "2013", "flickr_url": "x", "id": known}
        for known, name in names.items()
    ]
    said = [(7, "A cat  sits.\n"), (7, "A cat sits."), (7, "Two cats."), (25, "A bus."), (7, " ")]
    annotations = [{"image_id": known, "id": 100 + n, "caption": text} for n, (known, text) in enumerate(said)]
    return write(folder / "annotations" / "captions_train2017.json", {"info": {}, "images": images, "licenses": [], "annotations": annotations})


def karpathy(folder: Path) -> Path:
    """One image of each split; the one of "restval" lies in COCO's val2014."""
    rows = []
    for number, (split, year) in enumerate((("train", "train2014"), ("restval", "val2014"), ("val", "val2014"), ("test", "val2014")), 1):
        name = f"COCO_{year}_{number:012d}.jpg"
        image(folder / year / name, number)
        sentences = [{"tokens": ["a", split], "raw": f"A {split} {n}.", "imgid": number, "sentid": 10 * number + n} for n in range(2)]
        rows.append(
            {"filepath": year, "sentids": [10 * number, 10 * number + 1], "filename": name, "imgid": number, "split": split, "sentences": sentences, "cocoid": number}
        )
    return write(folder / "dataset_coco.json", {"images": rows, "dataset": "coco"})


def flickr30k(folder: Path) -> Path:
    image(folder / "flickr30k-images" / "11.jpg", 11)
    path = folder / "results_20130124.token"
    path.write_text("11.jpg#0\tTwo men .\n11.jpg#1\tTwo people .\n12.jpg#0\tNobody .\nno form\n")
    return path


def flickr30k_bars(folder: Path) -> Path:
    """results.csv, with its one published line that lacks a bar."""
    image(folder / "11.jpg", 11)
    path = folder / "results.csv"
    path.write_text("image_name| comment_number| comment\n11.jpg| 0| Two men , \"one\" | old .\n11.jpg| 4   A dog .\n")
    return path


def flickr8k(folder: Path) -> Path:
    """With the lists of its splits, one name that is misspelt as published, and one image in no split."""
    for number, split in ((1, "train"), (2, "dev"), (3, "test"), (4, "")):
        image(folder / "Flicker8k_Dataset" / f"{number}.jpg", number)
        if split:
            (folder / f"Flickr_8k.{split}Images.txt").write_text(f"{number}.jpg\n")
    path = folder / "Flickr8k.token.txt"
    path.write_text("".join(f"{number}.jpg#{n}\tNumber {number} , {n} .\n" for number in (1, 2, 4) for n in range(2)) + "3.jpg.1#0\tNumber 3 .\n")
    return path


def genome(folder: Path, *, objects: bool = False) -> Path:
    """Two images measured at twice the size of the files here, in the two folders of the archives; the second without regions."""
    image(folder / "VG_100K" / "1.jpg", 1)
    image(folder / "VG_100K_2" / "2.jpg", 2)
    images = [
        {"width": 48, "height": 40, "url": "https://x/VG_100K/1.jpg", "image_id": 1, "coco_id": None, "flickr_id": None},
        {"width": 48, "height": 40, "url": "https://x/VG_100K_2/2.jpg", "image_id": 2, "coco_id": 77, "flickr_id": 3},
    ]
    write(folder / "image_data.json", images)
    boxes = [("the  clock", 12, 10, 12, 20), ("a street", -5, 0, 100, 10), ("the clock", 0, 0, 24, 20), ("outside", 50, 0, 4, 4)]
    regions = [{"region_id": 100 + n, "width": w, "height": h, "image_id": 1, "phrase": p, "y": y, "x": x} for n, (p, x, y, w, h) in enumerate(boxes)]
    if objects:
        things = [("Clock", 12, 10, 12, 20), ("car", 40, 30, 20, 20), ("clock", 0, 0, 6, 5), ("gone", 60, 0, 5, 5)]
        rows = [{"synsets": [], "h": h, "object_id": n, "merged_object_ids": [], "names": [name], "w": w, "y": y, "x": x} for n, (name, x, y, w, h) in enumerate(things)]
        write(folder / "objects.json", [{"image_id": 1, "objects": rows, "image_url": "x"}, {"image_id": 2, "objects": [], "image_url": "x"}])
        said = [{**row, "attributes": words} for row, words in zip(rows, (["Green", "tall"], [], ["tall"]))]
        said[1].pop("attributes")
        write(folder / "attributes.json", [{"image_id": 1, "attributes": said}])
    return write(folder / "region_descriptions.json", [{"regions": regions, "id": 1}, {"regions": [], "id": 2}])


def vqa(folder: Path, subset: str = "val2014", *, times: int = 9) -> Path:
    """Two questions about one image and one about another; "Yes!" and "a dog" are given `times` and once in the annotations."""
    asked = [(7001, 7, "Is it  red?"), (7002, 7, "What is it?"), (9001, 9, "How many?")]
    for known in (7, 9):
        image(folder / subset / f"COCO_{subset}_{known:012d}.jpg", known)
    given = {7001: ("Yes!", "yes/no"), 7002: ("a dog", "other"), 9001: ("two", "number")}
    answers = [
        {
            "question_type": "is it", "multiple_choice_answer": given[number][0], "image_id": known, "answer_type": given[number][1], "question_id": number,
            "answers": [{"answer": given[number][0] if n < 7 else "red", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)],
        }
        for number, known, _ in asked
    ]  # fmt: skip
    write(folder / f"v2_mscoco_{subset}_annotations.json", {"info": {}, "license": {}, "data_subtype": subset, "annotations": answers, "data_type": "mscoco"})
    others = [{**answers[0], "question_id": n, "multiple_choice_answer": "yes"} for n in range(times - 1)] + [{**answers[1], "question_id": 50, "multiple_choice_answer": "2"}]
    write(folder / "v2_mscoco_train2014_annotations.json", {"data_subtype": "train2014", "annotations": others})
    questions = [{"image_id": known, "question": text, "question_id": number} for number, known, text in asked]
    about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": subset}
    return write(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", {**about, "questions": questions})


def nlvr2(folder: Path) -> Path:
    """Two statements about one pair, one about another whose right image is missing."""
    for side in (0, 1):
        image(folder / "images" / "train" / "93" / f"train-10171-0-img{side}.png", side)
    image(folder / "images" / "train" / "94" / "train-5-1-img0.png", 5)
    rows = [("train-10171-0-0", "True", 93), ("train-10171-0-1", "False", 93), ("train-5-1-0", "False", 94)]
    return lines(
        folder / "train.json",
        [
            {"validation": {}, "sentence": f"Statement {one}.", "left_url": "x", "writer": 1, "label": label, "synset": "x", "query": "x", "identifier": one, "right_url": "x", "directory": where}
            for one, label, where in rows
        ],
    )


def snli(folder: Path) -> Path:
    image(folder / "flickr30k-images" / "3416050480.jpg", 3)
    rows = [("A man.", "A person.", "entailment", 0), ("A man.", "A woman.", "contradiction", 1), ("Someone.", "A father.", "neutral", 2)]
    return lines(
        folder / "snli_ve_dev.jsonl",
        [
            {"Flickr30K_ID": "3416050480", "annotator_labels": [label], "captionID": "3416050480.jpg#4", "gold_label": label, "pairID": f"3416050480.jpg#4r{n}", "sentence1": one, "sentence2": two}
            for one, two, label, n in rows
        ],
    )


def references() -> list[dict[str, Any]]:
    """Two objects of one image, one for val and one for testA."""
    said = [("val", 31, ["left one", "the left one"]), ("testA", 32, ["right one"])]
    return [
        {
            "sent_ids": [n], "file_name": "COCO_train2014_000000000007_3.jpg", "ann_id": thing, "ref_id": n, "image_id": 7, "split": split, "category_id": 1,
            "sentences": [{"tokens": text.split(), "raw": text, "sent_id": 10 * n + m, "sent": text} for m, text in enumerate(texts)],
        }
        for n, (split, thing, texts) in enumerate(said)
    ]  # fmt: skip


def refcoco(folder: Path) -> Path:
    """The JSON form of the references; the pickle lies beside it."""
    image(folder / "train2014" / "COCO_train2014_000000000007.jpg", 7)
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 24, "height": 20}]
    things = [{"id": 31, "image_id": 7, "bbox": [0, 5, 12, 10], "category_id": 1}, {"id": 32, "image_id": 7, "bbox": [12.0, 0.0, 12.5, 5.0], "category_id": 1}]
    write(folder / "instances.json", {"images": images, "annotations": things, "categories": []})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references(), protocol=2))
    return write(folder / "refs(unc).json", references())


def statements() -> list[dict[str, Any]]:
    """One true and one false statement; the first has an object in each box, the second in the first box alone."""

    def thing(kind: str, colour: str, x: int, y: int, size: int) -> dict[str, Any]:
        return {"y_loc": y, "type": kind, "color": colour, "x_loc": x, "size": size}

    boxes = [[thing("circle", "Black", 10, 20, 30)], [thing("square", "#0099ff", 0, 80, 20), thing("square", "#0099ff", 0, 59, 20)], [thing("triangle", "Yellow", 90, 0, 10)]]
    return [
        {"sentence": "There is  a tower.", "label": "true", "identifier": "12-0", "directory": "3", "structured_rep": boxes},
        {"sentence": "All are black.", "label": "false", "identifier": "15-2", "directory": "0", "structured_rep": [boxes[2], [], []]},
    ]


def nlvr(folder: Path, rows: Sequence[Mapping[str, Any]] | None = None, *, prefix: str = "dev/") -> Path:
    """A tar like the published ones, but for its blank drawings; the last drawing of the last statement is missing."""
    rows = statements() if rows is None else rows
    stream = io.BytesIO()
    Image.new("RGBA", (400, 100), (211, 211, 211, 255)).save(stream, "PNG")
    members = [(f"{prefix}images/{row['directory']}/dev-{row['identifier']}-{k}.png", stream.getvalue()) for row in rows for k in range(6)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dev.tar"
    path.write_bytes(tar_bytes([*members[:-1], (f"{prefix}dev.json", "".join(f"{json.dumps(row)}\n" for row in rows).encode())]))
    return path
