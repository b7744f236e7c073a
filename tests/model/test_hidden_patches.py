"""Hidden patches beside a clean text, three ways to ask for them: a code, one patch among those of all images, colours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.assemble import Assembly
from vlpkit.maths.patches import cut_patches
from vlpkit.objectives.mim import MaskedPixels
from vlpkit.streams import Streams

WAYS = {"mim_codes": "mim", "mim_batch": "mim_batch", "mim_pixels": "mim_pixels"}   # option: objective


def made(way: str, recipe: str = "meter", *further: str) -> tuple[Assembly, Streams]:
    torch.set_num_threads(1)
    assembly, words = tiny_model(f"model={recipe}", f"objective=[itm,mlm,{way}]", *further)
    return assembly, tiny_streams(assembly, tiny_batch(words))


@pytest.mark.parametrize("recipe", ["meter", "vilt"])
@pytest.mark.parametrize("way", WAYS)
def test_it_joins_a_recipe_with_one_more_pass_and_reaches_every_parameter(way: str, recipe: str) -> None:
    assembly, s = made(way, recipe, "draws.hole.rate=0.5")
    torch.stack([objective(s).value for objective in assembly.objectives.values()]).sum().backward()
    assert s.counts["vision.embed"] == 2   # whole, and with holes
    assert s.counts["fusion"] == 3
    assert [name for name, p in assembly.model.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))] == []


@pytest.mark.parametrize("way", WAYS)
def test_what_is_hidden_is_not_seen_and_the_text_is(way: str) -> None:
    """With all patches hidden an image says nothing: other pixels leave the states alone, other words do not."""
    assembly, s = made(way, "meter", "draws.hole.rate=1.0")
    assert s.labels("hole.chosen").all()
    seen = s.fused("hole.image", "clean").v.x
    pixels = s.image("hole.image").pixels
    assert pixels is not None
    pixels.copy_(255 - pixels)
    again = Streams(assembly.model, s.batch, draws=assembly.draws, seed=(0,))
    assert torch.equal(again.fused("hole.image", "clean").v.x, seen)
    ids = s.text().ids
    ids.copy_(ids.flip(0))
    again = Streams(assembly.model, s.batch, draws=assembly.draws, seed=(0,))
    assert not torch.allclose(again.fused("hole.image", "clean").v.x, seen, atol=1e-4)


def test_each_hidden_patch_is_looked_for_among_the_patches_of_all_images() -> None:
    assembly, s = made("mim_batch")
    loss = assembly.objectives["mim_batch"](s)
    keys, chosen = s.v("clean", "embed").part("v").x, s.labels("hole.chosen")
    states = s.fused("hole.image", "clean").v.part("v").x
    count, terms = keys.shape[0] * keys.shape[1], []
    for row, place in chosen.nonzero().tolist():
        found = assembly.model.head("mim_batch")(states[row, place])
        logits = torch.stack([found @ key for image in keys for key in image])
        terms.append(logits.logsumexp(0) - found @ keys[row, place])
    assert len(terms) > 3
    assert torch.allclose(loss.value, torch.stack(terms).mean(), atol=1e-5)
    assert float(loss.value.detach()) == pytest.approx(math.log(count), rel=0.1)


def test_whoever_says_the_patch_itself_finds_it() -> None:
    assembly, s = made("mim_batch")
    keys, chosen = s.v("clean", "embed").part("v").x.detach(), s.labels("hole.chosen")
    assembly.model.heads["mim_batch"] = Says(100 * keys[chosen])
    loss = assembly.objectives["mim_batch"](s)
    assert float(loss.value) < 1e-3
    assert float(loss.logs["acc"]) == 1


class Says(torch.nn.Module):
    """A head that knows the answers."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == len(self.answers)
        return self.answers


@pytest.mark.parametrize("normed", [False, True])
def test_colours_that_are_found_exactly_cost_nothing_and_others_their_distance(normed: bool) -> None:
    assembly, s = made("mim_pixels", "meter", f"+objectives.mim_pixels.normed={normed}")
    objective, chosen, pixels = assembly.objectives["mim_pixels"], s.labels("hole.chosen"), s.image().pixels
    assert isinstance(objective, MaskedPixels)
    assert pixels is not None
    right = objective.target(pixels)[chosen]
    for off, expected in ((0.0, 0.0), (0.25, 0.25), (-0.5, 0.5)):
        assembly.model.heads["mim_pixels"] = Says(right + off)
        assert float(objective(s).value) == pytest.approx(expected, abs=1e-6)


def test_colours_are_shares_of_full_light_or_normed_patch_by_patch() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, normed = MaskedPixels(patch=4).target(pixels), MaskedPixels(patch=4, normed=True).target(pixels)
    assert plain.shape == (2, 6, 48)
    assert torch.equal(plain[1, 4], (pixels[1, :, 4:8, 4:8].float() / 255).flatten())   # second row, second column
    assert torch.equal(MaskedPixels(patch=4).target(pixels.float() / 255), plain)
    assert torch.allclose(normed.mean(-1), torch.zeros(2, 6), atol=1e-5)
    assert torch.allclose(normed.var(-1), torch.ones(2, 6), atol=1e-3)


def test_patches_are_cut_row_by_row_and_lie_channel_by_channel() -> None:
    pixels = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    cut = cut_patches(pixels, 2)
    assert cut.shape == (2, 6, 12)
    assert torch.equal(cut[1, 5], pixels[1, :, 2:4, 4:6].flatten())


def test_nothing_hidden_costs_nothing() -> None:
    for way in ("mim_batch", "mim_pixels"):
        assembly, s = made(way, "meter", "draws.hole.rate=0.0")
        loss = assembly.objectives[way](s).value
        loss.backward()
        assert float(loss.detach()) == 0
