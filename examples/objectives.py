"""An objective of one's own: points spread evenly over the sphere (Wang and Isola 2020, eq. 8), let in with `plugins=[examples.objectives]`."""

from __future__ import annotations

import torch

from vlpkit.objectives.base import Objective
from vlpkit.streams import Streams
from vlpkit.types import Loss


class Evenness(Objective):
    """Log of the mean Gaussian potential between the image points of this rank.

    Args:
        t: inverse width of the potential.
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(self, *, t: float = 2.0, on: str = "pairs", weight: float = 1.0) -> None:
        super().__init__(on=on, weight=weight)
        self.t = t

    def forward(self, s: Streams) -> Loss:
        """() in nats; 0 when all points are one, about -t * 2 when they are opposite."""
        z = s.point("v").float()
        apart = (z[:, None] - z[None]).square().sum(-1)
        return Loss(apart.mul(-self.t).exp().mean().log(), {"distance": torch.sqrt(apart.detach()).mean()})
