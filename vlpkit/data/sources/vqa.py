"""VQAv2 (Goyal et al. 2017): the questions of an image with ten answers each become `questions` of one KEY.json.
The list of frequent answers is written beside the shards, made of all annotations that lie beside the questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlpkit.data.answers import frequent, normalise
from vlpkit.data.sources.annotations import part, read_json, records
from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing, published_split
from vlpkit.errors import DataError

_ANNOTATIONS = "v2_mscoco_{}_annotations.json"
_LISTED = ("train2014", "val2014")  # whose answers make the list, in this order


def read_questions(source: Path, images: Path | None, captions: Path | None) -> Listing:
    """v2_OpenEnded_mscoco_*_questions.json, the annotations of the same images beside it; test questions have none, and their answer is "".

    Args:
        captions: COCO's captions of the same images; None: the samples have none, and only a recipe that reads questions is served.

    Raises:
        DataError: the annotations are missing or answer other questions, or a caption file is not COCO's.
    """
    content = read_json(source)
    subset = content.get("data_subtype") if isinstance(content, dict) else None
    if not isinstance(subset, str):
        raise DataError(f"{source} does not say of which images it is (`data_subtype`); is it of another kind? See --kind")
    folder = subset.replace("-dev", "")
    split = published_split(re.sub(r"\d+$", "", folder), source.name)
    answered = _answers(source, subset) if split != "test" else None
    said = {} if captions is None else _captions(captions)
    gathered, album = Gathered(), Album(source, images)
    for row in records(part(content, "questions", source), f"{source}, questions", question_id=int, image_id=int, question=str):
        known = row["image_id"]
        one = gathered.found.get(known)
        if one is None:
            name = f"COCO_{folder}_{known:012d}.jpg"
            fields = {"source": "coco", "image_id": known}
            one = gathered.found[known] = Candidate(name, album.path(name, f"{folder}/{name}"), fields=fields, split=split)
            gathered.say(one, said.get(known, ()))
        gathered.ask(one, "questions", question=row["question"], **_answer(row, answered, source), id=row["question_id"])
    if answered:
        raise DataError(f"{source.with_name(_ANNOTATIONS.format(subset))} answers the question {next(iter(answered))}, which {source.name} does not ask. Two releases may be mixed")
    listed = [row["multiple_choice_answer"] for one in _LISTED if (path := source.with_name(_ANNOTATIONS.format(one))).is_file() for row in _rows(path)]
    return gathered.listing(files={"answers.txt": "".join(f"{answer}\n" for answer in frequent(listed))} if listed else {}, tasks=("questions",))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    rows = part(read_json(path, "it holds the answers"), "annotations", path)
    return records(rows, f"{path}, annotations", question_id=int, image_id=int, multiple_choice_answer=str, answers=list)


def _answers(source: Path, subset: str) -> dict[int, dict[str, Any]]:
    return {row["question_id"]: row for row in _rows(source.with_name(_ANNOTATIONS.format(subset)))}


def _answer(row: dict[str, Any], answered: dict[int, dict[str, Any]] | None, source: Path) -> dict[str, Any]:
    """What is known of the answer: `answer` in the spelling of the list, and the ten as they were given."""
    if answered is None:
        return {"answer": ""}
    found = answered.pop(row["question_id"], None)
    if found is None or found["image_id"] != row["image_id"]:
        raise DataError(f"{source}: the question {row['question_id']} about image {row['image_id']} has no answer in the annotations beside it. Two releases may be mixed, or a file cut")
    given = [one["answer"] for one in records(found["answers"], f"{source}, answers to {row['question_id']}", answer=str)]
    kinds = {word: found[name] for word, name in (("kind", "question_type"), ("answer_kind", "answer_type")) if isinstance(found.get(name), str)}
    return {"answer": normalise(found["multiple_choice_answer"]), "answers": given, **kinds}


def _captions(path: Path) -> dict[int, list[str]]:
    said: dict[int, list[str]] = {}
    rows = part(read_json(path, "--captions names COCO's captions"), "annotations", path)
    for row in records(rows, f"{path}, annotations", image_id=int, caption=str):
        said.setdefault(row["image_id"], []).append(row["caption"])
    return said
