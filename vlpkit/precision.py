"""Which number format to train in: bf16 where the hardware multiplies it, fp32 elsewhere, said in one line with the reason.
A CPU may know bf16 and still emulate it, some seventy times slower, so a CPU is asked twice: its flags and a stopwatch."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

import torch

from vlpkit.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

Precision = Literal["bf16-mixed", "32-true", "16-mixed"]
WORDS: dict[str, Precision] = {
    "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed", "fp32": "32-true", "32-true": "32-true", "32": "32-true", "fp16": "16-mixed", "16-mixed": "16-mixed",
}  # fmt: skip
_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 tiles, x86 vectors, Arm
_SIDE, _PATIENCE = 512, 0.050  # of the probe: rows of a square matrix, seconds


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
        raise ConfigError("trainer.precision: fp16 needs a CUDA device, and there is none. Use trainer.precision=auto")
    if chosen == "bf16-mixed":
        better, why = _automatic(cuda)
        if better != chosen:
            log.warning("precision: bf16 as asked, but %s; trainer.precision=auto would take fp32", why)
    return chosen


def _automatic(cuda: bool) -> tuple[Precision, str]:
    if cuda:
        major, minor = torch.cuda.get_device_capability()
        if major >= 8 and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}) multiplies bf16"
        return "32-true", f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}) does not multiply bf16"
    units = cpu_units()
    if not units:
        return "32-true", "this CPU has no bf16 units"
    slow, fast = probe(torch.bfloat16), probe(torch.float32)
    if slow < _PATIENCE and slow <= fast:
        return "bf16-mixed", f"this CPU multiplies bf16 ({', '.join(sorted(units))}; probe {slow * 1e3:.1f} ms, fp32 {fast * 1e3:.1f} ms)"
    return "32-true", f"this CPU is slow at bf16 (probe {slow * 1e3:.1f} ms, fp32 {fast * 1e3:.1f} ms)"


def cpu_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """bf16 units that the first processor claims; none where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return _UNITS & set(flags.split())


def probe(dtype: torch.dtype) -> float:
    """Seconds of a 512 x 512 x 512 product on the CPU, the better of two after one that is not counted."""
    x = torch.ones(_SIDE, _SIDE, dtype=dtype)
    best = float("inf")
    for attempt in range(3):
        started = time.perf_counter()
        x @ x
        taken = time.perf_counter() - started
        if taken > 20 * _PATIENCE:
            return taken  # hopeless: do not spend more on it
        best = min(best, taken) if attempt else best
    return best
