"""Our ViLT repeats one training step of the original code: images of two shapes in one frame, all three losses, the transport plan, gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden.recorded import Found, Given, Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.maths.transport import cosine_cost, transport_distance, transport_plan
from vlpkit.objectives.wpa import inner_words, without_class
from vlpkit.streams import Streams
from vlpkit.tables.vilt import vilt
from vlpkit.types import Batch, ImageInput, Pairing, TextInput
from vlpkit.weights import load, revert

OUT, LOSS, NORM, KEY_BIAS = 1e-5, 1e-5, 1e-4, 1e-5   # as in test_steps


def build(r: Recording) -> Assembly:
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 0, "cls": 101, "sep": 102, "mask": 103}, length=z["text_len"])
    return assemble(composed(
        "model=vilt", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['layers']}", f"size.image={z['position_grid_image']}",
        f"size.patch={z['patch']}", f"size.positions={z['text_len']}", "size.dropout=0.0",
        "model.vision.embed.mean=[0.0,0.0,0.0]", "model.vision.embed.std=[1.0,1.0,1.0]",   # the recorded pixels are normalised already
        "+objectives.itm.image=mixed", "+objectives.wpa.image=mixed",                       # and false images are not those of the batch
    ), words=words, clock=CLOCK)


def shown(pixels: Tensor, patch: int) -> ImageInput:
    """Images with the patches that are not padding: a padded pixel is 0 in every channel, one corner of a patch speaks for it."""
    return ImageInput(pixels, mask=(pixels.sum(1) != 0)[:, ::patch, ::patch].flatten(1))


def repeat(r: Recording, spoil: Callable[[Assembly], None] | None = None) -> Found:
    torch.set_num_threads(1)
    made = build(r)
    report = load(made.model, r.group("param/"), vilt())
    assert report.fresh == ()
    assert made.objectives["wpa"].weight == r.sizes["alignment_weight"]
    if spoil is not None:
        spoil(made)
    text, match = TextInput(r["in/input_ids"], r["in/attention_mask"].bool()), r["draw/itm_labels"]
    mixed = torch.where(match.bool()[:, None, None, None], r["in/pixels"], r["in/false_pixels"])
    rows, patch = torch.arange(len(text)), r.sizes["patch"]
    made.draws |= {
        "mask": Given({"text": TextInput(r["in/masked_ids"], text.mask), "labels": r["in/mlm_labels"]}), "mix": Given({"pairing": Pairing(rows, rows, match)}),
    }
    batch = Batch({"clean": shown(r["in/pixels"], patch), "mixed": shown(mixed, patch)}, {"clean": text}, {}, rows)
    s = Streams(made.model, batch, draws=made.draws, seed=(0,))
    loss = {name: objective.weight * objective(s).value for name, objective in made.objectives.items()}
    loss["total"] = torch.stack(list(loss.values())).sum()
    with torch.no_grad():
        out = watch(made, s)
    loss["total"].backward()
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    return Found(out, loss, revert(grads, report), dict(s.counts))


def watch(made: Assembly, s: Streams) -> dict[str, Tensor]:
    """The recorded states, read from the passes that the losses used."""
    head, out = made.model.head("itm"), {}
    for name, fused in (("mlm", s.fused("clean", "mask.text")), ("itm", s.fused("mixed", "clean", "mix.pairing"))):
        out |= {f"text_tokens_{name}": fused.w.x, f"image_tokens_{name}": fused.v.x, f"image_mask_{name}": fused.v.mask, f"pooled_{name}": head.pool[0](fused.w)}
        out |= {f"patch_index_{name}": fused.v.part("v").at, f"{name}_logits": s.head(name, fused.w.x if name == "mlm" else fused.w)}
    w, v = inner_words(fused.w.mask), without_class(fused.v)
    cost = cosine_cost(fused.w.x, fused.v.x, w, v)
    plan = transport_plan(cost, w, v)
    return out | {"ot_cost": cost, "ot_plan": plan, "ot_distance": transport_distance(cost, plan)}


@cache
def step() -> tuple[Found, Recording]:
    r = recording("vilt_a")
    return repeat(r), r


def out_errors(found: Found, r: Recording) -> dict[str, float]:
    """Largest difference of each state as a share of its largest value."""
    return {name: float((found.out[name].float() - value.float()).abs().max() / value.float().abs().max()) for name, value in r.group("out/").items()}


def test_every_recorded_state_comes_out_at_padded_places_too() -> None:
    errors = out_errors(*step())
    assert len(errors) == 15
    assert {name: error for name, error in errors.items() if error > OUT} == {}


def test_every_loss_comes_out() -> None:
    found, r = step()
    assert {name: float(found.loss[name]) for name, value in r.group("loss/").items() if abs((found.loss[name] - value) / value) > LOSS} == {}
    assert len(r.group("loss/")) == 4



def test_every_gradient_comes_out() -> None:
    found, r = step()
    norms, grads, wrong = r.group("gradnorm/"), r.group("grad/"), {}
    for name, norm in norms.items():
        if abs(float(found.grad[name].norm() - norm)) > NORM * float(norm):
            wrong[name] = (float(found.grad[name].norm()), float(norm))
    for name, grad in grads.items():
        real = torch.ones_like(grad, dtype=torch.bool)
        if name.endswith("qkv.bias"):   # a bias of keys shifts all logits of a row alike: rounding noise
            real[len(grad) // 3 : 2 * len(grad) // 3] = False
            assert float((found.grad[name] - grad)[~real].abs().max()) < KEY_BIAS
        if float((found.grad[name] - grad)[real].abs().max()) > NORM * float(grad[real].abs().max()):
            wrong[name] = (float((found.grad[name] - grad).abs().max()), float(grad.abs().max()))
    assert (len(norms), len(grads)) == (58, 39)
    assert wrong == {}


def test_matching_and_alignment_share_their_pass() -> None:
    found, _ = step()
    assert found.counts == {"vision.embed": 2, "text.embed": 2, "fusion": 2}   # the false images are no images of the batch here


def test_positions_of_the_whole_grid_on_a_smaller_image_are_seen() -> None:
    def spoil(made: Assembly) -> None:
        made.model.part("vision").embed.any_shape = False

    errors = out_errors(repeat(recording("vilt_a"), spoil), recording("vilt_a"))
    assert min(errors["text_tokens_mlm"], errors["image_tokens_mlm"]) > 100 * OUT


def test_an_alignment_with_the_ends_is_seen() -> None:
    def spoil(made: Assembly) -> None:
        made.objectives["wpa"].ends = True

    found, (_, r) = repeat(recording("vilt_a"), spoil), step()
    assert abs(float(found.loss["wpa"] / r["loss/wpa"]) - 1) > 1000 * LOSS
    assert abs(float(found.loss["itm"] / r["loss/itm"]) - 1) < LOSS
