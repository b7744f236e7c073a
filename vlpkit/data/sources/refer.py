"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg as refer publishes them (Yu et al. 2016, Mao et al. 2016), boxes from instances.json.
The references are published as a pickle, which may run code; the main path reads a JSON of it, and `convert_references` makes that one safely."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

from vlpkit.data.durable import write_text
from vlpkit.data.sources.annotations import NUMBER, clipped, fractions, part, read_json, records, unknown
from vlpkit.data.sources.coco import listed_images
from vlpkit.data.sources.listing import Candidate, Gathered, Listing, published_split
from vlpkit.errors import DataError

_LARGEST = 1 << 30  # bytes; the published ones have some 10 MB


def read_references(source: Path, images: Path | None) -> Listing:
    """refs(unc).json and its like, with instances.json beside it. An image of a split is one sample: its expressions are its captions, and
    stand with their boxes in `regions`.

    Raises:
        DataError: it is still a pickle, instances.json is missing, or an expression is about an image or an object that is not there.
    """
    if source.suffix == ".p":
        raise DataError(f"{source} is a pickle, which may run code, so it is not opened here. Once: python scripts/convert_refs.py '{source}', then name the .json beside it")
    beside = source.with_name("instances.json")
    content = read_json(beside, "it holds the boxes of the references")
    known = listed_images(beside, content, images, shaped=True).found
    boxes = {row["id"]: row for row in records(part(content, "annotations", beside), f"{beside}, annotations", id=int, image_id=int, bbox=list)}
    gathered = Gathered()
    for number, row in enumerate(records(read_json(source), source, ref_id=int, ann_id=int, image_id=int, split=str, sentences=list)):
        place = f"{source}, record {number}"
        image, thing = known.get(row["image_id"]), boxes.get(row["ann_id"])
        if image is None:
            raise unknown(place, "a reference", row["image_id"], beside.name)
        if thing is None or thing["image_id"] != row["image_id"]:
            raise DataError(f"{place}: {beside.name} has no object {row['ann_id']} in image {row['image_id']}. Two releases may be mixed: get both again")
        split = published_split(row["split"], place)
        one = gathered.found.setdefault((split, row["image_id"]), _of(image, split))
        _say(gathered, one, row, thing["bbox"], place)
    return gathered.listing()


def _of(image: Candidate, split: str) -> Candidate:
    return Candidate(f"{split}/{image.name}", image.path, fields=dict(image.fields), split=split, shape=image.shape)


def _say(gathered: Gathered, one: Candidate, row: dict[str, Any], bbox: list[Any], place: str) -> None:
    assert one.shape is not None
    if len(bbox) != 4 or not all(isinstance(edge, NUMBER) for edge in bbox):
        raise DataError(f"{place}: the box of object {row['ann_id']} is {bbox!r:.60}; it is x, y, width and height")
    x, y, wide, tall = bbox
    box = clipped(x, y, wide, tall, one.shape)
    for said in records(row["sentences"], f"{place}, sentences", sent=str):
        if box is None:
            gathered.rows["bad_box"] += 1
        else:
            gathered.ask(one, "regions", phrase=said["sent"], box=fractions(box, one.shape), id=said.get("sent_id"), object=row["ann_id"])
    one.captions = list(dict.fromkeys(region["phrase"] for region in one.fields.get("regions", ())))


class _Plain(pickle.Unpickler):
    """Builds lists, dicts, tuples, texts and numbers; whatever names a class or a function is refused, so nothing can be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"it names {module}.{name}, and only lists, dicts, texts and numbers are built")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to objects outside itself, and only lists, dicts, texts and numbers are built")


def convert_references(source: Path) -> Path:
    """Writes the JSON form of a refs(*).p beside it and returns its path; nothing that the pickle asks for is ever called.

    Raises:
        DataError: it is missing, no pickle, or asks for anything but plain types.
    """
    target = source.with_suffix(".json")
    try:
        if (size := source.stat().st_size) > _LARGEST:
            raise DataError(f"it has {size} bytes; lists of references have fewer than {_LARGEST}")
        # Written by Python 2, whose texts are bytes.
        found = _Plain(io.BytesIO(source.read_bytes()), encoding="utf-8", errors="replace").load()
        text = json.dumps(list(records(found, source, ref_id=int, ann_id=int, image_id=int, split=str, sentences=list)))
    except DataError as error:
        raise DataError(f"{source} is refused: {error}") from None
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(f"{source} is no whole pickle of plain types ({type(error).__name__}: {error}); get it again") from None
    try:
        write_text(target, text)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from None
    return target
