"""Asks about scenes what has one right answer in a fixed list."""

from __future__ import annotations

from vlpkit.data.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Generator, Mention, Scene

NUMBERS = ("zero", "one", "two", "three", "four")
ANSWERS = ("yes", "no", *NUMBERS, *COLOURS, *SHAPES, *SIZES, *TEXTURES, *BACKGROUNDS)


def questions(scene: Scene, rng: Generator) -> list[dict[str, str]]:
    """One question of each kind that the scene allows, with its answer: exists, count, colour, shape, size, texture, background."""
    made = [_exists(scene, rng), _count(scene, rng), ("background", "what colour is the background", scene.background)]
    for about in ("colour", "shape", "size", "texture"):
        one = _attribute(scene, rng, about)
        if one is not None:
            made.append((about, *one))
    return [{"question": question, "answer": answer, "kind": kind} for kind, question, answer in made]


def _exists(scene: Scene, rng: Generator) -> tuple[str, str, str]:
    if rng.random() < 0.5:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        colour, shape = thing.colour, thing.shape
    else:
        colour, shape = COLOURS[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
    there = any(Mention(shape, colour).fits(thing) for thing in scene.things)
    return "exists", f"is there a{'n' if colour[0] in 'aeiou' else ''} {colour} {shape}", "yes" if there else "no"


def _count(scene: Scene, rng: Generator) -> tuple[str, str, str]:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    mention, what = ((Mention(thing.shape), _plural(thing.shape)), (Mention(colour=thing.colour), f"{thing.colour} shapes"), (Mention(), "shapes"))[
        int(rng.integers(3))
    ]
    return "count", f"how many {what} are there", NUMBERS[sum(mention.fits(other) for other in scene.things)]


def _attribute(scene: Scene, rng: Generator, about: str) -> tuple[str, str] | None:
    """Asks for one attribute of an object that two others of its attributes single out; None when there is none such."""
    told = {"colour": ("size", "shape"), "shape": ("size", "colour"), "size": ("colour", "shape"), "texture": ("colour", "shape")}[about]
    clear = []
    for thing in scene.things:
        mention = Mention(**{name: getattr(thing, name) for name in told})
        if sum(mention.fits(other) for other in scene.things) == 1:
            clear.append(thing)
    if not clear:
        return None
    thing = clear[int(rng.integers(len(clear)))]
    said = f"{getattr(thing, told[0])} {thing.shape}" if "shape" in told else f"{thing.size} {thing.colour} object"
    return f"what {about} is the {said}", getattr(thing, about)


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"
