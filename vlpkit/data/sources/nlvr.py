"""Cornell NLVR (Suhr et al. 2017): true and false statements about drawings of three boxes whose every object is known.
Six drawings a statement, the boxes in another order each; objects become exact regions, and the tar is read where it lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

from vlpkit.data.decode import clean_caption
from vlpkit.data.sources.annotations import json_lines, records, tar_members
from vlpkit.data.sources.exact import Things
from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing, split_in_name
from vlpkit.data.sources.statements import VERDICTS, listed, verdict
from vlpkit.errors import DataError

# Drawings are 400 x 100 pixels: boxes of 100 x 100 with grey bars of 50 between them; y runs downwards.
SHAPE = (400, 100)
BOX, STEP = 100, 150
ORDERS = tuple(permutations(range(3)))  # drawing k shows the boxes in the k-th order
SIZES = {10: "small", 20: "medium", 30: "large"}  # pixels
COLOURS = {"black": "black", "#0099ff": "blue", "yellow": "yellow"}
SHAPES = ("circle", "square", "triangle")
CLASSES = ("background", *(" ".join(look) for look in product(SIZES.values(), COLOURS.values(), SHAPES)))
ATTRIBUTES = ("none", *COLOURS.values())
TRAITS = (*SIZES.values(), *COLOURS.values(), *SHAPES)


class Drawn(NamedTuple):
    """An object as it is drawn in one order of the boxes."""

    size: str
    colour: str
    shape: str
    box: tuple[float, ...]  # corners in pixels of the drawing

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


def read_nlvr(source: Path, images: Path | None) -> Listing:
    """dev.tar and its like, or dev.json with the folder `images` beside it. A drawing is one sample; of a statement's drawings none is parted
    from the others by a drawn split. Its captions are the statement, where true, and a count of what is there.

    Raises:
        DataError: no whole tar, no statements in it, or a statement or an object of another form.
    """
    if source.suffix.lower() == ".tar":
        stem, text, find = _in_tar(source)
    else:
        stem, text, find = source.stem, source.read_bytes(), _in_folder(source, images)
    gathered, split = Gathered(), split_in_name(source)
    rows = records(list(json_lines(text, str(source))), source, sentence=str, identifier=str, label=str, structured_rep=list)
    for number, row in enumerate(rows, 1):
        place = f"{source}, line {number}"
        said, answer = clean_caption(row["sentence"]), verdict(row["label"], VERDICTS, place)
        gathered.rows["used" if said else "empty_caption"] += 1
        asked = [{"question": said, "answer": answer, "id": row["identifier"], "kind": "statement"}] if said else []
        for k, order in enumerate(ORDERS):
            png = f"{stem}-{row['identifier']}-{k}.png"
            if png in gathered.found:
                raise DataError(f"{place}: the statement {row['identifier']} comes twice")
            path, span = find(png, str(row.get("directory", "")))
            fields = {"source": "nlvr", "image_id": png[:-4], "questions": asked}
            one = Candidate(png, path, fields=fields, refused="" if path else "missing_image", span=span, split=split, group=said, shape=SHAPE)
            gathered.found[png] = one
            _describe(one, list(drawn(row["structured_rep"], order, place)), said if answer == "true" else "")
    files = {**listed(VERDICTS), "classes.txt": "".join(f"{one}\n" for one in CLASSES), "attributes.txt": "".join(f"{one}\n" for one in ATTRIBUTES)}
    return gathered.listing(files=files)


def drawn(structured: Any, order: tuple[int, ...], place: str) -> Iterator[Drawn]:
    """The objects of a drawing, box by box from the left. Raises DataError for an object of another form, or one outside its box."""
    if len(structured) != len(order):
        raise DataError(f"{place}: {len(structured)} boxes, where a drawing has {len(order)}")
    for at, box in enumerate(order):
        for thing in records(structured[box], f"{place}, box {box}", x_loc=int, y_loc=int, size=int, type=str, color=str):
            x, y, size = thing["x_loc"], thing["y_loc"], thing["size"]
            look = SIZES.get(size), COLOURS.get(thing["color"].lower()), thing["type"]
            if look[0] is None or look[1] is None or look[2] not in SHAPES or min(x, y) < 0 or max(x, y) + size > BOX:
                raise DataError(f"{place}, box {box}: {thing} is no object of {', '.join(SHAPES)}, {', '.join(COLOURS)} and 10, 20 or 30 pixels inside its box")
            left = at * STEP + x
            yield Drawn(look[0], look[1], look[2], (float(left), float(y), float(left + size), float(y + size)))


def _describe(one: Candidate, things: list[Drawn], true: str) -> None:
    """Exact regions, tags and captions."""
    counted = Counter(thing.name for thing in things)
    one.captions = [text for text in (true, ", ".join(f"{many} {name}{'s' if many > 1 else ''}" for name, many in counted.items())) if text]
    if not things:
        return
    one.fields["tags"] = [thing.name for thing in things]
    ids = tuple(CLASSES.index(thing.name) for thing in things)
    traits = tuple(tuple(TRAITS.index(word) for word in thing[:3]) for thing in things)
    one.things = Things(SHAPE, tuple(thing.box for thing in things), ids, tuple(ATTRIBUTES.index(thing.colour) for thing in things), traits, (len(CLASSES), len(TRAITS)))


Find = Callable[[str, str], tuple[str, tuple[int, int] | None]]


def in_tar(members: Sequence[str]) -> bool:
    """Whether a tar with these members holds drawings and one list of statements."""
    return sum(name.endswith(".json") for name in members) == 1 and any(re.search(r"-\d+-\d+-[0-5]\.png$", name) for name in members)


def _in_tar(source: Path) -> tuple[str, bytes, Find]:
    """The statements of a tar, and where each of its drawings lies in it; names of members are compared, never opened as paths."""
    members = tar_members(source)
    lists = [member for name, member in members.items() if name.endswith(".json")]
    if len(lists) != 1:
        raise DataError(f"{source} holds {len(lists)} .json files, where NLVR's tars hold one list of statements; is it of another kind? See --kind")
    with source.open("rb") as file:
        file.seek(lists[0].offset)
        text = file.read(lists[0].size)
    spans = {name.rpartition("/")[2]: (member.offset, member.size) for name, member in members.items()}
    return Path(lists[0].name).stem, text, lambda png, _: (str(source), spans[png]) if png in spans else ("", None)


def _in_folder(source: Path, images: Path | None) -> Find:
    album = Album(source, images)
    return lambda png, directory: (album.path(f"{directory}/{png}", f"images/{directory}/{png}", png), None)
