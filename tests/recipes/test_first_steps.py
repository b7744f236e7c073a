"""Recipes of two towers take a few real steps on a handful of pairs, and their loss falls."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams


@pytest.mark.parametrize("recipe", ["siglip", "align"])
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(recipe: str) -> None:
    torch.set_num_threads(1)
    made, words = tiny_model(f"model={recipe}")
    batch = tiny_batch(words)
    optimizer = torch.optim.Adam(made.model.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        s = tiny_streams(made, batch, step=step)
        loss = torch.stack([objective(s).value for objective in made.objectives.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in made.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        made.model.after_step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0], losses
