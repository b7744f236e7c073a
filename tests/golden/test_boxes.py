"""The box head and its loss repeat the region step that was recorded of X-VLM's original code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlpkit.layers.heads import BoxHead
from vlpkit.maths.boxes import corners
from vlpkit.objectives.boxes import Box
from vlpkit.types import Stream

FIXTURE = Path(__file__).parent / "fixtures" / "xvlm_a_box.npz"
NAMES = {"dense": "0", "norm": "1", "out": "3"}


def recorded() -> dict[str, Tensor]:
    with np.load(FIXTURE) as stored:
        return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}


def head(r: dict[str, Tensor]) -> BoxHead:
    made = BoxHead(32)
    made.load_state_dict({f"{ours}.{kind}": r[f"param/bbox_head.{theirs}.{kind}"] for ours, theirs in NAMES.items() for kind in ("weight", "bias")})
    return made


class Step:
    """Streams of a step whose fused states and boxes are given."""

    def __init__(self, made: BoxHead, states: Tensor, boxes: Tensor) -> None:
        self.made, self.states, self.boxes = made, states, boxes

    def target(self, name: str) -> Tensor:
        assert name == "box"
        return self.boxes

    def head(self, name: str, x: Any) -> Tensor:
        assert name == "box"
        return self.made(x)

    def fused(self, image: str, text: str, *, by: str) -> Any:
        assert (image, text, by) == ("clean", "phrase", "fusion")
        return SimpleNamespace(w=Stream(self.states, torch.ones(self.states.shape[:2], dtype=torch.bool), (("w", self.states.shape[1]),)))


def test_logits_losses_and_gradients_come_out() -> None:
    r = recorded()
    made = head(r)
    boxes = corners(r["in/region_boxes"])
    boxes[0] = 0   # the first text speaks of the whole image, and the original asks for no box then
    step: Any = Step(made, r["out/region_fused_box"], boxes)
    torch.testing.assert_close(made(step.fused("clean", "phrase", by="fusion").w), r["out/region_box_logits"], atol=1e-6, rtol=1e-5)
    loss = Box()(step)
    torch.testing.assert_close(loss.logs["l1"], r["loss/region_bbox"], atol=0, rtol=1e-5)
    torch.testing.assert_close(loss.logs["giou"], r["loss/region_giou"], atol=0, rtol=1e-5)
    loss.value.backward()
    for ours, theirs in NAMES.items():
        for kind in ("weight", "bias"):
            grad = getattr(getattr(made, ours), kind).grad
            torch.testing.assert_close(grad.norm(), r[f"gradnorm/bbox_head.{theirs}.{kind}"], atol=0, rtol=1e-4)
            if f"grad/bbox_head.{theirs}.{kind}" in r:
                torch.testing.assert_close(grad, r[f"grad/bbox_head.{theirs}.{kind}"], atol=1e-6, rtol=1e-4)


def test_a_phrase_without_a_box_does_not_count() -> None:
    r = recorded()
    states, boxes = r["out/region_fused_box"], corners(r["in/region_boxes"])
    without: Any = Step(head(r), torch.cat([states, states[:1]]), torch.cat([boxes, torch.zeros(1, 4)]))
    plain: Any = Step(head(r), states, boxes)
    for ours, theirs in zip(Box()(without).logs.values(), Box()(plain).logs.values()):
        assert float(ours) == pytest.approx(float(theirs))
    nothing: Any = Step(head(r), states, torch.zeros(3, 4))
    found = Box()(nothing)
    assert float(found.value) == 0
    found.value.backward()   # and no gradient is NaN
    assert all(bool((p.grad == 0).all()) for p in nothing.made.parameters())


def test_the_whole_image_or_centres_in_place_of_corners_are_seen() -> None:
    r = recorded()
    for boxes in (corners(r["in/region_boxes"]), r["in/region_boxes"] * torch.tensor([[0.0], [1.0], [1.0]])):
        wrong: Any = Step(head(r), r["out/region_fused_box"], boxes)
        assert abs(float(Box()(wrong).logs["l1"]) / float(r["loss/region_bbox"]) - 1) > 0.01
