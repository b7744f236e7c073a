"""How many tokens a caption becomes with a tokenizer that is named, or trained on the captions as training would train it.
The only file here that imports torch, and only when it is asked for a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.opened import open_shard
from vlpkit.data.inspect.said import captions_in
from vlpkit.data.reader import TEXTS
from vlpkit.data.vocabulary import TRAINING_CAPTIONS, Kind

if TYPE_CHECKING:
    from vlpkit.data.tokenize import Clean, Words

_UNCUT = 1 << 20  # tokens; no caption has so many


class Tokens:
    """Counts the tokens of a caption, those of "[cls] {caption} [sep]" included."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __call__(self, caption: str) -> int:
        return int(self.words.encode([caption]).ids.shape[1])


def load_tokens(name: str, paths: Sequence[str], *, vocab: int = 30000, clean: Clean = "none") -> Tokens:
    """A tokenizer by name, from a folder, or trained on the first captions of the shards.

    Args:
        name: wordpiece or bpe: one is trained; else a transformers tokenizer on the hub or in a folder, or the `words` of a run.
        vocab: most tokens of a trained one.
        clean: what is done to a caption first, as `tokenize.clean_words` does.

    Raises:
        ConfigError, DataError: as `load_words`.
    """
    from vlpkit.data.tokenize import load_words

    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((kind for kind in kinds if kind == name), None)
    size = None if kind is None else vocab
    return Tokens(load_words(name=name, kind=kind or "wordpiece", size=size, length=_UNCUT, clean=clean, captions=lambda: captions_of(paths)))


def captions_of(paths: Sequence[str], *, limit: int = TRAINING_CAPTIONS) -> Iterator[str]:
    """The first captions of shards; samples without any are passed over."""
    given = 0
    for path in paths:
        for _, _, found in open_shard(path).samples(Findings(), only=TEXTS):
            for caption in captions_in(found)[: limit - given]:
                given += 1
                yield caption
            if given >= limit:
                return
