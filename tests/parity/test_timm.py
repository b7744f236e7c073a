"""Backbones that timm builds, behind our contract: the cells in order, what stands first, normalised pixels, and gradients."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.parity.beside import CLOSE, CLOSE_GRAD, apart, batch, ours, probe, shake
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput

SMALL = {   # option of ours, a model of its family that is small, and whether a class token of its own stands first
    "swin": ("swin_tiny_patch4_window7_224", False), "resnet50": ("resnet26", False), "efficientnet": ("efficientnet_b0", False),
    "deit": ("deit_tiny_patch16_224", True), "beit": ("beit_base_patch16_224", True),
}  # fmt: skip


def pictures() -> Batch:
    """64 pixels a side: Swin halves its grid four times."""
    clean = batch()
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return Batch({"clean": ImageInput(pixels)}, clean.texts, {}, clean.pair_id)


def cells(net: nn.Module, pixels: Tensor) -> Tensor:
    """(R, L, D) what timm's own forward_features gives, as a row of tokens; BEiT's closing norm stands in its head."""
    y: Tensor = net.forward_features(pixels)  # type: ignore[operator]
    if y.ndim == 4:
        y = y.reshape(len(y), -1, y.shape[-1]) if getattr(net, "output_fmt", "NCHW") == "NHWC" else y.permute(0, 2, 3, 1).reshape(len(y), -1, y.shape[1])  # type: ignore[operator]
    return net.fc_norm(y) if isinstance(getattr(net, "fc_norm", None), nn.LayerNorm) else y  # type: ignore[operator]


@pytest.mark.parametrize("option", SMALL)
def test_a_backbone_gives_what_timm_gives(option: str) -> None:
    name, first = SMALL[option]
    made = ours("model=clip", f"vision={option}", f"model.vision.embed.name={name}", "size.image=64")
    takes_size = option in ("swin", "deit", "beit")
    theirs = timm.create_model(name, num_classes=0, **({"img_size": 64} if takes_size else {})).eval()
    shake(theirs)
    net = made.model.part("vision").embed.net.eval()
    net.load_state_dict(theirs.state_dict())
    given = pictures()
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = cells(theirs, (given.images["clean"].pixels - mean) / std)
    v = Streams(made.model, given).v()
    assert v.parts == (("v_cls", 1), ("v", expected.shape[1] - first))
    assert apart(v.part("v").x, expected[:, int(first) :]) < CLOSE
    assert apart(v.part("v_cls").x, expected[:, :1] if first else expected.mean(1, keepdim=True)) < CLOSE
    probe(v.part("v").x).backward()
    probe(expected[:, int(first) :]).backward()
    other = dict(theirs.named_parameters())
    compared = {name: (p.grad, other[name].grad) for name, p in net.named_parameters() if p.grad is not None}
    assert len(compared) > 30
    assert [name for name, (_, b) in compared.items() if b is None] == []
    # what has no gradient but noise, such as the bias of attention keys, has no relative difference
    assert {name: d for name, (a, b) in compared.items() if b.abs().max() > 1e-6 and (d := apart(a, b)) > CLOSE_GRAD} == {}
