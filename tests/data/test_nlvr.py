"""Cornell NLVR straight from its tars: every object's box, class and words are those that the drawing shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from published import nlvr, statements
from shards import samples, tar_bytes

from vlpkit.data.packing import Packing, pack
from vlpkit.data.sources import read_source
from vlpkit.data.sources.nlvr import ATTRIBUTES, CLASSES
from vlpkit.errors import DataError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "nlvr"
PIXELS = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
FILLED = {"square": (1.0, 1.0), "circle": (0.7, 0.8), "triangle": (0.45, 0.55)}  # share of its box that a shape fills


def regions(members: dict[str, bytes]) -> dict[str, NDArray[np.generic]]:
    return dict(np.load(io.BytesIO(members["regions.npz"])))


def test_a_statement_becomes_six_samples_with_its_boxes_in_every_order(tmp_path: Path) -> None:
    manifest = pack(read_source(nlvr(tmp_path)), tmp_path / "out", Packing())
    assert (manifest["kind"], manifest["samples"], manifest["images"]) == ("nlvr", {"train": 0, "val": 11}, {"missing_image": 1, "written": 11})
    assert manifest["rows"] == {"used": 2}
    found = samples(tmp_path / "out")
    assert sorted(found) == [f"dev-12-0-{k}" for k in range(6)] + [f"dev-15-2-{k}" for k in range(5)]
    assert list(found["dev-12-0-0"]) == ["png", "regions.npz", "json"]
    record = json.loads(found["dev-12-0-3"]["json"])   # boxes in the order 1, 2, 0
    assert record["questions"] == [{"question": "There is a tower.", "answer": "true", "id": "12-0", "kind": "statement"}]
    assert record["tags"] == ["medium blue square", "medium blue square", "small yellow triangle", "large black circle"]
    assert record["captions"] == ["There is a tower.", "2 medium blue squares, 1 small yellow triangle, 1 large black circle"]
    assert (record["source"], record["image_id"], record["width"], record["height"]) == ("nlvr", "dev-12-0-3", 400, 100)
    stored = regions(found["dev-12-0-3"])
    assert stored["boxes"].tolist() == [[0, 80, 20, 100], [0, 59, 20, 79], [240, 0, 250, 10], [310, 20, 340, 50]]
    assert [CLASSES[number] for number in stored["classes"]] == record["tags"]
    assert [ATTRIBUTES[number] for number in stored["attributes"]] == ["blue", "blue", "yellow", "black"]
    assert stored["size"].tolist() == [400, 100]
    assert stored["soft"].argmax(1).tolist() == stored["classes"].tolist()
    assert stored["soft"].sum(1).tolist() == stored["confidences"].tolist() == [1, 1, 1, 1]


def test_a_false_statement_is_asked_but_is_no_caption(tmp_path: Path) -> None:
    pack(read_source(nlvr(tmp_path)), tmp_path / "out", Packing())
    record = json.loads(samples(tmp_path / "out")["dev-15-2-0"]["json"])
    assert record["captions"] == ["1 small yellow triangle"]
    assert record["questions"][0]["answer"] == "false"


def test_equal_looks_have_equal_features_and_shared_traits_near_ones(tmp_path: Path) -> None:
    pack(read_source(nlvr(tmp_path)), tmp_path / "out", Packing(features=256))
    features = regions(samples(tmp_path / "out")["dev-12-0-0"])["features"].astype(np.float64)   # circle, two squares, triangle
    assert features.shape == (4, 256)
    assert features[1].tolist() == features[2].tolist() != features[0].tolist()
    assert (features >= 0).all()


def test_names_of_classes_and_answers_stand_beside_the_shards(tmp_path: Path) -> None:
    manifest = pack(read_source(nlvr(tmp_path)), tmp_path / "out", Packing())
    assert list(manifest["files"]) == ["answers.txt", "attributes.txt", "classes.txt"]
    assert (tmp_path / "out" / "answers.txt").read_text() == "false\ntrue\n"
    assert (tmp_path / "out" / "attributes.txt").read_text() == "none\nblack\nblue\nyellow\n"
    names = (tmp_path / "out" / "classes.txt").read_text().splitlines()
    assert (len(names), names[0], names[1], names[-1]) == (28, "background", "small black circle", "large yellow triangle")


def test_no_name_in_a_tar_becomes_a_path(tmp_path: Path) -> None:
    """The same samples, whatever folders the members claim to lie in; nothing is written but the shards."""
    pack(read_source(nlvr(tmp_path / "plain")), tmp_path / "a", Packing())
    pack(read_source(nlvr(tmp_path / "evil", prefix="../../../../tmp/")), tmp_path / "b", Packing())
    assert samples(tmp_path / "a") == samples(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "evil", "plain"]


def test_the_published_folder_is_read_like_the_tar(tmp_path: Path) -> None:
    pack(read_source(nlvr(tmp_path)), tmp_path / "a", Packing())
    for row in statements():
        for k in range(6):
            path = tmp_path / "dev" / "images" / row["directory"] / f"dev-{row['identifier']}-{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(samples(tmp_path / "a")["dev-12-0-0"]["png"])
    path.unlink()
    (tmp_path / "dev" / "dev.json").write_text("".join(f"{json.dumps(row)}\n" for row in statements()))
    pack(read_source(tmp_path / "dev" / "dev.json"), tmp_path / "b", Packing())
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_a_drawn_split_never_parts_the_drawings_of_a_statement(tmp_path: Path) -> None:
    rows = [{**statements()[0], "sentence": f"Statement {n // 2}.", "identifier": f"{n}-0"} for n in range(12)]
    manifest = pack(read_source(nlvr(tmp_path, rows)), tmp_path / "out", Packing(val=20, samples_per_shard=7))
    said = {split: {json.loads(found["json"])["questions"][0]["question"] for found in samples(tmp_path / "out", f"{split}-*").values()} for split in ("train", "val")}
    assert not said["train"] & said["val"]
    assert len(said["train"] | said["val"]) == 6
    assert manifest["samples"]["val"] in (23, 24)   # two statements of twelve drawings, one of which is missing somewhere
    assert [shard["samples"] for shard in manifest["shards"] if shard["split"] == "val"][:3] == [7, 7, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 1: the label 'maybe' is not known"),
        ({"structured_rep": [[], []]}, "line 1: 2 boxes, where a drawing has 3"),
        ({"structured_rep": [[{"x_loc": 90, "y_loc": 0, "size": 20, "type": "circle", "color": "Black"}], [], []]}, "line 1, box 0: .* is no object"),
        ({"structured_rep": [[{"x_loc": 90, "y_loc": 0, "size": 10, "type": "circle"}], [], []]}, "box 0, record 0: 'color' is missing"),
        ({"identifier": 3}, "record 0: 'identifier' is 3"),
    ],
)
def test_a_statement_of_another_form_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(nlvr(tmp_path, [{**statements()[0], **change}]), kind="nlvr")


def test_a_tar_that_is_cut_or_holds_something_else_is_refused(tmp_path: Path) -> None:
    source = nlvr(tmp_path)
    whole = source.read_bytes()
    source.write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"dev\.tar is no whole tar \(truncated"):
        read_source(source)
    source.write_bytes(tar_bytes([("0.jpg", b"x"), ("0.json", b"{}")]))
    with pytest.raises(DataError, match="looks like no kind that is known"):
        read_source(source)
    with pytest.raises(DataError, match="record 0: 'sentence' is missing"):
        read_source(source, kind="nlvr")


@pytest.mark.skipif(not REAL.exists(), reason="the tars of ../shared/data/nlvr are not here")
@pytest.mark.parametrize(("name", "images"), [("dev", 5934), ("hidden", 5910)])
def test_published_drawings_show_each_object_in_its_box(name: str, images: int) -> None:
    """Of every 60th drawing, in all six orders: colours and shapes are those of the pixels, and no coloured pixel lies outside all boxes."""
    listing = read_source(REAL / f"{name}.tar")
    assert len(listing.candidates) == images
    assert not [one for one in listing.candidates if one.refused]
    for one in [row for at in range(0, images, 360) for row in listing.candidates[at : at + 6]]:
        assert one.span is not None
        assert one.things is not None
        with open(one.path, "rb") as file:
            file.seek(one.span[0])
            pixels = np.asarray(Image.open(io.BytesIO(file.read(one.span[1]))).convert("RGB")).astype(int)
        assert pixels.shape == (100, 400, 3)
        grey = np.ptp(pixels, axis=2) == 0
        bare = ~grey | (pixels.max(2) < 100)
        for box, number in zip(one.things.boxes, one.things.classes):
            _, colour, shape = CLASSES[number].split()
            x1, y1, x2, y2 = map(int, box)
            filled = (np.abs(pixels[y1:y2, x1:x2] - PIXELS[colour]).max(2) < 60).mean()
            assert FILLED[shape][0] <= filled <= FILLED[shape][1], (one.name, CLASSES[number], box)
            bare[y1:y2, x1:x2] = False
        assert not bare.any(), one.name
