"""Any text encoder with any vision encoder under any fusion: a Latin square a day, so that four days see every combination.
VLPKIT_AXES=all takes the whole cube at once."""

from __future__ import annotations

import datetime
import os
from itertools import product

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams

VISIONS = {
    "vit": (), "vit_clip": (), "resnet50": (), "efficientnet": (), "swin": (), "deit": ("model.vision.embed.name=deit_tiny_patch16_224",), "beit": (),
}  # fmt: skip
TEXTS = ("bert", "roberta", "electra", "albert", "deberta", "t5", "gpt2")
FUSIONS = ("none", "cross", "co", "merged")
CUBE = list(product(range(len(TEXTS)), range(len(VISIONS)), range(len(FUSIONS))))


def of_day(day: int) -> list[tuple[int, int, int]]:
    """Every pair of encoders once, the fusion moving on from day to day."""
    return [(i, j, k) for i, j, k in CUBE if k == (i + j + day) % len(FUSIONS)]


TODAY = CUBE if os.environ.get("VLPKIT_AXES") == "all" else of_day(datetime.date.today().toordinal())


def overrides(i: int, j: int, k: int) -> tuple[str, ...]:
    """A command line."""
    vision, text, fusion = list(VISIONS)[j], TEXTS[i], FUSIONS[k]
    base = ("model=clip", "align=first") if fusion == "none" else ("model=albef", f"fusion={fusion}", "objective=[itc_momentum,itm,mlm]")
    return *base, f"vision={vision}", f"text={text}", *VISIONS[vision], "size.image=64"


def test_four_days_see_the_whole_cube() -> None:
    days = [of_day(day) for day in range(len(FUSIONS))]
    assert sorted(one for day in days for one in day) == sorted(CUBE)
    assert all({(i, j) for i, j, _ in day} == set(product(range(len(TEXTS)), range(len(VISIONS)))) for day in days)


@pytest.mark.parametrize("where", TODAY, ids=lambda where: f"{TEXTS[where[0]]}-{list(VISIONS)[where[1]]}-{FUSIONS[where[2]]}")
def test_a_combination_builds_and_takes_a_step(where: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    made, words = tiny_model(*overrides(*where))
    made.model.train()
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-3)
    s = tiny_streams(made, tiny_batch(words, size=64))
    loss = torch.stack([objective(s).value for objective in made.objectives.values()]).sum()
    loss.backward()
    assert [name for name, p in made.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    before = [p.detach().clone() for p in made.model.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, made.model.parameters()))
