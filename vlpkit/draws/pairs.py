"""Draws over pairings: random mismatches, and mismatches mined among the most similar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor

from vlpkit import dist
from vlpkit.maths.contrastive import similarity
from vlpkit.maths.negatives import draw_negatives
from vlpkit.streams import Drawn, Streams
from vlpkit.types import ImageInput, Pairing, TextInput

Given = TypeVar("Given", ImageInput, TextInput)


def _pairing(pair_id: Tensor, image: Tensor, text: Tensor) -> Pairing:
    # A drawn mismatch may be a true pair after all: equal identities belong together, whoever drew them.
    return Pairing(image, text, (pair_id[image] == pair_id[text]).long())


def _as_wide_as_any(text: TextInput) -> TextInput:
    """The text, padded to the longest of all ranks: collectives want equal shapes."""
    return text if text.ids.is_meta else text.widened(dist.maximum(text.ids.shape[1]))


def _with_chosen(own: Given, chosen: Tensor) -> Given:
    """This rank's inputs, and behind them the rows (B,) that were chosen among those of all ranks."""
    return own.join(own.each(lambda t: dist.gather(t, equal=True)).rows(chosen))


def _strangers(count: int, rate: float, rng: Generator, device: torch.device, *, exact: bool = False) -> Tensor:
    """(B,) the row itself or, by chance, another one, uniform over the others; with `exact`, that share of the rows, rounded up."""
    draw = torch.rand(count, generator=rng)
    # with `exact`, numbers become ranks: as many rows as the share asks for stand below it
    wrong = ((draw.argsort().argsort() < math.ceil(count * rate)) if exact else (draw < rate)).to(device)
    step = (1 + torch.randint(max(count - 1, 1), (count,), generator=rng)).to(device)
    rows = torch.arange(count, device=device)
    return torch.where(wrong, (rows + step) % count, rows)


class HardNegatives:
    """3B rows from this rank: the pairs, a wrong image for each text, a wrong text for each image (Li et al. 2021, section 3.2).

    Gives `pairing`. Chances follow the similarity of the student with the teacher (as ALBEF and BLIP draw) or with itself.
    With `scope: inputs` negatives come from all ranks (Bao et al. 2021, section 3.2): the draw then also gives `image` and `text`, the B raw
    inputs of this rank and behind them the B that were chosen elsewhere, and `pairing` counts through these.

    Args:
        against: teacher or student.
        scope: rank, or inputs of all ranks.
        image: image input to mine over.
        text: text input to mine over.
        by: the shared space.
        epsilon: see `draw_negatives`.
    """

    def __init__(
        self, *, against: Literal["teacher", "student"] = "student", scope: Literal["rank", "inputs"] = "rank", image: str = "clean", text: str = "clean",
        by: str = "align", epsilon: float = 0.0,
    ) -> None:
        self.against, self.scope, self.image, self.text, self.by, self.epsilon = against, scope, image, text, by, epsilon

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The pairing of 3B rows, and with `scope: inputs` what it pairs. An evaluation, which brings pairs of its own, gets the inputs alone."""
        if self.scope == "inputs" and not s.corrupt:
            return {"image": s.image(self.image), "text": s.text(self.text)}
        source = s.teacher if self.against == "teacher" else s
        student = s.aligned(self.image, self.text, by=self.by)
        keys = source.aligned(self.image, self.text, by=self.by)
        v, w, mine = keys.v, keys.w, s.batch.pair_id
        world = self.scope == "inputs"
        if world:
            v, w = dist.gather(v, equal=True), dist.gather(w, equal=True)
        others = dist.gather(mine, equal=True) if world else mine
        same = mine[:, None] == others[None, :]
        image = draw_negatives(similarity(student.w, v, student.scale), same, rng, epsilon=self.epsilon)
        text = draw_negatives(similarity(student.v, w, student.scale), same, rng, epsilon=self.epsilon)
        rows = torch.arange(len(same), device=same.device)
        if not world:
            return {"pairing": _pairing(mine, torch.cat([rows, image, rows]), torch.cat([rows, rows, text]))}
        far = rows + len(rows)
        match = torch.cat([torch.ones_like(rows), (others[image] == mine).long(), (others[text] == mine).long()])
        return {
            "image": _with_chosen(s.image(self.image), image), "text": _with_chosen(_as_wide_as_any(s.text(self.text)), text),
            "pairing": Pairing(torch.cat([rows, far, rows]), torch.cat([rows, rows, far]), match),
        }


class Mismatches:
    """B rows, some with the image of another pair: gives `pairing`.

    Args:
        rate: chance of a text to get a wrong image, uniform over the others of this rank.
        exact: exactly that share of the rows is wrong, rounded up, which of them is drawn (ViLT and METER: B // 2 rows are right).
    """

    def __init__(self, *, rate: float = 0.5, exact: bool = False) -> None:
        self.rate, self.exact = rate, exact

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The pairing of B rows."""
        ids = s.batch.pair_id
        image = _strangers(len(ids), self.rate, rng, ids.device, exact=self.exact)
        return {"pairing": _pairing(ids, image, torch.arange(len(ids), device=ids.device))}


class TwoSentences:
    """A text and, behind it, another caption of its image or, by chance, one of another image: gives `text` and `pairing` (Li et al. 2019).

    The second sentence is of segment 1. The pairing keeps every text beside its own image; `match` says whether the second belongs there, too.

    Args:
        text: the first sentence.
        second: another caption of the same image.
        rate: chance of a text to get the second sentence of another image, uniform over the others of this rank.
    """

    def __init__(self, *, text: str = "clean", second: str = "second", rate: float = 0.5) -> None:
        self.text, self.second, self.rate = text, second, rate

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The joined text (B, N + N' - 1) and the pairing of B rows. An evaluation that brings its own pairs gets single sentences."""
        first, rows = s.text(self.text), torch.arange(len(s.batch), device=s.batch.pair_id.device)
        if not s.corrupt:
            return {"text": first, "pairing": Pairing(rows, rows, torch.ones_like(rows))}
        of = _strangers(len(rows), self.rate, rng, rows.device)
        match = (s.batch.pair_id[of] == s.batch.pair_id).long()
        return {"text": joined(first, s.text(self.second).rows(of)), "pairing": Pairing(rows, rows, match)}


def joined(first: TextInput, second: TextInput) -> TextInput:
    """(B, N + N' - 1) both texts without a gap, the second one of segment 1 and without its opening token, as BERT joins sentences."""
    n, more = first.ids.shape[1], second.ids.shape[1] - 1
    ids = torch.cat([first.ids, second.ids[:, 1:]], 1)
    mask = torch.cat([first.mask, second.mask[:, 1:]], 1)
    segment = torch.cat([torch.zeros_like(first.ids), torch.ones_like(second.ids[:, 1:])], 1)
    index = torch.tensor(range(n + more), device=ids.device).expand_as(ids)
    # Real tokens keep their order and stand first; what is no token follows.
    order = torch.where(mask, index, index + n + more).argsort(1)
    return TextInput(ids.gather(1, order), mask.gather(1, order), segment=segment.gather(1, order))
