"""What the start of a run costs on very many shards: the first indexing, a cold start with cached tables, a start in the middle.
Each start is a process of its own, so nothing is warm in it but the system's own cache of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlpkit.bench.made import TALK, many
from vlpkit.data.module import DataModule
from vlpkit.data.tokenize import load_words

BATCH = 256
_START = """
import json, sys, time
import torch
torch.set_num_threads(1)
from vlpkit.bench.startup import first_batch
folder, seen = sys.argv[1], int(sys.argv[2])
wall, processor = time.perf_counter(), time.process_time()
found = first_batch(folder, seen)
json.dump({"s": time.perf_counter() - wall, "processor_s": time.process_time() - processor, **found}, sys.stdout)
"""


def first_batch(folder: str, seen: int) -> dict[str, Any]:
    """Opens the shards in `folder`, seeks to `seen` samples and reads a global batch; the samples there are and the first key."""
    words = load_words(name="", kind="wordpiece", size=400, length=30, captions=lambda: [" ".join(TALK)] * 9)
    module = DataModule(
        name="bench", shards="*.tar", val_shards=None, batch=BATCH, augment={"scale": (0.9, 1.0), "flip": 0.0, "randaugment": None},
        safe={"min_crop": 0.0, "mirror": True, "randaugment": True}, eval_resize="squash", root=folder, cache=os.path.join(folder, "cache"), image_size=224,
        seed=0, words=words,
    )  # fmt: skip
    module.load_state_dict({**module.state_dict(), "samples_seen": seen})
    batch = next(iter(module.train_dataloader()))["pairs"]
    return {"samples": len(module), "first_key": batch.keys[0]}


def start_up(folder: Path, *, shards: int = 1000, samples: int = 1000) -> dict[str, Any]:
    """Seconds, by the wall clock and of the processor, from the shard pattern to a batch of 256; imports are not counted.

    Returns:
        first_index: no table is cached yet; cold_start: all are; resume: likewise, in the middle of the first epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    many(folder, shards=shards, samples=samples)
    middle = shards * samples // 2 // BATCH * BATCH
    runs = {name: _run(folder, seen) for name, seen in (("first_index", 0), ("cold_start", 0), ("resume", middle))}
    times = {f"{name}_{clock}": round(run[clock], 3) for name, run in runs.items() for clock in ("s", "processor_s")}
    return {"shards": shards, "samples": runs["resume"]["samples"], **times}


def _run(folder: Path, seen: int) -> dict[str, Any]:
    out = subprocess.run([sys.executable, "-c", _START, str(folder), str(seen)], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found
