"""What a detector found: read member by member without trust, chosen by confidence, padded, and delivered beside captions."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import module, pair, tar_bytes, words, write_shards

from vlpkit.data import arrays as stored
from vlpkit.data.decode import Refused
from vlpkit.data.module import DataModule
from vlpkit.data.regions import Detections, pad
from vlpkit.data.shapes.detect import CLASSES, detect, packed, tags
from vlpkit.data.shapes.questions import ANSWERS, questions
from vlpkit.data.shapes.scenes import generator, make_scene
from vlpkit.data.shapes.write import World, make_record, write_world
from vlpkit.data.world import WorldData
from vlpkit.errors import ConfigError
from vlpkit.types import IGNORE

F, C = 6, 4
RECORD = {"width": 200, "height": 100}


def arrays(many: int = 5, **changes: Any) -> dict[str, Any]:
    """Regions 0, 1, ... of rising confidence 0.1, 0.2, ...; feature and class tell the number."""
    soft = np.full((many, C), 0.1, np.float16)
    soft[np.arange(many), [1 + i % (C - 1) for i in range(many)]] = 0.7
    made = {
        "boxes": np.array([[10 * i, 5 * i, 10 * i + 20, 5 * i + 10] for i in range(many)], np.float32),
        "features": np.arange(many, dtype=np.float16)[:, None].repeat(F, 1), "confidences": np.arange(1, many + 1, dtype=np.float32) / 10,
        "classes": np.arange(many, dtype=np.int64) % C, "soft": soft, "attributes": np.arange(many, dtype=np.int32), "attribute_confidences": np.ones(many, np.float16),
    }  # fmt: skip
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def reads(**changes: Any) -> Detections:
    return Detections(**{"size": F, "least": 0, "classes": C, "attributes": 10, **changes})


def refusal(payload: bytes | None, record: dict[str, Any] = RECORD, **changes: Any) -> Refused:
    with pytest.raises(Refused) as error:
        reads(**{"targets": ["class", "confidence", "soft", "attribute"], **changes})(payload, record)
    return error.value


def test_the_surest_regions_stand_first_with_boxes_as_fractions() -> None:
    found = reads(threshold=0.0)(packed(arrays()), RECORD)
    assert found.features[:, 0].tolist() == [4, 3, 2, 1, 0]
    assert found.features.dtype == torch.float16
    assert found.boxes[0].tolist() == pytest.approx([40 / 200, 20 / 100, 60 / 200, 30 / 100])


@pytest.mark.parametrize(
    ("threshold", "least", "most", "kept"),
    [(0.3, 0, 36, [4, 3, 2]), (0.3, 4, 36, [4, 3, 2, 1]), (0.0, 0, 2, [4, 3]), (0.9, 2, 36, [4, 3]), (0.9, 10, 36, [4, 3, 2, 1, 0])],
)
def test_regions_count_by_confidence_within_the_least_and_the_most(threshold: float, least: int, most: int, kept: list[int]) -> None:
    found = reads(threshold=threshold, least=least, most=most)(packed(arrays()), RECORD)
    assert found.features[:, 0].tolist() == kept


def test_without_confidences_the_first_regions_are_the_surest() -> None:
    found = reads(most=2)(packed(arrays(confidences=None)), RECORD)
    assert found.features[:, 0].tolist() == [0, 1]


def test_targets_follow_their_regions() -> None:
    found = reads(targets=["class", "confidence", "soft", "attribute", "attribute_confidence"], most=2)(packed(arrays()), RECORD)
    assert found.targets["region_class"].tolist() == [0, 3]
    assert found.targets["region_confidence"].tolist() == pytest.approx([0.5, 0.4])
    assert found.targets["region_soft"].argmax(-1).tolist() == [2, 1]
    assert found.targets["region_attribute"].tolist() == [4, 3]
    assert found.targets["region_attribute_confidence"].tolist() == [1, 1]


def test_a_class_is_derived_from_its_distribution_whose_background_is_no_class() -> None:
    soft = np.array([[0.8, 0.05, 0.05, 0.1], [0.1, 0.6, 0.2, 0.1]], np.float16)
    found = reads(targets=["class"], threshold=0.0)(packed(arrays(2, classes=None, soft=soft)), RECORD)
    assert found.targets["region_class"].tolist() == [1, 3]


def test_the_size_beside_the_boxes_beats_that_of_the_record() -> None:
    found = reads(most=1)(packed(arrays(size=np.array([400, 400]))), RECORD)
    assert found.boxes[0].tolist() == pytest.approx([0.1, 0.05, 0.15, 0.075])


def test_a_box_that_reaches_out_is_cut_off() -> None:
    found = reads(threshold=0.0)(packed(arrays(1, boxes=np.array([[-3.0, 0, 250, 50]]))), RECORD)
    assert found.boxes.tolist() == [[0, 0, 1, 0.5]]


def with_pickle() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays(features=np.array([{"a": 1}] * 5, dtype=object)))
    return stream.getvalue()


def liar(shape: tuple[int, ...], dtype: str = "<f2") -> bytes:
    """An archive whose features claim more than there is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        with zipfile.ZipFile(io.BytesIO(packed(arrays(features=None)))) as rest:
            for name in rest.namelist():
                archive.writestr(name, rest.read(name))
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
        archive.writestr("features.npy", head.getvalue() + b"\0" * 60)
    return stream.getvalue()


def bomb() -> bytes:
    """A few kilobytes that unpack to more than is ever read."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("boxes.npy", b"\0" * (stored.MAX_BYTES + 1))
    assert len(stream.getvalue()) < 100_000
    return stream.getvalue()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "missing_regions"), (b"", "broken_regions"), (b"PK\x03\x04 and then nothing", "broken_regions"), (packed(arrays())[:-300], "broken_regions"),
        (with_pickle(), "broken_regions"), (liar((10**12, F)), "broken_regions"), (liar((5, F), "<c8"), "broken_regions"), (liar((-5, F)), "broken_regions"),
        (bomb(), "too_many_bytes"), (packed(arrays(boxes=np.zeros((0, 4), np.float32))), "no_regions"),
        (packed(arrays(boxes=None)), "bad_regions"), (packed(arrays(features=None)), "bad_regions"), (packed(arrays(boxes=np.zeros((5, 5)))), "bad_regions"),
        (packed(arrays(features=np.zeros((5, F + 1), np.float16))), "bad_regions"), (packed(arrays(features=np.zeros((4, F), np.float16))), "bad_regions"),
        (packed(arrays(features=np.full((5, F), np.nan, np.float32))), "bad_regions"), (packed(arrays(features=np.full((5, F), 1e6, np.float32))), "bad_regions"),
        (packed(arrays(features=np.zeros((5, F), np.int32))), "bad_regions"),
        (packed(arrays(boxes=np.array([[5.0, 5, 2, 9]] * 5))), "bad_regions"), (packed(arrays(boxes=np.full((5, 4), np.inf))), "bad_regions"),
        (packed(arrays(confidences=np.full(5, np.nan, np.float32))), "bad_regions"), (packed(arrays(classes=np.full(5, C))), "bad_regions"),
        (packed(arrays(classes=np.full(5, -1))), "bad_regions"), (packed(arrays(classes=np.zeros(5))), "bad_regions"), (packed(arrays(attributes=None)), "bad_regions"),
        (packed(arrays(soft=np.zeros((5, C + 1), np.float16))), "bad_regions"), (packed(arrays(soft=np.full((5, C), np.nan, np.float16))), "bad_regions"),
        (packed(arrays(size=np.array([0, 100]))), "bad_regions"), (packed(arrays(size=np.array([1, 1, 3]))), "bad_regions"),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_refused_with_its_reason(payload: bytes | None, reason: str) -> None:
    assert refusal(payload).reason == reason


@pytest.mark.parametrize("at", range(0, 1400, 37))
def test_a_flipped_byte_is_refused_or_harmless(at: int) -> None:
    payload = bytearray(packed(arrays()))
    payload[at % len(payload)] ^= 0xFF
    try:
        found = reads(targets=["class", "soft"])(bytes(payload), RECORD)
    except Refused as refused:
        assert refused.reason in ("broken_regions", "bad_regions", "too_many_bytes")
    else:
        assert found.features.isfinite().all()


def test_too_large_an_archive_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_BYTES", 100)
    assert refusal(packed(arrays())).reason == "too_many_bytes"


def test_boxes_without_the_size_of_their_image_mean_nothing() -> None:
    assert "neither `size`" in refusal(packed(arrays()), {}).detail
    assert refusal(packed(arrays()), {"width": "200", "height": 100}).reason == "bad_regions"


def test_nothing_sure_enough_is_no_region() -> None:
    assert refusal(packed(arrays()), threshold=0.9).reason == "no_regions"


def test_only_what_is_asked_for_is_unpacked() -> None:
    payload = packed(arrays(soft=np.zeros((2, 2, 2)), attributes=np.array(["a"] * 5)))
    assert len(reads(targets=["class"])(payload, RECORD).features) == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"size": 0}, "size=0"), ({"most": 0}, "most=0"), ({"most": 5, "least": 6}, "at most most=5"), ({"targets": ["clas"]}, "'clas'"),
        ({"targets": ["soft"], "classes": None}, "need classes"), ({"targets": ["attribute"], "attributes": None}, "needs attributes"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        reads(**wrong)


def test_a_batch_is_padded_to_its_longest_and_padding_has_no_class() -> None:
    one, two = (reads(targets=["class", "soft"], threshold=0.0)(packed(arrays(many)), RECORD) for many in (2, 4))
    image, targets = pad([one, two])
    assert image.pixels is None
    assert image.regions is not None
    assert image.boxes is not None
    assert image.mask is not None
    assert (image.regions.shape, image.boxes.shape) == ((2, 4, F), (2, 4, 4))
    assert image.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert targets["region_class"].tolist() == [[1, 0, IGNORE, IGNORE], [3, 2, 1, 0]]
    assert float(targets["region_soft"][0, 2:].abs().sum()) == 0


# -- through the data module -------------------------------------------------------------------------------------------


def sample(number: int, payload: bytes | None, *, image: bool = False) -> list[tuple[str, bytes]]:
    key = f"{number:06d}"
    made = [(f"{key}.regions.npz", payload)] if payload is not None else []
    pixels = [(f"{key}.jpg", b"not an image, and nobody looks")] if image else []
    return [*pixels, *made, (f"{key}.json", json.dumps({"captions": [f"a picture of number {number}"], **RECORD}).encode())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    good = {n: sample(n, packed(arrays(3 + n % 3)), image=n % 2 == 0) for n in range(24)}
    write_shards(tmp_path, [12, 12], odd={**good, 5: sample(5, None), 7: sample(7, b"PK")})
    (tmp_path / "val-000.tar").write_bytes(tar_bytes([m for n in range(6) for m in (sample(n, packed(arrays(3 + n % 3))) if n != 4 else pair(4))]))
    return tmp_path


def data_of(folder: Path, **changes: Any) -> DataModule:
    return module(folder, image_size=None, regions=reads(targets=["class"], threshold=0.0), max_bad_share=1.0, **changes)


def test_regions_arrive_without_a_pixel_decoded_and_refusals_are_counted(folder: Path) -> None:
    data = data_of(folder)
    data.plan(world=1, total=3)
    batches = [batch["pairs"] for batch in data.train_dataloader()]
    assert sum(len(batch) for batch in batches) == 24
    for batch in batches:
        image = batch.images["clean"]
        assert image.pixels is None
        assert image.regions is not None
        assert image.mask is not None
        assert image.regions.shape == (8, image.mask.sum(-1).max(), F)
        assert batch.targets["region_class"].shape == image.mask.shape
        for row, key in enumerate(batch.keys):
            many = 3 + int(key) % 3
            assert image.mask[row].sum() == many
            assert image.regions[row, :many, 0].tolist() == [float(i) for i in reversed(range(many))]
    assert data.ledger.replaced == {"missing_regions": 1, "broken_regions": 1}


def test_workers_deliver_the_same_regions(folder: Path) -> None:
    def of(workers: int) -> list[Any]:
        data = data_of(folder, workers=workers)
        data.plan(world=1, total=3)
        return [(batch["pairs"].keys, batch["pairs"].images["clean"].regions, batch["pairs"].targets["region_class"]) for batch in data.train_dataloader()]

    for (keys, a, x), (again, b, y) in zip(of(0), of(2), strict=True):
        assert keys == again
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_an_evaluation_gets_regions_and_targets_too(folder: Path) -> None:
    data = data_of(folder)
    batch, = data.eval_batches(batch=6)
    assert batch.index.tolist() == [0, 1, 2, 3, 5]
    assert batch.images.regions is not None
    assert batch.images.regions.shape == (5, 5, F)
    assert batch.targets["region_class"].shape == (5, 5)
    assert data.val_ledger.refused == {"missing_regions": 1}


def test_neither_pixels_nor_regions_and_both_at_once_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="vision=regions"):
        module(folder, image_size=None)
    with pytest.raises(ConfigError, match=r"Take data\.regions away"):
        module(folder, regions=reads())


# -- the embedded world ------------------------------------------------------------------------------------------------


def test_a_world_with_regions_is_another_one_and_older_worlds_keep_their_names() -> None:
    assert World().name == "shapes-v1-64px-14c6af596222"
    assert len({World().name, World(regions=64).name, World(regions=32).name, World(questions=True).name}) == 4


def test_a_world_with_regions_shows_and_says_the_same() -> None:
    plain, more = World(train=4, val=4), World(train=4, val=4, regions=8, questions=True)
    for split in ("train", "val"):
        for number in range(4):
            scene, record = make_record(plain, split, number)  # type: ignore[arg-type]
            again, richer = make_record(more, split, number)  # type: ignore[arg-type]
            assert again == scene
            assert {name: richer[name] for name in record} == record


def test_every_object_has_its_exact_box_and_its_class_and_stands_before_what_is_nothing() -> None:
    for number in range(200):
        scene = make_scene(0, "train", number)
        found = detect(scene, generator(0, "train", number, 5), size=16, image_size=64)
        sure = found["confidences"] >= 0.45
        boxes = sorted((*box.tolist(), CLASSES[c]) for box, c in zip(found["boxes"][sure], found["classes"][sure]))
        for (*box, name), (*expected, shape) in zip(boxes, sorted((*(64 * edge for edge in thing.box), thing.shape) for thing in scene.things), strict=True):
            assert (box, name) == (pytest.approx(expected, abs=1e-3), shape)
        assert (np.diff(found["confidences"]) <= 0).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= 64).all()
        assert np.allclose(found["soft"].astype(np.float64).sum(-1), 1, atol=2e-3)
        assert (1 + found["soft"][:, 1:].argmax(-1) == found["classes"]).all()
        assert sorted(tags(found)) == sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)


def test_features_tell_objects_apart_better_than_chance_and_not_perfectly() -> None:
    """A nearest class mean knows most shapes: there is something to learn, and noise."""
    rows: dict[str, list[Any]] = {"train": [], "val": []}
    for split in ("train", "val"):
        for number in range(300):
            found = detect(make_scene(0, split, number), generator(0, split, number, 5), size=64, image_size=64)  # type: ignore[arg-type]
            rows[split] += [(f, c) for f, c, sure in zip(found["features"].astype(np.float64), found["classes"], found["confidences"]) if sure >= 0.45]
    means = np.stack([np.mean([f for f, c in rows["train"] if c == k], 0) for k in range(1, len(CLASSES))])
    right = np.mean([1 + ((means - f) ** 2).sum(-1).argmin() == c for f, c in rows["val"]])
    assert 0.5 < right < 0.999


def test_the_same_settings_write_the_same_regions_byte_for_byte(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": 6, "val": 3, "regions": 8, "questions": True}
    a, b = (write_world(tmp_path / name, **settings) for name in "ab")
    for path in a.glob("*.tar"):
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_the_data_ask_the_world_for_the_regions_they_read(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "name": "shapes", "world": {"train": 16, "val": 8, "image_size": 32}, "shards": "train-*.tar", "val_shards": "val-*.tar", "batch": 8,
        "augment": {"scale": [0.9, 1.0], "flip": 0.0, "randaugment": None}, "safe": {"min_crop": 0.9, "mirror": False, "randaugment": False},
        "eval_resize": "squash", "seed": 0, "words": words(), "cache": str(tmp_path),
    }  # fmt: skip
    data = WorldData(image_size=None, regions=Detections(size=12, targets=["class", "soft"], classes=len(CLASSES)), **options)
    batch = next(iter(data.train_dataloader()))["pairs"]
    assert batch.images["clean"].regions is not None
    assert batch.images["clean"].regions.shape[-1] == 12
    assert batch.targets["region_soft"].shape[-1] == 9
    assert next(data.eval_batches(batch=8)).targets["region_class"].max() < 9
    pixels = WorldData(image_size=32, **options)
    assert pixels.root != data.root
    assert next(iter(pixels.train_dataloader()))["pairs"].images["clean"].regions is None


def test_every_question_has_one_of_the_answers_and_the_right_one() -> None:
    kinds: set[str] = set()
    for number in range(300):
        scene = make_scene(0, "val", number)
        for one in questions(scene, generator(0, "val", number, 6)):
            kinds.add(one["kind"])
            assert one["answer"] in ANSWERS
            if one["kind"] == "background":
                assert one["answer"] == scene.background
            if one["kind"] == "exists":
                assert (one["answer"] == "yes") is any(one["question"].endswith(f" {t.colour} {t.shape}") for t in scene.things)
            if one["kind"] in ("colour", "size", "texture"):
                words_ = one["question"].split()
                told = {"colour": lambda t: [t.size, t.shape], "size": lambda t: [t.colour, t.shape], "texture": lambda t: [t.colour, t.shape]}[one["kind"]]
                assert [getattr(t, one["kind"]) for t in scene.things if told(t) == words_[-2:]] == [one["answer"]]
    assert kinds == {"exists", "count", "background", "colour", "shape", "size", "texture"}
