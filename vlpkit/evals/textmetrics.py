"""Caption metrics of the COCO toolkit in plain Python: BLEU, ROUGE-L and CIDEr-D over words split as its tokenizer splits them.
No torch, no Java; numbers carry the name of the tokenizer (`ptb-regex`), since another one gives others."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

TOKENIZER = "ptb-regex"
_N = 4  # longest n-gram
_SIGMA = 6.0  # CIDEr-D: width of the penalty on a difference in length
_BETA = 1.2  # ROUGE-L: weight of recall
_SMALL, _TINY = 1e-9, 1e-15  # BLEU: what keeps an empty count from dividing by zero, as in the toolkit

_PICTURES = 0x2000  # from here on, a sign that is no letter is dropped: emoji, arrows, ornaments
_DROPPED = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PAIRS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"), "gimme": ("gim", "me"), "lemme": ("lem", "me")}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|inc|ltd|co|corp|ave|blvd|rd|mt|ft|lt|col|gen|sgt|capt|gov|sen|rep|rev|hon"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
_WORDS = re.compile(
    rf"""https?://\S*[^\s.,;:?!'")\]] | www\.\S*[^\s.,;:?!'")\]]      # addresses
    | (?:[^\W\d_]\.){{2,}}                                            # u.s. and p.m.
    | \b(?:{_ABBREVIATIONS})\. | \bno\.(?=\s*\d)                      # mr. smith, no. 5
    | \d+(?:[.,:/]\d+)+ | \.\d+                                       # 1,000 3:45 1/2 .5
    | n['\u2019]t\b | ['\u2019](?:s|re|ve|ll|d|m)\b                    # endings that were cut off
    | \w\+\+ | @\w+
    | \w+(?:[-/&.@_]\w+)*(?:(?<!\d)['\u2019](?!(?:s|re|ve|ll|d|m|t)\b)\w+)*  # words, also joined: t-shirt, red/blue, o'clock
    | \.\.\.+ | --+ | [?!]+ | ['\u2019`"]+ | [^\w\s]""",
    re.VERBOSE,
)
_ENDING = re.compile(r"(?<=\w)(n['\u2019]t|['\u2019](?:s|re|ve|ll|d|m))\b")


def split_words(caption: str) -> list[str]:
    """Words as the Penn Treebank tokenizer of the toolkit gives them, lower-cased, punctuation removed.

    Contractions are split, hyphenated words kept whole, brackets spelt -lrb- and the like (and kept, as the toolkit does).
    On 4,500 Flickr8k captions, with and without a space before punctuation, no word differs from Stanford's tokenizer.
    """
    text = " ".join(html.unescape(caption).split()).lower()
    found: list[str] = []
    for token in _WORDS.findall(_ENDING.sub(r" \1 ", text)):
        token = token.replace("\u2019", "'")
        if token in _PAIRS:
            found += _PAIRS[token]
        elif token in _BRACKETS:
            found.append(_BRACKETS[token])
        elif token not in _DROPPED and not re.fullmatch(r"['`\"]+|--+|\.\.\.+", token) and (ord(token[0]) < _PICTURES or token[0].isalnum()):
            found.append(token)
    return found


class Scores(NamedTuple):
    """A corpus value, and one value an image where the metric has one.

    Args:
        corpus: over all images.
        each: by image, in order.
    """

    corpus: float
    each: list[float]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus in [0, 1] (Papineni et al. 2002): clipped n-grams, length of the closest reference (the shorter of two).

    Args:
        captions: words of one caption an image.
        references: words of each reference of each image.
    """
    correct, guessed, length, wanted = [0] * _N, [0] * _N, 0, 0
    for caption, accepted in zip(captions, references, strict=True):
        length += len(caption)
        wanted += min((abs(len(reference) - len(caption)), len(reference)) for reference in accepted)[1]
        for n in range(1, _N + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in accepted:
                most |= _grams(reference, n)
            correct[n - 1] += sum((_grams(caption, n) & most).values())
            guessed[n - 1] += max(0, len(caption) - n + 1)
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, []
    for n in range(_N):
        product *= (correct[n] + _TINY) / (guessed[n] + _SMALL)
        found.append(brevity * product ** (1 / (n + 1)))
    return found


def rouge_l(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """ROUGE-L in [0, 1] (Lin 2004): F of the best precision and the best recall over references, each on its own; mean over images."""
    each = []
    for caption, accepted in zip(captions, references, strict=True):
        common = [_longest(caption, reference) for reference in accepted]
        precision = max(found / len(caption) if caption else 0.0 for found in common)
        recall = max(found / len(reference) if reference else 0.0 for found, reference in zip(common, accepted))
        each.append((1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if precision and recall else 0.0)
    return Scores(sum(each) / max(len(each), 1), each)


def _longest(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], last + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


class _Vector(NamedTuple):
    """TF-IDF weights by length of n-gram, their norms, and the number of bigrams."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    bigrams: int


def cider_d(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """CIDEr-D in [0, 10] (Vedantam et al. 2015), which the toolkit calls CIDEr; mean over images.

    Weights come from the references of the images given here, so a subset has other scores, and a single image has 0.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    for accepted in references:
        seen.update({gram for reference in accepted for n in range(1, _N + 1) for gram in _grams(reference, n)})
    images = math.log(len(references)) if references else 0.0

    def vector(words: Sequence[str]) -> _Vector:
        weights = [{gram: count * (images - math.log(max(1, seen[gram]))) for gram, count in _grams(words, n).items()} for n in range(1, _N + 1)]
        return _Vector(weights, [math.sqrt(sum(w * w for w in part.values())) for part in weights], max(0, len(words) - 1))

    each = []
    for caption, accepted in zip(captions, references, strict=True):
        ours = vector(caption)
        each.append(10 * sum(_likeness(ours, vector(reference)) for reference in accepted) / len(accepted))
    return Scores(sum(each) / max(len(each), 1), each)


def _likeness(a: _Vector, b: _Vector) -> float:
    """Mean over n of clipped cosines, less for a difference in length."""
    total = 0.0
    for ours, theirs, x, y in zip(a.weights, b.weights, a.norms, b.norms):
        dot = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
        total += dot / (x * y) if x and y else dot
    return total / _N * math.exp(-((a.bigrams - b.bigrams) ** 2) / (2 * _SIGMA**2))


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """`bleu4`, `rouge_l` and `cider`, each times 100 as papers print them.

    Args:
        captions: one an image.
        references: at least one an image.
    """
    said = [split_words(caption) for caption in captions]
    accepted = [[split_words(reference) for reference in group] for group in references]
    return {"bleu4": 100 * bleu(said, accepted)[3], "rouge_l": 100 * rouge_l(said, accepted).corpus, "cider": 100 * cider_d(said, accepted).corpus}
