"""The recipe repeats one step of the original UNITER: five losses over four passes, and every gradient."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders import CLOCK, composed
from tests.golden.recorded import Given, Recording, recording
from tests.vocabulary import numbered_words
from vlpkit.account import Report
from vlpkit.assemble import Assembly, assemble
from vlpkit.streams import Streams
from vlpkit.tables.uniter import uniter
from vlpkit.types import IGNORE, Batch, ImageInput, Pairing, TextInput
from vlpkit.weights import load, revert

OUT, LOSS, NORM, KEY_BIAS = 1e-5, 1e-5, 1e-4, 1e-5
WEIGHTS = {"mlm": 1.0, "mrfr": 1.0, "mrckl": 1.0, "itm": 1.0, "ot": 0.1}   # mrc_hard is recorded, but not in the total


OURS = {"mrc_hard": "mrc", "ot": "wra"}   # recorded under other names


def config(z: Any) -> dict[str, Any]:
    """The recipe at the recorded sizes."""
    return composed(
        "model=uniter", f"size.dim={z['hidden']}", f"size.depth={z['layers']}", f"size.heads={z['heads']}", f"size.positions={z['max_positions']}",
        f"size.feature={z['region_dim']}", f"size.classes={z['region_classes']}", "size.dropout=0.0", f"+model.fusion.joint.trunk.ratio={z['ffn'] / z['hidden']}",
    )  # fmt: skip


@cache
def step() -> tuple[Recording, Assembly, Streams, Report, dict[str, Tensor]]:
    torch.set_num_threads(1)
    r = recording("uniter_a")
    z = r.sizes
    words = numbered_words(z["vocab"], {"pad": 0, "cls": 1, "sep": 2, "mask": 3}, length=z["text_len"])
    made = assemble(config(z), words=words, clock=CLOCK)
    report = load(made.model, r.group("param/"), uniter())
    text = TextInput(r["in/input_ids"], r["in/attention_mask"].bool())
    image = ImageInput(regions=r["in/region_features"], boxes=r["in/region_positions"][..., :4], mask=r["in/region_mask"].bool())
    chosen, soft = r["in/region_selected"].bool(), r["in/region_soft_labels"]
    labels = r["in/mlm_labels"].masked_fill(r["in/mlm_labels"] == -1, IGNORE)
    rows = torch.arange(len(text))
    made.draws.update({
        "mask": Given({"text": TextInput(r["in/masked_ids"], text.mask), "labels": labels}),
        "hole": Given({"image": ImageInput(regions=image.regions, boxes=image.boxes, mask=image.mask, hidden=chosen), "chosen": chosen}),
        "mix": Given({"pairing": Pairing(rows, rows, r["in/itm_targets"])}),
    })
    hard = 1 + soft[..., 1:].argmax(-1)   # background is no target
    s = Streams(made.model, Batch({"clean": image}, {"clean": text}, {"region_soft": soft, "region_class": hard}, rows), draws=made.draws, seed=(0,))
    losses = {name: made.objectives[OURS.get(name, name)](s).value for name in (*WEIGHTS, "mrc_hard")}
    assert set(made.objectives) == {OURS.get(name, name) for name in losses}
    assert {name: made.objectives[OURS.get(name, name)].weight for name in WEIGHTS} == WEIGHTS
    losses["total"] = torch.stack([weight * losses[name] for name, weight in WEIGHTS.items()]).sum()
    losses["total"].backward()
    return r, made, s, report, losses


@pytest.mark.parametrize("name", [*WEIGHTS, "mrc_hard", "total"])
def test_every_loss_comes_out(name: str) -> None:
    r, _, _, _, losses = step()
    assert float(abs(losses[name].detach() - r[f"loss/{name}"]) / abs(r[f"loss/{name}"])) < LOSS


@pytest.mark.parametrize(("name", "image", "text"), [("mlm", "clean", "mask.text"), ("mrfr", "hole.image", "clean"), ("itm", "clean", "clean")])
def test_every_state_comes_out_where_the_original_packs_it(name: str, image: str, text: str) -> None:
    r, _, s, _, _ = step()
    fused = s.fused(image, text, "mix.pairing" if name == "itm" else "aligned")
    both, states, real = torch.cat([fused.w.x, fused.v.x], 1), r[f"out/states_{name}"], r["in/joint_attention_mask"].bool()
    packed = both.gather(1, r["in/gather_index"][..., None].expand_as(states))
    assert float(((packed.detach() - states)[real]).abs().max() / states.abs().max()) < OUT


def test_every_gradient_comes_out() -> None:
    r, made, _, report, _ = step()
    grads = revert({name: p.grad for name, p in made.model.named_parameters(remove_duplicate=False) if p.grad is not None}, report)
    wrong = {}
    for name, norm in r.group("gradnorm/").items():
        found = grads[name].norm()
        if name.endswith(".key.bias"):   # shifts all logits of a row alike: rounding noise
            if max(found, norm) > KEY_BIAS:
                wrong[name] = float(found)
        elif abs(found - norm) / norm > NORM:
            wrong[name] = float(abs(found - norm) / norm)
    for name, grad in r.group("grad/").items():
        if float((grads[name] - grad).abs().max()) > (KEY_BIAS if name.endswith(".key.bias") else NORM * float(grad.abs().max())):
            wrong[f"{name}, number by number"] = float((grads[name] - grad).abs().max())
    assert len(r.group("gradnorm/")) == 68
    assert wrong == {}


def test_one_pass_serves_the_losses_that_ask_the_same() -> None:
    _, _, s, _, _ = step()
    assert s.counts["fusion"] == 3   # masked words; hidden regions, of three losses; matching, of two
