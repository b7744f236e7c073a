"""Which number format to train in: bf16 where the hardware multiplies it, fp32 elsewhere, said in one line with the reason.
A CPU answers by its flags alone: a stopwatch would choose differently from run to run, and the numbers of a run with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch

from vlpkit.errors import ConfigError, did_you_mean
from vlpkit.fits import NO_FP16

log = logging.getLogger(__name__)

Precision = Literal["bf16-mixed", "32-true", "16-mixed"]
WORDS: dict[str, Precision] = {
    "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed", "fp32": "32-true", "32-true": "32-true", "32": "32-true", "fp16": "16-mixed", "16-mixed": "16-mixed",
}  # fmt: skip
_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 tiles, x86 vectors, Arm
_TILES = {"amx_bf16"}  # vector units take as long as fp32 in a training step; without units bf16 is some seventy times slower


def resolve_precision(word: str, *, cuda: bool | None = None) -> Precision:
    """Lightning's word for `trainer.precision`.

    Args:
        word: auto, bf16, fp32 or fp16.
        cuda: whether training runs on CUDA devices; None: whether there is one.

    Raises:
        ConfigError: an unknown word, or fp16 on a CPU.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    if word == "auto":
        chosen, why = _automatic(cuda)
        log.info("precision: %s, as %s", chosen, why)
        return chosen
    if word not in WORDS:
        raise ConfigError(f"trainer.precision: {word!r} is unknown (accepted: auto, bf16, fp32, fp16). {did_you_mean(word, WORDS)}".rstrip())
    chosen = WORDS[word]
    if chosen == "16-mixed" and not cuda:
        raise ConfigError(f"trainer.precision: {NO_FP16}")
    if chosen == "bf16-mixed":
        better, why = _automatic(cuda)
        if better != chosen:
            log.warning("precision: bf16 as asked, but %s; trainer.precision=auto takes fp32", why)
    return chosen


def _automatic(cuda: bool) -> tuple[Precision, str]:
    if cuda:
        major, minor = torch.cuda.get_device_capability()
        if major >= 8 and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}) multiplies bf16"
        return "32-true", f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}) does not multiply bf16"
    units = cpu_units()
    if units & _TILES:
        return "bf16-mixed", f"this CPU multiplies bf16 in tiles ({', '.join(sorted(units & _TILES))})"
    if units:
        return "32-true", f"the bf16 units of this CPU ({', '.join(sorted(units))}) are no faster than fp32 in training"
    return "32-true", "this CPU has no bf16 units"


def cpu_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """bf16 units that the first processor claims; none where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return _UNITS & set(flags.split())
