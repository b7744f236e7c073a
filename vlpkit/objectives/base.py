"""What every objective is: maths over streams, without parameters; it says what it reads, on which source, and its weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vlpkit.streams import Streams
from vlpkit.types import Dims, Loss


class Objective(nn.Module):
    """A loss over the streams of one source. May own buffers (a queue); owning a parameter is an assembly error.

    Args:
        on: the source it reads.
        weight: factor of its loss in the sum.
    """

    def __init__(self, *, on: str = "pairs", weight: float = 1.0) -> None:
        super().__init__()
        self.on, self.weight = on, weight

    def heads(self, dims: Dims) -> Mapping[str, nn.Module]:
        """The heads it needs, by name; the model owns them."""
        return {}

    def forward(self, s: Streams) -> Loss:
        """The loss of one micro-batch."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def after_batch(self, s: Streams) -> None:
        """Side effects, once a micro-batch, after its backward."""
