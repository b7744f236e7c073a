"""Embed, trunk, neck: one encoder for images and texts, ours or wrapped, read through its taps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import nn

from vlpkit.data.tokenize import Words
from vlpkit.layers.attention import Cache
from vlpkit.layers.neck import Neck
from vlpkit.layers.trunk import Trunk
from vlpkit.types import ImageInput, Stream, TextInput


class Embed(Protocol):
    """The only reader of raw inputs; may add tokens, and names their parts."""

    dim: int

    def __call__(self, given: ImageInput | TextInput) -> Stream:
        """(B, ...) input to a stream (B, L, dim)."""


class Run(NamedTuple):
    """Blocks that are played in one go, with the set of experts that is forced."""

    layers: range
    route: str | None = None


class Encoder(nn.Module):
    """Raw input to stream, read at its taps: `embed` (before the trunk), `encode` (after trunk, closing norm and neck), the raw stream
    after a number of blocks (`14`), and named continuations, which share their first blocks with every other tap.

    Args:
        embed: reads the raw input; a wrapped backbone is an embed without a trunk.
        trunk: blocks over the embedded stream; None makes all taps agree, or is filled by a tie.
        neck: changes length, width or names behind the trunk.
        words: the tokenizer of a text encoder, shared with data, draws and heads.
        taps: continuations by name, such as `{vl: {after: 10, route: vw}}` (VLMo): blocks 0-9 as ever, the rest through the set vw.
    """

    trunk: Trunk | None

    def __init__(
        self, embed: nn.Module, *, trunk: Trunk | None = None, neck: Neck | None = None, words: Words | None = None,
        taps: Mapping[str, Mapping[str, int | str]] | None = None,
    ) -> None:
        super().__init__()
        self.words = words
        self.embed = embed
        self.register_module("trunk", trunk)
        self.neck = neck
        self.named = {name: (int(tap["after"]), str(tap["route"]) if "route" in tap else None) for name, tap in (taps or {}).items()}
        self.taps = ("embed", "encode", *self.named)
        self.cuts = {after for after, _ in self.named.values()}  # where passes are kept, because more than one tap goes on from there

    def width(self, tap: str = "encode") -> int:
        """D at a tap."""
        behind = None if tap == "embed" or tap.isdigit() else self.neck
        dim: int = getattr(behind, "dim", self.embed.dim)  # type: ignore[arg-type]
        return dim

    def has(self, tap: str) -> bool:
        """Whether there is such a tap."""
        return tap in self.taps or (tap.isdigit() and self.trunk is not None and int(tap) <= self.trunk.depth)

    def cut(self, tap: str) -> None:
        """Keep the raw stream that a numbered tap reads, so that later blocks go on from it."""
        if tap.isdigit():
            self.cuts.add(int(tap))

    def runs(self, tap: str) -> list[Run]:
        """The blocks behind the embed, up to a tap; equal beginnings are equal work."""
        if tap == "embed" or self.trunk is None:
            return []
        after, route = self.named.get(tap, (0, None))
        last = int(tap) if tap.isdigit() else self.trunk.depth
        stops = sorted({cut for cut in self.cuts if 0 < cut < last} | ({last} if last else set()))
        return [Run(range(start, stop), route if start >= after else None) for start, stop in pairwise([0, *stops])]

    def play(self, s: Stream, run: Run, *, cache: Cache | None = None) -> Stream:
        """(B, L, D) stream through some blocks, raw."""
        assert self.trunk is not None
        return self.trunk(s, layers=run.layers, route=run.route, cache=cache, close=False)

    def finish(self, s: Stream, tap: str) -> Stream:
        """What follows the last block: closing norm and neck; nothing at `embed` and numbered taps."""
        if tap == "embed" or tap.isdigit():
            return s
        if self.trunk is not None:
            s = self.trunk.close(s, route=self.named.get(tap, (0, None))[1])
        return s if self.neck is None else self.neck(s)

    def forward(self, given: ImageInput | TextInput, *, tap: str = "encode", cache: Cache | None = None) -> Stream:
        """Input to the stream at a tap."""
        s: Stream = self.embed(given)
        for run in self.runs(tap):
            s = self.play(s, run, cache=cache)
        return self.finish(s, tap)
