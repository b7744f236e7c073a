"""Draws over pairings: random mismatches, and mismatches mined among the most similar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Generator, Tensor

from vlpkit.maths.contrastive import similarity
from vlpkit.maths.negatives import draw_negatives
from vlpkit.streams import Drawn, Streams
from vlpkit.types import Pairing


def _pairing(pair_id: Tensor, image: Tensor, text: Tensor) -> Pairing:
    # A drawn mismatch may be a true pair after all: equal identities belong together, whoever drew them.
    return Pairing(image, text, (pair_id[image] == pair_id[text]).long())


class HardNegatives:
    """3B rows from this rank: the pairs, a wrong image for each text, a wrong text for each image (Li et al. 2021, section 3.2).

    Gives `pairing`. Chances follow the similarity of the student with the teacher (as ALBEF and BLIP draw) or with itself.

    Args:
        against: teacher or student.
        image: image input to mine over.
        text: text input to mine over.
        by: the shared space.
        epsilon: see `draw_negatives`.
    """

    def __init__(
        self, *, against: Literal["teacher", "student"] = "student", image: str = "clean", text: str = "clean", by: str = "align", epsilon: float = 0.0
    ) -> None:
        self.against, self.image, self.text, self.by, self.epsilon = against, image, text, by, epsilon

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The pairing of 3B rows."""
        student = s.aligned(self.image, self.text, by=self.by)
        keys = student if self.against == "student" else s.teacher.aligned(self.image, self.text, by=self.by)
        same = s.batch.pair_id[:, None] == s.batch.pair_id[None, :]
        image = draw_negatives(similarity(student.w, keys.v, student.scale), same, rng, epsilon=self.epsilon)
        text = draw_negatives(similarity(student.v, keys.w, student.scale), same, rng, epsilon=self.epsilon)
        rows = torch.arange(len(same), device=same.device)
        return {"pairing": _pairing(s.batch.pair_id, torch.cat([rows, image, rows]), torch.cat([rows, rows, text]))}


class Mismatches:
    """B rows, some with the image of another pair: gives `pairing`.

    Args:
        rate: chance of a text to get a wrong image, uniform over the others of this rank.
    """

    def __init__(self, *, rate: float = 0.5) -> None:
        self.rate = rate

    def __call__(self, s: Streams, rng: Generator) -> Mapping[str, Drawn]:
        """The pairing of B rows."""
        count, device = len(s.batch), s.batch.pair_id.device
        wrong = (torch.rand(count, generator=rng) < self.rate).to(device)
        step = (1 + torch.randint(max(count - 1, 1), (count,), generator=rng)).to(device)
        rows = torch.arange(count, device=device)
        return {"pairing": _pairing(s.batch.pair_id, torch.where(wrong, (rows + step) % count, rows), rows)}
