"""Whether a long run keeps what it should let go: one process trains, stops and goes on many times on data with faults, and is weighed each time.
Everything that a leak could hide in takes part: composing, index, readers, workers, the training loop, checkpoints, loggers."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from vlpkit.data.durable import ShardFile
from vlpkit.errors import DataError

# One narrow recipe, so that the time goes into starting, reading, stepping and saving, not into arithmetic.
NARROW = (
    "model=clip", "size=tiny", "size.dim=32", "size.heads=2", "size.depth=1", "size.half=1", "size.late=0", "size.narrow.dim=32", "size.narrow.heads=2", "size.space=16",
    "size.image=32", "size.vocab=300", "data=custom", "data.shards=train-*.tar", "data.batch=8", "data.window=2", "data.max_bad_share=0.05", "evals=[]", "logger=csv",
    "trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.log_every=50_steps", "resume=auto",
)  # fmt: skip


# Captions of few words: a tokenizer that is let go leaves behind what its library remembers of up to 10,000 words (0.6 MB for 2,000, as of
# tokenizers 0.23). A process has one tokenizer, and so does without the growth that forty of them would show here.
_DIGITS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "grey", "brown", "black")


class Reading(NamedTuple):
    """What the process held after so many steps."""

    step: int
    megabytes: float  # of memory, pages of files aside
    files: int  # open descriptors


class Endured(NamedTuple):
    """A run of many parts."""

    readings: tuple[Reading, ...]  # one a part
    seconds: float

    def growth(self, *, after: int) -> float:
        """Megabytes for every 1,000 steps: the slope of a line through the readings after the step `after`, by least squares."""
        points = [(r.step, r.megabytes) for r in self.readings if r.step > after]
        step, held = np.array(points).T
        return float(np.polyfit(step / 1000, held, 1)[0])

    def files(self, *, after: int) -> set[int]:
        """Numbers of open descriptors seen after the step `after`."""
        return {r.files for r in self.readings if r.step > after}


def weigh(step: int) -> Reading:
    """What this process holds now, garbage aside: memory of its own and shared, in RAM or swapped out. Pages of files are left out, because
    the system takes them away and brings them back as it likes."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))
    return Reading(step, held / 1024, len(os.listdir("/proc/self/fd")))


def write_faulty(folder: Path, *, samples: int, bad_share: float, seed: int, shards: int = 4) -> int:
    """Shards train-*.tar of small images and captions, of which `bad_share` are cut, no images, without caption or of another encoding.

    Returns:
        the number of those.
    """
    rng = np.random.default_rng(seed)
    bad = set(rng.permutation(samples)[: round(samples * bad_share)].tolist())
    folder.mkdir(parents=True, exist_ok=True)
    for number, numbers in enumerate(np.array_split(np.arange(samples), shards)):
        shard = ShardFile(folder / f"train-{number:06d}.tar")
        for sample in numbers.tolist():
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            members = {"jpg": simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90), "txt": " ".join(_DIGITS[int(digit)] for digit in f"{sample:04d}").encode()}
            if sample in bad:
                kind = sample % 4
                members |= [{"jpg": members["jpg"][:300]}, {"jpg": b"<html>"}, {"txt": b" "}, {"txt": b"caf\xe9"}][kind]
            shard.add(f"{sample:08d}", members)
        shard.close()
    return len(bad)


def endure(
    command: Callable[[list[str]], int], folder: Path, *, steps: int, every: int, samples: int = 2000, bad_share: float = 0.01, seed: int = 0, overrides: Sequence[str] = (),
) -> Endured:
    """Train for `steps` steps in one process, stopping and resuming every `every` steps, with and without a reading process in turn.

    Args:
        command: what `train.py` does with its arguments; returns the exit code.
        folder: for data, cache and run.
        samples: of which `bad_share` are faulty.
        seed: of data and run.
        overrides: further arguments.

    Raises:
        DataError: a part of the run did not end as it should.
    """
    write_faulty(folder / "data", samples=samples, bad_share=bad_share, seed=seed)
    words = [*NARROW, f"data.root={folder / 'data'}", f"paths.cache={folder / 'cache'}", f"run_dir={folder / 'run'}", f"trainer.checkpoint_every={every}_steps", f"seed={seed}"]
    readings, started = list[Reading](), time.monotonic()
    for part, step in enumerate(range(every, steps + 1, every)):
        code = command([*words, f"total={step}_steps", f"data.workers={part % 2}", *overrides])
        if code:
            raise DataError(f"soak: the run ended with code {code} in the part up to step {step}")
        readings.append(weigh(step))
    return Endured(tuple(readings), time.monotonic() - started)
