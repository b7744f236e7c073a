"""The typed frame around the parts: which keys stand at the top of a config, and what they hold.
What lies inside a block is checked against the signature of the part it names (check.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Root:
    """Every key at the top of a config. Blocks are open here; a misspelt name at this level is refused while composing.

    Args:
        name: of the recipe.
        model: the parts, `ties` and `freeze`.
        size: numbers that parts share, such as depth and heads.
        draws: what is drawn once a step, by name.
        objectives: losses, by name.
        teacher: momentum copy; null for none.
        plan: which objectives at which step; null for all, always.
        data: where samples come from, and the global batch.
        optim: optimiser, groups and schedule.
        trainer: devices, precision, validation, checkpoints.
        logger: trackers, by name.
        evals: evaluators, by name.
        paths: root folders.
        debug: what to cut short; null for nothing.
        total: length of the run, such as 300_steps, 2M_samples or 32_epochs.
        seed: of everything random.
        run_dir: run folder; null makes a new one.
        resume: auto, or a checkpoint or run folder; null starts afresh.
        weights: a file or folder of weights to start from, or one for an address: {vision: FILE, heads.itm: FILE}.
        stages: of an experiment that is several runs, one after another; null: one run.
        plugins: modules of one's own that `_target_` may name.
    """

    name: str = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] | None = None
    evals: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, Any] = field(default_factory=dict)
    debug: dict[str, Any] | None = None
    total: str = MISSING
    seed: int = 0
    run_dir: str | None = None
    resume: str | None = None
    weights: Any = None
    stages: dict[str, Any] | None = None
    plugins: list[str] = field(default_factory=list)


def register() -> None:
    """Make the frame known to Hydra as `schema: root`; calling it twice does no harm."""
    ConfigStore.instance().store(group="schema", name="root", node=Root, package="_global_", provider="vlpkit")
