"""One spelling for each answer, as VQA's published evaluation reaches it (Antol et al. 2015), and the list of frequent answers made with it.
Quirks of that code are kept, since the list of 3,129 answers and every published score depend on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

LEAST = 9  # times that an answer of the list was given; train and val of VQAv2 then give 3,129 (Teney et al. 2018)

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # so many are removed: a flag once stood in the place of the count
_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's "
    "isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock 'ow's'at oughtn't shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've "
    "something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
    "wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
# Each is recognised with one of its apostrophes left out; the capitals of I'm and I've are never met behind lower().
_MENDED = {word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"} | {"somebody'd": "somebodyd"}


def normalise(answer: str) -> str:
    """The one spelling, "" where nothing is left: `The Cat.` is "cat", `two dogs` "2 dogs", `dont` "don't"."""
    given = text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = _COMMA.search(given) is not None
    for mark in _PUNCTUATION:
        touches = f"{mark} " in given or f" {mark}" in given  # in the text as it was given, whatever marks are gone by now
        text = text.replace(mark, "" if joined or touches else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def frequent(answers: Iterable[str], least: int = LEAST) -> list[str]:
    """Answers, normalised, that occur at least so often, in order of first appearance (ViLT, METER, BEiT-3)."""
    counted = Counter(map(normalise, answers))
    return [answer for answer, times in counted.items() if times >= least and answer]
