"""Any timm backbone as an embed: a class token (its own, or the mean of its cells) first, then the cells."""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from vlpkit.errors import WeightsError
from vlpkit.layers.embed import Normalise, pixels_of
from vlpkit.types import ImageInput, Stream, full_mask


class TimmBackbone(nn.Module):
    """A timm model behind the embed contract.

    Args:
        name: timm model name, such as resnet50 or swin_tiny_patch4_window7_224.
        image_size: side in pixels, handed to models whose shape depends on it.
        pretrained: False for random weights, True for the weights timm names, or the path of a local checkpoint.
        drop_path: stochastic depth rate of the backbone.
        last: head reads what the classifier would read; stage reads the cells of the last stage, before the 1x1 convolution that
            EfficientNet's classifier begins with (ALIGN).

    Raises:
        WeightsError: the pre-trained weights cannot be had.
    """

    def __init__(self, name: str, *, image_size: int, pretrained: bool | str = False, drop_path: float = 0.0, last: Literal["head", "stage"] = "head") -> None:
        super().__init__()
        options: dict[str, object] = {"drop_path_rate": drop_path}
        options |= {"num_classes": 0} if last == "head" else {"features_only": True, "out_indices": (-1,)}
        if isinstance(pretrained, str):
            options["pretrained_cfg_overlay"] = {"file": pretrained}
        try:
            # timm initialises on the CPU whatever the default device, so meta assembly builds without weights first.
            self.net = self._create(name, image_size, bool(pretrained) and torch.get_default_device().type != "meta", options)
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise WeightsError(
                f"model.vision.embed.pretrained: the weights of {name!r} cannot be had ({error}).\n"
                "  Give a local file (model.vision.embed.pretrained=/path/to/weights) or start from random ones (pretrained=false)."
            ) from error
        statistics: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        self.last = last
        self.dim: int = self.net.num_features if last == "head" else self.net.feature_info.channels()[-1]  # type: ignore[assignment,union-attr,operator]
        self.normalise = Normalise(statistics["mean"], statistics["std"])
        self.cls = int(getattr(self.net, "num_prefix_tokens", 0))
        # BEiT and its kin norm behind the mean of the cells; as a stream of tokens needs a closing norm, theirs is put on each token.
        norm = getattr(self.net, "fc_norm", None)
        self.closing = norm if last == "head" and isinstance(norm, nn.LayerNorm) else None
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"

    @staticmethod
    def _create(name: str, image_size: int, pretrained: bool, options: dict[str, object]) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=pretrained, img_size=image_size, **options)
        except TypeError:  # convolutional models take any size
            return timm.create_model(name, pretrained=pretrained, **options)

    def forward(self, given: ImageInput) -> Stream:
        """(R, 3, H, W) pixels to a stream (R, 1 + cells, D) of parts v_cls and v."""
        pixels = self.normalise(pixels_of(given))
        y: Tensor = self.net.forward_features(pixels) if self.last == "head" else self.net(pixels)[-1]  # type: ignore[operator]
        if y.ndim == 4:
            y = y.flatten(1, 2) if self.channels_last else y.flatten(2).transpose(1, 2)
        if self.closing is not None:
            y = self.closing(y)
        cells = y[:, self.cls :]
        first = y[:, :1] if self.cls else cells.mean(1, keepdim=True)
        x = torch.cat([first, cells], 1)
        return Stream(x, full_mask(len(x), x.shape[1], x.device), (("v_cls", 1), ("v", cells.shape[1])))
