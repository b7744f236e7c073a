"""What is in a scene, what may be said of it truly, and which split it belongs to: the one place that decides truth.
Nothing here draws or speaks; a scene is a pure function of (seed, split, number)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Split = Literal["train", "val"]
Generator = np.random.Generator
Look = tuple[str, str, str, str]  # size, texture, colour, shape
Spot = tuple[float, float, float]  # x, y, radius

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("white", "gray", "black", "beige", "brown")
RELATIONS = ("left", "right", "above", "below", "inside", "around")
OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "inside": "around",
    "around": "inside",
}

_SPLITS: dict[str, int] = {"train": 0, "val": 1}
_COUNTS = (0.05, 0.45, 0.30, 0.20)  # share of scenes with 1, 2, 3 and 4 objects
_HOLDERS = ("circle", "square", "ring", "diamond")  # shapes wide enough to hold another one
_RADIUS = {"small": (0.115, 0.135), "large": (0.2, 0.225)}  # half the box, as a fraction of the image
_PLACINGS = 40  # attempts to place a composition before another is drawn
_GAP = 0.025  # least distance between two boxes, as a fraction of the image
_VAL_ONE_IN = 10  # one composition in ten belongs to validation


@dataclass(frozen=True)
class Thing:
    """One object; x, y, radius are fractions of the image, tilt is in degrees; its box is tight."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    tilt: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) as fractions of the image."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius

    @property
    def look(self) -> Look:
        """Everything a caption can say of the object alone."""
        return self.size, self.texture, self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """1 to 4 objects, those further back first, on a background."""

    background: str
    things: tuple[Thing, ...]

    def record(self) -> dict[str, Any]:
        """The JSON form kept beside the image: attributes and boxes, from which later tasks derive what they need."""
        objects = [
            {
                "shape": thing.shape,
                "colour": thing.colour,
                "size": thing.size,
                "texture": thing.texture,
                "box": [round(edge, 4) for edge in thing.box],
                "place": place(thing),
            }
            for thing in self.things
        ]
        return {"background": self.background, "objects": objects, "relations": relations(self)}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object, or of exactly `count` alike ones; None is left unsaid."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None
    count: int = 1

    def fits(self, thing: Thing) -> bool:
        """Whether everything said is true of the object."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
            and self.texture in (None, thing.texture)
            and self.place in (None, place(thing))
        )


@dataclass(frozen=True)
class Facts:
    """What a caption claims: distinct objects, relations between mentions by number, background, number of objects."""

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    total: int | None = None

    def record(self) -> dict[str, Any]:
        """The JSON form, without what is left unsaid."""
        mentions = [{key: value for key, value in asdict(m).items() if value not in (None, 1)} for m in self.mentions]
        found: dict[str, Any] = {"mentions": mentions}
        if self.relations:
            found["relations"] = [list(relation) for relation in self.relations]
        if self.background is not None:
            found["background"] = self.background
        if self.total is not None:
            found["total"] = self.total
        return found


def generator(seed: int, split: Split, number: int, purpose: int) -> Generator:
    """An independent stream per (seed, split, number, purpose), so that changing one aspect leaves the others alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _SPLITS[split], number, purpose))))


def place(thing: Thing) -> str:
    """One of nine places by thirds of the image, e.g. "top left", "top", "center"."""
    row = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    column = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    return f"{row} {column}".strip() or "center"


def relation(a: Thing, b: Thing) -> str | None:
    """How a lies to b: "inside", "around", or the clearly dominant direction; None when neither is clear."""
    inner, outer = a.box, b.box
    if inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]:
        return "inside"
    if inner[0] <= outer[0] and inner[1] <= outer[1] and inner[2] >= outer[2] and inner[3] >= outer[3]:
        return "around"
    across, down = b.x - a.x, b.y - a.y
    if abs(across) >= 1.3 * abs(down) and abs(across) > 0.15:
        return "left" if across > 0 else "right"
    if abs(down) >= 1.3 * abs(across) and abs(down) > 0.15:
        return "above" if down > 0 else "below"
    return None


def relations(scene: Scene) -> list[list[int | str]]:
    """Every clear relation [i, name, j] between two objects, i < j."""
    found: list[list[int | str]] = []
    for i, a in enumerate(scene.things):
        for j in range(i + 1, len(scene.things)):
            name = relation(a, scene.things[j])
            if name is not None:
                found.append([i, name, j])
    return found


def holds(facts: Facts, scene: Scene) -> bool:
    """Whether a caption's claims are true of a scene.

    Single mentions need distinct objects that fit and stand in the claimed relations; a mention with a count needs
    exactly that many fitting objects in the scene, none of which another mention uses.
    """
    if facts.background not in (None, scene.background) or facts.total not in (None, len(scene.things)):
        return False
    taken: set[int] = set()
    for mention in facts.mentions:
        if mention.count > 1:
            fitting = {i for i, thing in enumerate(scene.things) if mention.fits(thing)}
            if len(fitting) != mention.count or fitting & taken:
                return False
            taken |= fitting
    return _assign(facts, scene, 0, {}, taken)


def _assign(facts: Facts, scene: Scene, at: int, chosen: dict[int, int], taken: set[int]) -> bool:
    while at < len(facts.mentions) and facts.mentions[at].count > 1:
        at += 1
    if at == len(facts.mentions):
        return all(
            i in chosen and j in chosen and relation(scene.things[chosen[i]], scene.things[chosen[j]]) == name
            for i, name, j in facts.relations
        )
    mention = facts.mentions[at]
    return any(
        _assign(facts, scene, at + 1, {**chosen, at: i}, taken | {i})
        for i, thing in enumerate(scene.things)
        if i not in taken and mention.fits(thing)
    )


def composition(looks: Iterable[Look]) -> tuple[Look, ...]:
    """The multiset of the objects' looks, whatever their places and background: what the two splits never share."""
    return tuple(sorted(looks))


def split_of(looks: Iterable[Look]) -> Split:
    """The split that owns this composition, by its hash alone; the same in every world, whatever its seed."""
    digest = hashlib.blake2b(repr(composition(looks)).encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") % _VAL_ONE_IN == 0 else "train"


def make_scene(seed: int, split: Split, number: int) -> Scene:
    """Scene `number` of a split; the same arguments give the same scene on every machine."""
    rng = generator(seed, split, number, 0)
    while True:
        looks, held = _looks(rng)
        if split_of(looks) != split:
            continue
        for _ in range(_PLACINGS):
            spots = _spots(rng, looks, held)
            if spots is None:
                continue
            things = tuple(
                Thing(*look, *spot, tilt=float(np.round(rng.uniform(-8, 8), 2))) for look, spot in zip(looks, spots)
            )
            return Scene(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], things)


def _look(rng: Generator, large: float) -> Look:
    size = SIZES[int(rng.random() < large)]
    texture = TEXTURES[int(np.searchsorted((0.6, 0.8), rng.random(), side="right"))]
    return size, texture, COLOURS[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]


def _looks(rng: Generator) -> tuple[list[Look], bool]:
    """The objects' looks, and whether the second lies inside the first."""
    count = 1 + int(np.searchsorted(np.cumsum(_COUNTS)[:-1], rng.random(), side="right"))
    looks = [_look(rng, {1: 0.5, 2: 0.5, 3: 0.4, 4: 0.25}[count]) for _ in range(count)]
    held = count > 1 and bool(rng.random() < 0.15)
    if held:  # a plain large holder of another colour keeps what it holds visible
        outer = ("large", "plain", looks[0][2], _HOLDERS[int(rng.integers(len(_HOLDERS)))])
        others = [colour for colour in COLOURS if colour != outer[2]]
        inner = ("small", looks[1][1], others[int(rng.integers(len(others)))], looks[1][3])
        looks[:2] = [outer, inner]
    elif count > 2 and rng.random() < 0.3:  # alike objects give count phrases something to count
        for i in range(1, 2 if rng.random() < 0.7 else 3):
            looks[i] = looks[0]
    return looks, held


def _spots(rng: Generator, looks: list[Look], held: bool) -> list[Spot] | None:
    """(x, y, radius) of every object without overlap, or None when they did not fit."""
    radii = [float(rng.uniform(*_RADIUS[size])) for size, *_ in looks]
    if held:
        radii[0], radii[1] = float(rng.uniform(0.24, 0.27)), float(rng.uniform(0.095, 0.105))
    layout = ("row", "column", "free")[int(np.searchsorted((0.3, 0.6), rng.random(), side="right"))]
    line = float(rng.uniform(0.3, 0.7))
    placed: list[Spot] = []
    for number, radius in enumerate(radii):
        if held and number == 1:
            spot = (placed[0][0], placed[0][1], radius)
        else:
            found = _free(rng, radius, placed, layout, line)
            if found is None:
                return None
            spot = found
        placed.append(spot)
    return [(round(x, 4), round(y, 4), round(r, 4)) for x, y, r in placed]


def _free(rng: Generator, radius: float, placed: list[Spot], layout: str, line: float) -> Spot | None:
    low, high = radius + 0.015, 1 - radius - 0.015
    for _ in range(30):
        x, y = float(rng.uniform(low, high)), float(rng.uniform(low, high))
        near = min(max(line + float(rng.uniform(-0.06, 0.06)), low), high)
        if layout == "row":
            y = near
        elif layout == "column":
            x = near
        if all(max(abs(x - u), abs(y - v)) >= radius + r + _GAP for u, v, r in placed):
            return x, y, radius
    return None
