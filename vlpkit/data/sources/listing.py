"""The one form that every kind of source is read into: images with what is said about them, named for the shards, and every line counted.
Where the images of published annotations lie is found here too, by name under a few folders."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlpkit.data.decode import clean_caption
from vlpkit.data.sources.exact import Things
from vlpkit.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
KEY_LENGTH = 80  # characters, so that every member name fits a plain tar header
SPLITS = ("train", "val", "test", "test2", "testA", "testB")  # published splits, as shards are named; "" is a source without any
_SPOKEN = {"dev": "val", "restval": "train", "test1": "test", "hidden": "test", **{name: name for name in SPLITS}}


@dataclass(slots=True)
class Candidate:
    """One image that may become a sample.

    Args:
        name: of the image as the list has it, or relative to the folder.
        path: of the image file, or of a tar that holds it.
        key: unique name in the shards: letters, digits, `_` and `-`.
        captions: cleaned, none blank; empty when there is none worth keeping.
        fields: further fields of its record.
        refused: why it cannot be used, known from the list alone; "" if it may be.
        span: offset and size in bytes where `path` is a tar.
        split: published, one of SPLITS, or "".
        group: what a drawn split must not part, such as a statement about several images; "": the image alone.
        shape: width and height in pixels that the annotations claim, where they measure in pixels.
        things: exact regions.
        right: path of a second image, shown to the right of this one.
    """

    name: str
    path: str
    key: str = ""
    captions: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    span: tuple[int, int] | None = None
    split: str = ""
    group: str = ""
    shape: tuple[int, int] | None = None
    things: Things | None = None
    right: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of a source in order of first appearance.

    Args:
        rows: counts of the list's lines by outcome: used, bad_row, bad_utf8, empty_caption, bad_box.
        files: texts that belong beside the shards, by file name, such as a list of answers.
        kind: of the source.
    """

    candidates: list[Candidate]
    rows: Counter[str]
    files: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def __len__(self) -> int:
        return len(self.candidates)


class Gathered:
    """Images by their id, each once, and what lines said about them."""

    def __init__(self) -> None:
        self.found: dict[Hashable, Candidate] = {}
        self.rows: Counter[str] = Counter()

    def say(self, one: Candidate, texts: Iterable[str]) -> None:
        """Adds captions that are not there yet, cleaned; each text counts as one line."""
        for text in texts:
            kept = clean_caption(text)
            self.rows["used" if kept else "empty_caption"] += 1
            if kept and kept not in one.captions:
                one.captions.append(kept)

    def ask(self, one: Candidate, field_: str, **asked: Any) -> None:
        """Adds an entry to a list in the record, such as a question; its first text is cleaned and must not be blank."""
        word, text = next(iter(asked.items()))
        kept = clean_caption(text)
        self.rows["used" if kept else "empty_caption"] += 1
        if kept:
            one.fields.setdefault(field_, []).append({**asked, word: kept})

    def listing(self, *, files: Mapping[str, str] | None = None, tasks: tuple[str, ...] = ()) -> Listing:
        """All of it; an image with neither a caption nor one of the fields `tasks` cannot be used."""
        for one in self.found.values():
            if not one.captions and not any(one.fields.get(task) for task in tasks):
                one.refused = one.refused or "empty_caption"
        return Listing(list(self.found.values()), self.rows, files or {})


class Album:
    """Where images lie: names are tried in turn in the folders where published data sets are usually unpacked.

    Args:
        source: the annotation file.
        images: the only folder to look in; None: `images` beside the file, the file's folder and the one above.
    """

    def __init__(self, source: Path, images: Path | None) -> None:
        above = source.resolve().parent
        self.roots = [images] if images is not None else [above / "images", above, above.parent]
        self._last: tuple[Path, int] = (self.roots[0], 0)

    def path(self, *names: str) -> str:
        """The file that is there under one of these names, or the first that might have been."""
        last, at = self._last
        for root, number in ((last, at), *((root, number) for root in self.roots for number in range(len(names)))):
            if number < len(names) and os.path.isfile(found := os.path.join(root, names[number])):
                self._last = root, number
                return found
        return os.path.join(self.roots[0], names[0])


def published_split(word: str, where: str) -> str:
    """A split's name in a file as shards bear it: "dev" is val, "restval" train. Raises DataError for a word that no data set uses."""
    try:
        return _SPOKEN[word]
    except KeyError:
        raise DataError(f"{where}: the split {word!r} is not known (there are: {', '.join(_SPOKEN)})") from None


def split_in_name(path: Path) -> str:
    """The split that a file is named for, such as captions_train2017.json; "" for none."""
    found = re.search(r"(?<![a-z])(train|val|dev|test[12]?|hidden)(?![a-z])", re.sub(r"(?<=[a-z])(?=20\d\d)", "-", path.stem.lower()))
    return _SPOKEN[found[1]] if found else ""


def name_all(candidates: list[Candidate]) -> None:
    """Turns relative paths into keys; those that would coincide, if only in case, get a piece of their path's hash."""
    for one in candidates:
        parts = [part for part in re.split(r"[/\\]", os.path.splitext(one.name)[0]) if part not in ("", ".", "..")]
        one.key = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts)).strip("_-")[-KEY_LENGTH:] or "image"
    taken = Counter(one.key.lower() for one in candidates)
    for one in candidates:
        if taken[one.key.lower()] > 1:
            digest = hashlib.sha256(one.name.encode(errors="surrogateescape")).hexdigest()
            one.key = f"{one.key[-KEY_LENGTH + 13 :]}-{digest[:12]}"


def counts(counter: Mapping[str, int]) -> str:
    """Such as "bad_row 2, used 7"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
