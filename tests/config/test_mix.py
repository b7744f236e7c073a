"""`data.mix` on the command line: presets by name, what they bring along, and what is refused before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.builders import CONF
from vlpkit.compose import look_ahead
from vlpkit.errors import VlpError
from vlpkit.evals.request import read
from vlpkit.identity import kind_of
from vlpkit.program import check

SETS = ("cc3m", "cc12m", "sbu", "coco_train", "vg", "cc3m_val", "coco_test", "mine")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard for every preset: only whether it is there is asked here."""
    here = tmp_path_factory.mktemp("data")
    for name in SETS:
        (here / name).mkdir()
        (here / name / "00000.tar").write_bytes(b"")
    return here


def settled(data: Path, *argv: str) -> dict[str, Any]:
    """The block `data` of a command, as a run would get it."""
    kept: list[dict[str, Any]] = []
    look_ahead([*argv, "size=tiny", f"paths.data={data}"], conf=CONF, check=lambda cfg: kept.append(check(cfg, conf=CONF)[0]))
    return kept[0]["data"]


def test_a_name_brings_what_its_preset_says_of_its_shards(data: Path) -> None:
    found = settled(data, "data=cc3m", "data.mix={cc3m: 1.0, coco: 0.5}")
    safe = {"min_crop": 0.0, "mirror": True, "randaugment": True}
    assert found["mix"] == {"cc3m": 1.0, "coco": {"shards": "coco_train/*.tar", "root": str(data), "limit": None, "safe": safe, "weight": 0.5}}
    assert found["shards"] == "cc3m/*.tar"


def test_the_mixture_of_the_papers_is_a_preset_and_its_sets_are_overrides(data: Path) -> None:
    found = settled(data, "data=web14m", "data.mix.cc12m=null", "data.mix.coco=2.0", "data.mix.mine={shards: mine/*.tar, weight: 0.1}")
    assert {name: None if one is None else (one["shards"], one["weight"]) for name, one in found["mix"].items()} == {
        "cc3m": ("cc3m/*.tar", 1.0), "cc12m": None, "sbu": ("sbu/*.tar", 1.0), "coco": ("coco_train/*.tar", 2.0), "vg": ("vg/*.tar", 1.0), "mine": ("mine/*.tar", 0.1),
    }  # fmt: skip


def test_a_share_is_written_in_percent(data: Path) -> None:
    assert settled(data, "data=cc3m", "data.mix={cc3m: 70%, coco: 30%}")["mix"]["cc3m"] == "70%"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data=cc3m", "data.mix={cc3m: 1, cocoo: 1}"], r"data\.mix\.cocoo: there is no preset conf/data/cocoo\.yaml \(there are: cc12m, .*\)\. Did you mean 'coco'\?"),
        (["data=cc3m", "data.mix={cc3m: 1, mine: 1}"], r"there is no preset conf/data/mine\.yaml .* Or name its shards: data\.mix\.mine\.shards=\.\.\."),
        (["data=cc3m", "data.mix={cc3m: 1, web14m: 1}"], r"data\.mix\.web14m: web14m is a mixture itself\. Name its sets instead: cc3m, cc12m, sbu, coco, vg"),
        (["data=cc3m", "data.mix={cc3m: 1, shapes: 1}"], r"data\.mix\.shapes: shapes is made, not read, so it can only be the data itself: data=shapes"),
        (["data=cc3m", "data.mix={cc3m: 1, custom: 1}"], r"data\.mix\.custom: the preset custom names no shards\. Write data\.mix\.custom\.shards=\.\.\."),
        (["data=cc3m", "data.mix.coco=0.5"], r"data\.mix: leaves out cc3m, the data itself"),
        (["data=cc3m", "data.mix={cc3m: 1, flickr30k: 1}"], r"data\.mix\.flickr30k\.shards: 'flickr30k_train/\*\.tar' matches nothing; .* set data\.mix\.flickr30k\.root or data\.mix\.flickr30k\.shards\."),
        (["data=web14m", "data.mix.coco=-1"], r"data\.mix\.coco\.weight is -1 \(accepted: passes over the set an epoch"),
        (["data=web14m", "data.mix=null"], r"data\.shards names no shards"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused_at_the_door(data: Path, argv: list[str], message: str) -> None:
    with pytest.raises(VlpError, match=message):
        settled(data, *argv)


def test_a_continued_run_may_find_its_sets_elsewhere_but_not_weigh_them_otherwise() -> None:
    assert kind_of("data.mix.coco.root") == kind_of("data.mix.coco.shards") == "free"
    assert {kind_of(f"data.mix.coco.{word}") for word in ("weight", "limit", "safe.mirror")} == {"identity"}
    assert kind_of("data.mix.coco") == "identity"


def test_an_evaluation_on_a_mixture_reads_its_validation_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"")
    block = read([f"run={tmp_path / 'a.ckpt'}", "data=web14m", f"data.root={data}"], conf=CONF).data
    assert block is not None
    assert (block["val_shards"], block["shards"], "mix" in block) == ("coco_test/*.tar", None, False)
