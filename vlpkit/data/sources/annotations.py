"""Published annotation files, read strictly: what is cut off, mixed up or of another form is refused in one sentence that names the place.
Also the first glance by which kinds are told apart, however large a file is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlpkit.data.tarscan import Member, scan
from vlpkit.errors import DataError

NUMBER = (int, float)
_EDGE = 1 << 16  # bytes at each end of a file that a glance takes in


class Glance:
    """First impression of a source.

    Args:
        path: a file or a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.suffix = path, path.suffix.lower()

    @cached_property
    def ends(self) -> str:
        """The first and the last 64 KiB of a file as text."""
        if not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            head = file.read(_EDGE)
            file.seek(max(len(head), self.path.stat().st_size - _EDGE))
            return (head + b"\n" + file.read()).decode("utf-8", "replace")

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields of JSON objects near both ends."""
        return frozenset(re.findall(r'"([A-Za-z0-9_]{1,40})"\s*:', self.ends))

    @cached_property
    def members(self) -> list[str]:
        """Names of the members of a .tar, [] of anything else. Raises DataError for a tar that is not whole."""
        return list(tar_members(self.path)) if self.suffix == ".tar" and self.path.is_file() else []

    def has(self, *fields: str) -> bool:
        """Whether it is JSON in which all these fields occur."""
        return self.suffix in (".json", ".jsonl") and self.fields.issuperset(fields)


def read_json(path: Path, why: str = "") -> Any:
    """The content of a JSON file. Raises DataError when it is missing (`why` says what it is needed for), cut off or no JSON."""
    if not path.is_file():
        raise DataError(f"{path} does not exist{f'; {why}' if why else ''}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no whole JSON file ({error}; it has {path.stat().st_size} bytes). It may be cut off: get it again") from None


def json_lines(text: bytes, place: str) -> Iterator[dict[str, Any]]:
    """One object a line; blank lines are passed over. Raises DataError."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}, line {number}: no JSON object ({error}). It may be cut off: get it again") from None
        yield found


def part(content: Any, name: str, place: str | Path) -> list[Any]:
    """The list `name` of an annotation file. Raises DataError where there is none."""
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        there = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else f"a {type(content).__name__} at its top"
        raise DataError(f"{place} has no list {name!r} (it has {there or 'nothing'}); is it of another kind? See --kind")
    return found


def records(rows: Any, place: str | Path, **fields: type | tuple[type, ...]) -> Iterator[dict[str, Any]]:
    """The objects of a list, each with these fields of these types. Raises DataError naming the first that is otherwise."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise DataError(f"{place} is {str(rows)[:40]!r}, where a list stands in published files; is it of another kind? See --kind")
    for number, row in enumerate(rows):
        for name, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                found = repr(row.get(name))[:60] if isinstance(row, dict) and name in row else "missing"
                kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
                raise DataError(f"{place}, record {number}: {name!r} is {found}, where published files have {kinds}; is it of another kind? See --kind")
        yield row


def unknown(place: str | Path, what: str, image: object, listed: str) -> DataError:
    """An annotation about an image that nothing else lists."""
    return DataError(f"{place}: {what} is about image {image}, which {listed} does not list. Two releases may be mixed, or a file cut: get both again")


def tar_members(path: Path) -> dict[str, Member]:
    """Regular files of a tar by name, where their bytes lie; nothing is unpacked. Raises DataError for what is no whole tar."""
    try:
        found = scan(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if found.flaws:
        raise DataError(f"{path} is no whole tar ({found.flaws[0].reason}: {found.flaws[0].detail}). Get it again")
    return {member.name: member for member in found.members}


def clipped(x: float, y: float, wide: float, tall: float, shape: tuple[int, int]) -> tuple[float, ...] | None:
    """x1, y1, x2, y2 in pixels of a box given by its corner and its size, cut to the image; None when nothing of it is inside."""
    width, height = shape
    box = max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + tall, float(height))
    return box if box[0] < box[2] and box[1] < box[3] else None


def fractions(box: tuple[float, ...], shape: tuple[int, int]) -> list[float]:
    """Corners in pixels as fractions of the image, so that they hold whatever size it is stored in."""
    return [round(edge / side, 5) for edge, side in zip(box, (*shape, *shape))]
