"""Any text encoder with any vision encoder under any fusion: a Latin square a day, so that four days see every combination.
VLPKIT_AXES=all takes the whole cube at once."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams

VISIONS = {
    "vit": (), "vit_clip": (), "resnet50": (), "efficientnet": (), "swin": (), "deit": ("model.vision.embed.name=deit_tiny_patch16_224",), "beit": (), "regions_trunk": (),
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


OBJECTIVES = {   # of the axes: what each is called, and a command line that asks for it
    "contrast over the batch": ("itc", "model=clip"), "contrast with momentum and queue": ("itc", "model=albef"), "pairwise sigmoid": ("sigmoid", "model=siglip"),
    "random matching": ("itm", "model=vilt"), "mined matching": ("itm", "model=vlmo"), "masked words": ("mlm", "model=meter"),
    "masked words in order": ("mlm_seq", "model=albef", "objective=[itc_momentum,itm_hard,mlm_seq]"), "next words": ("lm", "model=git"), "words behind a prefix": ("lm", "model=simvlm"),
    "features of regions": ("mrfr", "model=uniter"), "classes of regions": ("mrc", "model=uniter"), "distributions of regions": ("mrckl", "model=uniter"),
    "codes of patches": ("mim", "model=meter", "objective=[itm,mlm,mim_codes]"), "patches among those of the batch": ("mim_batch", "model=meter", "objective=[itm,mlm,mim_batch]"),
    "pixels of patches": ("mim_pixels", "model=meter", "objective=[itm,mlm,mim_pixels]"), "alignment of words and regions": ("wra", "model=uniter"),
    "boxes of phrases": ("box", "model=albef", "objective=[itc_momentum,itm_hard,mlm,box]"),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_axes_takes_a_step(name: str) -> None:
    key, *words = OBJECTIVES[name]
    made, tokenizer = tiny_model(*words)
    made.model.train()
    value = made.objectives[key](tiny_streams(made, tiny_batch(tokenizer))).value
    assert value.isfinite()
    value.backward()
    grads = [p.grad for p in made.model.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert any(bool(grad.any()) for grad in grads)


def test_words_masked_in_order_are_told_from_the_image_and_the_words_before_them() -> None:
    made, words = tiny_model("model=albef", "objective=[itc_momentum,itm_hard,mlm_seq]")
    batch = tiny_batch(words)
    text = batch.texts["clean"]
    last = (text.mask.sum(1) - 2).tolist()   # the last word before what closes a text
    other = text.ids.clone()
    other[range(len(last)), last] = words.special["unk"]

    def states(ids: torch.Tensor) -> torch.Tensor:
        s = tiny_streams(made, replace(batch, texts={"clean": replace(text, ids=ids)}))
        return s.fused("clean", "ordered.text").w.x

    made.model.eval()
    with torch.no_grad():
        a, b = states(text.ids), states(other)
    for row, place in enumerate(last):
        assert torch.equal(a[row, :place], b[row, :place])
        assert not torch.equal(a[row, place], b[row, place])
