"""Draws over texts: masked words, and openings that tell a shared stack which role it plays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from vlpkit.data.tokenize import Words
from vlpkit.errors import AssemblyError, did_you_mean
from vlpkit.layers.attention import causal_order
from vlpkit.maths.masking import mask_words
from vlpkit.streams import Drawn, Streams
from vlpkit.types import IGNORE


class MaskWords:
    """Masked words: gives `text` and `labels`. Special tokens are never chosen.

    Args:
        words: the tokenizer.
        text: input to corrupt.
        rate: chance of a token to be chosen.
        keep: share of chosen tokens that stay.
        random: share of chosen tokens that become a random word.
        least: whether a text without a chosen token gets its first word masked.
        whole: whether all tokens of a word are chosen or none; `rate` is then the chance of a word.
    """

    def __init__(
        self, words: Words, *, text: str = "clean", rate: float = 0.15, keep: float = 0.1, random: float = 0.1, least: bool = False,
        whole: bool = False,
    ) -> None:
        if "mask" not in words.special:
            raise AssemblyError("this tokenizer has no mask token; masked words need one (text=bert trains or loads one that has)")
        self.text, self.rate, self.keep, self.random, self.least = text, rate, keep, random, least
        self.mask, self.vocab, self.special = words.special["mask"], words.size, torch.tensor(sorted(words.special_ids))
        self.starts = torch.tensor(words.starts) if whole else None

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The corrupted text (B, N) and its labels (B, N)."""
        text = s.text(self.text)
        if not s.corrupt:
            return {"text": text, "labels": torch.full_like(text.ids, IGNORE)}
        allowed = text.mask & ~torch.isin(text.ids, self.special.to(text.ids.device))
        ids, labels = mask_words(
            text.ids, allowed, rng, rate=self.rate, mask=self.mask, vocab=self.vocab, keep=self.keep, random=self.random, least=self.least,
            starts=None if self.starts is None else self.starts.to(text.ids.device)[text.ids],
        )
        return {"text": replace(text, ids=ids), "labels": labels}


class Opening:
    """Another first token and, for a captioner, an order: gives `text` and `labels`.

    Args:
        words: the tokenizer.
        start: name of the special token that opens the text, such as enc or dec.
        text: input to rewrite.
        order: causal makes each word read only what stands before it.
    """

    def __init__(self, words: Words, *, start: str, text: str = "clean", order: Literal["causal"] | None = None) -> None:
        if start not in words.special:
            raise AssemblyError(
                f"the tokenizer has no special token {start!r} (it has: {', '.join(words.special)}). {did_you_mean(start, words.special)} "
                f"Add it with model.text.words.add=[{start}]".replace("  ", " ")
            )
        self.start, self.text, self.causal = words.special[start], text, order == "causal"

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The rewritten text (B, N), and the words it asks for (B, N): IGNORE on padding and on the opening."""
        text = s.text(self.text)
        ids = torch.cat([torch.full_like(text.ids[:, :1], self.start), text.ids[:, 1:]], 1)
        labels = torch.where(text.mask, text.ids, IGNORE)
        labels = torch.cat([torch.full_like(labels[:, :1], IGNORE), labels[:, 1:]], 1)
        order: Tensor | None = text.order
        if self.causal:
            order = causal_order(ids.shape[0], ids.shape[1], ids.device)
        return {"text": replace(text, ids=ids, order=order), "labels": labels}
