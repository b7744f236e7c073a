"""A momentum copy of named parts and heads: the teacher of ALBEF, BLIP and their kin."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlpkit.errors import AssemblyError
from vlpkit.model import VLModel


class Teacher(nn.Module):
    """Exponential moving average of a model's weights (He et al. 2020, eq. 2): m * old + (1 - m) * new, once a step.

    Made after weights are loaded; a deep copy, so what is shared inside the model is shared inside the copy.

    Args:
        model: the student.
        momentum: m, in [0, 1), per optimiser step.
        parts: what the teacher keeps, such as [vision, text, fusion, align, heads.mlm]; the rest is dropped.
        train: whether dropout stays on in the teacher (as published) or not.

    Raises:
        AssemblyError: a part that the model does not have.
    """

    def __init__(self, model: VLModel, *, momentum: float, parts: Sequence[str], train: bool = True) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise AssemblyError(f"teacher.momentum: {momentum} is no weight of the old average (0 <= momentum < 1)")
        kept = {part for part in parts if not part.startswith("heads.")}
        heads = {part.removeprefix("heads.") for part in parts if part.startswith("heads.")}
        unknown = [part for part in parts if part.removeprefix("heads.") not in (model.heads if part.startswith("heads.") else model.names)]
        if unknown:
            raise AssemblyError(
                f"teacher.parts: {', '.join(unknown)} not found; {model.name!r} has {', '.join([*model.names, *(f'heads.{h}' for h in model.heads)])}"
            )
        whole = copy.deepcopy(model)
        self.model = VLModel(
            model.name, {k: whole.part(k) for k in model.names if k in kept}, {k: whole.heads[k] for k in model.heads if k in heads}
        )
        self.model.requires_grad_(False)
        self.momentum, self.keep_dropout = momentum, train

    def train(self, mode: bool = True) -> Teacher:
        """Training mode follows `keep_dropout`, not the caller alone."""
        super().train(mode and self.keep_dropout)
        return self

    @torch.no_grad()
    def after_step(self, model: VLModel) -> None:
        """Move towards the student; called right after the optimiser moved, so step t reads the average of its start."""
        student = dict(model.named_parameters(remove_duplicate=False))
        old: list[Tensor] = []
        new: list[Tensor] = []
        for name, parameter in self.model.named_parameters():
            old.append(parameter)
            new.append(student[name])
        torch._foreach_mul_(old, self.momentum)
        torch._foreach_add_(old, new, alpha=1 - self.momentum)
