#!/usr/bin/env python
"""Speed of the data engine; one JSON line a case.

Images per second and core of this pipeline, of open_clip's transform behind webdataset and Pillow, of the same work on a plain walk over the
tars without index or checks, and of the bare decoder, with memory of its own for each image and with the same memory for all. Then the
seconds from 1,000 shards of 1,000 samples to the first batch: first indexing, cold start with cached tables, start in the middle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from vlpkit.bench.made import TALK, photographs
from vlpkit.bench.rates import Task, decoder, open_clip_pipeline, pipeline, plain, rates
from vlpkit.bench.startup import start_up
from vlpkit.data.shardlist import expand
from vlpkit.data.tokenize import load_words
from vlpkit.errors import VlpError


def measure(label: str, task: Task, seconds: float, cache: Path) -> None:
    """Prints one JSON line a case."""
    contestants = {
        "vlpkit": pipeline(task, cache), "open_clip": open_clip_pipeline(task), "plain_tar": plain(task), "decoder": decoder(task, reuse=False),
        "decoder_reused": decoder(task, reuse=True),
    }  # fmt: skip
    found = rates(contestants, seconds)
    for name, rate in found.items():
        line = {"bench": "data", "case": name, "shards": label, "image_size": task.size, "scale": task.scale, "images_per_s_core": round(rate, 1)}
        if name == "vlpkit":
            line |= {f"x_{other}": round(rate / found[other], 2) for other in found if other != name}
            line["overhead_percent"] = round(100 * (found["plain_tar"] / rate - 1), 1)
        print(json.dumps(line), flush=True)


def main() -> int:
    """Exit code: 0 measured, 2 a mistake that the message explains."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shards", metavar="PATTERN", help="real shards of JPEGs, such as 'data/cc3m/{00000..00003}.tar'; default: photographs of 256 and 512 pixels are made up")
    p.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: %(default)s")
    p.add_argument("--scale", type=float, nargs=2, default=(0.9, 1.0), metavar="SHARE", help="of the area that a crop keeps, least and largest (default: 0.9 1.0)")
    p.add_argument("--seconds", type=float, default=5.0, help="for each case (default: %(default)s)")
    p.add_argument("--only", choices=("rates", "startup"), help="default: both")
    options = p.parse_args()
    torch.set_num_threads(1)
    words = load_words(name="", kind="wordpiece", size=400, length=30, captions=lambda: [" ".join(TALK)] * 9)
    task = Task((), options.image_size, tuple(options.scale), words)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.shards:
                measure(options.shards, task._replace(shards=expand(options.shards, ".")), options.seconds, Path(folder))
                return 0
            for short_side in () if options.only == "startup" else (256, 512):
                made = Path(folder, str(short_side))
                made.mkdir()
                measure(f"synthetic, short side {short_side}", task._replace(shards=photographs(made, short_side)), options.seconds, made)
            if options.only != "rates":
                print(json.dumps({"bench": "data", "case": "start_up", **start_up(Path(folder, "many"))}))
        except VlpError as error:
            print(f"bench_data: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
