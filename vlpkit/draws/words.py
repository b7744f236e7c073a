"""Draws over texts: masked words, openings that tell a shared stack which role it plays, and texts cut in two."""

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


def opening(words: Words, start: str) -> int:
    """The id of the special token `start`, which opens a text. Raises AssemblyError with the key that adds it."""
    if start not in words.special:
        raise AssemblyError(
            f"the tokenizer has no special token {start!r} (it has: {', '.join(words.special)}). {did_you_mean(start, words.special)} "
            f"Add it with model.text.words.add=[{start}]".replace("  ", " ")
        )
    return words.special[start]


class Opening:
    """Another first token and, for a captioner, an order: gives `text` and `labels`.

    Args:
        words: the tokenizer.
        start: name of the special token that opens the text, such as enc or dec.
        text: input to rewrite.
        order: causal makes each word read only what stands before it.
    """

    def __init__(self, words: Words, *, start: str, text: str = "clean", order: Literal["causal"] | None = None) -> None:
        self.start, self.text, self.causal = opening(words, start), text, order == "causal"

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


class Split:
    """A text cut in two: gives `prefix`, `suffix` and `labels` (Wang et al. 2021, SimVLM, eq. 3; Raffel et al. 2020, section 3.2.3).

    The cut is uniform over the words of a text, from nothing to all of them; the token that closes the text is always asked for. The prefix
    is what stands before the cut, without an opening; everyone in it reads everyone. The suffix opens at the place before the cut and is
    causal. Both keep the places that the words had.

    Args:
        words: the tokenizer; its template opens with one special token and closes with one.
        start: name of the special token that opens the suffix.
        text: input to cut.
    """

    def __init__(self, words: Words, *, start: str = "cls", text: str = "clean") -> None:
        self.start, self.text = opening(words, start), text

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The two texts (B, N), and the words asked of the suffix (B, N): IGNORE before the cut and on padding. An evaluation cuts before all words."""
        text = s.text(self.text)
        draw, count = torch.rand(len(text), generator=rng).to(text.ids.device), text.mask.sum(1)
        # 1 is the first word, count - 1 the token that closes the text
        cut = 1 + (draw * (count - 1)).long() if s.corrupt else torch.ones_like(count)
        cut, places = cut[:, None], torch.tensor(range(text.ids.shape[1]), device=text.ids.device)[None]
        order = causal_order(text.ids.shape[0], text.ids.shape[1], text.ids.device)
        return {
            "prefix": replace(text, mask=text.mask & (places > 0) & (places < cut)),
            "suffix": replace(text, ids=torch.where(places == cut - 1, self.start, text.ids), mask=text.mask & (places >= cut - 1), order=order),
            "labels": torch.where(text.mask & (places >= cut), text.ids, IGNORE),
        }
