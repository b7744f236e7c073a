"""Caption metrics against the values of the COCO toolkit (pycocoevalcap 1.2) and against formulas worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from tests.builders import ROOT
from vlpkit.evals.textmetrics import bleu, caption_scores, cider_d, rouge_l, split_words

Corpus = tuple[list[list[str]], list[list[list[str]]]]


def corpus(*images: tuple[str, ...]) -> Corpus:
    """Caption first, then its references."""
    return [one[0].split() for one in images], [[reference.split() for reference in one[1:]] for one in images]


C1 = corpus(
    ("a cat sat on the mat", "a cat sat on a mat", "a cat lay on the mat"), ("a dog ran", "a dog ran in the park", "the dog runs"),
    ("a red bus", "two red birds fly", "birds in the sky"),
)  # fmt: skip


def test_cider_of_the_toolkit() -> None:
    found = cider_d(*C1)
    assert found.corpus == pytest.approx(2.756694454, abs=1e-9)
    assert found.each == pytest.approx([5.0337097685, 2.8146519533, 0.4217216415], abs=1e-9)


def test_bleu_of_the_toolkit() -> None:
    assert bleu(*C1) == pytest.approx([0.7667036787, 0.7407061241, 0.6955629941, 0.5667926839], abs=1e-9)


def test_rouge_of_the_toolkit() -> None:
    found = rouge_l(*C1)
    assert found.corpus == pytest.approx(0.5802460418, abs=1e-9)
    assert found.each == pytest.approx([0.8333333333, 0.6288659794, 0.2785388128], abs=1e-9)


@pytest.mark.parametrize(
    ("captions", "score"), [(["a b c d e", "f g h i j"], 10.0), (["a b c d e"], 0.0), (["a b c", "d e f"], 7.5)], ids=["perfect", "one image", "three words"]
)
def test_cider_of_perfect_captions_depends_on_length_and_company(captions: list[str], score: float) -> None:
    assert cider_d(*corpus(*((caption, caption) for caption in captions))).corpus == pytest.approx(score)


def test_cider_clips_repeated_words() -> None:
    found = cider_d(*corpus(("cat cat cat cat", "cat sat"), ("dog ran", "dog ran")))
    assert found.each == pytest.approx([10 / 4 / (4 * math.sqrt(2)) * math.exp(-4 / 72), 5.0])
    assert found.each[0] == pytest.approx(0.418058972, abs=1e-9)


def test_cider_pays_for_a_difference_in_length() -> None:
    found = cider_d(*corpus(("a b c d e a b c d e", "a b c d e"), ("f g h i j", "f g h i j")))
    cosines = [1 / 2, 4 / (2 * math.sqrt(17)), 3 / math.sqrt(42), 2 / math.sqrt(22)]
    assert found.each == pytest.approx([10 * sum(cosines) / 4 * math.exp(-25 / 72), 10.0])
    assert found.corpus == pytest.approx(6.6556616626, abs=1e-9)


def test_an_empty_caption_scores_0_and_breaks_nothing() -> None:
    both = corpus(("", "a cat sat"), ("a dog ran off", "a dog ran off"))
    assert (cider_d(*both).each[0], rouge_l(*both).each[0]) == (0.0, 0.0)
    assert bleu(*corpus(("", "a cat sat"))) == pytest.approx([0.0] * 4, abs=1e-6)


def test_of_two_references_as_close_the_shorter_sets_the_length() -> None:
    assert bleu(*corpus(("a b c", "a b c d", "a b")))[0] == pytest.approx(1.0, abs=1e-6)


def test_a_perfect_corpus_has_bleu_1() -> None:
    assert bleu(*corpus(("a b c d", "a b c d")))[3] == pytest.approx(1.0, abs=1e-6)


def test_cider_of_a_corpus_is_not_the_mean_of_its_parts() -> None:
    parts = [cider_d([C1[0][i]], [C1[1][i]]).corpus for i in range(3)]
    assert sum(parts) / 3 != pytest.approx(cider_d(*C1).corpus)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, a plan.", "a man a plan"), ("the dog's ball", "the dog 's ball"), ("they don't know", "they do n't know"),
        ("we're here, they've gone, I'll stay, he'd go, I'm in", "we 're here they 've gone i 'll stay he 'd go i 'm in"),
        ("you cannot, gonna", "you can not gon na"), ('"quoted" words...', "quoted words"), ("a T-shirt - blue", "a t-shirt blue"),
        ("red/blue flag", "red/blue flag"), ("at 3:45 for 1,000 people", "at 3:45 for 1,000 people"), ("a 50% off & $5 sale", "a 50 % off & $ 5 sale"),
        ("a+b=c", "a + b = c"), ("salt &amp; pepper", "salt & pepper"), ("a cat (black) [big]", "a cat -lrb- black -rrb- -lsb- big -rsb-"),
        ("at 5 p.m. in the U.S. today", "at 5 p.m. in the u.s. today"), ("Mr. Smith", "mr. smith"), ("a caf\u00e9 \U0001f600", "a caf\u00e9"),
        ("no. 5 of Jan. 3", "no. 5 of jan. 3"), ("C++ by @user, really?!", "c++ by @user really ?!"), ("5'10\" tall at 10\u00b0", "5 10 tall at 10 \u00b0"),
        ("o'clock, the dogs' ball", "o'clock the dogs ball"), ("no. And yes.", "no and yes"),
        ("tabs\tand\u2028lines\x0bjoin", "tabs and lines join"), ("", ""), ("it\u2019s late", "it 's late"), ("see http://a.b/c?d=1 now", "see http://a.b/c?d=1 now"),
    ],
)  # fmt: skip
def test_words_are_split_as_the_toolkit_does(caption: str, words: str) -> None:
    assert split_words(caption) == words.split()


def test_scores_are_percentages_over_raw_captions() -> None:
    found = caption_scores(["a small red cat on a mat", "two dogs run in a park"], [["A small, red cat on a mat."], ["Two dogs run in a park!"]])
    assert found == pytest.approx({"bleu4": 100.0, "rouge_l": 100.0, "cider": 1000.0}, rel=1e-6)


def test_the_metrics_need_no_torch() -> None:
    code = "import sys, vlpkit.evals.textmetrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
