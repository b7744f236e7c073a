"""Our METER repeats one training step of the original code: both encoders, bridges, layers in lockstep, both losses, gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden.recorded import Found, Given, Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.streams import Streams
from vlpkit.tables.meter import meter
from vlpkit.types import Batch, Fused, ImageInput, Pairing, TextInput
from vlpkit.weights import load, revert

OUT, LOSS, NORM, KEY_BIAS = 1e-5, 1e-5, 1e-4, 1e-5   # as in test_steps


def build(r: Recording) -> Assembly:
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": z["ids"]["pad"], "cls": z["ids"]["bos"], "sep": z["ids"]["eos"], "mask": z["ids"]["mask"]}, length=z["text_len"])
    return assemble(composed(
        "model=meter", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['vision_blocks']}", f"size.half={z['fusion_layers']}",
        f"size.image={z['image']}", f"size.patch={z['patch']}", f"size.positions={z['max_positions'] - 2}", "size.dropout=0.0",
        *(f"+model.{trunk}.ratio={z['fusion_ffn'] / z['hidden']}" for trunk in ("text.trunk", "fusion.v", "fusion.w")),
        "+model.vision.embed.mean=[0.0,0.0,0.0]", "+model.vision.embed.std=[1.0,1.0,1.0]",   # the recorded pixels are normalised already
        "+objectives.itm.image=mixed",                                                        # and false images are not those of the batch
    ), words=words, clock=CLOCK)


def repeat(r: Recording, spoil: Callable[[Assembly], None] | None = None) -> Found:
    torch.set_num_threads(1)
    made = build(r)
    report = load(made.model, r.group("param/"), meter())
    if spoil is not None:
        spoil(made)
    text, match = TextInput(r["in/input_ids"], r["in/attention_mask"].bool()), r["draw/itm_labels"]
    mixed = torch.where(match.bool()[:, None, None, None], r["in/pixels"], r["in/false_pixels"])
    rows = torch.arange(len(text))
    made.draws |= {
        "mask": Given({"text": TextInput(r["in/masked_ids"], text.mask), "labels": r["in/mlm_labels"]}), "mix": Given({"pairing": Pairing(rows, rows, match)}),
    }
    batch = Batch({"clean": ImageInput(r["in/pixels"]), "mixed": ImageInput(mixed)}, {"clean": text}, {}, rows)
    s = Streams(made.model, batch, draws=made.draws, seed=(0,))
    loss = {name: objective(s).value for name, objective in made.objectives.items()}
    loss["total"] = torch.stack(list(loss.values())).sum()
    with torch.no_grad():
        out = watch(made, s)
    loss["total"].backward()
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    return Found(out, loss, revert(grads, report))


def watch(made: Assembly, s: Streams) -> dict[str, Tensor]:
    """The recorded states, read from the passes that the losses used; layers of the fusion are played again one by one."""
    fusion, vision, words, head = made.model.part("fusion"), made.model.part("vision"), made.model.part("text"), made.model.head("itm")
    out = {}
    for mark, image, text, pairing in (("", "clean", "mask.text", "aligned"), (".1", "mixed", "clean", "mix.pairing")):
        v, w = s.v(image), s.w(text)
        bare = vision.trunk(vision.embed(s.image(image)))
        out |= {f"text_tokens{mark}": w.x - words.neck.side, f"vision_tokens{mark}": bare.x, f"image_tokens_projected{mark}": v.x - vision.neck.side}
        for i in (0, 1):
            layers = range(i, i + 1)
            v, w = fusion.v(v, memory=w, layers=layers), fusion.w(w, memory=v, layers=layers)
            out |= {f"co_text_layer{i}{mark}": w.x, f"co_image_layer{i}{mark}": v.x}
        fused: Fused = s.fused(image, text, pairing)
        assert torch.allclose(fused.w.x, w.x, atol=1e-6)
        assert torch.allclose(fused.v.x, v.x, atol=1e-6)
        first = [pool(side) for pool, side in zip(head.pool, (fused.w, fused.v))]
        out["pooled_itm" if mark else "pooled_mlm"] = torch.cat(first, -1)
        out |= {"itm_logits": s.head("itm", fused.w, fused.v)} if mark else {"mlm_logits": s.head("mlm", fused.w.x)}
    return out


@cache
def step() -> tuple[Found, Recording]:
    r = recording("meter_a")
    return repeat(r), r


def out_errors(found: Found, r: Recording) -> dict[str, float]:
    """Largest difference of each state as a share of its largest value; padded words stand elsewhere in RoBERTa, and nobody reads them."""
    real, errors = r["in/attention_mask"].bool(), {}
    for name, value in r.group("out/").items():
        ours, theirs = (found.out[name][real], value[real]) if value.ndim == 3 and value.shape[1] == real.shape[1] else (found.out[name], value)
        errors[name] = float((ours - theirs).abs().max() / theirs.abs().max())
    return errors


def test_every_recorded_state_comes_out() -> None:
    errors = out_errors(*step())
    assert len(errors) == 18
    assert {name: error for name, error in errors.items() if error > OUT} == {}


def test_every_loss_comes_out() -> None:
    found, r = step()
    assert {name: float(found.loss[name]) for name, value in r.group("loss/").items() if abs(found.loss[name] - value) / value > LOSS} == {}
    assert len(r.group("loss/")) == 3


def has_no_real_gradient(name: str) -> bool:
    """A bias of attention keys shifts all logits of a row alike, so what is recorded there is rounding noise."""
    return name.endswith(".key.bias")


def test_every_gradient_comes_out() -> None:
    found, r = step()
    norms, grads, wrong = r.group("gradnorm/"), r.group("grad/"), {}
    for name, norm in norms.items():
        limit = KEY_BIAS if has_no_real_gradient(name) else NORM * float(norm)
        if abs(float(found.grad[name].norm() - norm)) > limit:
            wrong[name] = (float(found.grad[name].norm()), float(norm))
    for name, grad in grads.items():
        limit = KEY_BIAS if has_no_real_gradient(name) else NORM * float(grad.abs().max())
        if float((found.grad[name] - grad).abs().max()) > limit:
            wrong[name] = (float((found.grad[name] - grad).abs().max()), float(grad.abs().max()))
    assert (len(norms), len(grads)) == (189, 119)
    assert wrong == {}
    assert set(found.grad) == set(norms)


def one_after_the_other(made: Assembly) -> None:
    """Text reads the image as it stands after its block, not before."""
    fusion = made.model.part("fusion")
    fusion.steps = [step for i in (0, 1) for step in ({"v": i}, {"w": i})]


def types_swapped(made: Assembly) -> None:
    v, w = made.model.part("vision").neck, made.model.part("text").neck
    v.side, w.side = w.side, v.side


def test_a_wrong_order_of_blocks_or_types_is_seen() -> None:
    r = recording("meter_a")
    for spoil in (one_after_the_other, types_swapped):
        made = build(r)
        load(made.model, r.group("param/"), meter())
        spoil(made)
        text = TextInput(r["in/masked_ids"], r["in/attention_mask"].bool())
        s = Streams(made.model, Batch({"clean": ImageInput(r["in/pixels"])}, {"clean": text}, {}, torch.arange(2)), seed=(0,))
        real = text.mask
        apart = (s.fused().w.x - r["out/co_text_layer1"])[real].abs().max()
        assert float(apart) > 100 * OUT
