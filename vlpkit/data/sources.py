"""What people have before they have shards: a CSV, TSV or JSONL of image files and captions, or a folder of both.
Read into one list of images with their captions; nothing is opened but the list itself."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlpkit.data.decode import Refused, clean_caption
from vlpkit.errors import DataError, did_you_mean

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
LISTS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": ""}
KEY_LENGTH = 80  # characters, so that every member name fits a plain tar header


@dataclass(slots=True)
class Candidate:
    """One image that may become a sample.

    Args:
        name: of the image as the list has it, or relative to the folder.
        path: of the image file.
        key: unique name in the shards: letters, digits, `_` and `-`.
        captions: cleaned, none blank; empty when there is none worth keeping.
        fields: further fields of its record.
        refused: why it cannot be used, known from the list alone; "" if it may be.
    """

    name: str
    path: str
    key: str = ""
    captions: list[str] = field(default_factory=list)
    fields: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of a source in order of first appearance.

    Args:
        rows: counts of the list's lines by outcome: used, bad_row, bad_utf8, empty_caption.
    """

    candidates: list[Candidate]
    rows: Counter[str]

    def __len__(self) -> int:
        return len(self.candidates)


def read_source(source: Path, *, images: Path | None = None, image_column: str = "image", caption_column: str = "caption") -> Listing:
    """Every image of a list or a folder with all its captions; lines about the same file are one image.

    Args:
        source: .csv, .tsv (with a header line), .jsonl, or a folder of images with KEY.txt beside them, one caption a line.
        images: where relative names of a list start; by default the folder `images` beside it, else its own folder.

    Raises:
        DataError: the source is missing, of another kind, without the columns, or without a single image.
    """
    if source.is_dir():
        listing = _read_folder(source)
        wanted = f"no {', '.join(IMAGES)} file in {source} or below"
    elif source.is_file():
        if images is None:
            images = source.parent / "images"
            images = images if images.is_dir() else source.parent
        if not images.is_dir():
            raise DataError(f"--images {images} is not a folder")
        listing = _read_list(source, images, image_column, caption_column)
        wanted = f"no usable line in {source}"
    else:
        raise DataError(f"{source} does not exist; name a {', '.join(LISTS)} file or a folder of images with .txt files beside them")
    if not listing.candidates:
        raise DataError(f"{wanted} ({_counts(listing.rows)})" if listing.rows else wanted)
    _name(listing.candidates)
    return listing


def _read_list(source: Path, images: Path, image_column: str, caption_column: str) -> Listing:
    if source.suffix.lower() not in LISTS:
        raise DataError(f"{source} ends in {source.suffix or 'nothing'}; a list of images is one of {', '.join(LISTS)}")
    with source.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{source} is UTF-16; save it as UTF-8")
    delimiter = LISTS[source.suffix.lower()]
    lines = _table(source, delimiter, (image_column, caption_column)) if delimiter else _json_lines(source)
    found: dict[str, Candidate] = {}
    rows: Counter[str] = Counter()
    for line in lines:
        name, said = line.pop(image_column, None), _said(line, caption_column)
        if not isinstance(name, str) or not name.strip() or said is None:
            rows["bad_row"] += 1
            continue
        if re.match(r"[a-z][a-z0-9+.-]*://", name.strip(), re.IGNORECASE):
            raise DataError(f"{source} names files and addresses; a list of addresses holds nothing else, so make two lists of it")
        path = os.path.normpath(os.path.join(images, name.strip()))
        one = found.setdefault(path, Candidate(os.path.normpath(name.strip()), path, fields={} if delimiter else line))
        texts = [clean_caption(text) for text in said if not _undecodable(text)]
        kept = [text for text in texts if text]
        one.captions += (text for text in dict.fromkeys(kept) if text not in one.captions)
        rows["bad_utf8" if len(texts) < len(said) else "used" if kept else "empty_caption"] += 1
    for one in found.values():
        one.refused = "" if one.captions else "empty_caption"
    return Listing(list(found.values()), rows)


def _said(line: dict[str, Any], column: str) -> list[str] | None:
    """The captions of a line: text or a list of texts, under `column` or, in JSON, its plural. None: the line has none."""
    said = line.pop(column, None)
    if said is None:
        said = line.pop(f"{column}s", None)
    if isinstance(said, str):
        return [said]
    return said if isinstance(said, list) and said and all(isinstance(text, str) for text in said) else None


def _undecodable(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text) if not text.isascii() else False


def _table(source: Path, delimiter: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    # A byte that is not UTF-8 spoils its own line only; names of files may contain them.
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Published TSV lists (CC3M, CC12M) do not quote, and a lone quote would swallow the lines after it.
        reader = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE) if delimiter == "\t" else csv.DictReader(file)
        try:
            header = list(reader.fieldnames or ())
            for option, column in zip(("--image-column", "--caption-column"), columns):
                if column not in header:
                    shown = ", ".join(map(repr, header[:8])) or "none"
                    hint = did_you_mean(column, header)
                    raise DataError(f"{source} has no column {column!r}, only {shown} (first line). {hint} Name it with {option}, or add a header line.".replace("  ", " "))
            for line in reader:
                yield {name: line[name] for name in columns}
        except csv.Error as error:
            raise DataError(f"{source}, line {reader.line_num}: {error}") from None


def _json_lines(source: Path) -> Iterator[dict[str, Any]]:
    with source.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for text in file:
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = {}
            yield line if isinstance(line, dict) else {}


def _read_folder(folder: Path) -> Listing:
    found: list[Candidate] = []
    rows: Counter[str] = Counter()
    for at, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGES:
                continue
            path = os.path.join(at, name)
            one = Candidate(os.path.relpath(path, folder), path)
            found.append(one)
            try:
                one.captions = _beside(Path(at, f"{stem}.txt"))
                rows["used"] += 1
            except Refused as refused:
                one.refused = refused.reason
                rows[refused.reason] += 1
    return Listing(found, rows)


def _beside(path: Path) -> list[str]:
    """One caption a line. Raises Refused."""
    if not path.is_file():
        raise Refused("missing_caption")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("bad_utf8", str(error)) from None
    captions = [caption for caption in map(clean_caption, text.splitlines()) if caption]
    if not captions:
        raise Refused("empty_caption")
    return captions


def _name(candidates: list[Candidate]) -> None:
    """Turns relative paths into keys; those that would coincide, if only in case, get a piece of their path's hash."""
    for one in candidates:
        parts = [part for part in re.split(r"[/\\]", os.path.splitext(one.name)[0]) if part not in ("", ".", "..")]
        one.key = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts)).strip("_-")[-KEY_LENGTH:] or "image"
    taken = Counter(one.key.lower() for one in candidates)
    for one in candidates:
        if taken[one.key.lower()] > 1:
            digest = hashlib.sha256(one.name.encode(errors="surrogateescape")).hexdigest()
            one.key = f"{one.key[-KEY_LENGTH + 13 :]}-{digest[:12]}"


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
