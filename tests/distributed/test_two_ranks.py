"""Training on two ranks: contrast over the whole batch is exact, sampled objectives see their rank's rows, and both ranks stay equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as td
from torch import Tensor
from torch.utils.data import DataLoader

from tests.builders import tiny_batch, tiny_model
from tests.distributed.processes import two
from vlpkit.assemble import Assembly
from vlpkit.lit import PretrainModule
from vlpkit.optim import Optim
from vlpkit.streams import Streams
from vlpkit.types import Batch

WHOLE = {"clip": "itc", "siglip": "sigmoid"}   # recipes whose loss on two ranks is that of one process, and their objective
RECIPES = (*WHOLE, "albef", "blip", "vlmo")
STEPS, SEED, LR = 2, 5, 0.1


def half(batch: Batch, rank: int) -> Batch:
    """This rank's rows."""
    rows = torch.arange(len(batch)).chunk(2)[rank]
    return Batch({"clean": batch.images["clean"].rows(rows)}, {"clean": batch.texts["clean"].rows(rows)}, {}, batch.pair_id[rows])


def whole(recipe: str) -> tuple[Assembly, list[Batch]]:
    made, words = tiny_model(f"model={recipe}", "size.queue=11", "data.batch=8")   # 11 does not divide by 8
    return made, [tiny_batch(words, rows=8, seed=i) for i in range(STEPS)]


class Watched(PretrainModule):
    """Keeps the loss and the averaged gradients of each step."""

    def __init__(self, made: Assembly) -> None:
        super().__init__(made, Optim(total=STEPS, kind="sgd", lr=LR, decay=0.0, schedule="constant"), seed=SEED)
        self.losses: list[dict[str, Tensor]] = []
        self.grads: list[dict[str, Tensor]] = []

    def on_after_backward(self) -> None:
        super().on_after_backward()
        self.losses.append(dict(self.last_metrics))
        self.grads.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})


def left(made: Assembly) -> dict[str, Tensor]:
    """Weights, teacher and queue."""
    found = {f"model.{name}": tensor for name, tensor in made.model.state_dict().items()}
    if made.teacher is not None:
        found |= {f"teacher.{name}": tensor for name, tensor in made.teacher.state_dict().items()}
    return found | {f"{name}.{key}": tensor for name, objective in made.objectives.items() for key, tensor in objective.state_dict().items()}


def train(rank: int) -> dict[str, Any]:
    """Both steps of every recipe on this rank's rows, through the trainer's own DDP."""
    found = {}
    for recipe in RECIPES:
        made, batches = whole(recipe)
        module = Watched(made)
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )
        trainer.fit(module, DataLoader([{"pairs": half(batch, rank)} for batch in batches], batch_size=None))  # type: ignore[arg-type]
        found[recipe] = {"losses": module.losses, "grads": module.grads, "left": left(made)}
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return two(train, tmp_path_factory.mktemp("ranks"))


@cache
def one_process(recipe: str) -> dict[str, Any]:
    """The same steps in one process: every rank's rows in turn, gradients averaged by hand, then one push, one step."""
    torch.set_num_threads(1)
    made, batches = whole(recipe)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=LR, momentum=0.9)
    losses: list[list[dict[str, Tensor]]] = [[], []]
    grads = []
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        open_: list[Streams] = []
        for rank in range(2):
            seed = (SEED, step, 0, rank, "pairs")
            s = Streams(made.model, half(batch, rank), draws=made.draws, seed=seed, step=step, teacher=made.teacher.model if made.teacher else None)
            values = {name: objective(s).value for name, objective in made.objectives.items()}
            (torch.stack(list(values.values())).sum() / 2).backward()
            losses[rank].append({f"train/{name}/loss": value.detach() for name, value in values.items()})
            open_.append(s)
        grads.append({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})
        for s in open_:
            for objective in made.objectives.values():
                objective.after_batch(s)
        optimizer.step()
        made.model.after_step()
        if made.teacher is not None:
            made.teacher.after_step(made.model)
    return {"losses": losses, "grads": grads, "left": left(made)}


def far(found: dict[str, Tensor], expected: dict[str, Tensor], *, limit: float = 1e-5) -> list[str]:
    """What differs by more than rounding of the largest number."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.allclose(found[name], expected[name], rtol=0, atol=limit * (float(expected[name].abs().max()) + 1e-2))]


@pytest.mark.parametrize("recipe", WHOLE)
def test_contrast_on_two_halves_is_contrast_on_the_whole_batch(ranks: Sequence[dict[str, Any]], recipe: str) -> None:
    made, batches = whole(recipe)
    s = Streams(made.model, batches[0])
    loss = made.objectives[WHOLE[recipe]](s).value
    loss.backward()
    name = f"train/{WHOLE[recipe]}/loss"
    mean = (ranks[0][recipe]["losses"][0][name] + ranks[1][recipe]["losses"][0][name]) / 2
    assert float(mean) == pytest.approx(float(loss), rel=1e-6)
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    assert {"align.log_scale"} | ({"align.bias"} if recipe == "siglip" else set()) <= grads.keys()
    for rank in range(2):
        assert far(ranks[rank][recipe]["grads"][0], grads) == []


def test_halves_alone_would_be_another_loss(ranks: Sequence[dict[str, Any]]) -> None:
    alone = one_process("clip")["losses"][0][0]["train/itc/loss"]
    assert abs(float(alone) - float(ranks[0]["clip"]["losses"][0]["train/itc/loss"])) > 0.1   # log 4 against log 8


@pytest.mark.parametrize("recipe", ["albef", "blip"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_loses_what_one_process_loses_on_its_rows_queue_and_draws(ranks: Sequence[dict[str, Any]], recipe: str, rank: int) -> None:
    expected = one_process(recipe)["losses"][rank]
    for step in range(STEPS):
        for name, value in expected[step].items():
            assert float(ranks[rank][recipe]["losses"][step][name]) == pytest.approx(float(value), rel=2e-5), (step, name)


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_averaged_gradients_are_the_mean_over_ranks(ranks: Sequence[dict[str, Any]], recipe: str) -> None:
    for rank in range(2):
        assert far(ranks[rank][recipe]["grads"][0], one_process(recipe)["grads"][0]) == []


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_weights_teacher_and_queue_end_as_in_one_process(ranks: Sequence[dict[str, Any]], recipe: str) -> None:
    expected = one_process(recipe)["left"]
    assert int(expected["itc.queue.cursor"]) == STEPS * 8 % 11
    assert far(ranks[0][recipe]["left"], expected, limit=1e-4) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_ranks_end_with_the_same_weights_teacher_and_queue(ranks: Sequence[dict[str, Any]], recipe: str) -> None:
    a, b = (ranks[rank][recipe]["left"] for rank in range(2))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_ranks_draw_differently() -> None:
    made, batches = whole("albef")
    same = half(batches[0], 0)
    drawn = [Streams(made.model, same, draws=made.draws, seed=(SEED, 0, 0, rank, "pairs"), teacher=made.teacher.model).text("mask.text").ids for rank in range(2)]  # type: ignore[union-attr]
    assert not torch.equal(drawn[0], drawn[1])


def mine(rank: int) -> dict[str, Any]:
    """What this rank drew from all ranks; its texts are longer than those of the other."""
    td.init_process_group("gloo")
    made, batches = whole("vlmo")
    own = half(batches[0], rank)
    own = replace(own, texts={"clean": own.texts["clean"].widened(20 + 2 * rank)})
    s = Streams(made.model, own, draws=made.draws, seed=(SEED, rank))
    pairs, image, text = s.pairing("hard.pairing"), s.image("hard.image"), s.text("hard.text")
    td.destroy_process_group()
    return {"pixels": image.pixels, "ids": text.ids, "mask": text.mask, "rows": torch.stack([pairs.image, pairs.text]), "match": pairs.match}


def test_raw_negatives_come_from_all_ranks(tmp_path: Path) -> None:
    _, batches = whole("vlmo")
    pixels, text = batches[0].images["clean"].pixels, batches[0].texts["clean"].widened(22)
    assert pixels is not None
    elsewhere = 0
    for rank, drawn in enumerate(two(mine, tmp_path)):
        own = range(4 * rank, 4 * rank + 4)
        for row in range(8):
            (place,) = [i for i in range(8) if torch.equal(drawn["pixels"][row], pixels[i])]
            (words,) = [i for i in range(8) if torch.equal(drawn["ids"][row] * drawn["mask"][row], text.ids[i] * text.mask[i])]
            if row < 4:
                assert (place, words) == (own[row], own[row])   # this rank's, in order
            else:
                assert place != own[row - 4] and words != own[row - 4]   # never the pair itself
                elsewhere += (place not in own) + (words not in own)
        assert drawn["match"].tolist() == [1] * 4 + [0] * 8
        assert drawn["rows"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert elsewhere > 2   # of 16 draws, some over half of the pairs
