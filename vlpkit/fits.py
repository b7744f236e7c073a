"""Rules about sizes that need no torch: constructors apply them, and the command line does so before it imports anything slow."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlpkit.errors import ConfigError

NO_CUDA = "cuda, but no CUDA device is visible. Use trainer.accelerator=auto, or check the driver"
NO_FP16 = "fp16 needs a CUDA device, and there is none. Use trainer.precision=auto"


def split_heads(dim: int, heads: int) -> None:
    """D divides into heads of equal width. Raises ValueError."""
    if heads < 1 or dim % heads:
        raise ValueError(f"width {dim} does not divide into {heads} heads")


def tile(image_size: int, patch: int) -> None:
    """The side of an image is a whole number of patches. Raises ValueError."""
    if patch < 1 or image_size % patch:
        raise ValueError(f"image_size {image_size} is no multiple of patch {patch}")


def meet(v: int, w: int) -> None:
    """Both sides project into a space of one width E. Raises ValueError."""
    if v != w:
        raise ValueError(f"the sides project to {v} and {w} numbers; the shared space has one width")


def misfits(model: Mapping[str, Any]) -> list[str]:
    """One line for each block of a model whose sizes, as far as they are written there, break one of the rules."""
    return list(_misfits(model, "model"))


def demand_cuda(trainer: Mapping[str, Any], *, there: Callable[[], bool]) -> None:
    """Refuses settings of a trainer that need a CUDA device where there is none, before any data is opened.

    Args:
        trainer: its block of the configuration.
        there: whether a device may be there; asked only when it matters.

    Raises:
        ConfigError: naming the setting.
    """
    if trainer["accelerator"] == "cuda" and not there():
        raise ConfigError(f"trainer.accelerator: {NO_CUDA}")
    if trainer["precision"] == "fp16" and (trainer["accelerator"] == "cpu" or not there()):
        raise ConfigError(f"trainer.precision: {NO_FP16}")


def surely_no_cuda() -> bool:
    """True where no driver of any GPU that torch calls CUDA is installed; False says nothing."""
    if Path("/dev/kfd").exists():
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return not Path("/dev/nvidiactl").exists()
    return False


def _misfits(node: Mapping[str, Any], place: str) -> Iterator[str]:
    for rule, name, sizes, where in _rules(node, place):
        if all(isinstance(size, int) for size in sizes):
            try:
                rule(*sizes)
            except ValueError as error:
                yield f"{where}: {name} refused this: {error}"
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _misfits(value, f"{place}.{key}")


def _rules(node: Mapping[str, Any], place: str) -> Iterator[tuple[Callable[..., None], str, tuple[Any, ...], str]]:
    def under(key: str) -> Mapping[str, Any]:
        return value if isinstance(value := node.get(key), Mapping) else {}

    match node.get("_target_"):
        case "vlpkit.layers.embed.PatchEmbed":
            yield tile, "PatchEmbed", (node.get("image_size"), node.get("patch")), place
        case "vlpkit.align.Align":
            yield meet, "Align", (under("v").get("out"), under("w").get("out")), place
        case "vlpkit.encoders.encoder.Encoder" if under("trunk").get("_target_") == "vlpkit.layers.trunk.Trunk":
            yield split_heads, "Trunk", (under("embed").get("dim"), under("trunk").get("heads")), f"{place}.trunk"
