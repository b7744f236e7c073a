"""timm backbones as embeds: any of them, a class token (its own, or the mean of its cells) first, then the cells; or the first blocks alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from vlpkit.errors import AssemblyError, WeightsError
from vlpkit.layers.embed import CLIP_MEAN, CLIP_STD, Normalise, grid_places, pixels_of
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


class ConvStem(nn.Module):
    """The first blocks of a convolutional backbone, down to cells of one patch, projected, with learned positions and no class token.

    Parameters: `net`, `proj` (D, C), `position` (1, g*g, D).

    Args:
        dim: D, the width.
        name: timm model name, such as resnet101; trained from scratch.
        image_size: side in pixels; a multiple of `patch`.
        patch: pixels between cells; the deepest stage of the backbone with that stride is the last one built.
        position_std: of the position table at the start.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].

    Raises:
        AssemblyError: the backbone has no stage with that stride.
    """

    places: Tensor

    def __init__(
        self, dim: int, *, name: str, image_size: int, patch: int, position_std: float = 0.02, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
    ) -> None:
        super().__init__()
        whole: Any = timm.create_model(name, pretrained=False, features_only=True)
        strides: list[int] = whole.feature_info.reduction()
        if patch not in strides:
            raise AssemblyError(f"{name!r} has stages with strides {', '.join(map(str, strides))}, but cells of {patch} pixels are wanted (size.patch)")
        stage = len(strides) - 1 - strides[::-1].index(patch)
        self.net: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=(stage,))
        self.dim, grid = dim, image_size // patch
        self.proj = nn.Linear(self.net.feature_info.channels()[-1], dim)
        self.position = nn.Parameter(torch.empty(1, grid * grid, dim).normal_(std=position_std))
        self.normalise = Normalise(mean, std)
        self.register_buffer("places", grid_places(grid, grid, cls=False), persistent=False)
        nn.init.normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, given: ImageInput) -> Stream:
        """(R, 3, H, W) pixels to a stream (R, g*g, D) of the part v."""
        y: Tensor = self.net(self.normalise(pixels_of(given)))[-1]
        x = self.proj(y.flatten(2).transpose(1, 2)) + self.position
        return Stream(x, full_mask(len(x), x.shape[1], x.device), (("v", x.shape[1]),), at=self.places.expand(len(x), -1, -1))
