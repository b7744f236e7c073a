"""How a global batch is divided among ranks and accumulation steps: arithmetic on positions of the global order, and nothing else.
Standard library only: an indivisible batch is refused before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from vlpkit.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What one rank takes of each global batch; made by `divide`.

    Args:
        batch: samples of one optimiser step over all ranks.
        world: number of ranks.
        rank: this rank, in [0, world).
        micro: samples of one micro-batch on one rank; divides batch / world.
    """

    batch: int
    world: int
    rank: int
    micro: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step on each rank."""
        return self.batch // (self.world * self.micro)

    def start(self, turn: int) -> int:
        """First position of the rank's micro-batch number `turn`, counted from the first step of the run.

        Micro-batch m of step k is turn k * accumulation + m and starts at k * batch + (m * world + rank) * micro, so all ranks
        together read one unbroken slice of the order.
        """
        return (turn * self.world + self.rank) * self.micro

    def below(self, position: int) -> int:
        """How many of the positions below `position` fall to this rank; over all ranks they add up to `position`."""
        whole, rest = divmod(position, self.world * self.micro)
        return whole * self.micro + min(max(rest - self.rank * self.micro, 0), self.micro)

    def turn(self, samples_seen: int) -> int:
        """The micro-batch that comes after `samples_seen` samples of the whole world."""
        return samples_seen // (self.world * self.micro)


def divide(batch: int, *, world: int = 1, micro: int | None = None, rank: int = 0) -> Share:
    """The share of one rank, or a refusal.

    Args:
        batch: `data.batch`, the global batch.
        world: devices over all nodes.
        micro: samples a device takes at a time; None: its whole part of the batch, without accumulation.
        rank: the rank asked for.

    Raises:
        ConfigError: the batch does not divide; the message names the nearest batches that do.
    """
    if batch < 1 or world < 1 or (micro is not None and micro < 1):
        raise ConfigError(f"data.batch={batch}, {world} devices, micro-batch {micro}: each must be at least 1.")
    unit = world * (micro or 1)
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        by = f"{world} device{'s' * (world > 1)}" + (f" in micro-batches of {micro}" if micro else "")
        fits = f"data.batch={above}" if below == 0 else f"data.batch={below} or data.batch={above}"
        raise ConfigError(f"data.batch={batch} does not divide by {by} (the global batch is a multiple of {unit}). Use {fits}, or other trainer devices.")
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is not one of {world} devices (0 to {world - 1}).")
    return Share(batch=batch, world=world, rank=rank, micro=micro or batch // world)
