"""Visual Genome (Krishna et al. 2017): phrases about regions, and, where objects.json lies beside them, exact boxes of named objects.
An image is one sample: its phrases are its captions, and stand with their boxes in `regions` of KEY.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlpkit.data.decode import clean_caption
from vlpkit.data.sources.annotations import NUMBER, clipped, fractions, read_json, records, unknown
from vlpkit.data.sources.exact import Things
from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing
from vlpkit.errors import DataError

Box = tuple[float, ...]  # corners in pixels
CLASSES, ATTRIBUTES = 1600, 400  # most frequent names that count, as for the detectors trained on these data


def read_regions(source: Path, images: Path | None) -> Listing:
    """region_descriptions.json with image_data.json beside it; objects.json and attributes.json, if there, become exact regions.

    Raises:
        DataError: image_data.json is missing, or a region or an object is of an image that it does not list.
    """
    gathered = _listed(source.with_name("image_data.json"), Album(source, images))
    for number, row in enumerate(records(read_json(source), source, regions=list)):
        place = f"{source}, record {number}"
        one = _image(gathered, row, place, "a region")
        assert one.shape is not None
        for region in records(row["regions"], f"{place}, regions", phrase=str, x=NUMBER, y=NUMBER, width=NUMBER, height=NUMBER):
            box = clipped(region["x"], region["y"], region["width"], region["height"], one.shape)
            if box is None:
                gathered.rows["bad_box"] += 1
            else:
                gathered.ask(one, "regions", phrase=region["phrase"], box=fractions(box, one.shape), id=region.get("region_id", region.get("id")))
    for one in gathered.found.values():
        one.captions = list(dict.fromkeys(region["phrase"] for region in one.fields.get("regions", ())))
    return gathered.listing(files=_objects(source, gathered))


def _listed(path: Path, album: Album) -> Gathered:
    gathered = Gathered()
    for number, row in enumerate(records(read_json(path, "regions need the sizes of their images"), path, width=int, height=int)):
        known = _id(row, f"{path}, record {number}")
        # The archives unpack to two folders; only the address tells which.
        inside = "/".join(str(row.get("url", "")).split("/")[-2:])
        names = [inside, f"{known}.jpg"] if inside.endswith(f"/{known}.jpg") else [f"{known}.jpg"]
        fields: dict[str, Any] = {"source": "visual-genome", "image_id": known}
        if isinstance(row.get("coco_id"), int):
            fields["coco_id"] = row["coco_id"]  # half of the images are COCO's too: needed to keep evaluation images out
        gathered.found[known] = Candidate(f"{known}.jpg", album.path(*names), fields=fields, shape=(row["width"], row["height"]))
    return gathered


def _id(row: Mapping[str, Any], place: str) -> int:
    """Release 1.0 says `id` where later ones say `image_id`."""
    known = row.get("image_id", row.get("id"))
    if not isinstance(known, int):
        raise DataError(f"{place}: neither 'image_id' nor 'id' is a number; is it of another kind? See --kind")
    return known


def _image(gathered: Gathered, row: Mapping[str, Any], place: str, what: str) -> Candidate:
    one = gathered.found.get(known := _id(row, place))
    if one is None:
        raise unknown(place, what, known, "image_data.json")
    return one


def _objects(source: Path, gathered: Gathered) -> dict[str, str]:
    """Gives images their exact regions and tags; returns the lists of names."""
    path, beside = source.with_name("objects.json"), source.with_name("attributes.json")
    if not path.is_file():
        return {}
    named = {one: [(name, box) for name, box, _ in found] for one, found in _named(path, "objects", gathered)}
    said: dict[tuple[int, str, Box], list[str]] = {}
    for known, found in _named(beside, "attributes", gathered) if beside.is_file() else ():
        said |= {(known, name, box): words for name, box, words in found if words}
    classes = _most(Counter(name for found in named.values() for name, _ in found), CLASSES, "background")
    attributes = _most(Counter(word for words in said.values() for word in words), ATTRIBUTES, "none")
    for known, objects in named.items():
        kept = [(name, box, next((word for word in said.get((known, name, box), ()) if word in attributes), "none")) for name, box in objects if name in classes]
        if kept:
            one = gathered.found[known]
            assert one.shape is not None
            one.things = _things(one.shape, kept, classes, attributes)
            one.fields["tags"] = [name if word == "none" else f"{word} {name}" for name, _, word in kept]
    return {"classes.txt": "".join(f"{name}\n" for name in classes), "attributes.txt": "".join(f"{name}\n" for name in attributes)}


def _named(path: Path, word: str, gathered: Gathered) -> Iterator[tuple[int, list[tuple[str, Box, list[str]]]]]:
    """Of each image its id, and the first name, box and attributes of each object that has a name and lies inside."""
    for number, row in enumerate(records(read_json(path), path, **{word: list})):
        place = f"{path}, record {number}"
        one = _image(gathered, row, place, "an object")
        assert one.shape is not None
        found = []
        for thing in records(row[word], f"{place}, {word}", x=NUMBER, y=NUMBER, w=NUMBER, h=NUMBER, names=list):
            name = clean_caption(str(thing["names"][0])).lower() if thing["names"] else ""
            box = clipped(thing["x"], thing["y"], thing["w"], thing["h"], one.shape)
            if name and box is not None:
                found.append((name, box, [clean_caption(str(text)).lower() for text in thing.get("attributes") or []]))
        yield one.fields["image_id"], found


def _most(counted: Counter[str], most: int, first: str) -> dict[str, int]:
    """Numbers of the most frequent names behind `first`; ties by the alphabet, so that equal files give equal numbers."""
    ranked = sorted((name for name in counted if name != first), key=lambda name: (-counted[name], name))[:most]
    return {name: number for number, name in enumerate([first, *ranked])}


def _things(shape: tuple[int, int], kept: list[tuple[str, Box, str]], classes: Mapping[str, int], attributes: Mapping[str, int]) -> Things:
    ids, words = tuple(classes[name] for name, *_ in kept), tuple(attributes[word] for *_, word in kept)
    traits = tuple((name, len(classes) + word) if word else (name,) for name, word in zip(ids, words))
    return Things(shape, tuple(box for _, box, _ in kept), ids, words, traits, (len(classes), len(classes) + len(attributes)))
