"""Statements about images with a verdict: NLVR2 (Suhr et al. 2019), two photographs a statement, and SNLI-VE (Xie et al. 2019), one.
Verdicts keep their published words, in lower case; their list is written beside the shards."""

from __future__ import annotations

import re
from pathlib import Path

from vlpkit.data.sources.annotations import json_lines, records
from vlpkit.data.sources.listing import Album, Candidate, Gathered, Listing, split_in_name
from vlpkit.errors import DataError

VERDICTS = ("false", "true")
RELATIONS = ("contradiction", "neutral", "entailment")  # numbered as ALBEF and METER do


def listed(answers: tuple[str, ...]) -> dict[str, str]:
    """The file that data.questions.answers may name."""
    return {"answers.txt": "".join(f"{answer}\n" for answer in answers)}


def verdict(label: str, words: tuple[str, ...], place: str) -> str:
    """A label in lower case. Raises DataError for one that is not published."""
    if label.lower() not in words:
        raise DataError(f"{place}: the label {label!r} is not known (there are: {', '.join(words)})")
    return label.lower()


def read_pairs(source: Path, images: Path | None) -> Listing:
    """NLVR2's train.json, dev.json, test1.json or test2.json. A pair is one sample: KEY.jpg is the left image and KEY.right.jpg the
    right one, whatever their format, and `statements` says what is claimed of both. No statement is a caption of either.

    Raises:
        DataError: a line is of another form.
    """
    gathered, album, split = Gathered(), Album(source, images), split_in_name(source)
    for number, row in enumerate(records(list(json_lines(source.read_bytes(), str(source))), source, sentence=str, identifier=str, label=str), 1):
        place = f"{source}, line {number}"
        pair = row["identifier"].rpartition("-")[0]
        if not re.fullmatch(r"[a-z0-9]+-\d+-\d+", pair):
            raise DataError(f"{place}: the identifier {row['identifier']!r} is not of the form split-set-pair-sentence; is it of another kind? See --kind")
        one = gathered.found.get(pair)
        if one is None:
            inside = [f"train/{row['directory']}/", f"images/train/{row['directory']}/"] if "directory" in row else [f"{word}/" for word in (source.stem, f"images/{source.stem}")]
            left, right = ([f"{where}{pair}-img{side}.png" for where in ("", *inside)] for side in (0, 1))
            fields = {"source": "nlvr2", "image_id": pair}
            one = gathered.found[pair] = Candidate(f"{pair}.png", album.path(*left), fields=fields, split=split, right=album.path(*right))
        gathered.ask(one, "statements", statement=row["sentence"], answer=verdict(row["label"], VERDICTS, place), id=row["identifier"])
    return gathered.listing(files=listed(VERDICTS), tasks=("statements",))


def read_entailment(source: Path, images: Path | None) -> Listing:
    """snli_ve_train.jsonl and its like: hypotheses become `questions`, premises, which are Flickr30k's captions, captions.

    Raises:
        DataError: a line is of another form.
    """
    gathered, album, split = Gathered(), Album(source, images), split_in_name(source)
    rows = records(list(json_lines(source.read_bytes(), str(source))), source, Flickr30K_ID=str, sentence1=str, sentence2=str, gold_label=str)
    for number, row in enumerate(rows, 1):
        known = row["Flickr30K_ID"]
        one = gathered.found.get(known)
        if one is None:
            name = f"{known}.jpg"
            fields = {"source": "flickr30k", "image_id": known}
            one = gathered.found[known] = Candidate(name, album.path(name, f"flickr30k-images/{name}"), fields=fields, split=split)
        gathered.say(one, [row["sentence1"]])
        answer = verdict(row["gold_label"], RELATIONS, f"{source}, line {number}")
        gathered.ask(one, "questions", question=row["sentence2"], answer=answer, id=row.get("pairID"), kind="entailment")
    return gathered.listing(files=listed(RELATIONS), tasks=("questions",))
