"""COCO's captions as published (captions_train2017.json and its like), and Karpathy's splits of COCO, Flickr30k and Flickr8k.
Karpathy's "restval" counts as train, as everywhere since VSE++ (Faghri et al. 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlpkit.data.sources.annotations import part, read_json, records, unknown
from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing, published_split, split_in_name
from vlpkit.errors import DataError


def read_captions(source: Path, images: Path | None) -> Listing:
    """COCO captions: `images` with id and file_name, `annotations` with image_id and caption; NoCaps has the same form.

    Raises:
        DataError: another form, or a caption about an image that is not listed.
    """
    gathered = listed_images(source, read := read_json(source), images)
    for row in records(part(read, "annotations", source), f"{source}, annotations", image_id=int, caption=str):
        one = gathered.found.get(row["image_id"])
        if one is None:
            raise unknown(source, "a caption", row["image_id"], "`images`")
        gathered.say(one, [row["caption"]])
    return gathered.listing()


def listed_images(source: Path, content: Any, images: Path | None, *, shaped: bool = False) -> Gathered:
    """The list `images` of a file in COCO's form, by id.

    Args:
        shaped: width and height are needed, since boxes in pixels follow.
    """
    gathered, album, split = Gathered(), Album(source, images), split_in_name(source)
    sides: dict[str, type] = {"width": int, "height": int} if shaped else {}
    for row in records(part(content, "images", source), f"{source}, images", id=int, file_name=str, **sides):
        name = row["file_name"]
        one = Candidate(name, album.path(name, *inside(name, source)), fields={"source": "coco", "image_id": row["id"]}, split=split)
        if shaped:
            one.shape = row["width"], row["height"]
        if row["id"] in gathered.found:
            raise DataError(f"{source}: image {row['id']} is listed twice")
        gathered.found[row["id"]] = one
    return gathered


def inside(name: str, source: Path) -> list[str]:
    """Where COCO's archives put an image: in a folder named for split and year, which older names repeat and newer lists are named for."""
    parts = name.split("_")
    years = [parts[1]] if parts[0] == "COCO" and len(parts) > 2 else [word for word in source.stem.split("_") if word[-4:].isdigit()]
    return [f"{year}/{name}" for year in years]


def read_karpathy(source: Path, images: Path | None) -> Listing:
    """dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json: `images` with filename, split and sentences.

    Raises:
        DataError: another form, or a split that is not known.
    """
    content = read_json(source)
    gathered, album = Gathered(), Album(source, images)
    name_of_set = content.get("dataset") if isinstance(content, dict) else None
    for number, row in enumerate(records(part(content, "images", source), f"{source}, images", filename=str, split=str, sentences=list)):
        name, folder, place = row["filename"], row.get("filepath"), f"{source}, images, record {number}"
        names = [f"{folder}/{name}", name] if isinstance(folder, str) and folder else [name]
        fields: dict[str, Any] = {"source": name_of_set if isinstance(name_of_set, str) else source.stem}
        fields["image_id"] = row["cocoid"] if isinstance(row.get("cocoid"), int) else Path(name).stem
        if name in gathered.found:
            raise DataError(f"{place}: {name} is listed twice")
        one = gathered.found[name] = Candidate(name, album.path(*names), fields=fields, split=published_split(row["split"], place))
        gathered.say(one, (said["raw"] for said in records(row["sentences"], f"{place}, sentences", raw=str)))
    return gathered.listing()
