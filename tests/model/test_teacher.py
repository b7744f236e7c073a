"""The teacher follows "update, then forward", whatever the accumulation: step t reads the average of the weights it starts from."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.builders import tiny_batch, tiny_model
from vlpkit.assemble import Assembly
from vlpkit.lit import PretrainModule
from vlpkit.optim import Optim
from vlpkit.streams import Streams, seed_of
from vlpkit.types import Batch

STEPS, MICRO, MOMENTUM = 3, 2, 0.7


class Losses(PretrainModule):
    """Writes down what each micro-batch lost."""

    def training_step(self, batch: dict[str, Batch], index: int) -> torch.Tensor:
        total = super().training_step(batch, index)
        self.seen = [*getattr(self, "seen", []), float(total.detach())]
        return total


def assembly(recipe: str) -> tuple[Assembly, list[Batch]]:
    made, words = tiny_model(f"model={recipe}", f"teacher.momentum={MOMENTUM}")
    return made, [tiny_batch(words, seed=i) for i in range(STEPS * MICRO)]


def trained(recipe: str) -> tuple[list[float], Assembly]:
    made, batches = assembly(recipe)
    module = Losses(made, Optim(total=STEPS, kind="sgd", lr=0.1, decay=0.0, schedule="constant"), seed=3)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, accumulate_grad_batches=MICRO, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([{"pairs": batch} for batch in batches], batch_size=None))  # type: ignore[arg-type]
    return module.seen, made


def by_hand(recipe: str) -> tuple[list[float], Assembly]:
    """The published order in plain torch: at the start of each step clamp, average, then forward."""
    made, batches = assembly(recipe)
    assert made.teacher is not None
    for p, q in zip(made.teacher.model.parameters(), copy.deepcopy(made.teacher.model).parameters()):
        assert torch.equal(p, q)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1, momentum=0.9)
    student = dict(made.model.named_parameters(remove_duplicate=False))
    losses = []
    for step in range(STEPS):
        with torch.no_grad():
            for name, p in made.teacher.model.named_parameters():
                p.copy_(MOMENTUM * p + (1 - MOMENTUM) * student[name])
        optimizer.zero_grad()
        for micro in range(MICRO):
            torch.manual_seed(seed_of(3, step, micro, 0, "dropout"))
            s = Streams(made.model, batches[step * MICRO + micro], draws=made.draws, seed=(3, step, micro, 0, "pairs"), step=step, teacher=made.teacher.model)
            total = torch.stack([objective(s).value for objective in made.objectives.values()]).sum()
            (total / MICRO).backward()
            for objective in made.objectives.values():
                objective.after_batch(s)
            losses.append(float(total.detach()))
        optimizer.step()
        with torch.no_grad():
            made.model.part("align").temperature.clamp_(0.001, 0.5)
    return losses, made


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_losses_equal_update_then_forward_over_three_steps_of_two_micro_batches(recipe: str) -> None:
    torch.set_num_threads(1)
    seen, made = trained(recipe)
    expected, reference = by_hand(recipe)
    assert len(seen) == STEPS * MICRO
    assert seen == pytest.approx(expected, rel=2e-6)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(made.model.parameters(), reference.model.parameters()))
    assert made.teacher is not None
    assert reference.teacher is not None
    # the loop stops after the update that the next step would have begun with
    reference.teacher.after_step(reference.model)
    pairs = zip(made.teacher.model.parameters(), reference.teacher.model.parameters())
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in pairs)
    for name in ("v", "w", "cursor"):
        assert torch.allclose(made.objectives["itc"].queue.get_buffer(name), reference.objectives["itc"].queue.get_buffer(name), atol=1e-6)  # type: ignore[union-attr,operator]


def test_the_first_update_leaves_a_fresh_copy_where_it_is() -> None:
    made, _ = assembly("albef")
    assert made.teacher is not None
    before = {name: p.clone() for name, p in made.teacher.model.named_parameters()}
    made.teacher.after_step(made.model)
    assert all(torch.allclose(p, before[name], atol=1e-7) for name, p in made.teacher.model.named_parameters())


@pytest.mark.parametrize("keeps", [True, False])
def test_dropout_of_the_teacher_is_a_choice(keeps: bool) -> None:
    made, _ = tiny_model("model=albef", f"+teacher.train={str(keeps).lower()}", "size.dropout=0.5")
    assert made.teacher is not None
    made.teacher.train()
    assert made.teacher.model.part("text").training is keeps
    made.teacher.eval()
    assert not made.teacher.model.part("text").training
