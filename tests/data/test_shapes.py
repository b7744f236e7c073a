"""The embedded world keeps its word: true captions, false hard negatives, disjoint splits, whole and repeatable shards.
Scenes are made directly wherever no file is needed; one small world on disk serves the rest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from vlpkit.data.shapes import write
from vlpkit.data.shapes.language import bag, captions, hard_pairs
from vlpkit.data.shapes.render import draw
from vlpkit.data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Facts,
    Mention,
    Scene,
    Thing,
    composition,
    generator,
    holds,
    make_scene,
    place,
    relation,
)
from vlpkit.errors import DataError

SMALL: dict[str, Any] = {"seed": 3, "train": 120, "val": 30, "samples_per_shard": 50}


@pytest.fixture(scope="module")
def val() -> list[Scene]:
    return [make_scene(0, "val", number) for number in range(500)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write.write_world(tmp_path_factory.mktemp("shapes") / "world", **SMALL)


def thing(look: str, x: float, y: float, radius: float = 0.1) -> Thing:
    size, texture, colour, shape = look.split()
    return Thing(size, texture, colour, shape, x, y, radius, 0.0)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def records(folder: Path, split: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if member.name.endswith(".json") and stream is not None:
                    found.append(json.load(stream))
    return found


def parsed(record: dict[str, Any]) -> Facts:
    return Facts(
        tuple(Mention(**mention) for mention in record["mentions"]),
        tuple((i, name, j) for i, name, j in record.get("relations", ())),
        record.get("background"),
        record.get("total"),
    )


OPENING = re.compile("^(a picture of|an image with|(two|three|four) (shapes|objects):) ")
PAIR = Scene("gray", (thing("large plain red circle", 0.25, 0.5), thing("small striped blue square", 0.75, 0.5)))
RED, BLUE = Mention("circle", "red"), Mention("square", "blue")


@pytest.mark.parametrize(
    ("facts", "truth"),
    [
        (Facts((RED, BLUE), ((0, "left", 1),), "gray", 2), True),
        (Facts((BLUE, RED), ((0, "left", 1),)), False),
        (Facts((BLUE, RED), ((0, "right", 1),)), True),
        (Facts((Mention("circle", "blue"), Mention("square", "red"))), False),
        (Facts((RED, RED)), False),
        (Facts((Mention(colour="red", count=2),)), False),
        (Facts((RED,), (), "white"), False),
        (Facts((RED,), (), None, 3), False),
        (Facts((Mention("circle", place="left"),)), True),
        (Facts((Mention("circle", texture="striped"),)), False),
    ],
)
def test_truth_of_facts_follows_from_the_scene(facts: Facts, truth: bool) -> None:
    assert holds(facts, PAIR) is truth


def test_a_count_is_exact_and_its_objects_are_not_mentioned_twice() -> None:
    twins = [thing("small plain green star", x, 0.2) for x in (0.2, 0.5, 0.8)]
    three, two = Mention("star", "green", count=3), Mention("star", "green", count=2)
    scene = Scene("white", tuple(twins))
    assert holds(Facts((three,)), scene)
    assert not holds(Facts((two,)), scene)
    assert not holds(Facts((three, Mention("star"))), scene)


def test_an_object_within_another_is_inside_it_and_stands_in_no_direction() -> None:
    outer, inner = thing("large plain red ring", 0.5, 0.5, 0.25), thing("small plain blue star", 0.5, 0.5)
    assert relation(inner, outer) == "inside"
    assert relation(outer, inner) == "around"


def test_a_diagonal_is_no_relation() -> None:
    assert relation(thing("small plain red ring", 0.2, 0.2), thing("small plain red ring", 0.8, 0.8)) is None


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    first = [make_scene(5, "train", number) for number in range(50)]
    assert first == [make_scene(5, "train", number) for number in reversed(range(50))][::-1]
    assert first != [make_scene(6, "train", number) for number in range(50)]
    assert all(make_scene(5, "val", number) != scene for number, scene in enumerate(first))


def test_every_attribute_value_and_every_count_occurs(val: list[Scene]) -> None:
    things = [thing for scene in val for thing in scene.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.size for t in things} == set(SIZES)
    assert {t.texture for t in things} == set(TEXTURES)
    assert {scene.background for scene in val} == set(BACKGROUNDS)
    assert {len(scene.things) for scene in val} == {1, 2, 3, 4}


def test_objects_stay_in_the_image_and_overlap_only_when_one_is_inside_the_other(val: list[Scene]) -> None:
    for scene in val:
        for number, a in enumerate(scene.things):
            assert min(a.box) >= 0
            assert max(a.box) <= 1
            for b in scene.things[number + 1 :]:
                apart = max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius
                assert apart or relation(a, b) in ("inside", "around")


def test_every_caption_is_true_of_its_scene(val: list[Scene]) -> None:
    said = [(caption, scene) for k, scene in enumerate(val) for caption in captions(scene, generator(0, "val", k, 1))]
    assert len(said) == 5 * len(val)
    assert [caption.text for caption, scene in said if not holds(caption.facts, scene)] == []


def test_a_caption_says_every_attribute_its_facts_claim() -> None:
    scene = make_scene(0, "train", 1)
    for caption in captions(scene, generator(0, "train", 1, 1)):
        words = caption.style.words
        for mention in caption.facts.mentions:
            for value in (mention.shape, mention.colour, mention.size, mention.texture):
                assert value is None or words.get(value, value) in caption.text


def test_captions_of_a_scene_differ_and_are_of_a_fitting_length(val: list[Scene]) -> None:
    lengths = []
    for k, scene in enumerate(val):
        texts = [caption.text for caption in captions(scene, generator(0, "val", k, 1))]
        assert len(set(texts)) == len(texts)
        lengths += [len(bag(text)) for text in texts]
    assert min(lengths) >= 3
    assert max(lengths) <= 30
    assert 12 <= np.mean(lengths) <= 18
    assert np.mean([length <= 25 for length in lengths]) > 0.98


def test_counts_and_articles_agree_with_their_nouns(val: list[Scene]) -> None:
    texts = [caption.text for k, scene in enumerate(val) for caption in captions(scene, generator(0, "val", k, 1))]
    nouns = "|".join((*SHAPES, "disc", "box", "hoop"))
    for text in texts:
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|\bis (two|three|four)\b|\bare an? ", text), text
        pattern = rf"\b(an?|two|three|four)\b(?:(?!,| and ).)*?\b(?:{nouns})(e?s)?\b"
        for number, plural in re.findall(pattern, OPENING.sub("", text)):
            assert bool(plural) == (number in ("two", "three", "four")), text


def test_captions_use_a_vocabulary_of_about_a_hundred_words(val: list[Scene]) -> None:
    texts = [caption.text for k, scene in enumerate(val) for caption in captions(scene, generator(0, "val", k, 1))]
    assert 80 <= len({word for text in texts for word in bag(text)}) <= 200


def test_nearly_every_caption_is_true_of_one_scene_in_five_hundred(val: list[Scene]) -> None:
    fitting = [
        sum(holds(caption.facts, other) for other in val)
        for k, scene in enumerate(val)
        for caption in captions(scene, generator(0, "val", k, 1))[: 2 if k % 2 else 5]
    ]
    assert np.mean([number == 1 for number in fitting]) > 0.93
    assert np.mean([1 / number for number in fitting]) > 0.96  # what a perfect retriever reaches at rank 1


def test_hard_pairs_share_their_words_and_only_the_first_is_true(val: list[Scene]) -> None:
    kinds: dict[str, int] = {}
    for k, scene in enumerate(val):
        for true, false, kind in hard_pairs(scene, generator(0, "val", k, 3)):
            assert bag(true.text) == bag(false.text)
            assert true.text != false.text
            assert holds(true.facts, scene)
            assert not holds(false.facts, scene)
            kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) == {"colour", "shape", "size", "texture", "relation"}
    assert min(kinds.values()) > 100


def test_each_kind_of_swap_moves_one_thing_between_two_objects() -> None:
    looks = {"colour": ("red", "blue"), "shape": ("circle", "square"), "size": ("large", "small")}
    pairs = {kind: (true, false) for true, false, kind in hard_pairs(PAIR, generator(0, "val", 0, 3), count=5)}
    assert set(pairs) == {*looks, "texture", "relation"}
    for kind in looks:
        true, false = (caption.facts.mentions for caption in pairs[kind])
        assert [getattr(m, kind) for m in false] == [getattr(m, kind) for m in reversed(true)]
    true, false = (caption.facts for caption in pairs["relation"])
    assert false.mentions == true.mentions[::-1]
    assert false.relations == true.relations


def test_no_composition_occurs_in_both_splits_even_across_seeds(val: list[Scene]) -> None:
    train = {composition(t.look for t in make_scene(1, "train", k).things) for k in range(3000)}
    assert train.isdisjoint(composition(t.look for t in scene.things) for scene in val)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_object_fills_its_box_and_nothing_else(shape: str) -> None:
    scene = Scene("black", (thing(f"large plain yellow {shape}", 0.4, 0.55, 0.2),))
    pixels = draw(scene, np.random.default_rng(0), image_size=96).astype(int)
    yellow = np.argwhere(pixels[:, :, 0] - pixels[:, :, 2] > 90)
    low, high = yellow.min(axis=0) / 96, (yellow.max(axis=0) + 1) / 96
    assert np.allclose([*low, *high], [0.35, 0.2, 0.75, 0.6], atol=0.03)


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_images_have_the_asked_size(image_size: int) -> None:
    assert draw(PAIR, np.random.default_rng(0), image_size=image_size).shape == (image_size, image_size, 3)


def test_equal_parameters_give_equal_bytes(world: Path, tmp_path: Path) -> None:
    assert digests(write.write_world(tmp_path / "again", **SMALL)) == digests(world)


def test_a_larger_world_begins_with_the_smaller_one() -> None:
    small, large = write.World(train=50, noise=0.5), write.World(train=90, noise=0.5)
    for k in range(50):
        assert write.make_record(small, "train", k) == write.make_record(large, "train", k)


def test_the_manifest_counts_what_the_shards_hold(world: Path) -> None:
    manifest = json.loads((world / "manifest.json").read_text())
    assert manifest["parameters"]["train"] == 120
    assert [shard["name"] for shard in manifest["shards"]] == [
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    for split in ("train", "val"):
        found = records(world, split)
        assert manifest["counts"][split]["samples"] == len(found)
        assert manifest["counts"][split]["captions"] == sum(len(record["captions"]) for record in found)
        assert manifest["counts"][split]["hard"] == sum(len(record.get("hard", ())) for record in found)


def test_written_facts_say_what_the_written_scene_shows(world: Path) -> None:
    for number, record in enumerate(records(world, "val")):
        scene = make_scene(SMALL["seed"], "val", number)
        assert record["scene"] == json.loads(json.dumps(scene.record()))
        assert len(record["facts"]) == len(record["captions"])
        assert all(holds(parsed(facts), scene) for facts in record["facts"])
        assert [o["place"] for o in record["scene"]["objects"]] == [place(t) for t in scene.things]


def test_noise_is_marked_has_its_share_and_stays_in_train(world: Path) -> None:
    recipe = write.World(seed=0, noise=0.1)
    kinds = [write.make_record(recipe, "train", number)[1].get("noise") for number in range(1500)]
    share, spread = np.mean([kind is not None for kind in kinds]), (0.1 * 0.9 / 1500) ** 0.5
    assert abs(share - 0.1) < 4 * spread
    assert set(kinds) == {None, "other", "keywords", "boilerplate"}
    assert all("noise" not in record for record in records(world, "val"))
    assert all(write.make_record(write.World(noise=0.0), "train", k)[1].get("noise") is None for k in range(100))


def test_webdataset_reads_the_shards(world: Path) -> None:
    urls = [str(path) for path in sorted(world.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len({sample["__key__"] for sample in samples}) == 120
    for sample in samples[:20]:
        assert Image.open(io.BytesIO(sample["jpg"])).size == (64, 64)
        assert json.loads(sample["json"])["captions"]


def test_a_finished_world_is_found_and_not_written_again(tmp_path: Path) -> None:
    folder = write.ensure_world(tmp_path, **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write.ensure_world(tmp_path, **SMALL) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_parameters_make_another_folder(tmp_path: Path) -> None:
    assert write.ensure_world(tmp_path, **SMALL) != write.ensure_world(tmp_path, **{**SMALL, "noise": 0.3})


@pytest.mark.parametrize("damage", ["no manifest", "shard cut short", "shard missing", "manifest cut short"])
def test_a_half_written_world_is_written_anew(world: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "shard missing":
        (folder / "val-000000.tar").unlink()
    else:
        os.truncate(folder / ("manifest.json" if damage.startswith("manifest") else "train-000001.tar"), 100)
    assert not write.is_whole(folder, write.World(**SMALL))
    assert digests(write.write_world(folder, **SMALL)) == digests(world)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    remnant = tmp_path / ".world.partial-abc" / "world"
    remnant.mkdir(parents=True)
    (remnant / "train-000000.tar").write_bytes(b"half")
    folder = write.write_world(tmp_path / "world", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir() if path != folder) == [".world.lock"]


def test_two_processes_at_once_make_one_world(world: Path, tmp_path: Path) -> None:
    call = f"from pathlib import Path; from vlpkit.data.shapes.write import *; write_world(Path('w'), **{SMALL!r})"
    both = [subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert digests(tmp_path / "w") == digests(world)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        write.write_world(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_world_of_other_parameters_is_not_overwritten(world: Path) -> None:
    before = digests(world)
    with pytest.raises(DataError, match="other parameters"):
        write.write_world(world, **{**SMALL, "seed": 4})
    assert digests(world) == before


@pytest.mark.parametrize(("key", "value"), [("noise", 1.0), ("train", 0), ("val", -1), ("image_size", 8)])
def test_an_impossible_world_is_refused_by_the_name_of_its_key(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"data\.world\.{key}"):
        write.ensure_world(tmp_path, **{key: value})


def test_an_unknown_parameter_is_refused_with_the_one_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.world\.noize.*'noise'"):
        write.ensure_world(tmp_path, noize=0.1)


def test_the_world_is_made_without_torch() -> None:
    call = "import sys, vlpkit.data.shapes.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], timeout=60, check=False).returncode == 0


def test_several_processes_write_the_bytes_that_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train": 60, "val": 10, "samples_per_shard": 20}
    written = {}
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        folder = write.ensure_world(tmp_path / str(len(cores)), **settings)
        written[len(cores)] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(written[1]) == 5 and written[1] == written[3]
