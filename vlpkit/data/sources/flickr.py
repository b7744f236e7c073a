"""Flickr30k and Flickr8k as their authors publish them: a line a caption, `name.jpg#0<TAB>caption`, or results.csv with bars between the columns.
Flickr8k's splits are lists of names beside it; Flickr30k has none of its own (see Karpathy's file)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing
from vlpkit.errors import DataError

_TOKEN = re.compile(r"([^\t#]+\.jpg)[^\t#]*#\d+\t(.*)")  # one published name reads x.jpg.1#0
_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment")
_ROW = re.compile(r"([^|]+?)\s*\|\s*\d+\s*\|\s*(.*)")
_LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}


def looks_like(text: str) -> bool:
    """Whether a file starts as one of the two forms does."""
    first = text.lstrip("\ufeff").partition("\n")[0].rstrip("\r")
    return bool(_TOKEN.fullmatch(first) or _HEADER.match(first))


def read_flickr(source: Path, images: Path | None) -> Listing:
    """Captions of either form; lines that follow neither are counted as bad_row (Flickr30k's results.csv has one).

    Raises:
        DataError: not one line is of the form, or an image of a list of names has no caption.
    """
    gathered, album = Gathered(), Album(source, images)
    source_name = "flickr8k" if "8k" in source.name.lower() else "flickr30k"
    for found in _lines(source):
        if found is None:
            gathered.rows["bad_row"] += 1
            continue
        name, text = found
        one = gathered.found.get(name)
        if one is None:
            fields = {"source": source_name, "image_id": Path(name).stem}
            one = gathered.found[name] = Candidate(name, album.path(name, f"Flicker8k_Dataset/{name}", f"flickr30k-images/{name}"), fields=fields)
        if "\ufffd" in text:
            gathered.rows["bad_utf8"] += 1
        else:
            gathered.say(one, [text])
    _divide(source, gathered)
    return gathered.listing()


def _lines(source: Path) -> Iterator[tuple[str, str] | None]:
    lines = [line.rstrip("\r") for line in source.read_bytes().decode("utf-8-sig", "replace").split("\n")]  # captions may hold other line ends
    bars = bool(lines) and _HEADER.match(lines[0]) is not None
    if not bars and not any(_TOKEN.fullmatch(line) for line in lines[:1000]):
        raise DataError(f"{source} has no line of the form name.jpg#0<TAB>caption, nor the header image_name| comment_number| comment; is it of another kind? See --kind")
    for line in lines[bars:]:
        if line.strip():
            found = (_ROW if bars else _TOKEN).fullmatch(line)
            yield None if found is None else (found[1].strip(), found[2])


def _divide(source: Path, gathered: Gathered) -> None:
    """Flickr8k's own splits, where all three lists of names lie beside it; what is in none of them belongs to none and is left out."""
    lists = {split: source.parent / name for split, name in _LISTS.items()}
    if not source.name.startswith("Flickr8k") or not all(path.is_file() for path in lists.values()):
        return
    for split, path in lists.items():
        for name in path.read_text(encoding="utf-8").split():
            one = gathered.found.get(name)
            if one is None:
                raise DataError(f"{path} lists {name}, of which {source} says nothing. Two releases may be mixed: get both again")
            one.split = split
    for one in gathered.found.values():
        one.refused = one.refused or ("" if one.split else "no_split")
