"""Draws that join pairs into documents: several images, each with what is said of it, in one text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator

from vlpkit.data.tokenize import Words
from vlpkit.draws.words import opening
from vlpkit.streams import Drawn, Streams
from vlpkit.types import IGNORE, Pairing, TextInput


class Documents:
    """Neighbouring pairs of a batch as interleaved documents: gives `text`, `labels` and `pairing` (Alayrac et al. 2022, sections 2.3 and 3.2.1).

    A token may read the last image that was opened before it, or with it: that is its `group`. Of B pairs come ceil(B / T) documents; the last
    one may have fewer images.

    Args:
        words: the tokenizer; its template opens with `start` and closes with what ends a caption.
        images: T, pairs of a document; 1 leaves the pairs alone.
        length: longest document in tokens; what is behind it is cut off.
        start: name of the special token that stands where an image is shown.
        text: input to join.
    """

    def __init__(self, words: Words, *, images: int, length: int, start: str = "image", text: str = "clean") -> None:
        if images < 1:
            raise ValueError(f"images={images}; a document shows at least 1")
        self.start, self.text, self.images, self.length = opening(words, start), text, images, length

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The documents (P, N), the words asked for, IGNORE on padding, on image tokens and before the first, and the images of each (P, T)."""
        text = s.text(self.text)
        many, count, device = self.images, len(text), text.ids.device
        places = [i if i < count else -1 for i in range(-(-count // many) * many)]
        rows = torch.tensor(places, device=device).view(-1, many)
        chosen = rows.clamp(min=0)
        mask = (text.mask[chosen] & (rows >= 0)[..., None]).flatten(1)
        closer = (~mask).long().argsort(dim=1, stable=True)[:, : self.length]     # words move up, padding goes to the end
        ids, mask = text.ids[chosen].flatten(1).gather(1, closer), mask.gather(1, closer)
        shown = mask & (ids == self.start)
        group = shown.long().cumsum(1) - 1
        whole = torch.tensor(list(range(len(rows))), device=device)
        return {
            "text": TextInput(ids, mask, group=group), "labels": torch.where(mask & ~shown & (group >= 0), ids, IGNORE),
            "pairing": Pairing(rows, whole, torch.ones_like(whole)),
        }
