"""A model is its named parts and heads; what users call without training: points of images and texts, next words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from vlpkit.align import Align
from vlpkit.errors import AssemblyError, did_you_mean
from vlpkit.fusion import Fusion
from vlpkit.layers.attention import Cache
from vlpkit.types import ImageInput, Stream, TextInput


class Read(NamedTuple):
    """One term of a read: a part, its tap, and the name of a run of tokens or ""."""

    part: str
    tap: str
    run: str


def parse_reads(reads: str) -> list[Read]:
    """The terms of `part.tap[:name]` joined by `+`. Raises ValueError when the grammar is broken."""
    terms = []
    for term in reads.split("+"):
        where, _, run = term.strip().partition(":")
        part, dot, tap = where.partition(".")
        if not dot or not part or not tap:
            raise ValueError(f"{term.strip()!r} is no read (write part.tap, such as vision.encode or text.encode:w_cls)")
        terms.append(Read(part, tap, run))
    return terms


def _no_words(rows: int, device: torch.device) -> TextInput:
    empty = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    return TextInput(empty, empty.bool())


class VLModel(nn.Module):
    """Parts by name, heads by name.

    Args:
        name: of the recipe, for messages.
        parts: vision, text, fusion, decoder, aligns and whatever else the recipe builds, in the order of assembly.
        heads: what the objectives declared.

    `frozen` holds the addresses of modules that do not learn.
    """

    heads: nn.ModuleDict

    def __init__(self, name: str, parts: Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.name, self.names = name, tuple(parts)
        for key, part in parts.items():
            self.add_module(key, part)
        self.heads = nn.ModuleDict(dict(heads))
        self.frozen: list[str] = []

    def train(self, mode: bool = True) -> Self:
        """Training mode; what is frozen stays in evaluation mode: no dropout there, and statistics that stand still."""
        super().train(mode)
        for path in self.frozen:
            self.get_submodule(path).train(False)
        return self

    def part(self, name: str) -> Any:
        """The part called `name`. Raises AssemblyError with the parts there are."""
        if name not in self.names or name not in self._modules:
            hint = did_you_mean(name, self.names)
            raise AssemblyError(f"asks for the part {name!r}, but {self.name!r} builds {', '.join(self.names)}.{' ' + hint if hint else ''}")
        return self._modules[name]

    def head(self, name: str) -> nn.Module:
        """The head called `name`. Raises AssemblyError with the heads there are."""
        if name not in self.heads:
            raise AssemblyError(f"asks for the head {name!r}, but {self.name!r} has {', '.join(self.heads) or 'none'}.")
        return self.heads[name]

    def encode_image(self, images: ImageInput, *, by: str = "align") -> Tensor:
        """Images to (R, E) unit vectors of the shared space."""
        align: Align = self.part(by)
        return align.v(self._read(align.reads["v"], images))

    def encode_text(self, texts: TextInput, *, by: str = "align") -> Tensor:
        """Texts to (B, E) unit vectors of the shared space."""
        align: Align = self.part(by)
        return align.w(self._read(align.reads["w"], texts))

    def _read(self, reads: str, given: ImageInput | TextInput, cache: Cache | None = None, prefix: TextInput | None = None) -> Stream:
        streams = []
        for part, tap, run in parse_reads(reads):
            inner = self.part(part)
            if isinstance(inner, Fusion):
                assert isinstance(given, ImageInput)
                words = _no_words(len(given), given.device) if prefix is None else prefix
                fused = inner(self.memory(given, by=part, given=prefix), self._read(inner.reads["w"], words))
                s: Stream = fused.v if tap == "v" else fused.w
            else:
                s = inner(given, tap=tap, cache=cache)
            streams.append(s.part(run) if run else s)
        return streams[0] if len(streams) == 1 else Stream.cat(*streams)

    def memory(self, images: ImageInput, *, by: str = "decoder", given: TextInput | None = None) -> Stream:
        """What the decoder `by` reads of R images: computed once, then given to every call of `next_words`.

        Where it reads another fusion, `given` is the text there, R rows of a prefix; left out, there are no words in it.
        """
        fusion: Fusion = self.part(by)
        return self._read(fusion.reads["v"], images, prefix=given)

    def next_words(self, memory: Stream, text: TextInput, *, by: str = "decoder", head: str = "lm", cache: Cache | None = None) -> Tensor:
        """Logits of the word that follows each position.

        Args:
            memory: (B, M, D) image stream from `memory`.
            text: (B, N) words so far with their order; with a cache, the new ones only.
            by: the fusion that decodes.
            head: the words head.
            cache: kept keys and values; one per sequence of calls.

        Returns:
            (B, N, V) logits.
        """
        fusion: Fusion = self.part(by)
        fused = fusion(memory, self._read(fusion.reads["w"], text, cache), cache=cache)
        logits: Tensor = self.head(head)(fused.w.x)
        return logits

    def after_step(self) -> None:
        """What parts do once an optimiser step: clamp a temperature, move statistics."""
        for part in self.children():
            if isinstance(part, Align):
                part.after_step()
