"""The reader of what a detector found: features and boxes become a stream of regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.errors import AssemblyError
from vlpkit.maths.boxes import WIDTHS, Layout, box_vectors
from vlpkit.types import ImageInput, Stream, full_mask


def regions_of(given: ImageInput) -> Tensor:
    """The features (R, M, F) of an image input. Raises AssemblyError when the source delivers none."""
    if given.regions is None:
        raise AssemblyError("reads regions, but these images come as pixels (vision=regions has data.regions deliver what a detector found)")
    return given.regions


class RegionEmbed(nn.Module):
    """Features of regions, projected, with what is known of where they lie; no class token.

    UNITER is norm(norm(feature) + norm(box) + type), LXMERT (norm(feature) + norm(box)) / 2, VisualBERT norm(feature + position + type).

    Parameters: `feature` (D, F), and where asked for `box` (D, 4 to 7), `feature_norm` (D,), `box_norm` (D,), `position` (length, D),
    `segment` (segments, D), `norm` (D,) and `hide` (2, F), of which row 1 stands for a hidden feature and row 0 is never read.

    Args:
        dim: D, the width.
        size: F, numbers of one feature.
        boxes: layout of the box vector; None reads no box.
        norms: a norm behind the projection of the features, and one behind that of the boxes.
        halve: the mean of features and boxes rather than their sum.
        length: rows of a position table, of which all regions read row 0, as none stands beside a word; 0: no table.
        segments: rows of a type table; 0: no table.
        segment: the row that regions read.
        hide: a learned feature in place of a hidden one; else its place stays 0.
        norm: a norm after the sum.
        eps: of all norms.
        dropout: at the end.
    """

    def __init__(
        self, dim: int, *, size: int, boxes: Layout | None = None, norms: bool = False, halve: bool = False, length: int = 0, segments: int = 0,
        segment: int = 0, hide: bool = False, norm: bool = False, eps: float = 1e-12, dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if halve and boxes is None:
            raise ValueError("halve takes the mean of features and boxes, but boxes is null")
        if segments and not 0 <= segment < segments:
            raise ValueError(f"segment {segment} is no row of a table of {segments}")
        self.dim, self.size, self.layout, self.halve, self.row, self.dropout = dim, size, boxes, halve, segment, dropout
        self.feature = nn.Linear(size, dim)
        self.box = nn.Linear(WIDTHS[boxes], dim) if boxes is not None else None
        self.feature_norm = nn.LayerNorm(dim, eps=eps) if norms else None
        self.box_norm = nn.LayerNorm(dim, eps=eps) if norms and boxes is not None else None
        self.position = nn.Embedding(length, dim) if length else None
        self.segment = nn.Embedding(segments, dim) if segments else None
        self.hide = nn.Embedding(2, size, padding_idx=0) if hide else None
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else None
        for linear in (self.feature, self.box):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        for table in (self.position, self.segment, self.hide):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, given: ImageInput) -> Stream:
        """(R, M, F) features and (R, M, 4) boxes to a stream (R, M, D) of the part v.

        Raises:
            ValueError: the features are of another size.
        """
        features = regions_of(given).to(self.feature.weight.dtype)
        if features.shape[-1] != self.size:
            raise ValueError(f"regions come with {features.shape[-1]} numbers each, this encoder was built for {self.size}")
        if given.hidden is not None:
            unknown = torch.zeros_like(features[0, 0]) if self.hide is None else self.hide.weight[1]
            features = torch.where(given.hidden[..., None], unknown.to(features.dtype), features)
        x = self.feature(features)
        if self.feature_norm is not None:
            x = self.feature_norm(x)
        if self.box is not None:
            x = x + self._where(given)
        if self.halve:
            x = x / 2
        if self.position is not None:
            x = x + self.position.weight[0]
        if self.segment is not None:
            x = x + self.segment.weight[self.row]
        if self.norm is not None:
            x = self.norm(x)
        x = F.dropout(x, self.dropout, self.training)
        mask = full_mask(x.shape[0], x.shape[1], x.device) if given.mask is None else given.mask
        return Stream(x, mask, (("v", x.shape[1]),))

    def _where(self, given: ImageInput) -> Tensor:
        if given.boxes is None:
            raise AssemblyError("reads boxes, but these regions come without them (boxes: null in the recipe's vision.embed does without)")
        assert self.box is not None and self.layout is not None
        y: Tensor = self.box(box_vectors(given.boxes.to(self.box.weight.dtype), self.layout))
        return y if self.box_norm is None else self.box_norm(y)
