"""The points of all images and all captions of the validation split, on every rank, in the order of the split.
Letters: R images, T texts, E shared space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlpkit import dist
from vlpkit.data.feed import EvalBatch
from vlpkit.data.module import DataModule
from vlpkit.errors import DataError
from vlpkit.evals.base import Subject, chunks, streams, words_of


@dataclass(frozen=True, eq=False)
class Gallery:
    """All that is to be ranked.

    Args:
        index: (R,) int64 sample numbers, ascending.
        v: (R, E) fp32 unit vectors, on the CPU.
        w: (T, E) fp32 unit vectors, on the CPU.
        owner: (T,) row of the image that each text belongs to, ascending.
        captions: T texts.
    """

    index: Tensor
    v: Tensor
    w: Tensor
    owner: Tensor
    captions: list[str]

    def rows(self, index: Tensor) -> Tensor:
        """(B,) rows of sample numbers."""
        return torch.searchsorted(self.index, index)


def batches(data: DataModule, *, batch: int, limit: int | None, captions: int | None = None) -> Iterator[EvalBatch]:
    """This rank's batches of the split: whole batches go to ranks, so that numbers do not depend on how many there are.

    Args:
        batch: samples of a batch.
        limit: the first so many samples only.
        captions: the first so many captions of each image only.
    """
    for found in data.eval_batches(batch=batch, rank=dist.rank() if dist.live() else 0, world=dist.world(), limit=limit):
        yield found if captions is None else replace(found, captions=[group[:captions] for group in found.captions])


def gather(
    module: Subject, data: DataModule, *, by: str, image: str, text: str, batch: int, limit: int | None, captions: int | None
) -> Gallery:
    """Encode every image once and every caption once, each rank its batches, and gather them by sample number.

    Raises:
        DataError: a sample came twice, or there is none.
    """
    words, width = words_of(data), int(module.assembly.model.part(by).dim)
    empty = torch.zeros(0, width, device=module.device)
    index, v, w = [torch.zeros(0, dtype=torch.int64)], [empty], [empty]
    owners, said = [torch.zeros(0, dtype=torch.int64)], list[str]()
    for found in batches(data, batch=batch, limit=limit, captions=captions):
        index.append(found.index)
        v.append(streams(module, images=found.images).point("v", image, by=by).float())
        texts = [caption for group in found.captions for caption in group]
        owners.append(torch.repeat_interleave(found.index, torch.tensor([len(group) for group in found.captions])))
        said += texts
        w += [streams(module, texts=words.encode(texts[part])).point("w", text, by=by).float() for part in chunks(len(texts), batch)]
    return _sorted(
        index=_everywhere(torch.cat(index), module.device), v=dist.gather(torch.cat(v)).cpu(), w=dist.gather(torch.cat(w)).cpu(),
        owners=_everywhere(torch.cat(owners), module.device), captions=[caption for part in dist.gather_object(said) for caption in part],
    )


def _everywhere(x: Tensor, device: torch.device) -> Tensor:
    """Rows of all ranks; they travel on the device, as not every backend carries CPU tensors."""
    return dist.gather(x.to(device)).cpu()


def _sorted(*, index: Tensor, v: Tensor, w: Tensor, owners: Tensor, captions: list[str]) -> Gallery:
    order, told = index.argsort(stable=True), owners.argsort(stable=True)
    index = index[order]
    if not len(index):
        raise DataError("data.val_shards: there is no usable sample to evaluate on")
    if bool((index[1:] == index[:-1]).any()):
        raise DataError("data.val_shards: a sample came twice; two ranks see different shards. Give all of them the same files.")
    return Gallery(index, v[order], w[told], torch.searchsorted(index, owners[told]), [captions[i] for i in told.tolist()])
