"""Our VLMo and BEiT-3 repeat what was recorded of the original code: routes, relative positions, shared spaces, negatives, gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden.recorded import Found, Given, Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.streams import Streams
from vlpkit.tables.beit3 import beit3
from vlpkit.tables.vlmo import vlmo
from vlpkit.types import Batch, ImageInput, TextInput
from vlpkit.weights import load, revert

OUT, LOSS, NORM, SCALE, SMALL = 1e-5, 1e-5, 1e-4, 5e-4, 1e-5   # as in test_steps


def build(r: Recording) -> Assembly:
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 0, "cls": 101, "sep": 102, "mask": 103}, length=z["text_len"])
    first = z["first_vl_expert_layer"]
    return assemble(composed(
        "model=vlmo", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['layers']}", f"size.late={first}",
        f"size.image={z['image']}", f"size.patch={z['patch']}", f"size.positions={z['text_len_of_position_table']}", "size.dropout=0.0",
        "model.vision.embed.mean=[0.0,0.0,0.0]", "model.vision.embed.std=[1.0,1.0,1.0]",   # the recorded pixels are normalised already
    ), words=words, clock=CLOCK)


@cache
def step() -> tuple[Found, Recording]:
    torch.set_num_threads(1)
    r = recording("vlmo_a")
    made = build(r)
    report = load(made.model, r.group("param/"), vlmo())
    text = TextInput(r["in/input_ids"], r["in/attention_mask"].bool())
    made.draws["mask"] = Given({"text": TextInput(r["in/masked_ids"], text.mask), "labels": r["in/mlm_labels"]})
    s = Streams(made.model, Batch({"clean": ImageInput(r["in/pixels"])}, {"clean": text}, {}, torch.arange(len(text))), draws=made.draws, seed=(0,))
    loss = {name: objective(s).value for name, objective in made.objectives.items()}
    loss = {"mlm": loss["mlm"], "itc_uni": loss["itc"], "itc_vl": loss["itc_vl"], "itm": loss["itm"]}
    loss |= {"mlm_weighted": 0.25 * loss["mlm"], "itc": 0.5 * (loss["itc_uni"] + loss["itc_vl"])}
    loss["total"] = torch.stack([made.objectives[name].weight * objective(s).value for name, objective in made.objectives.items()]).sum()
    with torch.no_grad():
        out = watch(made, s)
    loss["total"].backward()
    assert dict(s.counts) == {"vision": 1, "vision.embed": 2, "vision.vl": 1, "text": 1, "text.embed": 3, "text.vl": 1, "fusion": 2}
    grads = {name: p.grad for name, p in made.model.named_parameters(remove_duplicate=False) if p.grad is not None}
    return Found(out, loss, revert(grads, report)), r


def watch(made: Assembly, s: Streams) -> dict[str, Tensor]:
    """The recorded states, read from the passes that the losses used."""
    masked, pairs = s.fused("clean", "mask.text"), s.fused("hard.image", "hard.text", "hard.pairing")
    z, z_vl, pool = s.aligned(), s.aligned(by="align_vl"), made.model.head("itm").pool[0]
    out = {
        "text_tokens_mlm": masked.w.x, "image_tokens_mlm": masked.v.x, "pooled_mlm": pool(masked.w), "mlm_logits": s.head("mlm", masked.w.x),
        "vision_tokens": s.v().x, "text_tokens": s.w().x, "image_feature": z.v, "text_feature": z.w, "image_feature_vl": z_vl.v, "text_feature_vl": z_vl.w,
        "sim_i2t": z.scale * z.v @ z.w.T, "sim_i2t_vl": z_vl.scale * z_vl.v @ z_vl.w.T, "itm_logits": s.head("itm", pairs.w),
    }
    for i, name in enumerate(("pos", "neg_image", "neg_text")):
        rows = slice(2 * i, 2 * i + 2)
        out |= {f"text_tokens_{name}": pairs.w.x[rows], f"image_tokens_{name}": pairs.v.x[rows], f"pooled_{name}": pool(pairs.w)[rows]}
    return out


def test_every_recorded_state_comes_out() -> None:
    found, r = step()
    wrong = {name: error for name, value in r.group("out/").items() if (error := float((found.out[name] - value).abs().max() / value.abs().max())) > OUT}
    assert len(r.group("out/")) == 22
    assert wrong == {}


def test_every_loss_comes_out() -> None:
    found, r = step()
    assert {name: float(found.loss[name]) for name, value in r.group("loss/").items() if abs(found.loss[name] - value) / value > LOSS} == {}
    assert len(r.group("loss/")) == 7


def test_every_gradient_comes_out() -> None:
    found, r = step()
    norms, grads, wrong = r.group("gradnorm/"), r.group("grad/"), {}
    for name, norm in norms.items():
        limit = (SCALE if "logit" in name else NORM) * float(norm)
        if abs(float(found.grad[name].norm() - norm)) > limit:
            wrong[name] = (float(found.grad[name].norm()), float(norm))
    for name, grad in grads.items():
        if float((found.grad[name] - grad).abs().max()) > 5 * NORM * float(grad.abs().max()):
            wrong[name] = (float((found.grad[name] - grad).abs().max()), float(grad.abs().max()))
    assert (len(norms), len(grads)) == (96, 66)
    assert wrong == {}


def test_the_only_possible_negatives_are_drawn() -> None:
    r = recording("vlmo_a")
    assert r["draw/negative_image_for_text"].tolist() == [1, 0] == r["draw/negative_text_for_image"].tolist()


def test_an_expert_in_the_wrong_place_is_seen() -> None:
    _, r = step()
    made = build(r)
    load(made.model, r.group("param/"), vlmo())
    experts = made.model.part("vision").trunk.blocks[0].ffn.body
    experts.v, experts.w = experts.w, experts.v
    s = Streams(made.model, Batch({"clean": ImageInput(r["in/pixels"])}, {}, {}, torch.arange(2)), seed=(0,))
    assert float((s.v().x - r["out/vision_tokens"]).abs().max()) > 100 * OUT


def beit3_parts(r: Recording) -> Assembly:
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 1, "cls": 101, "sep": 102, "mask": 103}, length=z["text_len"])
    return assemble(composed(
        "model=beit3", "align=first_log", "objective=[itc]", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['layers']}",
        f"size.image={z['image']}", f"size.patch={z['patch']}", f"size.positions={z['max_positions'] - 2}", "size.dropout=0.0",
        f"+model.vision.trunk.ratio={z['ffn'] / z['hidden']}", "model.vision.embed.mean=[0.0,0.0,0.0]", "model.vision.embed.std=[1.0,1.0,1.0]",
    ), words=words, clock=CLOCK)


@cache
def beit3_step() -> tuple[Found, Recording]:
    torch.set_num_threads(1)
    r = recording("beit3_a")
    made = beit3_parts(r)
    report = load(made.model, r.group("param/"), beit3())
    clean, text = ImageInput(r["in/pixels"]), TextInput(r["in/input_ids"], r["in/padding_mask"] == 0)
    made.draws["hole"] = Given({"image": replace(clean, hidden=r["in/vision_masked"].bool())})
    s = Streams(made.model, Batch({"clean": clean}, {"clean": text}, {}, torch.arange(len(text))), draws=made.draws, seed=(0,))
    fused, masked, z = s.fused(), s.fused("hole.image"), s.aligned()
    out = {
        "vision_only": s.v().x, "text_only": s.w().x, "fused": torch.cat([fused.v.x, fused.w.x], 1), "fused_masked": torch.cat([masked.v.x, masked.w.x], 1),
        "image_feature": z.v, "text_feature": z.w, "split_position": torch.tensor(len(fused.v)),
    }
    loss = {"itc": made.objectives["itc"](s).value} | {
        f"probe_{name}": (out[state] * r[f"in/probe_{name}"]).mean() for name, state in (("fused", "fused"), ("masked", "fused_masked"))
    }
    loss["total"] = torch.stack(list(loss.values())).sum()
    loss["total"].backward()
    grads = {name: p.grad for name, p in made.model.named_parameters(remove_duplicate=False) if p.grad is not None}
    return Found({name: x.detach() for name, x in out.items()}, loss, revert(grads, report)), r


def test_every_recorded_state_of_beit3_comes_out() -> None:
    found, r = beit3_step()
    wrong = {name: error for name, value in r.group("out/").items() if (error := float((found.out[name] - value).abs().max() / value.abs().max())) > OUT}
    assert len(r.group("out/")) == 7
    assert wrong == {}


def test_every_loss_of_beit3_comes_out() -> None:
    found, r = beit3_step()
    assert {name: float(found.loss[name]) for name, value in r.group("loss/").items() if abs(found.loss[name] - value) > LOSS * abs(value)} == {}
    assert len(r.group("loss/")) == 4


def test_every_gradient_of_beit3_comes_out() -> None:
    """Also those of key biases: keys of one softmax come from two projections here, so their biases do count."""
    found, r = beit3_step()
    norms, grads = r.group("gradnorm/"), r.group("grad/")
    wrong = {name: float(norm) for name, norm in norms.items() if abs(float(found.grad[name].norm() - norm)) > (SCALE if "logit" in name else NORM) * float(norm)}
    wrong |= {name: float(grad.abs().max()) for name, grad in grads.items() if float((found.grad[name] - grad).abs().max()) > 5 * NORM * float(grad.abs().max())}
    assert (len(norms), len(grads)) == (134, 92)
    assert wrong == {}
