"""Decoding on nothing but `next_words` and a cache: greedy captions today; beams reorder the cache's rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlpkit.layers.attention import Cache
from vlpkit.model import VLModel
from vlpkit.types import ImageInput, Stream, TextInput


class Decoded(NamedTuple):
    """What decoding gave.

    Args:
        ids: (B, N) word ids, opening first, padded after the stop word.
        logits: (B, N - 1, V) the logits each word was chosen from.
    """

    ids: Tensor
    logits: Tensor


def _text(ids: Tensor, start: int, first: int) -> TextInput:
    at = torch.arange(first + start, first + ids.shape[1], device=ids.device).expand(len(ids), -1)
    new = ids[:, start:]
    return TextInput(new, torch.ones_like(new, dtype=torch.bool), order=at + 1, at=at)


@torch.no_grad()
def greedy(
    model: VLModel, images: ImageInput, *, start: int, stop: int, pad: int, length: int, by: str = "decoder", head: str = "lm", cached: bool = True,
    given: TextInput | None = None, first: int = 0,
) -> Decoded:
    """The most likely next word, again and again.

    Args:
        model: in eval mode.
        images: R images.
        start: id of the opening word.
        stop: id that ends a caption.
        pad: id behind the end.
        length: most words to add.
        by: the fusion that decodes.
        head: the words head.
        cached: keep keys and values; False runs every prefix anew, with the same result.
        given: R rows of a prefix, where `by` reads another fusion (SimVLM's encoder); None: no words stand there.
        first: place of the opening word, behind the prefix.

    Returns:
        Ids (R, N) with N <= 1 + length, and the logits.
    """
    memory = model.memory(images, by=by, given=given)
    ids = torch.full((len(images), 1), start, device=images.device)
    done = torch.zeros(len(images), dtype=torch.bool, device=ids.device)
    cache = Cache() if cached else None
    rows: list[Tensor] = []
    for n in range(length):
        seen = memory
        if cached and n:  # the image is in the cache already
            seen = Stream.empty(len(images), memory.dim, "v", memory.x)
        logits = model.next_words(seen, _text(ids, n if cached else 0, first), by=by, head=head, cache=cache)[:, -1]
        rows.append(logits)
        word = torch.where(done, pad, logits.argmax(-1))
        ids = torch.cat([ids, word[:, None]], 1)
        done = done | (word == stop)
        if bool(done.all()):
            break
    return Decoded(ids, torch.stack(rows, 1))
