"""A frozen tokenizer of patches: what masked image modelling predicts instead of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.encoders.encoder import Encoder
from vlpkit.types import ImageInput


class Codebook(nn.Module):
    """Each patch by the nearest of K directions behind an encoder of its own (Peng et al. 2022, BEiT v2, section 3.1). Always frozen.

    With random weights it is a random-projection quantiser (Chiu et al. 2022): worth predicting, though it knows no concepts.

    Parameters: `encoder`, `project` (C, D), `table` (K, C).

    Args:
        encoder: image to stream; the patches are its part `v`.
        codes: K.
        width: C, width of a code.
    """

    def __init__(self, encoder: Encoder, *, codes: int, width: int = 32) -> None:
        super().__init__()
        self.encoder, self.codes = encoder, codes
        self.project = nn.Linear(encoder.width(), width, bias=False)
        self.table = nn.Parameter(torch.empty(codes, width))
        nn.init.normal_(self.project.weight, std=encoder.width() ** -0.5)
        nn.init.normal_(self.table)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Codebook:
        """It never trains: its answers must not depend on dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, given: ImageInput) -> Tensor:
        """R images to (R, M) int64 codes in 0..K-1, one a patch."""
        z = F.normalize(self.project(self.encoder(given).part("v").x).float(), dim=-1)
        return (z @ F.normalize(self.table.float(), dim=-1).T).argmax(-1)
