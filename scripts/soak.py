#!/usr/bin/env python
"""The goals that take minutes: one JSON line each, with its threshold and whether it was met; exit code 1 when one was not.

    python scripts/soak.py                  # all of them
    python scripts/soak.py fuzz --mutations 200
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vlpkit.bench.made import TALK, photographs
from vlpkit.bench.rates import Task, pipeline, plain, rates
from vlpkit.compose import run_hydra
from vlpkit.data.fuzz import fuzz
from vlpkit.data.tokenize import load_words
from vlpkit.errors import VlpError
from vlpkit.program import check
from vlpkit.soak import endure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for train.py, whose task is run as the command runs it
GROWTH = 1.0  # megabytes for every 1,000 steps
SLOWEST = 1.0  # seconds of processor time
COST = 3.0  # percent


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, stop and go on in one process: memory and open files stay what they were."""
    from train import train

    def command(argv: list[str]) -> int:
        return run_hydra(train, conf=ROOT / "conf", check=lambda cfg: check(cfg, conf=ROOT / "conf"), argv=argv)

    found = endure(command, folder, steps=options.steps, every=options.every, seed=options.seed)
    after = options.steps // 5
    growth, files = found.growth(after=after), found.files(after=after)
    return {
        "goal": "G22", "steps": options.steps, "restarts": len(found.readings), "mb_per_1000_steps": round(growth, 3), "at_most": GROWTH,
        "open_files": sorted(files), "mb": [round(reading.megabytes, 1) for reading in found.readings],
        "seconds": round(found.seconds), "met": growth < GROWTH and len(files) == 1,
    }  # fmt: skip


def mutations(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Damaged shards end in pixels, in a refusal or in a DataError, and soon."""
    started = time.monotonic()
    found = fuzz(folder, mutations=options.mutations, seed=options.seed)
    return {
        "goal": "G23", "mutations": options.mutations, "crashed_or_hung": found.lost, "undeclared": found.undeclared, "slowest_s": round(found.slowest, 3), "at_most": SLOWEST,
        "outcomes": dict(found.outcomes.most_common()), "seconds": round(time.monotonic() - started),
        "met": not found.lost and not found.undeclared and found.slowest <= SLOWEST and len(found.trials) == options.mutations,
    }  # fmt: skip


def overhead(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What index and checks cost: the pipeline against the same decoding, cropping and tokens on a bare walk over the tars."""
    words = load_words(name="", kind="wordpiece", size=400, length=30, captions=lambda: [" ".join(TALK)] * 9)
    task = Task(photographs(folder, 256), 224, (0.9, 1.0), words)
    torch.set_num_threads(1)
    found = rates({"checked": pipeline(task, folder), "bare": plain(task)}, options.seconds)
    percent = 100 * (found["bare"] / found["checked"] - 1)
    return {
        "goal": "G24", "images_per_s_core": round(found["checked"]), "without": round(found["bare"]), "overhead_percent": round(percent, 1), "at_most": COST,
        "met": percent <= COST,
    }  # fmt: skip


GOALS = {"memory": memory, "fuzz": mutations, "overhead": overhead}


def main() -> int:
    """Run the goals asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="*", help=f"of {', '.join(GOALS)}; all when none is named")
    parser.add_argument("--steps", type=int, default=20_000, help="optimiser steps of the memory goal")
    parser.add_argument("--every", type=int, default=500, help="steps between two restarts of it")
    parser.add_argument("--mutations", type=int, default=2000, help="damaged shards of the fuzz goal")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each side of the overhead goal")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.goals) - set(GOALS):
        parser.error(f"there is no goal {', '.join(sorted(unknown))} (there are: {', '.join(GOALS)})")
    if options.every < 1 or options.steps < 10 * options.every or options.mutations < 1:
        parser.error("--steps is at least ten times --every, and --every and --mutations are at least 1")
    logging.disable(logging.WARNING)  # thousands of faults are expected, and each would be told
    met = True
    for name in options.goals or GOALS:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            try:
                line = GOALS[name](options, Path(folder))
            except VlpError as error:
                sys.stderr.write(f"{error}\n")
                return 2
        met &= line["met"]
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
