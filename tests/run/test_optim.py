"""Groups by address, each with a kind, a rate and a decay of its own, in one optimiser that schedules and checkpoints see as one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlpkit.errors import ConfigError
from vlpkit.optim import Mixed, Optim

STEPS = 6
GROUPS = [{"match": "vision", "kind": "sgd", "lr": 0.5, "decay": 5e-4}, {"match": "norm", "decay": 0.0}]


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Module()
    made.vision = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    made.text = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    return made


def loss(made: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
    return (made.vision(x) - made.text(x)).square().mean()  # type: ignore[operator]


def optim(**changes: object) -> Optim:
    return Optim(**{"total": STEPS, "lr": 0.01, "groups": GROUPS, "decay": 0.1, "schedule": "linear", **changes})  # type: ignore[arg-type]


def train(made: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(made, step).backward()
        optimizer.step()
        schedule.step()


def test_two_kinds_in_one_are_two_optimisers_side_by_side() -> None:
    ours, theirs = model(), model()
    plan = optim()
    optimizer, schedule = plan.build(ours)
    assert isinstance(optimizer, Mixed)
    train(ours, optimizer, schedule, range(STEPS))
    sgd = torch.optim.SGD(theirs.vision.parameters(), lr=0.5, momentum=0.9)  # type: ignore[union-attr]
    dense, norm = theirs.text[0], theirs.text[1]  # type: ignore[index]
    adam = torch.optim.AdamW([
        {"params": [dense.weight], "weight_decay": 0.1}, {"params": [dense.bias], "weight_decay": 0.0}, {"params": [*norm.parameters()], "weight_decay": 0.0},
    ], lr=0.01)  # fmt: skip
    sgd.param_groups[0]["weight_decay"] = 5e-4
    for step in range(STEPS):
        for optimizer, peak in ((sgd, 0.5), (adam, 0.01)):
            for group in optimizer.param_groups:
                group["lr"] = peak * plan.rate(step) / 0.01
            optimizer.zero_grad()
        loss(theirs, step).backward()
        sgd.step()
        adam.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_a_checkpoint_holds_the_state_of_every_kind() -> None:
    whole, halved = model(), model()
    plan = optim()
    train(whole, *plan.build(whole), range(STEPS))
    optimizer, schedule = plan.build(halved)
    train(halved, optimizer, schedule, range(3))
    kept = copy.deepcopy((halved.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    again = model()
    again.load_state_dict(kept[0])
    optimizer, schedule = plan.build(again)
    optimizer.load_state_dict(kept[1])
    schedule.load_state_dict(kept[2])
    train(again, optimizer, schedule, range(3, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def test_a_run_at_a_rate_of_nothing_trains_no_group() -> None:
    made = model()
    before = [p.clone() for p in made.parameters()]
    train(made, *optim(lr=0.0).build(made), range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters()))


def test_one_kind_alone_is_the_optimiser_itself() -> None:
    assert type(optim(groups=[]).build(model())[0]) is torch.optim.AdamW
    assert type(optim(groups=[], kind="sgd").build(model())[0]) is torch.optim.SGD


@pytest.mark.parametrize(("group", "message"), [
    ({"match": "vision", "kind": "sdg"}, r"optim\.groups\[0\]\.kind: found 'sdg' \(accepted: adamw, sgd\)"),
    ({"match": "vision", "lr": 1.0, "lr_scale": 2.0}, r"optim\.groups\[0\]: lr and lr_scale both set the rate"),
    ({"match": "vision", "moment": 1.0}, r"optim\.groups\[0\]: no key 'moment' \(there are: match, kind, lr, lr_scale, decay\)"),
    ({"lr": 1.0}, r"optim\.groups\[0\]: a group needs `match`"),
])  # fmt: skip
def test_a_group_that_makes_no_sense_is_refused(group: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optim(groups=[group])


def test_a_group_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.groups\[0\]\.match: 'fusion' matches no trainable parameter"):
        optim(groups=[{"match": "fusion"}]).build(model())


def names(groups: list[dict[str, Any]], scale: float) -> list[str]:
    return [name for group in groups if group["scale"] == scale for name in group["names"]]


def test_what_weights_filled_and_what_they_did_not_are_groups_of_their_own() -> None:
    plan = optim(groups=[{"match": "norm", "lr_scale": 3.0}, {"match": "fresh", "lr_scale": 5.0}, {"match": "loaded", "lr_scale": 0.1}])
    groups = plan.split(model(), loaded=["vision.0.weight", "vision.0.bias", "text.1.weight"])
    assert names(groups, 3.0) == ["text.1.weight", "text.1.bias"]
    assert names(groups, 0.1) == ["vision.0.weight", "vision.0.bias"]
    assert names(groups, 5.0) == ["vision.2.weight", "text.0.weight", "vision.2.bias", "text.0.bias"]


def test_a_run_that_starts_from_no_weights_has_fresh_parameters_alone(caplog: pytest.LogCaptureFixture) -> None:
    plan = optim(groups=[{"match": "loaded", "lr_scale": 0.1}, {"match": "fresh", "lr_scale": 5.0}])
    groups = plan.split(model())
    assert {group["scale"] for group in groups} == {5.0}
    assert caplog.messages == ["optim.groups[0]: no trainable parameter is loaded"]
