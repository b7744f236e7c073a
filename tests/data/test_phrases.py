"""Phrases about parts of an image: which one goes along, and where its box lies in what is seen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shards import words

from vlpkit.data.decode import Header, Refused
from vlpkit.data.phrases import NOWHERE, WHOLE, Part, Phrases
from vlpkit.data.shapes.phrases import phrases
from vlpkit.data.shapes.scenes import Thing, make_scene, place
from vlpkit.data.shapes.write import World, make_record
from vlpkit.data.transforms import Box, EvalTransform, TrainTransform, Transform, View, canvas
from vlpkit.data.world import WorldData

OPTIONS: dict[str, Any] = {
    "name": "shapes", "world": {"train": 64, "val": 20, "image_size": 64}, "shards": "train-*.tar", "val_shards": "val-*.tar", "batch": 32, "image_size": 64,
    "augment": {"scale": [0.5, 0.9], "flip": 0.5, "randaugment": [2, 9]}, "safe": {"min_crop": 0.0, "mirror": True, "randaugment": True},
    "eval_resize": "squash", "seed": 0, "words": words(),
}  # fmt: skip


def record(*regions: tuple[str, Sequence[float]]) -> dict[str, Any]:
    return {"regions": [{"phrase": phrase, "box": [*box], "id": 7} for phrase, box in regions]}


def test_a_box_is_told_in_fractions_of_what_is_seen_and_ends_where_that_does() -> None:
    one = record(("a dog", (0.2, 0.2, 0.6, 0.6)))
    whole = Phrases().choose(["x"], one, WHOLE, None)
    assert whole == Part("a dog", (0.2, 0.2, 0.6, 0.6))
    cut = Phrases().choose(["x"], one, (0.3, 0.0, 0.8, 0.5), None)   # of the dog, 0.3 x 0.3 of 0.4 x 0.4 is left
    assert cut.box == pytest.approx((0.0, 0.4, 0.6, 1.0))


def test_a_part_that_is_mostly_outside_is_not_asked_for() -> None:
    both = record(("a dog", (0.0, 0.0, 0.4, 0.4)), ("a cat", (0.5, 0.5, 0.9, 0.9)))
    seen = (0.2, 0.0, 1.0, 1.0)   # exactly half of the dog
    assert {Phrases().choose(["x"], both, seen, np.random.default_rng(i)).text for i in range(20)} == {"a cat"}
    assert {Phrases(inside=0.4).choose(["x"], both, seen, np.random.default_rng(i)).text for i in range(20)} == {"a dog", "a cat"}
    assert Phrases().choose(["one", "two"], both, (0.9, 0.9, 1.0, 1.0), None) == Part("one", NOWHERE)


def test_boxes_end_with_the_image_and_those_without_extent_or_words_are_passed_over() -> None:
    told = record(("a dog", (-0.1, 0, 0.5, 1.2)), ("a line", (0.3, 0.3, 0.3, 0.9)), ("outside", (1.1, 0, 1.3, 1)), (" \n", (0, 0, 1, 1)))
    assert Phrases().of(told) == [Part("a dog", (0.0, 0.0, 0.5, 1.0))]
    assert Phrases().of({}) == []


@pytest.mark.parametrize("wrong", ["dog", ["dog"], [{"phrase": "dog"}], [{"phrase": 3, "box": [0, 0, 1, 1]}], [{"phrase": "dog", "box": [0, 0, 1]}], [{"phrase": "dog", "box": [0, 0, 1, True]}]])
def test_a_record_of_another_form_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused) as error:
        Phrases().of({"regions": wrong})
    assert error.value.reason == "bad_record"


def marked(width: int, height: int, box: Box) -> bytes:
    """A black PNG with a white box."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[round(box[1] * height) : round(box[3] * height), round(box[0] * width) : round(box[2] * width)] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("transform", [
    TrainTransform(image_size=64, scale=(0.3, 0.8)), EvalTransform(image_size=64), EvalTransform(image_size=64, resize="crop"),
], ids=["random crop", "squash", "centre"])  # fmt: skip
@pytest.mark.parametrize("shape", [(400, 200), (200, 400)])
def test_the_box_lies_where_the_pixels_lie(transform: Transform, shape: tuple[int, int]) -> None:
    told = (0.4, 0.35, 0.6, 0.7)
    payload, asked = marked(*shape, told), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        view = transform.look(payload, rng)
        part = Phrases().choose(["x"], record(("the box", told)), transform.seen(view), None)
        if part.box == NOWHERE:
            continue
        row = canvas(1, 64, 64)
        transform.draw(payload, view, rng, row)
        inside = torch.nonzero(row[0, 0] > 127)
        found = [inside[:, 1].min() / 64, inside[:, 0].min() / 64, (inside[:, 1].max() + 1) / 64, (inside[:, 0].max() + 1) / 64]
        assert [float(edge) for edge in found] == pytest.approx(part.box, abs=1.5 / 64)
        asked += 1
    assert asked >= 6


def test_the_middle_of_a_wide_image_is_what_is_seen_of_it() -> None:
    header = Header("PNG", 400, 200, quick=False)
    assert EvalTransform(image_size=100, resize="crop").seen(View(header, (0, 0, 400, 200))) == (0.25, 0.0, 0.75, 1.0)


def boxes_of(thing: Thing) -> list[float]:
    return [round(min(max(edge, 0.0), 1.0), 5) for edge in thing.box]


def test_a_scene_says_what_singles_out_an_object_and_no_more() -> None:
    longer = 0
    for number in range(400):
        scene = make_scene(0, "train", number)
        told = {tuple(one["box"]): one["phrase"].split() for one in phrases(scene)}
        for thing in scene.things:
            alike = [other for other in scene.things if (other.colour, other.shape) == (thing.colour, thing.shape)]
            said = told.get(tuple(boxes_of(thing)))
            if said is None:
                assert len(alike) > 1
                continue
            assert said[-1] == thing.shape or thing.shape in said
            assert thing.colour in said
            if len(alike) == 1:
                assert len(said) == 3   # an article, its colour and its shape
                continue
            longer += 1
            by = [name for name in ("size", "texture") if getattr(thing, name) in said]
            same = [other for other in alike if all(getattr(other, name) == getattr(thing, name) for name in by)]
            assert len(same) == 1 or [place(other) for other in same].count(place(thing)) == 1
    assert longer > 20


def test_a_world_without_phrases_is_the_world_it_was() -> None:
    assert "phrases" not in World().parameters and World().name != World(phrases=True).name
    (_, plain), (_, more) = make_record(World(), "val", 3), make_record(World(phrases=True), "val", 3)
    assert {**plain, "regions": more["regions"]} == more and "regions" not in plain


def test_phrases_and_boxes_come_along_on_request_and_images_are_cropped_alone(tmp_path: Path) -> None:
    data = WorldData(**OPTIONS, cache=str(tmp_path), phrases=Phrases())
    assert data.train_transform is not None and data.train_transform.flip == 0 and data.train_transform.augment is None
    data.plan(world=1)
    batch = next(iter(data.train_dataloader()))["pairs"]
    boxes, texts = batch.targets["box"], batch.texts["phrase"]
    assert boxes.shape == (32, 4) and texts.ids.shape[0] == 32
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    assert real.sum() > 20 and bool((boxes >= 0).all()) and bool((boxes <= 1).all()) and bool((boxes[~real] == 0).all())
    found = next(data.eval_batches(batch=8))
    for part, one in zip(found.parts, found.records):
        assert part == (Phrases().of(one) or [Part(found.captions[0][0], NOWHERE)])[0] or part.box == NOWHERE
    plain = WorldData(**OPTIONS, cache=str(tmp_path))
    assert next(plain.eval_batches(batch=8)).parts == []
    assert plain.train_transform is not None and plain.train_transform.flip == 0.5
