"""The only readers of raw inputs: pixels and word ids become streams with named parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpkit.data.tokenize import Words
from vlpkit.errors import AssemblyError
from vlpkit.fits import tile
from vlpkit.layers.attention import causal_order
from vlpkit.maths.patches import cut_patches, stretch
from vlpkit.types import ImageInput, Parts, Stream, TextInput, full_mask, is_full

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Normalise(nn.Module):
    """(R, 3, H, W) uint8 or [0, 1] to zero mean and unit variance per channel; holds no parameter."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(R, 3, H, W) to (R, 3, H, W) fp32."""
        if pixels.dtype == torch.uint8:  # in whatever layout they were delivered: kernels, and with them rounding, depend on it
            pixels = pixels.to(self.mean.dtype, memory_format=torch.contiguous_format) / 255
        return (pixels - self.mean) / self.std


def pixels_of(given: ImageInput) -> Tensor:
    """The pixels (R, 3, H, W) of an image input. Raises AssemblyError when the source delivers none."""
    if given.pixels is None:
        raise AssemblyError("reads pixels, but these images come as regions without them (vision=regions reads what a detector found)")
    return given.pixels


def grid_places(rows: int, columns: int, *, cls: bool) -> Tensor:
    """(1, cls + rows * columns, 2) row and column of each patch; the class token is nowhere."""
    # From numbers, not from arange: on the meta device that would load half of torch's compiler.
    return torch.tensor([*([(-1, -1)] if cls else []), *((row, column) for row in range(rows) for column in range(columns))])[None]


class PatchEmbed(nn.Module):
    """Square patches, a class token first, learned positions (Dosovitskiy et al. 2021, eq. 1).

    Parameters: `proj` (D, 3, p, p), `cls` (1, 1, D) where there is one, `position` (1, 1 + g*g, D) or, without class token,
    (1, g*g, D), and `norm` (D,), `side` (D,), `hole` (D,) when asked for.

    Args:
        dim: D, the width.
        image_size: side in pixels; a multiple of `patch`.
        patch: side of a patch in pixels.
        cls: whether a class token stands first (SigLIP has none).
        bias: whether the patch projection has a bias (CLIP's has none).
        norm: a norm after the positions (CLIP's `ln_pre`).
        eps: of that norm.
        dropout: after the positions.
        positions: whether places are learned vectors; without, a trunk needs a position bias to know them.
        position_std: of the position table at the start.
        typed: whether a learned vector, the image's token type, is added to every token.
        hole: whether there is a learned vector that stands in for a hidden patch.
        any_shape: whether images may have any height and width that are multiples of `patch`, and stand in the top left of a common
            frame, with `mask` saying which patches are real; positions are then interpolated over the real ones, each image for itself
            (bilinear, corner on corner: Kim et al. 2021, as released). Without, all are squares of `image_size`.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
    """

    places: Tensor

    def __init__(
        self, dim: int, *, image_size: int, patch: int, cls: bool = True, bias: bool = True, norm: bool = False, eps: float = 1e-5, dropout: float = 0.0,
        positions: bool = True, position_std: float = 0.02, typed: bool = False, hole: bool = False, any_shape: bool = False,
        mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        tile(image_size, patch)
        self.dim, self.patch, self.image_size, self.grid, self.any_shape = dim, patch, image_size, image_size // patch, any_shape
        self.normalise = Normalise(mean, std)
        self.proj = nn.Conv2d(3, dim, patch, patch, bias=bias)
        self.cls = nn.Parameter(torch.empty(1, 1, dim)) if cls else None
        self.position = nn.Parameter(torch.empty(1, int(cls) + self.grid**2, dim)) if positions else None
        self.side = nn.Parameter(torch.empty(dim)) if typed else None
        self.hole = nn.Parameter(torch.empty(dim)) if hole else None
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else None
        self.dropout = dropout
        self.register_buffer("places", grid_places(self.grid, self.grid, cls=cls), persistent=False)
        for vector, start in ((self.cls, 0.02), (self.position, position_std), (self.side, 0.02), (self.hole, 0.02)):
            if vector is not None:
                nn.init.normal_(vector, std=start)

    def forward(self, given: ImageInput) -> Stream:
        """(R, 3, H, W) pixels to a stream (R, 1 + g*g, D) of parts v_cls and v, or (R, g*g, D) of v alone; g*g is H/p * W/p for any shape.

        Raises:
            ValueError: the image is not `image_size` pixels square, or, of any shape, cannot be cut into patches; its mask is of another length.
        """
        pixels = pixels_of(given)
        rows, columns = self._grid_of(pixels)
        n = len(pixels)
        # A matrix product over cut patches: the same numbers as the convolution, and faster on a CPU.
        x = F.linear(cut_patches(self.normalise(pixels), self.patch), self.proj.weight.flatten(1), self.proj.bias)
        if given.hidden is not None:
            if self.hole is None:
                raise AssemblyError("reads an image with hidden patches, but has no vector to put in their place (vision.embed.hole=true)")
            x = torch.where(given.hidden[..., None], self.hole.to(x.dtype), x)
        parts: Parts = (("v", rows * columns),)
        if self.cls is not None:
            x, parts = torch.cat([self.cls.to(x.dtype).expand(n, -1, -1), x], 1), (("v_cls", 1), *parts)
        real = given.mask if self.any_shape and given.regions is None else None
        if real is not None and real.shape[1] != rows * columns:
            raise ValueError(f"images are {rows}x{columns} patches, but their mask speaks of {real.shape[1]}")
        if self.position is not None:
            x = x + self._positions(self.position, rows, columns, real)
        if self.norm is not None:
            x = self.norm(x)
        x = F.dropout(x, self.dropout, self.training)
        if self.side is not None:
            x = x + self.side
        mask = full_mask(n, x.shape[1], x.device)
        if real is not None:
            mask = torch.cat([real.new_ones(n, x.shape[1] - real.shape[1]), real], 1)
        square = rows == columns == self.grid
        places = self.places if square else grid_places(rows, columns, cls=self.cls is not None).to(x.device)
        return Stream(x, mask, parts, at=places.expand(n, -1, -1))

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = pixels.shape[-2:]
        if self.any_shape:
            if height % self.patch or width % self.patch:
                raise ValueError(f"images are {width}x{height} pixels; both sides have to be multiples of the patch, {self.patch}")
        elif (height, width) != (self.image_size, self.image_size):
            raise ValueError(f"images are {width}x{height} pixels, this encoder was built for {self.image_size}x{self.image_size}")
        return height // self.patch, width // self.patch

    def _positions(self, table: Tensor, rows: int, columns: int, real: Tensor | None) -> Tensor:
        """(1|R, L, D) the table as it is, or its grid stretched over the real patches of each image, with 0 at the others."""
        if real is None and rows == columns == self.grid:
            return table
        first, square = table[0].split([table.shape[1] - self.grid**2, self.grid**2])
        if real is None:
            high, wide = (torch.tensor([length]).to(table.device) for length in (rows, columns))
        else:
            frame = real.view(-1, rows, columns)
            high, wide = frame[:, :, 0].sum(1), frame[:, 0].sum(1)
        laid = stretch(square.view(self.grid, self.grid, -1), high, wide, rows=rows, columns=columns)
        return torch.cat([first.to(laid.dtype).expand(len(laid), -1, -1), laid.flatten(1, 2)], 1)


class WordEmbed(nn.Module):
    """Word, position and, where asked for, segment tables (BERT, GPT and CLIP differ by options only).

    Parameters: `word` (V, D), `position` (length, D), `segment` (segments, D), `cls` (1, 1, D), `norm` (D,), `side` (D,),
    `extra` (len(extra), D).

    Args:
        dim: D, the width.
        vocab: V, number of word ids.
        length: longest sequence in tokens.
        order: causal when each word reads only what stands before it; an input's own order comes first.
        segments: number of token types; 0 for none. Tokens of a text without segments are of type 0.
        norm: a norm after the sum (BERT).
        eps: of that norm.
        dropout: after the norm.
        positions: whether places are learned vectors; without, a trunk needs a position bias to know them.
        blank: whether padding is set to 0 (fairseq); nobody reads it, but its own rows come out otherwise.
        typed: whether a learned vector, the text's token type beside images, is added to every token behind the norm.
        std: of the word table at the start.
        position_std: of the position table at the start.
        padding: masked; or read, which fills every text up to `length` with the padding word and counts that as words (SigLIP),
            so that the last position is the same for all.
        words: the tokenizer, which knows the padding word and those of `extra`; needed for either.
        cls: last appends a class token `w_cls` behind the text, which in an ordered text reads all words and is read by none; its place is
            the last row of the position table, so texts are one token shorter. A text that comes with places of its own, such as a piece
            that is being decoded, gets none. last_shifted is as open_clip trained its CoCa weights: the class token reads the words and
            the first padding behind them, not itself.
        still: whether row 0 of every table stays as it started, whoever looks it up (tables made with padding_idx=0, as LXMERT was
            released: the place of the first word and the type 0 never learn). A head that is tied to the words still moves its row 0.
        extra: special tokens whose rows are a parameter of their own, so that they learn beside a frozen table (OpenFlamingo).
    """

    places: Tensor

    def __init__(
        self, dim: int, *, vocab: int, length: int, order: Literal["causal"] | None = None, segments: int = 0, norm: bool = True,
        eps: float = 1e-12, dropout: float = 0.0, positions: bool = True, blank: bool = False, typed: bool = False, std: float = 0.02,
        position_std: float = 0.02, padding: Literal["masked", "read"] = "masked", words: Words | None = None,
        cls: Literal["last", "last_shifted"] | None = None, still: bool = False, extra: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if cls is not None and padding == "read":
            raise ValueError("a class token cannot follow a text whose padding fills the whole position table")
        self.dim, self.length, self.causal, self.dropout, self.blank, self.still = dim, length, order == "causal", dropout, blank, still
        filled = padding == "read" or cls == "last_shifted"
        if filled and words is None:
            raise ValueError("padding is read, but no tokenizer says which word it is")
        self.pad = words.pad if filled and words is not None else None
        self.shifted = cls == "last_shifted"
        self.cls = None if cls is None else nn.Parameter(torch.empty(1, 1, dim))
        if extra and words is None:
            raise ValueError("extra names special tokens, but no tokenizer says which words they are")
        if strange := [name for name in extra if words is not None and name not in words.special]:
            raise ValueError(f"extra: the tokenizer has no special token {strange[0]!r}; add it with model.text.words.add=[{strange[0]}]")
        self.rows = [words.special[name] for name in extra] if words is not None else []
        self.extra = nn.Parameter(torch.empty(len(extra), dim).normal_(std=std)) if extra else None
        first = 0 if still else None
        self.word = nn.Embedding(vocab, dim, padding_idx=first)
        self.position = nn.Embedding(length, dim, padding_idx=first) if positions else None
        self.segment = nn.Embedding(segments, dim, padding_idx=first) if segments else None
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else None
        nn.init.normal_(self.word.weight, std=std)
        self.side = nn.Parameter(torch.empty(dim)) if typed else None
        self.register_buffer("places", torch.tensor([(i, 0) for i in range(length)])[None], persistent=False)
        if self.position is not None:
            nn.init.normal_(self.position.weight, std=position_std)
        if self.segment is not None:
            nn.init.normal_(self.segment.weight, std=0.02)
        if self.side is not None:
            nn.init.normal_(self.side, std=0.02)
        if self.cls is not None:
            nn.init.normal_(self.cls, std=0.01)

    def forward(self, given: TextInput) -> Stream:
        """(B, N) ids to a stream (B, N, D) of the part w; (B, length, D) where padding is read; with a class token, w_cls stands behind.

        Raises:
            ValueError: the text is longer than the position table, or has an order although its padding is read.
        """
        cls = self.cls if given.at is None else None
        if self.pad is not None and (cls is not None or not self.shifted):
            given = self._filled(given, self.pad)
        n, length = given.ids.shape
        x = self.word(given.ids)
        if self.extra is not None:
            for row, number in zip(self.extra, self.rows):
                x = torch.where((given.ids == number)[..., None], row, x)
        parts: Parts = (("w", length),) if cls is None else (("w", length), ("w_cls", 1))
        if given.at is None and length > self.length - (cls is not None):
            behind = ", whose last row is the class token's" if cls is not None else ""
            raise ValueError(f"texts of {length} tokens do not fit the position table of {self.length}{behind}")
        if cls is not None:
            x, given = torch.cat([x, cls.to(x.dtype).expand(n, -1, -1)], 1), self._with_cls(given)
        if self.position is not None:
            x = x + (self._rows(self._table(self.position), length, cls is not None) if given.at is None else self.position(given.at))
        if self.segment is not None:
            x = x + (self._table(self.segment)[0] if given.segment is None else self.segment(given.segment))
        if self.norm is not None:
            x = self.norm(x)
        x = F.dropout(x, self.dropout, self.training)
        if self.side is not None:
            x = x + self.side
        if self.blank:
            x = x * given.mask[..., None]
        places = self._rows(self.places[0], length, cls is not None)
        at = places.expand(n, -1, -1) if given.at is None else torch.stack([given.at, torch.zeros_like(given.at)], -1)
        order = given.order
        if order is None and self.causal:
            order = causal_order(n, x.shape[1], given.ids.device) if given.at is None else given.at + 1
        return Stream(x, given.mask, parts, order, at, given.group)

    @staticmethod
    def _rows(table: Tensor, length: int, cls: bool) -> Tensor:
        """The rows of a table (length, ...) that a text takes, and the last one for its class token."""
        return torch.cat([table[:length], table[-1:]]) if cls else table[:length]

    def _with_cls(self, given: TextInput) -> TextInput:
        """All that is known of the words, and of the class token behind them; the ids are only there to be counted."""
        mask = given.mask
        if self.shifted:
            mask = F.pad(mask, (1, 0), value=True)
        else:
            mask = full_mask(len(mask), mask.shape[1] + 1, mask.device) if is_full(mask) else F.pad(mask, (0, 1), value=True)
        order = None if given.order is None else torch.cat([given.order, given.order.amax(1, keepdim=True) + 1], 1)
        segment = None if given.segment is None else F.pad(given.segment, (0, 1))
        group = None if given.group is None else F.pad(given.group, (0, 1), value=-1)
        return TextInput(F.pad(given.ids, (0, 1)), mask, order, None, segment, group)

    def _table(self, table: nn.Embedding) -> Tensor:
        """A table whose rows are read without looking them up, as gradients see it."""
        return torch.cat([table.weight[:1].detach(), table.weight[1:]]) if self.still else table.weight

    def _filled(self, given: TextInput, pad: int) -> TextInput:
        if given.order is not None or given.at is not None:
            raise ValueError("reads an ordered text, but here padding is read as words, and every word reads every other")
        more = max(self.length - self.shifted - given.ids.shape[1], 0)
        ids = F.pad(torch.where(given.mask, given.ids, pad), (0, more), value=pad)
        return TextInput(ids, F.pad(given.mask, (0, more)) if self.shifted else full_mask(ids.shape[0], ids.shape[1], ids.device))
