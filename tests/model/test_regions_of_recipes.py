"""What recipes over regions promise of a batch: padding is never read, and files of the originals are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.builders import RECIPES, composed, tiny_batch, tiny_model, tiny_streams
from tests.golden.recorded import recording
from tests.parity.test_visualbert import WithRegions
from vlpkit.data.regions import Detections
from vlpkit.evals.command import _data
from vlpkit.layouts import recognise
from vlpkit.types import Batch

READERS = [recipe for recipe in RECIPES if composed(f"model={recipe}")["data"].get("regions")]


def spoilt(batch: Batch) -> Batch:
    """The same batch with other features, boxes and targets where no region is."""
    image = batch.images["clean"]
    assert image.mask is not None
    assert image.regions is not None
    assert image.boxes is not None
    fill = ~image.mask[..., None]
    image = replace(image, regions=image.regions.masked_fill(fill, 100.0), boxes=image.boxes.masked_fill(fill, 0.5))
    targets = {name: t.masked_fill(fill if t.ndim == 3 else fill[..., 0], 0.5) if name.startswith("region") and t.is_floating_point() else t for name, t in batch.targets.items()}
    return replace(batch, images={**batch.images, "clean": image}, targets=targets)


@pytest.mark.parametrize("recipe", READERS)
def test_what_stands_where_no_region_is_changes_no_loss(recipe: str) -> None:
    torch.set_num_threads(1)
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words, rows=6)
    losses = [{name: objective(tiny_streams(made, given)).value for name, objective in made.objectives.items()} for given in (batch, spoilt(batch))]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.allclose(losses[0][name], losses[1][name], atol=1e-6) for name in losses[0])
    other = replace(batch, images={"clean": replace(batch.images["clean"], regions=batch.images["clean"].regions + 1)})  # type: ignore[operator]
    assert any(not torch.allclose(objective(tiny_streams(made, other)).value, losses[0][name], atol=1e-6) for name, objective in made.objectives.items())


@pytest.mark.parametrize("recipe", READERS)
def test_the_data_deliver_the_targets_that_its_objectives_read(recipe: str) -> None:
    cfg = composed(f"model={recipe}")
    node = {key: value for key, value in cfg["data"]["regions"].items() if key != "_target_"}
    given = set(Detections(**node).blank(2)[1])
    asked = {"RegionClasses": {"region_class"}, "RegionDistribution": {"region_soft"}}
    wanted = set().union(*(asked.get(node["_target_"].rpartition(".")[2], set()) for node in cfg["objectives"].values()))
    assert wanted <= given


def test_files_of_the_originals_are_recognised() -> None:
    assert recognise(recording("uniter_a").group("param/"), place="x").name == "uniter"
    assert recognise(WithRegions().theirs.state_dict(), place="x").name == "transformers_visualbert"


def test_an_evaluation_on_other_data_reads_regions_as_the_run_did(tmp_path: Path) -> None:
    cfg = composed("model=uniter", "size=tiny")
    other = {**composed("model=clip")["data"], "cache": str(tmp_path), "world": {"train": 4, "val": 3, "image_size": 32}}
    data = _data(SimpleNamespace(data=other, changes={}), SimpleNamespace(config=cfg, words=None))  # type: ignore[arg-type]
    batch, = data.eval_batches(batch=3)
    assert batch.images.pixels is None
    assert batch.images.regions is not None
    assert batch.images.regions.shape[-1] == cfg["size"]["feature"]
    assert set(batch.targets) == {"region_class", "region_soft"}
