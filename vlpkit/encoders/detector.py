"""A frozen detector that finds regions while a model trains: what KEY.regions.npz would hold, from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlpkit.data.regions import Detections, Found, pad
from vlpkit.errors import AssemblyError
from vlpkit.types import ImageInput

Name = Literal["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"]
FEATURE = 1024  # numbers that the box head of all of them gives
_PROPOSALS = 300  # of an image


class Detector(nn.Module):
    """Faster R-CNN of torchvision: its final boxes, and their features, classes and distributions pooled anew at these boxes. Always frozen.

    With random weights it finds boxes of nothing in particular: enough to try a recipe, and no more.

    Parameters: `net`, torchvision's model.

    Args:
        image_size: pixels of the short side that it looks at.
        size: F, numbers of a feature; 1024 here.
        classes: C, with the background; 91 of COCO.
        name: torchvision's builder.
        weights: a file of its weights; None: random ones.
        most, least, threshold: which regions count, as in `Detections`.
    """

    def __init__(
        self, *, image_size: int, size: int, classes: int = 91, name: Name = "fasterrcnn_resnet50_fpn", weights: str | None = None, most: int = 36,
        least: int = 10, threshold: float = 0.2,
    ) -> None:
        super().__init__()
        if size != FEATURE:
            raise ValueError(f"size is {size}, but a region of this detector has {FEATURE} numbers. Set size.feature={FEATURE} size.classes={classes}")
        self.rule = Detections(size=size, most=most, least=least, threshold=threshold, targets=["class", "confidence", "soft"], classes=classes)
        self.image_size = image_size
        self.net = _built(name, classes=classes, image_size=image_size, most=most)
        if weights is not None and not next(self.net.parameters()).is_meta:
            self._fill(weights)
        self.requires_grad_(False)
        self.eval()

    def _fill(self, weights: str) -> None:
        from vlpkit.source import read

        try:
            self.net.load_state_dict(dict(read(Path(weights)).tensors))
        except RuntimeError as error:  # torch lists every key that is missing or not known
            raise ValueError(f"weights={weights}: {str(error).splitlines()[0]}") from error

    def train(self, mode: bool = True) -> Detector:
        """It never trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, given: ImageInput) -> tuple[ImageInput, Mapping[str, Tensor]]:
        """R images with their regions (R, M, F), boxes and mask, and the targets region_class, region_confidence and region_soft.

        Raises:
            AssemblyError: the images have no pixels.
        """
        if given.pixels is None:
            raise AssemblyError("model.detector looks at pixels, but these images have none")
        if given.pixels.is_meta:
            with torch.device("meta"):
                image, targets = self.rule.blank(len(given))
        else:
            pixels = given.pixels.to(torch.float32, memory_format=torch.contiguous_format)
            pixels = pixels / 255 if given.pixels.dtype == torch.uint8 else pixels
            with torch.autocast(pixels.device.type, enabled=False):
                image, targets = pad(self._found(pixels))
        return replace(given, regions=image.regions, boxes=image.boxes, mask=image.mask), targets

    def _found(self, pixels: Tensor) -> list[Found]:
        images, _ = self.net.transform(list(pixels))
        levels = self.net.backbone(images.tensors)
        proposals, _ = self.net.rpn(images, levels)
        heads = self.net.roi_heads
        kept = [self._kept(one, size) for one, size in zip(heads(levels, proposals, images.image_sizes)[0], images.image_sizes)]
        features = heads.box_head(heads.box_roi_pool(levels, [boxes for boxes, _, _ in kept], images.image_sizes))
        soft = heads.box_predictor(features)[0].softmax(-1)
        counts = [len(boxes) for boxes, _, _ in kept]
        found = []
        for (boxes, labels, scores), f, chances, (height, width) in zip(kept, features.split(counts), soft.split(counts), images.image_sizes):
            edges = boxes.new_tensor([width, height, width, height])
            targets = {"region_class": labels, "region_confidence": scores, "region_soft": chances}
            found.append(Found(f, (boxes / edges).clamp(0, 1), targets))
        return found

    def _kept(self, one: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes in pixels, classes and confidences of the regions that count, the surest first; the whole image where there is none at all."""
        boxes, labels, scores = one["boxes"], one["labels"], one["scores"]
        if not len(boxes):
            height, width = size
            return boxes.new_tensor([[0, 0, width, height]]), labels.new_zeros(1), scores.new_zeros(1)
        order = scores.argsort(descending=True, stable=True)
        count = min(max(int((scores >= self.rule.threshold).sum()), self.rule.least, 1), self.rule.most)
        chosen = order[:count]
        return boxes[chosen], labels[chosen], scores[chosen]


def _built(name: Name, *, classes: int, image_size: int, most: int) -> Any:
    from torchvision.models import detection

    builder = getattr(detection, name)
    return builder(
        weights=None, weights_backbone=None, num_classes=classes, min_size=image_size, max_size=2 * image_size, rpn_post_nms_top_n_test=_PROPOSALS,
        box_score_thresh=0.0, box_detections_per_img=most,
    )  # fmt: skip
