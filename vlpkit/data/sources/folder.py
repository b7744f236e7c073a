"""A folder of images with a text file of the same name beside each, one caption a line.
What is missing or cannot be read is counted with its image."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vlpkit.data.decode import Refused, clean_caption
from vlpkit.data.sources.listing import IMAGES, Candidate, Listing


def read_folder(folder: Path) -> Listing:
    """Every image of a folder and below, in the order of their names."""
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
