"""The published spelling of answers, quirks included, and the list of frequent ones."""

from __future__ import annotations

import pytest

from vlpkit.data.answers import frequent, normalise


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("The Cat.", "cat"), ("1,000 people", "1000 people"), ("two dogs", "2 dogs"), ("10:30", "10:30"), ("black/white", "black white"),
        ("3.5", "3.5"), ("1.5.", "1.5"), ("t-shirt", "t shirt"), ("U.S.", "us"), ("dont", "don't"), ("None", "0"), ("yes,it is", "yes it is"), ("a", ""),
        ("-1", "1"), ("twelve", "twelve"), ("what ?", "what"), ("'hello'", "'hello'"), (" \tan  apple\n", "apple"), ("yes, it-is", "yes it is"),
        ("1,5 a/b", "15 ab"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("twas", "'twas"), ("somebody'd", "somebodyd"),
        ("oclock", "o'clock"), ("." * 40 + "x", "." * 8 + "x"),
    ],
)  # fmt: skip
def test_an_answer_is_spelt_as_the_published_evaluation_spells_it(given: str, expected: str) -> None:
    assert normalise(given) == expected


def test_frequent_answers_keep_the_order_in_which_they_first_came() -> None:
    assert frequent(["no", "Yes", "two", "yes", "2", "no.", "a", "the", "an"], least=2) == ["no", "yes", "2"]
    assert frequent(["no"] * 8) == []
    assert frequent(["no"] * 9) == ["no"]
