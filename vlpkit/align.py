"""The shared space of images and texts: projectors to it, temperature and bias. It belongs to the model, not to a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.fits import meet
from vlpkit.types import Stream


class Projector(nn.Module):
    """Pool, project, normalise. Parameters: `out` (E, D).

    Args:
        dim: D, width of the stream.
        out: E, width of the shared space; None: no projection, the pooled state is the point and E is D.
        pool: first token, last real token, or mean of the real tokens.
        bias: whether the projection has a bias.
        std: of the projection at the start; D ** -0.5 when left out.
    """

    def __init__(self, dim: int, *, out: int | None, pool: Literal["first", "last", "mean"] = "first", bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        self.pool, self.space = pool, dim if out is None else out
        self.out = None if out is None else nn.Linear(dim, out, bias=bias)
        if self.out is not None:
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
        pooled = self.pooled(s)
        return pooled if self.out is None else self.out(pooled)

    def forward(self, s: Stream) -> Tensor:
        """(B, L, D) stream to (B, E) unit vectors."""
        return F.normalize(self.raw(s).float(), dim=-1)


class Align(nn.Module):
    """Two projectors into one space and the temperature between them.

    Parameters: `v`, `w`, `temperature` () or, when learned as a logarithm, `log_scale` (), and `bias` () where one is learned.

    Args:
        reads: what each side projects, as `part.tap[:name]`.
        v: projector of the image side.
        w: projector of the text side.
        temperature: at the start; similarities are divided by it.
        learn: `log` learns log(1/temperature) (CLIP), `direct` the temperature itself (ALBEF, BLIP).
        lowest: bound of the temperature, clamped after every optimiser step; None: unbounded. 0.01 is CLIP's scale of 100 at most,
            which released SigLIP weights exceed.
        highest: bound of the temperature; None: unbounded.
        bias: added to scaled similarities and learned from this value on (SigLIP); None: 0, and nothing is learned.
    """

    def __init__(
        self, *, reads: Mapping[str, str], v: Projector, w: Projector, temperature: float = 0.07, learn: Literal["log", "direct"] = "log",
        lowest: float | None = 0.01, highest: float | None = 1.0, bias: float | None = None,
    ) -> None:
        super().__init__()
        meet(v.space, w.space)
        self.reads, self.v, self.w, self.learn = dict(reads), v, w, learn
        self.lowest, self.highest = lowest, highest
        if learn == "log":
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        else:
            self.temperature = nn.Parameter(torch.tensor(temperature))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.register_buffer("no_bias", torch.zeros(()), persistent=False)

    @property
    def dim(self) -> int:
        """E, the width of the shared space."""
        return self.v.space

    def temper(self) -> tuple[Tensor, Tensor]:
        """Inverse temperature () and bias (), fp32."""
        scale = self.log_scale.float().exp() if self.learn == "log" else 1 / self.temperature.float()
        bias: Tensor = self.no_bias if self.bias is None else self.bias  # type: ignore[assignment]
        return scale, bias.float()

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the temperature into its bounds; called once an optimiser step."""
        if self.lowest is None and self.highest is None:
            return
        if self.learn == "log":
            least, most = (None if bound is None else -math.log(bound) for bound in (self.highest, self.lowest))
            self.log_scale.clamp_(least, most)
        else:
            self.temperature.clamp_(self.lowest, self.highest)
