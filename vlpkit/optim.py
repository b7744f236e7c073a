"""The optimiser plan: groups by address, each of a kind of its own, decay rules, warm-up and schedule. One optimiser holds all groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlpkit.address import matches
from vlpkit.errors import ConfigError, did_you_mean
from vlpkit.maths.schedule import learning_rate
from vlpkit.types import Steps

log = logging.getLogger(__name__)
Kind = Literal["adamw", "sgd"]
_STARTS = ("loaded", "fresh")   # words for what a parameter started from
_GROUP_KEYS = ("match", "kind", "lr", "lr_scale", "decay")


class Mixed(Optimizer):
    """Several optimisers as one: their groups and their state side by side, one step for all (Huang et al. 2020: SGD for the CNN, AdamW for the rest).

    Args:
        parts: optimisers over different parameters.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on the groups and the state of the whole, so that schedules and checkpoints see one optimiser."""
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state, start = self.param_groups[start:stop], self.state, stop

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every part, behind the closure where there is one; returns what that returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups and state of a checkpoint, for all parts."""
        super().load_state_dict(state_dict)
        self._share()


class Optim:
    """AdamW (Loshchilov and Hutter 2019) or SGD over groups of parameters, with a rate that is a pure function of the step.

    Args:
        total: steps of the run.
        kind: adamw or sgd.
        lr: peak rate.
        betas: of AdamW; the first is the momentum of SGD.
        eps: of AdamW.
        decay: decoupled weight decay.
        decay_on: matrices (two dimensions or more), all, or not_vectors (all but 1-D tensors).
        warmup: steps of linear warm-up.
        warmup_from: rate of the first update.
        schedule: cosine, linear, constant or step.
        end: lowest rate.
        period: steps between two drops of `step`.
        factor: of a drop.
        groups: first match wins; `match` is an address or one of the words bias, norm, loaded and fresh (what outside weights filled, and what
            they did not: everything, where a run starts from none); `kind`, `lr` (a peak) or `lr_scale` (of the peak), and
            `decay` replace.
    """

    def __init__(
        self, *, total: int, kind: Kind = "adamw", lr: float, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
        decay: float = 0.01, decay_on: Literal["matrices", "all", "not_vectors"] = "matrices", warmup: Steps = Steps(0),  # noqa: B008
        warmup_from: float = 0.0, schedule: Literal["cosine", "linear", "constant", "step"] = "cosine", end: float = 0.0,
        period: Steps = Steps(0), factor: float = 1.0, groups: Sequence[Mapping[str, Any]] = (),  # noqa: B008
    ) -> None:
        if schedule == "step" and period < 1:
            raise ConfigError("optim.period: schedule=step drops the rate every `period`; give one, such as optim.period=1_epochs")
        for i, group in enumerate(groups):
            for key in group:
                if key not in _GROUP_KEYS:
                    raise ConfigError(f"optim.groups[{i}]: no key {key!r} (there are: {', '.join(_GROUP_KEYS)}). {did_you_mean(key, _GROUP_KEYS)}".rstrip())
            if group.get("kind", kind) not in get_args(Kind):
                raise ConfigError(f"optim.groups[{i}].kind: found {group['kind']!r} (accepted: {', '.join(get_args(Kind))})")
            if "lr" in group and "lr_scale" in group:
                raise ConfigError(f"optim.groups[{i}]: lr and lr_scale both set the rate; give one of them")
            if "match" not in group:
                raise ConfigError(f"optim.groups[{i}]: a group needs `match`, an address such as vision.trunk or one of the words bias, norm, loaded, fresh")
        if warmup > total:
            log.warning("optim.warmup is %d steps but the run has %d: the peak rate is never reached", warmup, total)
        self.kind, self.lr, self.betas, self.eps = kind, lr, (float(betas[0]), float(betas[1])), eps
        self.decay, self.decay_on, self.groups = decay, decay_on, [dict(group) for group in groups]
        self.total, self.warmup, self.warmup_from, self.schedule, self.end = total, warmup, warmup_from, schedule, end
        self.period, self.factor = period, factor

    def rate(self, step: int) -> float:
        """The learning rate of the update number `step`, counted from 0, before any group's scale."""
        return learning_rate(
            step, peak=self.lr, total=self.total, warmup=self.warmup, warmup_from=self.warmup_from, end=self.end, shape=self.schedule,
            period=self.period, factor=self.factor,
        )

    def split(self, model: nn.Module, *, loaded: Collection[str] = ()) -> list[dict[str, Any]]:
        """Parameter groups of the trainable parameters, each once, under its first address.

        Args:
            model: whatever has parameters.
            loaded: names of those that outside weights filled.

        Raises:
            ConfigError: a group that matches no trainable parameter.
        """
        norms, known = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}, frozenset(loaded)
        used = [False] * len(self.groups)
        groups: dict[tuple[str, float, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            decays = {"matrices": parameter.ndim >= 2, "all": True, "not_vectors": parameter.ndim != 1}[self.decay_on]
            kind, scale, decay = str(self.kind), 1.0, self.decay if decays else 0.0
            for i, group in enumerate(self.groups):
                if self._in(group["match"], name, norms, known):
                    used[i] = True
                    kind, scale, decay = group.get("kind", kind), self._scale(group), float(group.get("decay", decay))
                    break
            blank = {"params": [], "names": [], "lr": self.lr * scale, "weight_decay": decay, "scale": scale, "kind": kind}
            made = groups.setdefault((kind, scale, decay), blank)
            made["params"].append(parameter)
            made["names"].append(name)
        for i, group in enumerate(self.groups):
            if not used[i] and group["match"] in _STARTS:   # a recipe may tell them apart for those who have weights
                log.warning("optim.groups[%d]: no trainable parameter is %s", i, group["match"])
            elif not used[i]:
                raise ConfigError(f"optim.groups[{i}].match: {group['match']!r} matches no trainable parameter that an earlier group left")
        return list(groups.values())

    def _scale(self, group: Mapping[str, Any]) -> float:
        """Share of the peak rate; a run at a rate of 0 trains nothing, whatever its groups say."""
        if "lr" not in group:
            return float(group.get("lr_scale", 1.0))
        return float(group["lr"]) / self.lr if self.lr else 0.0

    @staticmethod
    def _in(match: str, name: str, norms: Collection[str], loaded: Collection[str]) -> bool:
        if match in _STARTS:
            return (name in loaded) == (match == "loaded")
        if match == "bias":
            return name.endswith(".bias")
        return name.rpartition(".")[0] in norms if match == "norm" else matches(match, name)

    def build(self, model: nn.Module, *, loaded: Collection[str] = ()) -> tuple[Optimizer, LambdaLR]:
        """The optimiser and its schedule, stepped once an optimiser step; arguments and errors as of `split`."""
        split: dict[str, list[dict[str, Any]]] = {}
        for group in self.split(model, loaded=loaded):
            split.setdefault(group["kind"], []).append({key: value for key, value in group.items() if key not in ("names", "kind")})
        parts = [self._optimizer(kind, groups) for kind, groups in split.items()]
        optimizer = parts[0] if len(parts) == 1 else Mixed(parts)
        return optimizer, LambdaLR(optimizer, lambda step: self.rate(step) / self.lr if self.lr else 0.0)

    def _optimizer(self, kind: str, groups: list[dict[str, Any]]) -> Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.betas[0])
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
