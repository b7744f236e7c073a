"""Our recipes repeat one training step of the original ALBEF and BLIP: states, losses, gradients, teacher and queue.
The limits leave about three times the room that the recording itself needs between threads and precisions."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.golden.recorded import Recording, Step, recording, repeat
from vlpkit.assemble import Assembly
from vlpkit.layers.block import Sublayer

RECIPES = ("albef", "blip")
OUT, LOSS, NORM, TEMPERATURE, KEY_BIAS, AFTER = 1e-5, 1e-5, 1e-4, 5e-4, 1e-5, 2e-6


@cache
def recorded(recipe: str) -> Recording:
    return recording(f"{recipe}_a")


@cache
def ours(recipe: str) -> Step:
    torch.set_num_threads(1)
    return repeat(recipe, recorded(recipe))


def out_errors(step: Step, r: Recording) -> dict[str, float]:
    """Largest difference of each recorded state, as a share of its largest value."""
    return {name: float((step.out[name] - value).abs().max() / value.abs().max()) for name, value in r.group("out/").items()}


def loss_errors(step: Step, r: Recording) -> dict[str, float]:
    return {name: float(abs(step.loss[name].detach() - value) / value) for name, value in r.group("loss/").items()}


def has_no_real_gradient(name: str) -> bool:
    """A bias of attention keys shifts all logits of a row alike, so what is recorded there is rounding noise."""
    return name.endswith(".key.bias")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recorded_state_comes_out(recipe: str) -> None:
    errors = out_errors(ours(recipe), recorded(recipe))
    assert len(errors) > 10
    assert {name: error for name, error in errors.items() if error > OUT} == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_loss_comes_out(recipe: str) -> None:
    errors = loss_errors(ours(recipe), recorded(recipe))
    assert len(errors) == 4
    assert {name: error for name, error in errors.items() if error > LOSS} == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_gradient_norm_comes_out(recipe: str) -> None:
    step, norms = ours(recipe), recorded(recipe).group("gradnorm/")
    wrong = {}
    for name, norm in norms.items():
        found = step.grad[name].norm()
        if has_no_real_gradient(name):
            if max(found, norm) > KEY_BIAS:
                wrong[name] = float(found)
        elif abs(found - norm) / norm > (TEMPERATURE if name == "temp" else NORM):
            wrong[name] = float(abs(found - norm) / norm)
    assert len(norms) > 100
    assert wrong == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_small_gradient_comes_out_number_by_number(recipe: str) -> None:
    step, grads = ours(recipe), recorded(recipe).group("grad/")
    wrong = {}
    for name, grad in grads.items():
        limit = KEY_BIAS if has_no_real_gradient(name) else NORM * float(grad.abs().max())
        if float((step.grad[name] - grad).abs().max()) > (5 * limit if name == "temp" else limit):
            wrong[name] = float((step.grad[name] - grad).abs().max())
    assert len(grads) > 50
    assert wrong == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_exactly_the_same_parameters_get_a_gradient(recipe: str) -> None:
    r = recorded(recipe)
    other_names = {name for group in r.tied for name in group[1:]}
    assert set(ours(recipe).grad) - other_names == set(r.group("gradnorm/"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_teacher_and_queue_are_left_as_recorded(recipe: str) -> None:
    step, after = ours(recipe), recorded(recipe).group("after/")
    compared = {name: value for name, value in after.items() if not name.endswith("position_ids")}
    wrong = {name: error for name, value in compared.items() if (error := float((step.after[name] - value).abs().max())) > AFTER}
    assert len(compared) > 90
    assert wrong == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_only_possible_negatives_are_drawn(recipe: str) -> None:
    for name in ("negative_image_for_text", "negative_text_for_image"):
        assert torch.equal(ours(recipe).drawn[name], recorded(recipe)[f"draw/{name}"])


def test_openings_and_targets_are_those_of_blip() -> None:
    step, r = ours("blip"), recorded("blip")
    assert torch.equal(step.drawn["encoder_ids"], r["in/encoder_ids"])
    assert torch.equal(step.drawn["decoder_ids"], r["in/decoder_ids"])
    assert torch.equal(step.drawn["targets"][:, 1:], r["in/decoder_targets"][:, 1:])  # the first is never asked


def lag(recipe: str) -> Step:
    return repeat(recipe, recorded(recipe), teacher_first=False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_teacher_that_lags_by_a_step_is_seen(recipe: str) -> None:
    step, r = lag(recipe), recorded(recipe)
    errors = out_errors(step, r)
    assert errors["vision_tokens"] < OUT < errors["vision_tokens_teacher"]
    assert loss_errors(step, r)["itc"] > LOSS


def drop_second_residual(made: Assembly) -> None:
    """The feed-forward of the first text layer forgets what it was given."""
    block = made.model.part("text").trunk.blocks[0]
    kept: Sublayer = block.ffn
    kept.forward = lambda x, *rest: kept.norm(kept.body(x))  # type: ignore[method-assign]


def swap_heads(made: Assembly) -> None:
    """The first two heads of one image layer give their values to each other's place."""
    qkv = made.model.part("vision").trunk.blocks[0].get_submodule("self").body.qkv
    with torch.no_grad():
        start, width = 2 * 32, 8
        rows = qkv.weight[start : start + 2 * width].clone()
        qkv.weight[start : start + 2 * width] = rows.roll(width, 0)


def coarse_norms(made: Assembly) -> None:
    """The epsilon of the image norms is that of another family."""
    for module in made.model.part("vision").modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("spoil", "first"), [(drop_second_residual, "text_tokens"), (swap_heads, "vision_tokens"), (coarse_norms, "vision_tokens")])
def test_a_wrong_model_is_seen_where_it_is_wrong(recipe: str, spoil: object, first: str) -> None:
    step, r = repeat(recipe, recorded(recipe), spoil=spoil), recorded(recipe)  # type: ignore[arg-type]
    assert out_errors(step, r)[first] > OUT
    assert loss_errors(step, r)["total"] > LOSS
