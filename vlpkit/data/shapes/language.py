"""Speaks of scenes: captions with the facts they claim, hard pairs of the same words, and the noise of web captions.
A caption is facts plus a style; a hard negative is other facts in the same style: the words stay, the binding moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

from vlpkit.data.shapes.scenes import Facts, Generator, Mention, Scene, Thing, holds, place, relation

Noise = Literal["other", "keywords", "boilerplate"]
NOISES: tuple[Noise, ...] = ("other", "keywords", "boilerplate")

_WORDS: dict[str, tuple[str, ...]] = {  # the first is said most of the time
    "large": ("large", "big", "huge"),
    "small": ("small", "little", "tiny"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "with stripes"),
    "dotted": ("dotted", "with dots", "spotted"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "ring": ("ring", "hoop"),
    "thing": ("shape", "object"),
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within"),
    "around": ("around", "surrounding"),
    "ground": ("on a {} background", "against a {} background", "in front of a {} wall"),
}
_PLURAL = {"box": "boxes", "cross": "crosses"}
_NUMBER = {1: "one", 2: "two", 3: "three", 4: "four"}
_WHERE = {
    "top left": "in the top left corner",
    "top right": "in the top right corner",
    "bottom left": "in the bottom left corner",
    "bottom right": "in the bottom right corner",
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "on the left side",
    "right": "on the right side",
    "center": "in the center",
}
_ENDS = {"left": "from left to right", "above": "from top to bottom"}
_OPENINGS = ("", "", "", "there is ", "a picture of ", "an image with ", "we see ")
_STOCK = ("stock photo", "wallpaper", "clip art", "free download", "vector", "icon set", "high resolution", "design")
_EMPTY = (
    "image {a} of {b}",
    "click to enlarge",
    "photo {a}",
    "untitled image {a}",
    "no description available for this picture",
    "view gallery {a} of {b}",
    "photo by the author",
    "see more pictures like this",
)
_ATTRIBUTES = ("colour", "shape", "size", "texture")
_TRIES = 12


@dataclass(frozen=True)
class Style:
    """How facts become words: whether a chain is said from end to end, the opening, and one word per idea."""

    line: bool
    opening: str
    words: Mapping[str, str]


@dataclass(frozen=True)
class Caption:
    """A sentence, the facts it claims and the style it was said in."""

    text: str
    facts: Facts
    style: Style


def captions(scene: Scene, rng: Generator, *, count: int = 5) -> list[Caption]:
    """Up to `count` different captions, all true, from the fullest description to counts and places."""
    kinds = ("full", "relate", "brief", "places", "special")
    found: list[Caption] = []
    for number in range(count * _TRIES):
        if len(found) == count:
            break
        caption = say(_facts(scene, kinds[number % len(kinds)], rng), _style(rng))
        if all(caption.text != other.text for other in found):
            found.append(caption)
    return found


def say(facts: Facts, style: Style) -> Caption:
    """The sentence for some facts in a style; a chain of equal relations may be said as a line from end to end."""
    nouns = [_noun(mention, style) for mention in facts.mentions]
    opening = style.opening if len(nouns) < 3 else ""
    if facts.mentions[0].count > 1:
        opening = opening.replace("there is", "there are")
    chain = _chain(facts)
    if chain is not None and (style.line or len(nouns) > 3):
        body = f"{_ENDS[chain]}: {_list(nouns)}"
    elif facts.relations:
        body = opening + _related(facts, nouns, style)
    elif facts.total is not None:
        body = f"{_NUMBER[facts.total]} {style.words['thing']}s: {_list(nouns)}"
    else:
        body = opening + _list(nouns)
    if facts.background is not None:
        body += " " + style.words["ground"].format(facts.background)
    return Caption(body, facts, style)


def hard_pairs(scene: Scene, rng: Generator, *, count: int = 4) -> list[tuple[Caption, Caption, str]]:
    """(true, false, what was swapped), each swap once: the words are equal, so only who has what tells them apart."""
    found: list[tuple[Caption, Caption, str]] = []
    wanted = (*_ATTRIBUTES, "relation")
    if len(scene.things) == 1:
        return found
    for swapped in (wanted[i] for i in rng.permutation(len(wanted))):
        for _ in range(_TRIES):
            caption = say(_facts(scene, "relate", rng, told=swapped), _style(rng))
            false = _swap(caption.facts, swapped)
            if false is None or holds(false, scene):
                continue
            negative = say(false, caption.style)
            if negative.text != caption.text and bag(negative.text) == bag(caption.text):
                found.append((caption, negative, swapped))
                break
        if len(found) == count:
            break
    return found


def bag(text: str) -> list[str]:
    """The caption's words in alphabetical order, all that a bag of words can see."""
    return sorted(text.replace(",", " ").replace(":", " ").split())


def keywords(scene: Scene, rng: Generator) -> str:
    """What a shop writes for search machines: the right words without a sentence, and some that say nothing."""
    words = [word for thing in scene.things for word in (thing.colour, thing.shape)]
    words += [_pick(_STOCK, rng) for _ in range(2)]
    return " ".join(words[i] for i in rng.permutation(len(words)))


def boilerplate(rng: Generator) -> str:
    """A caption that says nothing of its image."""
    b = int(rng.integers(2, 30))
    return _pick(_EMPTY, rng).format(a=int(rng.integers(1, b + 1)), b=b)


def _pick(choices: tuple[str, ...], rng: Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _style(rng: Generator) -> Style:
    words = {idea: said[0] if rng.random() < 0.85 else _pick(said, rng) for idea, said in _WORDS.items()}
    return Style(bool(rng.random() < 0.6), _pick(_OPENINGS, rng), words)


def _facts(scene: Scene, kind: str, rng: Generator, *, told: str = "") -> Facts:
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    ground = scene.background if rng.random() < (0.9, 0.6, 0.5, 0.3)[len(things) - 1] else None
    if len(things) == 1:
        return Facts((_mention(things[0], size=True, texture=bool(rng.random() < 0.7), where=True),), (), ground)
    if kind == "special":
        return replace(_special(scene, things, rng), background=ground)
    if kind == "relate":
        related = _relate(things, rng, told)
        if related is not None:
            return replace(related, background=ground)
    if kind == "full":
        facts = _relate(things, rng, "size") if len(things) == 2 and rng.random() < 0.7 else None
        facts = facts or Facts(_grouped(scene, things, size=len(things) < 4, texture=True))
        return replace(facts, background=ground)
    if kind == "places":
        things = things[: 3 if rng.random() < 0.85 else 2]
        size = len(things) == 2 and bool(rng.random() < 0.6)
        said = tuple(_mention(thing, where=True, size=size) for thing in things)
        return Facts(said, (), ground if len(said) < 3 else None)
    return Facts(_grouped(scene, things, size=len(things) < 3, texture=False), (), ground)


def _grouped(scene: Scene, things: list[Thing], *, size: bool, texture: bool) -> tuple[Mention, ...]:
    """One mention per object, alike ones counted together where the count is exact at this level of detail."""
    singly = [_mention(thing, size=size, texture=texture and thing.texture != "plain") for thing in things]
    counted = tuple(replace(mention, count=singly.count(mention)) for mention in dict.fromkeys(singly))
    return counted if holds(Facts(counted), scene) else tuple(singly)


def _relate(things: list[Thing], rng: Generator, told: str) -> Facts | None:
    """Two objects and how they lie to each other; None when no pair lies clearly and differs in what is to be told."""
    size = told == "size" or bool(rng.random() < 0.6)
    texture = told == "texture" or bool(rng.random() < 0.35)
    for a, b in combinations(things, 2):
        name = relation(a, b)
        if name is None or (a.shape, a.colour) == (b.shape, b.colour):
            continue
        if told in _ATTRIBUTES and getattr(a, told) == getattr(b, told):
            continue
        facts = Facts(
            (_mention(a, size=size, texture=texture), _mention(b, size=size, texture=texture)), ((0, name, 1),)
        )
        rest = [thing for thing in things if thing is not a and thing is not b]
        if len(rest) == 1 and not (size and texture) and rng.random() < 0.9:
            return replace(facts, mentions=(*facts.mentions, _mention(rest[0], where=True)))
        other = relation(*rest) if len(rest) == 2 else None
        if other is not None and rng.random() < 0.75 and told not in ("size", "texture"):
            return Facts(tuple(_mention(thing) for thing in (a, b, *rest)), ((0, name, 1), (2, other, 3)))
        return facts
    return None


def _special(scene: Scene, things: list[Thing], rng: Generator) -> Facts:
    """A line from end to end, or the number of all objects with their looks."""
    for axis, name in (("x", "left"), ("y", "above")):
        ordered = sorted(things, key=lambda thing: float(getattr(thing, axis)))
        if len(things) > 1 and all(relation(a, b) == name for a, b in pairwise(ordered)):
            size = len(things) < 4 and bool(rng.random() < 0.5)
            chain = tuple((i, name, i + 1) for i in range(len(things) - 1))
            return Facts(tuple(_mention(thing, size=size) for thing in ordered), chain)
    total = len(things) if len(things) > 1 and rng.random() < 0.7 else None
    return Facts(_grouped(scene, things, size=len(things) < 4, texture=False), total=total)


def _mention(thing: Thing, *, size: bool = False, texture: bool = False, where: bool = False) -> Mention:
    told = (thing.size if size else None, thing.texture if texture else None, place(thing) if where else None)
    return Mention(thing.shape, thing.colour, *told)


def _chain(facts: Facts) -> str | None:
    """The direction in which each mention follows the one before it, when all of them do."""
    names = {name for _, name, _ in facts.relations}
    name = names.pop() if len(names) == 1 else None
    links = tuple((i, name, i + 1) for i in range(len(facts.mentions) - 1))
    return name if name in _ENDS and facts.relations == links else None


def noun(mention: Mention) -> str:
    """A noun phrase in plain words, one for each idea."""
    return _noun(mention, Style(False, "", {}))


def _noun(mention: Mention, style: Style) -> str:
    """A noun phrase, e.g. "a small green star with dots in the center" or "two red circles"."""
    before: list[str] = []
    after = ""
    for idea in (mention.size, mention.texture, mention.colour, mention.shape):
        word = style.words.get(idea, idea) if idea is not None else ""
        if word.startswith("with "):
            after = " " + word
        elif word:
            before.append(word)
    if mention.count > 1:
        before[-1] = _PLURAL.get(before[-1], before[-1] + "s")
        first = _NUMBER[mention.count]
    else:
        first = "an" if before[0][0] in "aeio" else "a"
    return " ".join([first, *before]) + after + (f" {_WHERE[mention.place]}" if mention.place is not None else "")


def _list(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]


def _related(facts: Facts, nouns: list[str], style: Style) -> str:
    """Relations one after the other, then what stands in none."""
    said: list[str] = []
    seen: set[int] = set()
    for i, name, j in facts.relations:
        link = f"{style.words[name]} {nouns[j]}"
        said.append(f", which is {link}" if i in seen else f", and {nouns[i]} {link}" if said else f"{nouns[i]} {link}")
        seen |= {i, j}
    said += [f", and {noun}" for i, noun in enumerate(nouns) if i not in seen]
    return "".join(said)


def _swap(facts: Facts, what: str) -> Facts | None:
    """The same facts with one attribute, or the places in the relation, exchanged between the first two mentions."""
    if len(facts.mentions) < 2:
        return None
    a, b, *rest = facts.mentions
    if what == "relation":
        if not facts.relations:
            return None
        return replace(facts, mentions=(b, a, *rest))
    left, right = getattr(a, what), getattr(b, what)
    if left is None or right is None or left == right:
        return None
    return replace(facts, mentions=(replace(a, **{what: right}), replace(b, **{what: left}), *rest))
