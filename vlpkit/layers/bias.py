"""Position biases of self-attention, from the parts and places of a stream: who stands where decides, not how the stream was put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpkit.types import Stream


class RelativeTable(nn.Module):
    """One learned number for each displacement, head and block: in the plane between patches, along the line between words, one constant
    each way between the two (Bao et al. 2021; the image half as in Bao et al. 2022, BEiT). The first token of either side stands apart.

    Parameters: `table` (rows, depth * heads), rows in this order: patch to patch (2g - 1)^2, class token to patch, patch to class token,
    class token to itself, word to image, image to word, word to word 2 * length - 3, and again the three of the first word.

    Args:
        heads: attention heads of the trunk.
        depth: blocks of the trunk.
        image_size: side in pixels.
        patch: side of a patch in pixels; g = image_size / patch.
        length: longest text in tokens, the first among them.
    """

    def __init__(self, *, heads: int, depth: int, image_size: int, patch: int, length: int) -> None:
        super().__init__()
        self.heads, self.depth, self.grid, self.length = heads, depth, image_size // patch, length
        self.plane = (2 * self.grid - 1) ** 2
        self.line = self.plane + 5
        self.table = nn.Parameter(torch.zeros(self.line + 2 * length, depth * heads))

    def rows(self, s: Stream) -> Tensor:
        """(1|B, L, L) row of the table for each query and key. Raises ValueError when a text is longer than the table."""
        if s.at is None:
            raise ValueError("a position bias needs to know where tokens stand, and this stream does not say")
        at = s.at[:1] if s.at.stride(0) == 0 else s.at
        image = torch.cat([torch.full((n,), name[0] == "v") for name, n in s.parts]).to(at.device)
        first = torch.cat([torch.full((n,), name == "v_cls") for name, n in s.parts]).to(at.device) | (~image & (at[..., 0] == 0))
        words = sum(n for name, n in s.parts if name[0] == "w")
        if words > self.length:
            raise ValueError(f"texts of {words} tokens do not fit the position bias of {self.length}")
        away = at[:, :, None] - at[:, None, :] + self.grid - 1                                       # query minus key
        plane = self._apart(away[..., 0] * (2 * self.grid - 1) + away[..., 1], first, self.plane)
        line = self._apart(self.line + self.length - 2 + at[:, None, :, 0] - at[:, :, None, 0], first, self.line + 2 * self.length - 3)
        query, key = image[:, None], image[None, :]
        across = torch.where(key, self.plane + 3, self.plane + 4)
        return torch.where(query & key, plane, torch.where(query | key, across, line))

    @staticmethod
    def _apart(rows: Tensor, first: Tensor, start: int) -> Tensor:
        """Rows for pairs with a first token: it to others, others to it, it to itself."""
        query, key = first[:, :, None], first[:, None, :]
        return torch.where(query, torch.where(key, start + 2, start), torch.where(key, start + 1, rows))

    def forward(self, s: Stream) -> list[Tensor]:
        """One (1|B, heads, L, L) a block."""
        rows = self.rows(s)
        spread = self.table[rows].view(*rows.shape, self.depth, self.heads)
        return list(spread.permute(3, 0, 4, 1, 2).unbind(0))


class PlaneTable(nn.Module):
    """One learned number for each displacement in the plane, head and block, between patches alone; words get none (Wang et al. 2021,
    section 3.2, after Dai et al. 2021, CoAtNet, eq. 3).

    Parameters: `table` ((2g - 1)^2, depth * heads).

    Args:
        heads: attention heads of the trunk.
        depth: blocks of the trunk.
        image_size: side in pixels.
        patch: side of a patch in pixels; g = image_size / patch.
    """

    def __init__(self, *, heads: int, depth: int, image_size: int, patch: int) -> None:
        super().__init__()
        self.heads, self.depth, self.grid = heads, depth, image_size // patch
        self.table = nn.Parameter(torch.zeros((2 * self.grid - 1) ** 2, depth * heads))

    def forward(self, s: Stream) -> list[Tensor]:
        """One (1|B, heads, L, L) a block, 0 wherever a word or a token without a place takes part."""
        if s.at is None:
            raise ValueError("a position bias needs to know where tokens stand, and this stream does not say")
        at = s.at[:1] if s.at.stride(0) == 0 else s.at
        patch = torch.cat([torch.full((n,), name[0] == "v") for name, n in s.parts]).to(at.device) & (at[..., 0] >= 0)
        both = patch[:, :, None] & patch[:, None, :]
        away = at[:, :, None] - at[:, None, :] + self.grid - 1                                       # query minus key
        rows = torch.where(both, away[..., 0] * (2 * self.grid - 1) + away[..., 1], 0)
        spread = (self.table[rows] * both[..., None]).view(*rows.shape, self.depth, self.heads)
        return list(spread.permute(3, 0, 4, 1, 2).unbind(0))
