"""One recorded training step of an original implementation, and the same step of our recipe beside it.
The recording holds inputs, complete weights, intermediate states, losses, gradients and what the step left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from tests.builders import CLOCK, composed
from tests.vocabulary import numbered_words
from vlpkit.account import Report
from vlpkit.assemble import Assembly, assemble
from vlpkit.data.tokenize import Words
from vlpkit.rows import Row
from vlpkit.streams import Drawn, Streams
from vlpkit.tables.albef import albef
from vlpkit.tables.blip import blip
from vlpkit.types import Batch, ImageInput, TextInput
from vlpkit.weights import everything, load, revert

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Recording:
    """The arrays of one file as tensors, the sizes its model was built with, and the groups of names that share one tensor."""

    arrays: Mapping[str, Tensor]
    sizes: Mapping[str, Any]
    tied: list[list[str]]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


@dataclass
class Found:
    """What one step of ours gave, under the names of the recording; `counts` of passes where they are told."""

    out: dict[str, Tensor]
    loss: dict[str, Tensor]
    grad: dict[str, Tensor]
    counts: dict[str, int] = field(default_factory=dict)


def recording(name: str) -> Recording:
    """The step recorded as `name`."""
    with np.load(FIXTURES / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(np.asarray(stored[key])) for key in stored.files}
    facts = json.loads((FIXTURES / f"{name}.json").read_text())
    return Recording(arrays, facts["sizes"], facts["tied_parameters"])


class Given:
    """A draw that hands out what the recording drew."""

    def __init__(self, made: Mapping[str, Drawn]) -> None:
        self.made = made

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        return self.made


def words_of(sizes: Mapping[str, Any]) -> Words:
    """A tokenizer with the recorded vocabulary and special ids."""
    named = {"pad": "pad", "cls": "cls", "sep": "sep", "mask": "mask", "bos": "dec", "enc": "enc"}
    return numbered_words(sizes["vocab"], {named[name]: number for name, number in sizes["ids"].items()}, length=sizes["text_len"])


def build(recipe: str, r: Recording, *further: str) -> tuple[Assembly, dict[str, Tensor], list[Row]]:
    """Our recipe at the recorded sizes, everything it holds by address, and the table of its checkpoint."""
    z = r.sizes
    half = z.get("fusion_layer", 1)
    ratio = z["ffn"] / z["hidden"]
    overrides = [
        f"model={recipe}", f"size.dim={z['hidden']}", f"size.heads={z['heads']}", f"size.depth={z['vision_layers']}", f"size.half={half}",
        f"size.image={z['image']}", f"size.patch={z['patch']}", f"size.space={z['embed_dim']}", f"size.queue={z['queue_size']}",
        f"size.positions={z['max_positions']}", "size.dropout=0.0", f"teacher.momentum={z['momentum']}", f"objectives.itc.alpha={z['alpha']}",
        "objectives.itc.ramp=0_steps", f"model.align.temperature={z['temperature']}",
        "+model.vision.embed.mean=[0.0,0.0,0.0]", "+model.vision.embed.std=[1.0,1.0,1.0]",   # the recorded pixels are normalised already
        f"+model.vision.trunk.ratio={z['vision_ffn'] / z['hidden']}", f"+model.text.trunk.ratio={ratio}",
    ]
    if recipe == "albef":
        overrides += [f"objectives.mlm.alpha={z['alpha']}", "objectives.mlm.ramp=0_steps", f"+model.fusion.w.ratio={ratio}"]
    else:
        overrides += [f"+model.decoder.w.ratio={ratio}"]
    made = assemble(composed(*overrides, *further), words=words_of(z), clock=CLOCK)
    for objective in made.objectives.values():
        objective.train()
    held = everything(made.model, teacher=made.teacher.model if made.teacher else None, objectives=torch.nn.ModuleDict(made.objectives))
    return made, held, albef(lower=half, whole=True) if recipe == "albef" else blip(whole=True)


@dataclass
class Step:
    """What our step gave, under the names of the recording."""

    out: dict[str, Tensor] = field(default_factory=dict)
    loss: dict[str, Tensor] = field(default_factory=dict)
    grad: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def repeat(recipe: str, r: Recording, *, spoil: Callable[[Assembly], None] | None = None, teacher_first: bool = True) -> Step:
    """Our step on the recorded weights and inputs.

    Args:
        recipe: albef or blip.
        r: the recording.
        spoil: changes the assembly after its weights were loaded, to see the comparison fail.
        teacher_first: the published order; False lets the teacher lag by a step.
    """
    made, held, table = build(recipe, r)
    report = load(held, r.group("param/"), table)
    assert made.teacher is not None
    made.model.train()
    made.teacher.train()
    if spoil is not None:
        spoil(made)
    text = TextInput(r["in/input_ids"], r["in/attention_mask"].bool())
    batch = Batch({"clean": ImageInput(r["in/pixels"])}, {"clean": text}, {}, torch.arange(len(text)))
    if recipe == "albef":
        made.draws["mask"] = Given({"text": TextInput(r["in/masked_ids"], text.mask), "labels": r["in/mlm_labels"]})
    made.model.after_step()                        # the temperature clamp
    if teacher_first:
        made.teacher.after_step(made.model)
    s = Streams(made.model, batch, draws=made.draws, teacher=made.teacher.model, seed=(0,))
    losses = {name: objective(s).value for name, objective in made.objectives.items()}
    step = Step(loss=losses | {"total": torch.stack(list(losses.values())).sum()})
    _watch(step, recipe, made, s)
    step.out = {name: value.detach() for name, value in step.out.items()}
    step.loss["total"].backward()
    if not teacher_first:
        made.teacher.after_step(made.model)
    for objective in made.objectives.values():
        objective.after_batch(s)
    _collect(step, made, held, report)
    step.counts = {**s.counts, **{f"teacher.{name}": count for name, count in s.teacher.counts.items()}}
    return step


@torch.no_grad()
def _watch(step: Step, recipe: str, made: Assembly, s: Streams) -> None:
    """Every intermediate state that was recorded, read from the passes that the losses used."""
    align, teacher = made.model.part("align"), made.teacher.model.part("align")  # type: ignore[union-attr]
    queue = made.objectives["itc"].queue.keys()  # type: ignore[union-attr,operator]
    z, t = s.aligned(), s.teacher.aligned()
    matched = s.fused("clean", "clean" if recipe == "albef" else "match.text", "hard.pairing").w
    rows = len(s.batch)
    step.out = {
        "vision_tokens": s.v().x, "text_tokens": s.w().x, "vision_proj": align.v.raw(s.v()), "text_proj": align.w.raw(s.w()),
        "vision_tokens_teacher": s.teacher.v().x, "text_tokens_teacher": s.teacher.w().x,
        "vision_proj_teacher": teacher.v.raw(s.teacher.v()), "text_proj_teacher": teacher.w.raw(s.teacher.w()),
        "sim_i2t": z.scale * z.v @ torch.cat([t.w, queue["w"]]).T, "sim_t2i": z.scale * z.w @ torch.cat([t.v, queue["v"]]).T,
        "fused_pos": matched.x[:rows], "fused_neg": matched.x[rows:], "itm_logits": s.head("itm", matched),
    }
    pairs = s.pairing("hard.pairing")
    step.drawn = {"negative_image_for_text": pairs.image[rows : 2 * rows], "negative_text_for_image": pairs.text[2 * rows :]}
    if recipe == "albef":
        masked, soft = s.fused("clean", "mask.text").w.x, s.teacher.fused("clean", "mask.text").w.x
        step.out |= {
            "mlm_hidden": masked, "mlm_hidden_teacher": soft, "mlm_logits": s.head("mlm", masked), "mlm_logits_teacher": s.teacher.head("mlm", soft),
        }
    else:
        spoken = s.fused("clean", "caption.text", by="decoder").w.x
        step.out |= {"decoder_hidden": spoken, "lm_logits": s.head("lm", spoken)}
        step.drawn |= {"encoder_ids": s.text("match.text").ids, "decoder_ids": s.text("caption.text").ids, "targets": s.labels("caption.labels")}


def _collect(step: Step, made: Assembly, held: Mapping[str, Tensor], report: Report) -> None:
    """Gradients and what the step left behind, back under the names of the original."""
    grads = {name: p.grad for name, p in made.model.named_parameters(remove_duplicate=False) if p.grad is not None}
    step.grad = revert(grads, report)
    left = {name: tensor.detach() for name, tensor in held.items() if name.startswith(("teacher.", "objectives."))}
    step.after = revert(left, report)
