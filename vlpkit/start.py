"""`weights=...`: one file for the whole model, or a file a part. What is there is checked before data are touched, on a model without memory;
then the same tables fill the real one, and the run keeps the account of every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from vlpkit.data.tokenize import FILES, Words
from vlpkit.errors import WeightsError
from vlpkit.layouts import OWN, Layout, named, recognise
from vlpkit.model import VLModel
from vlpkit.source import TOKENIZER, Source, read
from vlpkit.weights import VOCABULARY, Piece, Report, Row, convert, everything

ACCOUNT = "weights.txt"  # in the run folder


@dataclass(frozen=True)
class Taken:
    """What became of one file.

    Args:
        path: as it was named.
        peeled: what stood around the weights.
        layout: how it was read.
        part: the part that was asked for; None: the whole model.
        report: of every key.
    """

    path: Path
    peeled: tuple[str, ...]
    layout: Layout
    part: str | None
    report: Report

    def _head(self) -> list[str]:
        what = "" if self.part is None else f"{self.part} from "
        return [f"weights: {what}{self.path} ({self.layout.name})", *(f"  {line}" for line in self.peeled)]

    def __str__(self) -> str:
        return "\n".join([*self._head(), *str(self.report).splitlines()])

    def full(self) -> str:
        """Every key, one a line."""
        return "\n".join([*self._head(), *self.report.full().splitlines()])


def files(weights: Any) -> dict[str | None, Path]:
    """The setting `weights` as files by part; the whole model is None."""
    if weights is None:
        return {}
    return {str(part): Path(file) for part, file in weights.items()} if isinstance(weights, Mapping) else {None: Path(weights)}


def start(model: VLModel, weights: Any, *, words: Words, layout: str | None = None, rehearsal: bool = False) -> list[Taken]:
    """Fill a model from what `weights` names, in place. A model on the meta device is only compared.

    Args:
        model: parts and heads.
        weights: a file or folder, or files by part.
        words: the tokenizer that the model was built with.
        layout: of the file; recognised when left out.
        rehearsal: `words` is a stand-in, so nothing that is as long as the vocabulary is compared.

    Raises:
        WeightsError: a file is not understood or does not fit, two files claim one tensor, or another tokenizer belongs to it.
    """
    taken: list[Taken] = []
    claimed: dict[str, Path] = {}
    ours = everything(model)
    for part, path in files(weights).items():
        source = read(path)
        chosen = OWN if source.own else recognise(source.tensors, place=str(path)) if layout is None else named(layout)
        place = f"weights{'' if part is None else f'.{part}'}: {path} ({chosen.name}: {chosen.about})"
        if not rehearsal and source.words is not None and part in (None, "text"):
            _same_words(source.words, words, place)
        try:
            made, report = _fitted(source, chosen.rows(ours, source.tensors, part), ours, words, rehearsal)
        except WeightsError as error:
            raise WeightsError(f"{place} does not fit model={model.name}.\n{error}") from error
        twice = [name for name in made if claimed.setdefault(name, path) != path]
        if twice:
            raise WeightsError(f"weights: {claimed[twice[0]]} and {path} both fill {twice[0]}. Name each part once.")
        with torch.no_grad():
            for name, tensor in made.items():
                if not ours[name].is_meta:
                    ours[name].copy_(tensor)
        taken.append(Taken(path, source.peeled, chosen, part, report))
    return taken


def _fitted(source: Source, rows: Sequence[Row], ours: Mapping[str, Tensor], words: Words, rehearsal: bool) -> tuple[dict[str, Tensor], Report]:
    """What `convert` makes; in a rehearsal shapes alone, and the vocabulary's own length may be any."""
    if not rehearsal:
        return convert(source.tensors, rows, ours)

    def spare(piece: Piece, found: Size, shape: Size) -> bool:
        own = source.words is not None and found[:1] == (source.words.size,) and shape[:1] == (words.size,)
        return own or piece.transform in VOCABULARY

    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in source.tensors.items()}
    return convert(shapes, rows, ours, spare=spare)


def _same_words(theirs: Words, ours: Words, place: str) -> None:
    if theirs.to_state()[FILES[0]] != ours.to_state()[FILES[0]]:
        raise WeightsError(
            f"{place} was trained with another tokenizer ({theirs.size} words, this one has {ours.size}), so its word table would mean other words.\n"
            f"  Take that tokenizer: size.vocab=null model.text.words.name=FOLDER/{TOKENIZER}, or start from another part alone: 'weights={{vision: FOLDER}}'"
        )
