"""Embed, trunk, neck: one encoder for images and texts, ours or wrapped, read through its taps."""

from __future__ import annotations

from typing import Protocol

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


class Encoder(nn.Module):
    """Raw input to stream, with the taps `embed` (before the trunk) and `encode` (after trunk, closing norm and neck).

    Args:
        embed: reads the raw input; a wrapped backbone is an embed without a trunk.
        trunk: blocks over the embedded stream; None makes both taps agree.
        neck: changes length, names or width behind the trunk.
        words: the tokenizer of a text encoder, shared with data, draws and heads.
    """

    taps = ("embed", "encode")

    def __init__(self, embed: nn.Module, *, trunk: Trunk | None = None, neck: Neck | None = None, words: Words | None = None) -> None:
        super().__init__()
        self.words = words
        self.embed, self.trunk, self.neck = embed, trunk, neck

    @property
    def dim(self) -> int:
        """D, the width of the tap `encode`."""
        return self.width("encode")

    def width(self, tap: str) -> int:
        """D of a tap; only a neck changes it."""
        dim: int = self.embed.dim  # type: ignore[assignment]
        return dim if self.neck is None or tap == "embed" else self.neck.dim

    def encode(self, s: Stream, *, cache: Cache | None = None) -> Stream:
        """(B, L, D) embedded stream to (B, L', D')."""
        if self.trunk is not None:
            s = self.trunk(s, cache=cache)
        return s if self.neck is None else self.neck(s)

    def forward(self, given: ImageInput | TextInput, *, tap: str = "encode", cache: Cache | None = None) -> Stream:
        """Input to the stream at a tap."""
        s: Stream = self.embed(given)
        return s if tap == "embed" else self.encode(s, cache=cache)
