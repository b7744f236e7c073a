"""The shared space of images and texts: projectors to it, temperature and bias. It belongs to the model, not to a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.types import Stream


class Projector(nn.Module):
    """Pool, project, normalise. Parameters: `out` (E, D).

    Args:
        dim: D, width of the stream.
        out: E, width of the shared space.
        pool: first token, last real token, or mean of the real tokens.
        bias: whether the projection has a bias.
        std: of the projection at the start; D ** -0.5 when left out.
    """

    def __init__(self, dim: int, *, out: int, pool: Literal["first", "last", "mean"] = "first", bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        self.pool, self.out = pool, nn.Linear(dim, out, bias=bias)
        nn.init.normal_(self.out.weight, std=dim**-0.5 if std is None else std)
        if bias:
            nn.init.zeros_(self.out.bias)

    def pooled(self, s: Stream) -> Tensor:
        """(B, L, D) stream to the (B, D) state that stands for it."""
        if self.pool == "first":
            return s.x[:, 0]
        if self.pool == "mean":
            weight = s.mask.to(s.x.dtype)[..., None]
            return (s.x * weight).sum(1) / weight.sum(1).clamp(min=1)
        places = torch.arange(len(s), device=s.x.device)
        last = torch.where(s.mask, places, 0).amax(1)
        return s.x[torch.arange(s.x.shape[0], device=s.x.device), last]

    def raw(self, s: Stream) -> Tensor:
        """(B, L, D) stream to (B, E) before normalisation."""
        return self.out(self.pooled(s))

    def forward(self, s: Stream) -> Tensor:
        """(B, L, D) stream to (B, E) unit vectors."""
        return F.normalize(self.raw(s).float(), dim=-1)


class Align(nn.Module):
    """Two projectors into one space and the temperature between them.

    Parameters: `v`, `w`, and `temperature` () or, when learned as a logarithm, `log_scale` ().

    Args:
        reads: what each side projects, as `part.tap[:name]`.
        v: projector of the image side.
        w: projector of the text side.
        temperature: at the start; similarities are divided by it.
        learn: `log` learns log(1/temperature) (CLIP), `direct` the temperature itself (ALBEF, BLIP).
        lowest: bound of the temperature, clamped after every optimiser step.
        highest: bound of the temperature.
    """

    def __init__(
        self, *, reads: Mapping[str, str], v: Projector, w: Projector, temperature: float = 0.07, learn: Literal["log", "direct"] = "log",
        lowest: float = 0.01, highest: float = 1.0,
    ) -> None:
        super().__init__()
        if v.out.out_features != w.out.out_features:
            raise ValueError(f"the sides project to {v.out.out_features} and {w.out.out_features} numbers; the shared space has one width")
        self.reads, self.v, self.w, self.learn = dict(reads), v, w, learn
        self.lowest, self.highest = lowest, highest
        if learn == "log":
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        else:
            self.temperature = nn.Parameter(torch.tensor(temperature))
        self.register_buffer("no_bias", torch.zeros(()), persistent=False)

    @property
    def dim(self) -> int:
        """E, the width of the shared space."""
        return self.v.out.out_features

    def temper(self) -> tuple[Tensor, Tensor]:
        """Inverse temperature () and bias (), fp32."""
        scale = self.log_scale.float().exp() if self.learn == "log" else 1 / self.temperature.float()
        bias: Tensor = self.no_bias  # type: ignore[assignment]
        return scale, bias

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the temperature into its bounds; called once an optimiser step."""
        if self.learn == "log":
            self.log_scale.clamp_(-math.log(self.highest), -math.log(self.lowest))
        else:
            self.temperature.clamp_(self.lowest, self.highest)
