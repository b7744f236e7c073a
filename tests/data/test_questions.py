"""Questions beside captions: mixed by chance, answered by number, half of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import words

from vlpkit.data.decode import Refused
from vlpkit.data.feed import another
from vlpkit.data.questions import Questions
from vlpkit.data.shapes.questions import ANSWERS
from vlpkit.data.tokenize import load_words
from vlpkit.data.world import WorldData
from vlpkit.errors import ConfigError
from vlpkit.types import IGNORE

RECORD = {"questions": [{"question": " what  colour ", "answer": "red", "kind": "x"}, {"question": "how many", "answer": "a dozen"}]}
OPTIONS: dict[str, Any] = {
    "name": "shapes", "world": {"train": 64, "val": 20, "image_size": 32}, "shards": "train-*.tar", "val_shards": "val-*.tar", "batch": 32, "image_size": 32,
    "augment": {"scale": [0.9, 1.0], "flip": 0.0, "randaugment": None}, "safe": {"min_crop": 0.9, "mirror": False, "randaugment": False},
    "eval_resize": "squash", "seed": 0, "words": words(),
}  # fmt: skip


def test_a_sample_is_told_by_a_question_as_often_as_was_asked_for() -> None:
    mixed = Questions(count=3, answers=["blue", "red"], chance=0.25)
    told = [mixed.choose(["a caption"], RECORD, np.random.default_rng(i)) for i in range(400)]
    assert {text for text, _ in told} == {"a caption", "what colour", "how many"}
    assert {answer for text, answer in told if text == "what colour"} == {1}
    assert {answer for text, answer in told if text != "what colour"} == {IGNORE}   # a caption has no answer, a dozen is none of the list
    assert 60 < sum(text != "a caption" for text, _ in told) < 140


def test_a_sample_without_questions_is_told_by_its_captions() -> None:
    assert Questions(count=1, answers=["yes"], chance=1.0).choose(["a caption"], {}, np.random.default_rng(0)) == ("a caption", IGNORE)


@pytest.mark.parametrize("wrong", [{"questions": "why"}, {"questions": ["why"]}, {"questions": [{"question": "why", "answer": 3}]}, {"questions": [{"answer": "yes"}]}])
def test_a_record_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused) as error:
        Questions(count=1, answers=["yes"]).of(wrong)
    assert error.value.reason == "bad_record"


def test_answers_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("yes\nno\n\ntwo words\n")
    assert Questions(count=3, answers=str(tmp_path / "answers.txt")).numbers == {"yes": 0, "no": 1, "two words": 2}
    with pytest.raises(ConfigError, match="cannot be read"):
        Questions(count=3, answers=str(tmp_path / "nothing.txt"))


def test_more_answers_than_the_recipe_tells_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"size\.answers=3"):
        Questions(count=2, answers=["a", "b", "c"])


def test_the_world_brings_questions_and_their_list_of_answers(tmp_path: Path) -> None:
    data = WorldData(cache=str(tmp_path), questions=Questions(count=len(ANSWERS)), **OPTIONS)
    batch = next(iter(data.train_dataloader()))["pairs"]
    answer = batch.targets["answer"]
    assert answer.shape == (32,)
    assert 4 < int((answer != IGNORE).sum()) < 28
    assert int(answer.max()) < len(ANSWERS)
    found, = data.eval_batches(batch=20)
    texts, targets = found.told()
    asked = targets["answer"] != IGNORE
    assert asked.tolist() == [number % 2 == 1 for number in range(20)]
    assert all(text in [q["question"] for q in record["questions"]] for text, record in zip(texts[1::2], found.records[1::2]))
    assert all(ANSWERS[a] == next(q["answer"] for q in record["questions"] if q["question"] == text)
               for text, record, a in zip(texts[1::2], found.records[1::2], targets["answer"][1::2].tolist()))  # fmt: skip
    assert texts[0] == found.captions[0][0]


def test_without_questions_there_is_no_such_target(tmp_path: Path) -> None:
    data = WorldData(cache=str(tmp_path), **OPTIONS)
    assert "answer" not in next(iter(data.train_dataloader()))["pairs"].targets
    assert "answer" not in next(data.eval_batches(batch=4)).told()[1]


def test_a_second_caption_of_the_same_image_comes_along_on_request(tmp_path: Path) -> None:
    data = WorldData(cache=str(tmp_path), second=True, **{**OPTIONS, "world": {"train": 64, "val": 20, "image_size": 32, "noise": 0.0}})
    found, = data.eval_batches(batch=20)
    assert all(second in captions and second != captions[0] for second, captions in zip(found.seconds(), found.captions))
    data.words = load_words(name="", kind="wordpiece", size=400, length=64, captions=data.captions)
    batch = next(iter(data.train_dataloader()))["pairs"]
    assert batch.texts["second"].ids.shape[0] == 32
    assert all(a[m].tolist() != b[n].tolist() for a, m, b, n in zip(
        batch.texts["clean"].ids, batch.texts["clean"].mask, batch.texts["second"].ids, batch.texts["second"].mask, strict=True))  # fmt: skip


def test_an_image_with_one_caption_gets_it_twice() -> None:
    assert another("a", ["a"], 0) == "a"
    assert [another("a", ["a", "b", "c"], n) for n in range(3)] == ["b", "c", "b"]
