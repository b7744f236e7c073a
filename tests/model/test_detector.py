"""Regions found while training: torchvision's frozen detector in place of KEY.regions.npz, through the same seam. Its weights are random here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.builders import CLOCK, NARROW, composed, tiny_batch, tiny_model, tiny_streams, tiny_words
from vlpkit.assemble import Assembly
from vlpkit.dry import dry_step
from vlpkit.encoders.detector import Detector
from vlpkit.errors import AssemblyError, ConfigError, VlpError
from vlpkit.types import Batch, ImageInput

SMALL = ("vision=detector", "size.feature=1024", "size.classes=7", "model.detector.name=fasterrcnn_mobilenet_v3_large_320_fpn", "model.detector.least=3",
         "model.detector.threshold=0.16", "model.detector.most=6")  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Assembly:
    torch.set_num_threads(1)
    return tiny_model("model=uniter", *SMALL)[0]


def detector(made: Assembly) -> Detector:
    found = made.model.part("detector")
    assert isinstance(found, Detector)
    return found


def pictures(rows: int = 3) -> ImageInput:
    return ImageInput(torch.randint(0, 256, (rows, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))


def test_regions_boxes_and_targets_come_out_as_from_stored_ones(made: Assembly) -> None:
    image, targets = detector(made)(pictures())
    assert image.regions is not None
    assert image.boxes is not None
    assert image.mask is not None
    rows, most, size = image.regions.shape
    assert (rows, size) == (3, 1024)
    assert 3 <= most <= 6
    assert image.boxes.shape == (3, most, 4)
    assert float(image.boxes.min()) >= 0
    assert float(image.boxes.max()) <= 1
    assert (image.boxes[..., :2] <= image.boxes[..., 2:]).all()
    real = image.mask
    assert torch.allclose(targets["region_soft"][real].sum(-1), torch.ones(int(real.sum())))
    assert ((targets["region_class"][real] >= 0) & (targets["region_class"][real] < 7)).all()
    sure = targets["region_confidence"]
    assert (sure[:, 1:] <= sure[:, :-1]).all()


def test_a_feature_is_pooled_at_the_box_that_is_reported(made: Assembly) -> None:
    """Not at the proposal that the box was regressed from, as many extractors do."""
    net = detector(made).net
    image, _ = detector(made)(pictures(1))
    assert image.pixels is not None
    assert image.boxes is not None
    assert image.regions is not None
    with torch.no_grad():
        seen, _ = net.transform([image.pixels[0].float() / 255])
        height, width = seen.image_sizes[0]
        boxes = image.boxes[0] * torch.tensor([width, height, width, height])
        pooled = net.roi_heads.box_head(net.roi_heads.box_roi_pool(net.backbone(seen.tensors), [boxes], seen.image_sizes))
    assert torch.allclose(image.regions[0], pooled, atol=1e-4)


def test_it_is_frozen_and_answers_the_same_in_training(made: Assembly) -> None:
    made.model.train()
    assert not any(module.training for module in detector(made).modules())
    assert not any(p.requires_grad for p in detector(made).parameters())
    first, again = (detector(made)(pictures())[0].regions for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def step(made: Assembly) -> tuple[dict[str, Tensor], int]:
    plain = tiny_batch(tiny_words(composed(*NARROW, "model=uniter", *SMALL)))
    batch = Batch({"clean": ImageInput(plain.images["clean"].pixels)}, plain.texts, {}, plain.pair_id)
    s = tiny_streams(made, batch)
    losses = {name: objective(s).value for name, objective in made.objectives.items()}
    torch.stack(list(losses.values())).sum().backward()
    return losses, s.counts["detector"]


def test_every_objective_over_regions_reads_what_it_finds_and_it_looks_once(made: Assembly) -> None:
    losses, looks = step(made)
    assert set(losses) == {"mlm", "mrfr", "mrc", "mrckl", "itm", "wra"}
    assert all(loss.isfinite() for loss in losses.values())
    assert looks == 1
    assert [name for name, p in made.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_it_takes_a_dry_step() -> None:
    cfg = composed(*NARROW, "model=uniter", *SMALL)
    found, passes = dry_step(cfg, words=tiny_words(cfg), clock=CLOCK)
    assert passes["pairs"]["detector"] == 1
    assert cfg["data"].get("regions") is None   # pixels are read, and no KEY.regions.npz
    assert all(p.is_meta for p in found.model.parameters())


def test_features_of_another_size_are_refused_with_the_remedy() -> None:
    cfg = composed(*NARROW, "model=uniter", *SMALL[:1], *SMALL[2:])
    with pytest.raises(VlpError, match=re.escape("Set size.feature=1024 size.classes=7")):
        dry_step(cfg, words=tiny_words(cfg), clock=CLOCK)


def test_weights_of_torchvision_are_taken_from_a_file(made: Assembly, tmp_path: Path) -> None:
    told = {"image_size": 32, "size": 1024, "classes": 7, "name": "fasterrcnn_mobilenet_v3_large_320_fpn"}
    save_file(detector(made).net.state_dict(), tmp_path / "a.safetensors")
    fresh = Detector(**told, weights=str(tmp_path / "a.safetensors"))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(fresh.net.state_dict().values(), detector(made).net.state_dict().values(), strict=True))
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises((ValueError, ConfigError), match="weights="):
        Detector(**told, weights=str(tmp_path / "b.safetensors"))  # type: ignore[arg-type]


def test_images_without_pixels_are_refused(made: Assembly) -> None:
    with pytest.raises(AssemblyError, match="looks at pixels"):
        detector(made)(ImageInput(boxes=torch.zeros(1, 1, 4)))
