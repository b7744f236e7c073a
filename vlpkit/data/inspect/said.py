"""What a sample says of its image, without refusing it: captions, else questions or statements, and the boxes that its record names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlpkit.data.arrays import MEMBER, Archive, boxes_of, fractions, shape_of
from vlpkit.data.decode import Refused, clean_caption, read_caption

TASKS = {"questions": "question", "statements": "statement"}  # fields of a record, and where the text of each entry is
_SURE = 0.2  # confidence from which a detector's region is worth a look, as the recipes have it

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of the image


def texts_of(members: Mapping[str, bytes]) -> tuple[list[str], dict[str, Any]]:
    """Captions and record; no caption is no fault here, where a sample may have tasks instead, or be there for its image alone.

    Raises:
        Refused: empty_caption, bad_utf8 or bad_record.
    """
    return read_caption(members.get("txt"), members.get("json"), needed=False)


def tasks_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(text, answer) of the questions and statements of a record; entries of another form are passed over."""
    found = []
    for field, word in TASKS.items():
        entries = record.get(field)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping) and isinstance(text := entry.get(word), str):
                found.append((clean_caption(text), clean_caption(str(entry.get("answer", "")))))
    return found


def captions_in(members: Mapping[str, bytes]) -> list[str]:
    """The captions of a sample; none when they cannot be read."""
    try:
        return texts_of(members)[0]
    except Refused:
        return []


def boxes_in(members: Mapping[str, bytes], record: Mapping[str, Any]) -> list[tuple[Box, str]]:
    """The regions of a sample and what they are called: those with a phrase of the record, then those of KEY.regions.npz that are sure enough."""
    found: list[tuple[Box, str]] = []
    entries = record.get("regions")
    for entry in entries if isinstance(entries, list) else ():
        box = entry.get("box") if isinstance(entry, Mapping) else None
        if isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) and 0 <= edge <= 1 for edge in box):
            found.append(((box[0], box[1], box[2], box[3]), clean_caption(str(entry.get("phrase", "")))))
    if MEMBER in members:
        try:
            stored = Archive(members[MEMBER])
            boxes = fractions(boxes_of(stored), shape_of(stored, record)).tolist()
            sure = stored.array("confidences", 1, "f", len(boxes)).tolist() if "confidences" in stored else [1.0] * len(boxes)
        except Refused:  # verify says so; here there is nothing to draw
            return found
        found += [((box[0], box[1], box[2], box[3]), "") for box, confidence in zip(boxes, sure) if confidence >= _SURE]
    return found
