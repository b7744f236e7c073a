"""`weights=...`: one file for the whole model, or a file for an address of it. What is there is checked before data are touched, on a model without memory;
then the same tables fill the real one, and the run keeps the account of every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from vlpkit.account import Asked, Piece, Report
from vlpkit.address import find, matches
from vlpkit.data.tokenize import FILES, Words
from vlpkit.data.vocabulary import SPECIALS
from vlpkit.errors import AssemblyError, WeightsError
from vlpkit.layouts import OWN, Layout, named, recognise
from vlpkit.model import VLModel
from vlpkit.rows import VOCABULARY, Row
from vlpkit.source import TOKENIZER, Source, read
from vlpkit.weights import canonical, convert, everything

ACCOUNT = "weights.txt"  # in the run folder


@dataclass(frozen=True)
class Taken:
    """What became of one file.

    Args:
        path: as it was named.
        peeled: what stood around the weights.
        layout: how it was read.
        address: what was asked for, such as vision or heads.itm; None: the whole model.
        report: of every key.
        filled: tensors of ours that it gave, each under the first of its names.
    """

    path: Path
    peeled: tuple[str, ...]
    layout: Layout
    address: str | None
    report: Report
    filled: tuple[str, ...]

    def _head(self) -> list[str]:
        what = "" if self.address is None else f"{self.address} from "
        return [f"weights: {what}{self.path} ({self.layout.name})", *(f"  {line}" for line in self.peeled)]

    def __str__(self) -> str:
        return "\n".join([*self._head(), *str(self.report).splitlines()])

    def full(self) -> str:
        """Every key, one a line."""
        return "\n".join([*self._head(), *self.report.full().splitlines()])


def files(weights: Any) -> dict[str | None, Path]:
    """The setting `weights` as files by address; the whole model is None."""
    if weights is None:
        return {}
    return {str(address): Path(file) for address, file in weights.items()} if isinstance(weights, Mapping) else {None: Path(weights)}


def start(model: VLModel, weights: Any, *, words: Words, layout: str | None = None, rehearsal: bool = False) -> list[Taken]:
    """Fill a model from what `weights` names, in place. A model on the meta device is only compared.

    Args:
        model: parts and heads.
        weights: a file or folder, or files by address (`vlpkit.address`): a part, a head, or what lies below one.
        words: the tokenizer that the model was built with.
        layout: of the file; recognised when left out.
        rehearsal: `words` is a stand-in, so nothing that is as long as the vocabulary is compared.

    Raises:
        WeightsError: a file is not understood or does not fit, two files claim one tensor, an address covers nothing, or another tokenizer
            belongs to it.
    """
    taken: list[Taken] = []
    claimed: dict[str, Path] = {}
    ours, found = everything(model), dict[Path, Source]()
    for address in files(weights):
        if address is not None:   # a slip of the pen is told before anything is read
            _covers_some(model, ours, address)
    for address, path in files(weights).items():
        if path not in found:
            found[path] = read(path)
        source = found[path]
        chosen = OWN if source.own else recognise(source.tensors, place=str(path)) if layout is None else named(layout)
        asked = chosen.asked(address)
        place = f"weights{'' if address is None else f'.{address}'}: {path} ({chosen.name}: {chosen.about})"
        if not rehearsal and source.words is not None and _holds_words(ours, asked, words):
            _same_words(source.words, words, place)
        try:
            made, report = _fitted(source, chosen.rows(ours, source.tensors, address), ours, asked, words, rehearsal)
        except WeightsError as error:
            raise WeightsError(f"{place} does not fit model={model.name}.\n{error}{_by_address(error, path)}") from error
        twice = [name for name in made if claimed.setdefault(name, path) != path]
        if twice:
            raise WeightsError(f"weights: {claimed[twice[0]]} and {path} both fill {twice[0]}. Name each part once.")
        with torch.no_grad():
            for name, tensor in made.items():
                if not ours[name].is_meta:
                    ours[name].copy_(tensor)
        taken.append(Taken(path, source.peeled, chosen, address, report, tuple(made)))
    return taken


def loaded(taken: Sequence[Taken], model: VLModel, config: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that did not start at random: those that files gave, and those of networks that a library built with its weights."""
    filled = {name for one in taken for name in one.filled}
    ready = [f"{part}.embed" for part, node in config["model"].items() if isinstance(node, Mapping) and (node.get("embed") or {}).get("pretrained")]
    return [name for name, _ in model.named_parameters() if name in filled or any(matches(address, name) for address in ready)]


def _covers_some(model: VLModel, ours: Mapping[str, Tensor], address: str) -> None:
    """Raises WeightsError where an address of the model leads to nothing, or to what is shared and stands elsewhere first."""
    try:
        find(model, address)
    except AssemblyError as error:
        raise WeightsError(f"weights.{address}: {error}") from error
    asked, first = Asked((address,)), canonical(ours)
    if any(name == kept and asked.names(name) for name, kept in first.items()):
        return
    other = next((kept for name, kept in first.items() if asked.names(name)), None)
    raise WeightsError(f"weights.{address}: nothing there has weights of its own" + (f"; what is there is shared with {other}, so name that" if other else ""))


def _holds_words(ours: Mapping[str, Tensor], asked: Asked | None, words: Words) -> bool:
    """Whether a table with a row for each word is to be filled."""
    tables = [name for name, tensor in ours.items() if name.startswith("text.embed.") or (name.startswith("heads.") and tensor.shape[:1] == (words.size,))]
    return asked is None or any(asked.covers(name) for name in tables)


def _by_address(error: WeightsError, path: Path) -> str:
    """What a user can do where a file and a model differ in what they have."""
    if "disagree" not in str(error).partition("\n")[0]:
        return ""
    return f"\n  Name what it shall fill, by address: 'weights={{vision: {path}, heads.itm: {path}}}'"


def _added(words: Words) -> list[str]:
    """Special tokens that a recipe put behind the vocabulary of its tokenizer, in the order of their ids."""
    name = {number: special for special, number in words.special.items() if special not in SPECIALS}
    start = words.size
    while start - 1 in name:
        start -= 1
    return [f"[{name[number]}]" for number in range(start, words.size)]


def _fitted(
    source: Source, rows: Sequence[Row], ours: Mapping[str, Tensor], asked: Asked | None, words: Words, rehearsal: bool
) -> tuple[dict[str, Tensor], Report]:
    """What `convert` makes; in a rehearsal shapes alone, and the vocabulary's own length may be any."""
    if not rehearsal:
        return convert(source.tensors, rows, ours, asked=asked, added=_added(words))

    def spare(piece: Piece, found: Size, shape: Size) -> bool:
        own = source.words is not None and found[:1] == (source.words.size,) and shape[:1] == (words.size,)
        return own or piece.transform in VOCABULARY

    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in source.tensors.items()}
    return convert(shapes, rows, ours, asked=asked, spare=spare)


def _same_words(theirs: Words, ours: Words, place: str) -> None:
    if theirs.to_state()[FILES[0]] != ours.to_state()[FILES[0]]:
        raise WeightsError(
            f"{place} was trained with another tokenizer ({theirs.size} words, this one has {ours.size}), so its word table would mean other words.\n"
            f"  Take that tokenizer: size.vocab=null model.text.words.name=FOLDER/{TOKENIZER}, or start from another part alone: 'weights={{vision: FOLDER}}'"
        )
