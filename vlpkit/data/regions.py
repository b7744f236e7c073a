"""What a detector found in an image, as KEY.regions.npz keeps it: which regions count, and the features, boxes and targets made of them.
Letters: M regions, F numbers of a feature, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlpkit.data.arrays import MAX_REGIONS, MEMBER, Archive, boxes_of, fractions, shape_of
from vlpkit.data.decode import Refused
from vlpkit.types import IGNORE, ImageInput

Target = Literal["class", "confidence", "soft", "attribute", "attribute_confidence"]
# The array each target is made of, its dimensions, and the kinds of numbers that are understood.
_STORED: Mapping[str, tuple[str, int, str]] = {
    "class": ("classes", 1, "iu"), "confidence": ("confidences", 1, "f"), "soft": ("soft", 2, "f"),
    "attribute": ("attributes", 1, "iu"), "attribute_confidence": ("attribute_confidences", 1, "f"),
}  # fmt: skip


class Found(NamedTuple):
    """The regions of one image, the surest first."""

    features: Tensor  # (M, F) fp16
    boxes: Tensor  # (M, 4) fp32 corners as fractions of the image, in [0, 1]
    targets: Mapping[str, Tensor]  # by name in a batch, such as region_class: (M,) or (M, C)


class Detections:
    """Which regions of an image count, and what is read of them.

    A KEY.regions.npz holds `boxes` (M, 4) corners x1, y1, x2, y2 in pixels, `features` (M, F), and any of `confidences` (M,), `classes` (M,),
    `soft` (M, C) distributions over classes, `attributes` (M,), `attribute_confidences` (M,); the size of the image in pixels is its member
    `size` (width, height), or `width` and `height` of KEY.json. Of `soft` with a background in column 0, classes are derived where there are none.

    Args:
        size: F, numbers of one feature.
        most: regions of an image that are kept, the surest ones.
        least: regions that are kept, if there are so many, however unsure they are.
        threshold: confidence below which a region is left out, but for `least`.
        targets: what becomes a target: class, confidence, soft, attribute, attribute_confidence.
        classes: C, classes with the background; needed for the targets class and soft.
        attributes: number of attributes, none included; needed for the target attribute.
    """

    def __init__(
        self, *, size: int, most: int = 36, least: int = 10, threshold: float = 0.2, targets: Sequence[Target] = (), classes: int | None = None,
        attributes: int | None = None,
    ) -> None:
        if size < 1 or not 1 <= most <= MAX_REGIONS:
            raise ValueError(f"size={size} must be at least 1, and most={most} between 1 and {MAX_REGIONS}")
        if not 0 <= least <= most:
            raise ValueError(f"least is {least}; it must be at least 0 and at most most={most}")
        if wrong := [name for name in targets if name not in get_args(Target)]:
            raise ValueError(f"targets name {wrong[0]!r} (there are: {', '.join(get_args(Target))})")
        if classes is None and {"class", "soft"} & set(targets):
            raise ValueError("the targets class and soft need classes, the number of classes with the background")
        if attributes is None and "attribute" in targets:
            raise ValueError("the target attribute needs attributes, their number")
        self.size, self.most, self.least, self.threshold = size, most, least, threshold
        self.targets: tuple[Target, ...] = tuple(targets)
        self.classes, self.attributes = classes, attributes

    def __call__(self, payload: bytes | None, record: Mapping[str, Any]) -> Found:
        """The regions of one image; of its archive only what is asked for is unpacked.

        Raises:
            Refused: missing_regions, too_many_bytes, broken_regions (no readable archive), bad_regions (arrays that do not fit each other or
                what the recipe reads) or no_regions.
        """
        if payload is None:
            raise Refused("missing_regions", f"no KEY.{MEMBER}")
        stored = Archive(payload)
        boxes = boxes_of(stored)
        many = len(boxes)
        features = stored.array("features", 2, "f", many)
        if features.shape[1] != self.size:
            raise Refused("bad_regions", f"features of {features.shape[1]} numbers, where the recipe reads {self.size} (data.regions.size)")
        kept = self._kept(stored, many)
        if not len(kept):
            raise Refused("no_regions", f"none of {many} reaches a confidence of {self.threshold:g}")
        shape = shape_of(stored, record)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            found = features[kept].astype(np.float16)
        if not np.isfinite(found).all():
            raise Refused("bad_regions", "a feature is not finite, or too large for 16 bits")
        return Found(torch.from_numpy(found), torch.from_numpy(fractions(boxes[kept], shape)), {f"region_{name}": self._target(name, stored, many, kept) for name in self.targets})

    def blank(self, rows: int) -> tuple[ImageInput, dict[str, Tensor]]:
        """R images and their targets as a batch has them, all zeros."""
        zeros = torch.zeros(rows, self.most)
        image = ImageInput(
            regions=torch.zeros(rows, self.most, self.size), boxes=torch.zeros(rows, self.most, 4), mask=torch.ones(rows, self.most, dtype=torch.bool),
        )  # fmt: skip
        made = {"class": zeros.long(), "attribute": zeros.long(), "soft": torch.zeros(rows, self.most, self.classes or 1)}
        return image, {f"region_{name}": made.get(name, zeros) for name in self.targets}

    def _kept(self, stored: Archive, many: int) -> NDArray[np.int64]:
        """Rows of the regions that count; without confidences the first ones are the surest."""
        if "confidences" not in stored:
            return np.arange(min(many, self.most))
        confidence = stored.array("confidences", 1, "f", many).astype(np.float64)
        if not np.isfinite(confidence).all():
            raise Refused("bad_regions", "a confidence is not finite")
        order = np.argsort(-confidence, kind="stable")
        sure = int((confidence >= self.threshold).sum())
        return order[: min(max(sure, self.least), self.most)]

    def _target(self, name: Target, stored: Archive, many: int, kept: NDArray[np.int64]) -> Tensor:
        key, ndim, kinds = _STORED[name]
        if name == "class" and key not in stored and "soft" in stored:
            soft = self._soft(stored, many)
            return torch.from_numpy(1 + soft[kept, 1:].argmax(-1).astype(np.int64))
        if name == "soft":
            return torch.from_numpy(self._soft(stored, many)[kept].astype(np.float32))
        array = stored.array(key, ndim, kinds, many)[kept]
        if kinds == "f":
            values = array.astype(np.float32)
            if not np.isfinite(values).all():
                raise Refused("bad_regions", f"{key} are not all finite")
            return torch.from_numpy(values)
        limit = self.classes if name == "class" else self.attributes
        assert limit is not None
        ids = array.astype(np.int64)
        if ids.min() < 0 or ids.max() >= limit:
            raise Refused("bad_regions", f"{key} reach from {ids.min()} to {ids.max()}, where the recipe knows 0 to {limit - 1} (data.regions.{key})")
        return torch.from_numpy(ids)

    def _soft(self, stored: Archive, many: int) -> NDArray[Any]:
        soft = stored.array("soft", 2, "f", many)
        if soft.shape[1] != self.classes:
            raise Refused("bad_regions", f"soft has {soft.shape[1]} classes, where the recipe knows {self.classes} (data.regions.classes)")
        if not np.isfinite(soft).all():
            raise Refused("bad_regions", "soft is not all finite")
        return soft


def pad(found: Sequence[Found]) -> tuple[ImageInput, dict[str, Tensor]]:
    """R images padded to the most regions of any: regions, boxes and mask, and their targets.

    Added regions are zeros; their class and attribute is IGNORE, so that no loss counts them.
    """
    rows, most = len(found), max(len(one.features) for one in found)

    def laid(tensors: Sequence[Tensor], missing: float) -> Tensor:
        first = tensors[0]
        out = torch.full((rows, most, *first.shape[1:]), missing, dtype=first.dtype)
        for row, t in enumerate(tensors):
            out[row, : len(t)] = t
        return out

    mask = torch.arange(most) < torch.tensor([len(one.features) for one in found])[:, None]
    image = ImageInput(regions=laid([one.features for one in found], 0), boxes=laid([one.boxes for one in found], 0), mask=mask)
    names = found[0].targets
    return image, {name: laid(ts := [one.targets[name] for one in found], 0 if ts[0].is_floating_point() else IGNORE) for name in names}
