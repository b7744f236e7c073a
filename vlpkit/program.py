"""What a command line asks for, as far as it can be told without torch: checked settings, the run folder, what to resume."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlpkit.check import settle
from vlpkit.data.shardlist import expand
from vlpkit.durations import parse
from vlpkit.errors import ConfigError
from vlpkit.runfolder import Run, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run to be.

    Args:
        settings: the configuration as plain containers, every signature checked.
        dropped: blocks of the recipe whose option was not chosen.
        run: folder, and the checkpoint to go on from.
    """

    settings: Mapping[str, Any]
    dropped: tuple[str, ...]
    run: Run

    @property
    def only_check(self) -> bool:
        """Whether to stop behind the card."""
        return (self.settings["debug"] or {}).get("stop") == "check"


def check(cfg: DictConfig, *, conf: Path) -> tuple[dict[str, Any], list[str]]:
    """The gates that need no torch: signatures, durations, a batch that divides, shards that exist.

    Returns:
        The settings as plain containers, and the blocks that were dropped.

    Raises:
        ConfigError, DataError: with every mistake that can be told so far.
    """
    settings, dropped = settle(cfg, conf=conf)
    parse(settings["total"], place="total")
    trainer, data = settings["trainer"], settings["data"]
    _divide(data["batch"], devices=trainer["devices"], nodes=trainer["num_nodes"], micro=trainer["micro_batch"])
    if "world" not in data:
        for key in ("shards", "val_shards"):
            if data.get(key) or key == "shards":
                expand(data.get(key), data["root"], key=f"data.{key}")
    return settings, dropped


def _divide(batch: int, *, devices: Any, nodes: int, micro: int | None) -> None:
    from vlpkit.data.share import divide

    world = int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else (devices * nodes if isinstance(devices, int) else None)
    if world is not None and world > 0:
        divide(batch, world=world, micro=micro)


def open_job(cfg: DictConfig, *, conf: Path) -> Job:
    """Everything before torch: the settings, the run folder and what to resume. Sets up logging.

    Raises:
        VlpError: see `check` and `open_run`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "fsspec", "PIL", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings, dropped = check(cfg, conf=conf)
    run_dir, resume = settings["run_dir"], settings["resume"]
    if (settings["debug"] or {}).get("stop") == "check":
        return Job(settings, tuple(dropped), Run(Path(run_dir or "."), None, 0))
    name = f"{settings['name']}_{settings['data']['name']}"
    run = open_run(run_dir, name=name, resume=resume, config=settings, runs=settings["paths"]["runs"])
    if settings["weights"] is not None and not Path(settings["weights"]).exists():
        raise ConfigError(f"weights: there is no {settings['weights']} (accepted: a run folder or a checkpoint file of a run)")
    return Job(settings, tuple(dropped), run)
