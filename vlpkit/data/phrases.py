"""Phrases about parts of an image: beside its caption, a sample is told by one of them, and where that part lies becomes a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlpkit.data.decode import Refused, clean_caption
from vlpkit.data.transforms import Box

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)  # corners as fractions of an image
NOWHERE: Box = (0.0, 0.0, 0.0, 0.0)  # of a text that speaks of no part


class Part(NamedTuple):
    """A phrase, and where in the image is what it names; NOWHERE when that is not asked."""

    text: str
    box: Box


class Phrases:
    """Which phrase goes along (Zeng et al. 2022, X-VLM: of the regions of an image those count that its crop keeps).

    KEY.json holds `regions: [{"phrase": text, "box": [x0, y0, x1, y1]}, ...]`, corners as fractions of the upright image; further fields are left alone.

    Args:
        inside: share of a part's area above which it counts as seen; its box then ends where the crop does.
    """

    def __init__(self, *, inside: float = 0.5) -> None:
        if not 0 <= inside < 1:
            raise ValueError(f"inside={inside} must be a share from 0 to below 1")
        self.inside = inside

    def of(self, record: Mapping[str, Any]) -> list[Part]:
        """The phrases of a record, those without words or extent passed over. Raises Refused("bad_record")."""
        told = record.get("regions", [])
        if not isinstance(told, list):
            raise Refused("bad_record", "regions must be a list")
        found = []
        for one in told:
            box = one.get("box") if isinstance(one, Mapping) else None
            if not (isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box) and isinstance(one.get("phrase"), str)):
                raise Refused("bad_record", "a region must have the text `phrase` and four numbers `box`")
            left, top, right, bottom = (min(max(float(edge), 0.0), 1.0) for edge in box)
            if left < right and top < bottom and (text := clean_caption(one["phrase"])):
                found.append(Part(text, (left, top, right, bottom)))
        return found

    def choose(self, captions: Sequence[str], record: Mapping[str, Any], seen: Box, rng: np.random.Generator | None) -> Part:
        """A phrase about a part that is seen, its box as fractions of what is seen; else a caption, NOWHERE.

        Args:
            captions: of the image.
            record: its KEY.json.
            seen: the part of the image that the model is shown.
            rng: chooses; None: the first one.
        """
        parts = [part for one in self.of(record) if (part := self._within(one, seen)) is not None] or [Part(text, NOWHERE) for text in captions]
        return parts[0 if rng is None else int(rng.integers(len(parts)))]

    def _within(self, part: Part, seen: Box) -> Part | None:
        left, top, right, bottom = part.box
        x0, y0, x1, y1 = max(left, seen[0]), max(top, seen[1]), min(right, seen[2]), min(bottom, seen[3])
        kept = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        if kept <= self.inside * (right - left) * (bottom - top):
            return None
        wide, tall = seen[2] - seen[0], seen[3] - seen[1]
        return Part(part.text, ((x0 - seen[0]) / wide, (y0 - seen[1]) / tall, (x1 - seen[0]) / wide, (y1 - seen[1]) / tall))
