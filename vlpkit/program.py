"""What a command line asks for, as far as it can be told without torch: checked settings, the run folder, what to resume."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlpkit.check import settle
from vlpkit.data.pairsets import fill_mix, read_mix
from vlpkit.data.shardlist import expand
from vlpkit.data.wishes import read_wishes
from vlpkit.durations import parse
from vlpkit.errors import ConfigError, did_you_mean, several
from vlpkit.fits import demand_cuda, misfits, surely_no_cuda
from vlpkit.names import astray, disordered, unbuilt, undrawn, unknown, unread, unsourced
from vlpkit.runfolder import Run, open_run

log = logging.getLogger(__name__)

_WEIGHTS = "a run folder, a folder of weights, or a .safetensors, .pt, .pth, .bin or .ckpt file"


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
    def weights(self) -> Any:
        """What the model starts from; None when it goes on from a checkpoint, or from random weights."""
        return self.settings["weights"] if self.run.checkpoint is None else None

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
    cfg = copy.deepcopy(cfg)
    fill_mix(cfg, conf=conf)
    settings, dropped = settle(cfg, conf=conf)
    if wrong := [*unbuilt(settings), *unsourced(settings), *unread(settings), *undrawn(settings, conf=conf), *disordered(settings), *astray(settings), *unknown(settings), *misfits(settings["model"])]:
        raise ConfigError(several(wrong))
    parse(settings["total"], place="total")
    trainer, data = settings["trainer"], settings["data"]
    demand_cuda(trainer, there=lambda: not surely_no_cuda())
    if settings["resume"] is None:
        _weights_exist(settings)
    _divide(data["batch"], devices=trainer["devices"], nodes=trainer["num_nodes"], micro=trainer["micro_batch"])
    wishes = read_wishes(data.get("sources")).values()
    for wish in wishes:
        wish.batch(data["batch"])
    sets = read_mix(data.get("mix"), name=data["name"], shards=data.get("shards"), root=data.get("root", ""), limit=data.get("limit"), safe=data.get("safe") or {})
    if "world" not in data:
        for one in sets.values():
            expand(one.shards, one.root, key=one.key, root_key=one.place("root"))
        if data.get("val_shards"):
            expand(data["val_shards"], data["root"], key="data.val_shards")
        for wish in wishes:
            if wish.shards is not None:
                expand(wish.shards, data["root"], key=f"{wish.key}.shards")
    return settings, dropped


def _weights_exist(settings: Mapping[str, Any]) -> None:
    """What `weights` names is there; a run that is continued never looks. Raises ConfigError."""
    weights, parts = settings["weights"], [*(key for key, node in settings["model"].items() if isinstance(node, Mapping)), "heads"]
    if weights is None:
        return
    if not isinstance(weights, str | Mapping) or (isinstance(weights, Mapping) and not all(isinstance(file, str) for file in weights.values())):
        raise ConfigError(f"weights: found {weights!r} (accepted: {_WEIGHTS}, or one for an address: 'weights={{vision: FILE, heads.itm: FILE}}')")
    for address, file in weights.items() if isinstance(weights, Mapping) else [(None, weights)]:
        part = str(address).partition(".")[0]
        if address is not None and part.isidentifier() and part not in parts:   # what lies below is looked for when the model is built
            raise ConfigError(f"weights.{address}: {settings['name']!r} has no such part (it has: {', '.join(parts)}). {did_you_mean(part, parts)}".rstrip())
        if not Path(file).exists():
            raise ConfigError(f"weights{'' if address is None else f'.{address}'}: there is no {file} (accepted: {_WEIGHTS})")


def _divide(batch: int, *, devices: Any, nodes: int, micro: int | None) -> None:
    from vlpkit.data.share import divide

    # How many devices `auto` will find is not known yet; what one cannot divide, no number of them can.
    world = int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else (devices * nodes if isinstance(devices, int) else 1)
    if world > 0:
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
    if run.checkpoint is None:
        _weights_exist(settings)
    return Job(settings, tuple(dropped), run)
