"""Our LXMERT repeats one training step of the original code: both stacks, the shared attention across, six losses of one pass, gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden.recorded import Found, Given, Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.assemble import Assembly, assemble
from vlpkit.streams import Streams
from vlpkit.tables.lxmert import lxmert
from vlpkit.types import IGNORE, Batch, ImageInput, Pairing, TextInput
from vlpkit.weights import load, revert

OUT, LOSS, NORM, KEY_BIAS = 1e-5, 1e-5, 1e-4, 1e-5   # as in test_steps
NAMES = {"mlm": "mlm", "itm": "matched", "mrc": "object", "mra": "attribute", "mrfr": "feature", "answer": "answer"}


def build(r: Recording, *further: str) -> Assembly:
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 0, "cls": 101, "sep": 102, "mask": 103}, length=z["text_len"])
    return assemble(composed(
        "model=lxmert", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['language_layers']}", f"size.half={z['cross_layers']}",
        f"model.vision.trunk.depth={z['region_layers']}", f"size.positions={z['max_positions']}", f"size.feature={z['region_dim']}", "size.dropout=0.0",
        f"size.classes={z['objects'] + 1}", f"size.attributes={z['attributes'] + 1}", f"size.answers={z['answers']}", "model.freeze=[]",
        *(f"+model.{trunk}.ratio={z['ffn'] / z['hidden']}" for trunk in ("text.trunk", "vision.trunk", "fusion.v", "fusion.w")), *further,
    ), words=words, clock=CLOCK)  # fmt: skip


def repeat(r: Recording, *further: str, spoil: Callable[[Assembly], None] | None = None) -> Found:
    torch.set_num_threads(1)
    made = build(r, *further)
    report = load(made.model, r.group("param/"), lxmert())
    if spoil is not None:
        spoil(made)
    text = TextInput(r["in/original_ids"], r["in/attention_mask"].bool())
    rows = torch.arange(len(text))
    masked = TextInput(r["in/input_ids"], text.mask)
    corrupted = ImageInput(regions=r["in/region_features"], boxes=r["in/region_boxes"])
    made.draws |= {
        "mask": Given({"text": masked, "labels": r["in/mlm_labels"].masked_fill(r["in/mlm_labels"] == -1, IGNORE)}),
        "hole": Given({"image": corrupted, "chosen": r["in/feature_selected"].bool()}),
        "mix": Given({"pairing": Pairing(rows, rows, r["in/matched"])}),
    }
    targets = {   # the original counts neither background nor none
        "region_class": r["in/object_labels"] + 1, "region_confidence": r["in/object_confidence"], "region_attribute": r["in/attribute_labels"] + 1,
        "region_attribute_confidence": r["in/attribute_confidence"], "answer": r["in/answers"].masked_fill(r["in/answers"] == -1, IGNORE),
    }  # fmt: skip
    clean = ImageInput(regions=r["in/feature_targets"], boxes=r["in/region_boxes"])
    s = Streams(made.model, Batch({"clean": clean}, {"clean": text}, targets, rows), draws=made.draws, seed=(0,))
    loss = {NAMES[name]: objective.weight * objective(s).value for name, objective in made.objectives.items()}
    loss["total"] = torch.stack(list(loss.values())).sum()
    with torch.no_grad():
        out = watch(made, s)
    loss["total"].backward()
    grads = {name: p.grad for name, p in made.model.named_parameters(remove_duplicate=False) if p.grad is not None}
    return Found(out, loss, revert(grads, report), dict(s.counts))


def watch(made: Assembly, s: Streams) -> dict[str, Tensor]:
    """The recorded states, read from the pass that the losses used."""
    v, w = s.fused("hole.image", "mask.text", "mix.pairing")
    heads = {"mlm_logits": ("mlm", w.x), "matched_logits": ("itm", w), "answer_logits": ("answer", w), "visual_obj": ("mrc", v.x), "visual_attr": ("mra", v.x)}
    return {
        "text_embedding": s.w("mask.text", "embed").x, "region_embedding": s.v("hole.image", "embed").x, "language_before_cross": s.w("mask.text").x,
        "region_before_cross": s.v("hole.image").x, "language_states": w.x, "region_states": v.x, "pooled": made.model.head("itm").pool[0](w),
        "visual_feat": s.head("mrfr", v.x), **{name: s.head(head, given) for name, (head, given) in heads.items()},
    }  # fmt: skip


@cache
def step() -> tuple[Found, Recording]:
    r = recording("lxmert_a")
    return repeat(r), r


def out_errors(found: Found, r: Recording) -> dict[str, float]:
    """Largest difference of each state as a share of its largest value, padded words included."""
    return {name: float((found.out[name] - value).abs().max() / value.abs().max()) for name, value in r.group("out/").items()}


def test_every_recorded_state_comes_out() -> None:
    errors = out_errors(*step())
    assert len(errors) == 13
    assert {name: error for name, error in errors.items() if error > OUT} == {}


@pytest.mark.parametrize("name", [*NAMES.values(), "total"])
def test_every_loss_comes_out(name: str) -> None:
    found, r = step()
    assert float(abs(found.loss[name].detach() - r[f"loss/{name}"]) / r[f"loss/{name}"]) < LOSS


def test_every_gradient_comes_out() -> None:
    found, r = step()
    norms, grads, wrong = r.group("gradnorm/"), r.group("grad/"), {}
    for name, norm in norms.items():
        limit = KEY_BIAS if name.endswith(".key.bias") else NORM * float(norm)   # a bias of keys shifts all logits of a row alike: rounding noise
        if abs(float(found.grad[name].norm() - norm)) > limit:
            wrong[name] = (float(found.grad[name].norm()), float(norm))
    for name, grad in grads.items():
        limit = KEY_BIAS if name.endswith(".key.bias") else NORM * float(grad.abs().max())
        if float((found.grad[name] - grad).abs().max()) > limit:
            wrong[f"{name}, number by number"] = (float((found.grad[name] - grad).abs().max()), float(grad.abs().max()))
    assert (len(norms), len(grads)) == (170, 109)
    assert wrong == {}
    assert set(found.grad) - {"cls.predictions.decoder.weight"} == set(norms)   # tied to the words: recorded once


def test_all_six_losses_read_one_pass() -> None:
    found, _ = step()
    assert {name: found.counts[name] for name in ("vision", "text", "fusion")} == {"vision": 1, "text": 1, "fusion": 1}


def test_rows_that_stand_still_get_no_gradient_from_being_looked_up() -> None:
    """The original's tables of words, places and types are made with a padding row: the first place and the first type never learn."""
    found, r = step()
    assert float(found.grad["bert.embeddings.position_embeddings.weight"][0].abs().max()) == 0.0
    assert float(found.grad["bert.embeddings.token_type_embeddings.weight"].abs().max()) == 0.0
    moving = repeat(r, "model.text.embed.still=false")
    assert float(moving.grad["bert.embeddings.position_embeddings.weight"][0].abs().max()) > 0.0
    assert float(moving.grad["bert.embeddings.token_type_embeddings.weight"].abs().max()) > 0.0


def one_after_the_other(made: Assembly) -> None:
    """The image reads the text as it stands after its block, not before."""
    made.model.part("fusion").steps = [step for i in range(2) for step in ({"w": i}, {"v": i})]


def summed(made: Assembly) -> None:
    """Feature and box are added and not averaged."""
    made.model.part("vision").embed.halve = False


@pytest.mark.parametrize(
    ("further", "spoil", "name"),
    [
        ((), one_after_the_other, "region_states"), ((), summed, "region_embedding"),
        (("model.fusion.v.block=[self,cross,ffn]", "model.fusion.w.block=[self,cross,ffn]"), None, "language_states"),
    ],
)  # fmt: skip
def test_another_order_of_blocks_or_another_sum_is_seen(further: tuple[str, ...], spoil: Callable[[Assembly], None] | None, name: str) -> None:
    r = recording("lxmert_a")
    assert out_errors(repeat(r, *further, spoil=spoil), r)[name] > 100 * OUT
