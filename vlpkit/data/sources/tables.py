"""Lists of one's own: a CSV, TSV or JSONL of image files and captions, one line an image and a caption, or a line of many captions.
Lines that cannot be used are counted, not fatal: people's lists are never quite clean."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlpkit.data.decode import clean_caption
from vlpkit.data.sources.listing import Candidate, Listing
from vlpkit.errors import DataError, did_you_mean

LISTS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": ""}


def read_list(source: Path, images: Path | None, image_column: str, caption_column: str) -> Listing:
    """Every image of a list with all its captions; lines about the same file are one image.

    Args:
        source: .csv, .tsv (with a header line) or .jsonl.
        images: where its names start; None: the folder `images` beside it, else its own folder.

    Raises:
        DataError: a list of another kind, without the columns, with addresses among the files, or in UTF-16.
    """
    if images is None:
        images = source.parent / "images"
        images = images if images.is_dir() else source.parent
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
