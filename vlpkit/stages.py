"""An experiment in stages: runs that follow one another, each from the weights of the one before (VLMo: Bao et al. 2021, section 3.4).
Each stage is a command line of its own, checked before the first one starts, in a folder of its own below the experiment's."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlpkit.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

_OWN = ("experiment", "stages", "run_dir", "resume", "weights")  # of the whole, not of a stage
_KEYS = ("always", "first", "later", "weights")
_BEFORE = "before"   # the stage that came just before, whichever it was


@dataclass(frozen=True)
class Stage:
    """One run of an experiment.

    Args:
        name: of the stage and of its folder.
        arguments: its command line, without the weights that it starts from.
        weights: folders of earlier runs by what is taken from them: addresses of parts and heads.
    """

    name: str
    arguments: tuple[str, ...]
    weights: Mapping[str, Path]

    def command(self) -> list[str]:
        """What train.py is given; a stage that is only shown has nothing to start from."""
        alone = not self.weights or "debug=check" in self.arguments
        return [*self.arguments, *([] if alone else [f"weights={{{', '.join(f'{address}: {folder}' for address, folder in self.weights.items())}}}"])]


def read_stages(stages: Mapping[str, Any], arguments: Sequence[str], *, run_dir: str | None) -> list[Stage]:
    """The runs of an experiment, in order; what the user typed comes after what a stage sets, and wins.

    Args:
        stages: `order`, names of stages, and for each of them lists of overrides: `always`, and `first` or `later` by its place in the order;
            and `weights`, which says what it takes (addresses) of which stage: `before`, the one just before it, or one by name, where that
            came earlier.
        arguments: the command line of the experiment.
        run_dir: folder of the experiment.

    Raises:
        ConfigError: a stage that is not there, a key that means nothing, or no folder.
    """
    known = [name for name in stages if name != "order"]
    order = list(stages.get("order") or known)
    if run_dir is None:
        raise ConfigError("run_dir: an experiment in stages keeps its runs together. Name the folder: run_dir=runs/NAME")
    common = [text for text in arguments if text.lstrip("+~").partition("=")[0].partition(".")[0] not in _OWN]
    made: list[Stage] = []
    for place, name in enumerate(order):
        if name not in known:
            raise ConfigError(f"stages.order[{place}]: there is no stage {name!r} (there are: {', '.join(known)}). {did_you_mean(str(name), known)}".rstrip())
        node = stages[name]
        for key in node:
            if key not in _KEYS:
                raise ConfigError(f"stages.{name}: no key {key!r} (there are: {', '.join(_KEYS)}). {did_you_mean(str(key), _KEYS)}".rstrip())
        own = [*(node.get("always") or ()), *(node.get("later" if made else "first") or ())]
        folder = Path(run_dir) / name
        taken = _taken(name, node.get("weights"), known, [stage.name for stage in made])
        made.append(Stage(name, (*own, *common, f"run_dir={folder}", "resume=auto"), {address: Path(run_dir) / stage for address, stage in taken.items()}))
    return made


def _taken(name: str, weights: Mapping[str, Sequence[str]] | None, known: Sequence[str], earlier: Sequence[str]) -> dict[str, str]:
    """Which stage each address of a later stage comes from."""
    if not earlier:
        return {}
    if not weights:
        raise ConfigError(f"stages.{name}.weights: it does not come first, so say what it takes of an earlier stage, such as {{{_BEFORE}: [vision, text]}}")
    taken: dict[str, str] = {}
    for source, addresses in weights.items():
        if source not in (_BEFORE, *known):
            raise ConfigError(f"stages.{name}.weights: there is no stage {source!r} (there are: {_BEFORE}, {', '.join(known)}). {did_you_mean(source, known)}".rstrip())
        stage = earlier[-1] if source == _BEFORE else source
        if stage not in earlier:
            log.info("stages.%s: %s of the stage %s starts fresh, since that does not run before it", name, ", ".join(addresses), source)
            continue
        for address in addresses:
            if address in taken:
                raise ConfigError(f"stages.{name}.weights: {address} is taken of {taken[address]} and of {stage}; name it once")
            taken[address] = stage
    return taken


def run_stages(stages: Sequence[Stage], *, ask: Callable[[Sequence[str]], object]) -> int:
    """Check every stage, then run them, each in a process of its own; a stage that is complete says so and ends at once.

    Args:
        stages: from `read_stages`.
        ask: refuses a command line that cannot be right.

    Returns:
        exit code: 0, or that of the stage that failed, behind which nothing runs.
    """
    for stage in stages:
        try:
            ask(stage.arguments)
        except ConfigError as error:
            raise ConfigError(f"In the stage {stage.name}:\n{error}") from error
    for number, stage in enumerate(stages, 1):
        sys.stderr.write(f"stage {number} of {len(stages)}: {stage.name}\n")
        done = subprocess.run([sys.executable, sys.argv[0], *stage.command()])
        if done.returncode:
            sys.stderr.write(f"stage {stage.name} ended with code {done.returncode}; the same command goes on with it\n")
            return done.returncode
    return 0
