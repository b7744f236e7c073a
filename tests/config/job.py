"""A program of two lines behind the front door, run by the tests as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlpkit.check import settle
from vlpkit.compose import run_hydra
from vlpkit.errors import DataError

CONF = Path(__file__).parent / "conf"


def job(cfg: DictConfig) -> None:
    """Say what arrived; fail when asked to."""
    plain, dropped = settle(cfg, conf=CONF)
    if plain["weights"] == "refuse":
        raise DataError("weights: this run was asked to refuse.")
    if plain["weights"] == "crash":
        raise RuntimeError("a bug")
    sys.stdout.write(f"{plain['name']} seed={plain['seed']} run_dir={plain['run_dir']} dropped={dropped} torch={'torch' in sys.modules}\n")


if __name__ == "__main__":
    sys.exit(run_hydra(job, conf=CONF, check=lambda cfg: settle(cfg, conf=CONF)))
