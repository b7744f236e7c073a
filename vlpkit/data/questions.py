"""Questions about an image beside its captions: now and then a sample is told by one of them, and its answer becomes a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlpkit.data.decode import Refused, clean_caption
from vlpkit.errors import ConfigError
from vlpkit.types import IGNORE

Asked = tuple[str, int]  # a text, and the number of its answer in the list; IGNORE for a caption


class Questions:
    """How questions are mixed with captions (Tan and Bansal 2019: a question is one more sentence about its image).

    KEY.json holds `questions: [{"question": text, "answer": text}, ...]`; further fields are left alone.

    Args:
        count: number of answers that the recipe tells apart.
        answers: the list, or a file with one a line; None: the source brings one, as the embedded world does.
        chance: of a training sample that has questions to be told by one.
    """

    def __init__(self, *, count: int, answers: str | Sequence[str] | None = None, chance: float = 0.5) -> None:
        if count < 1 or not 0 <= chance <= 1:
            raise ValueError(f"count={count} must be at least 1, and chance={chance} a probability")
        self.count, self.chance = count, chance
        self.numbers: dict[str, int] | None = None
        if answers is not None:
            self.know(_read(answers) if isinstance(answers, str) else answers)

    def know(self, answers: Sequence[str]) -> None:
        """Take the list of answers, unless there is one already. Raises ConfigError when it is longer than the recipe's."""
        if self.numbers is None:
            if len(answers) > self.count:
                raise ConfigError(f"data.questions.count is {self.count}, but there are {len(answers)} answers. Set size.answers={len(answers)}")
            self.numbers = {answer: number for number, answer in enumerate(answers)}

    def of(self, record: Mapping[str, Any]) -> list[Asked]:
        """The questions of a record; an answer that is not in the list is IGNORE. Raises Refused("bad_record")."""
        assert self.numbers is not None
        asked = record.get("questions", [])
        if not isinstance(asked, list):
            raise Refused("bad_record", "questions must be a list")
        found = []
        for one in asked:
            if not (isinstance(one, Mapping) and isinstance(one.get("question"), str) and isinstance(one.get("answer"), str)):
                raise Refused("bad_record", "a question must have the texts `question` and `answer`")
            if text := clean_caption(one["question"]):
                found.append((text, self.numbers.get(one["answer"], IGNORE)))
        return found

    def choose(self, captions: Sequence[str], record: Mapping[str, Any], rng: np.random.Generator) -> Asked:
        """A caption, or by chance a question."""
        asked = self.of(record)
        if asked and rng.random() < self.chance:
            return asked[int(rng.integers(len(asked)))]
        return captions[int(rng.integers(len(captions)))], IGNORE


def _read(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.questions.answers: {path} cannot be read ({error})") from None
