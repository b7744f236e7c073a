"""Dropout's generators are seeded every step, and a step leaves nothing behind."""

from __future__ import annotations

import torch

from vlpkit.lit import _seed


def test_the_numbers_are_those_of_a_manual_seed() -> None:
    torch.manual_seed(2**62 + 5)
    wanted = torch.rand(4)
    _seed(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), wanted)


def test_a_month_of_steps_keeps_no_stack_traces_for_devices_that_never_start() -> None:
    before = len(torch.cuda._queued_calls)
    for step in range(50):
        _seed(step, torch.device("cpu"))
    assert len(torch.cuda._queued_calls) == before
