"""Says of each object what singles it out: referring expressions with their boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlpkit.data.shapes.language import noun
from vlpkit.data.shapes.scenes import Mention, Scene, Thing, place


def phrases(scene: Scene) -> list[dict[str, Any]]:
    """For each object that can be told from the others, the shortest phrase that does, and its box as fractions of the image."""
    found = []
    for thing in scene.things:
        clear = next((mention for mention in _mentions(thing) if sum(mention.fits(other) for other in scene.things) == 1), None)
        if clear is not None:
            found.append({"phrase": noun(clear), "box": [round(min(max(edge, 0.0), 1.0), 5) for edge in thing.box]})
    return found


def _mentions(thing: Thing) -> list[Mention]:
    """What may be said of an object, from little to much."""
    plain = Mention(thing.shape, thing.colour)
    sized, filled = replace(plain, size=thing.size), replace(plain, texture=thing.texture)
    return [plain, sized, filled, replace(sized, texture=thing.texture), replace(plain, place=place(thing))]
