#!/usr/bin/env python
"""Your own images and captions as WebDataset shards: from a CSV, TSV or JSONL list of files or of addresses, or from a folder with .txt files.
Broken images and blank captions are left out and counted; the split and the order depend on the seed alone."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from vlpkit.data.addresses import AddressList, find_addresses
from vlpkit.data.download import download
from vlpkit.data.img2dataset import Fetching
from vlpkit.data.packing import MANIFEST, Packing, pack
from vlpkit.data.sources import read_source
from vlpkit.errors import DataError, VlpError

EPILOG = """\
sources
  captions.csv     a header line, one row an image and caption; rows about the same image become one sample
  captions.tsv     the same, tabs between the columns, no quoting
  captions.jsonl   one object a line: {"image": ..., "caption": ...} or {"image": ..., "captions": [...]}; other
                   fields are kept in the sample's KEY.json
  addresses        where one column of such a list holds addresses (CC3M, CC12M, LAION; with or without a header line), or
                   SBU's .json, the images are fetched by img2dataset, in an environment of its own made on first use
  a folder         every .jpg, .png and .webp in it and below, with one caption a line in the .txt of the same name

result
  OUT/train-000000.tar ..., OUT/val-000000.tar ...: KEY.jpg (or .png, .webp) and KEY.json with captions, width,
  height and sha256; OUT/manifest.json: counts by outcome, sizes and hashes. When interrupted, run the same command
  again: it continues after the last finished shard, and the files come out the same.

example
  python scripts/build_shards.py flickr/captions.csv data/flickr --val 1000
  python train.py data=custom data.root=data/flickr 'data.shards=train-*.tar' 'data.val_shards=val-*.tar'
"""


def parser() -> argparse.ArgumentParser:
    """The command line, with the defaults of `Packing`."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, help="a .csv, .tsv or .jsonl list, or a folder")
    p.add_argument("out", type=Path, help="folder of the shards; made if it is not there")
    p.add_argument("--images", type=Path, metavar="DIR", help="where the list's image names start (default: the folder 'images' beside the list, else the list's own)")
    p.add_argument("--image-column", default="image", metavar="NAME", help="default: %(default)s")
    p.add_argument("--caption-column", default="caption", metavar="NAME", help="default: %(default)s")
    split = p.add_mutually_exclusive_group()
    split.add_argument("--val", type=int, default=0, metavar="N", help="usable images kept for validation (default: none)")
    split.add_argument("--val-share", type=float, metavar="SHARE", help="the same as a share of all images, such as 0.05")
    p.add_argument("--seed", type=int, default=Packing.seed, help="of the split and the order (default: %(default)s)")
    p.add_argument("--samples-per-shard", type=int, default=Packing.samples_per_shard, metavar="N", help="default: %(default)s")
    p.add_argument("--short-side", type=int, default=Packing.short_side, metavar="PIXELS", help="reduce larger images to this short side, keeping their ratio (default: copy the files' bytes)")
    p.add_argument("--max-side", type=int, default=Packing.max_side, metavar="PIXELS", help="the same for the long side")
    p.add_argument("--quality", type=int, default=Packing.quality, help="of the JPEG then written (default: %(default)s)")
    p.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="that check images (default here: %(default)s)")
    web = p.add_argument_group("addresses")
    web.add_argument("--timeout", type=int, default=Fetching.timeout, metavar="SECONDS", help="that a server may be silent (default: %(default)s); a whole download may take six times as long")
    web.add_argument("--retries", type=int, default=Fetching.retries, metavar="N", help="default: %(default)s")
    web.add_argument("--threads", type=int, default=Fetching.threads, metavar="N", help="downloads at a time in each process (default: %(default)s)")
    web.add_argument("--img2dataset", type=Path, metavar="DIR", help="an environment that has img2dataset, instead of making one")
    web.add_argument("--cache", type=Path, default=Path(os.environ.get("VLP_CACHE", ".cache")), metavar="DIR", help="where that environment is made (default: %(default)s)")
    p.add_argument("--overwrite", action="store_true", help="replace shards of another source or of other settings in OUT")
    return p


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads the list, writes the shards, returns the manifest. Raises DataError."""
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    addresses = find_addresses(options.source, **columns)
    found = read_source(options.source, images=options.images, **columns) if addresses is None else addresses
    if options.val_share is not None and not 0 <= options.val_share < 1:
        raise DataError(f"--val-share is {options.val_share:g}; it can be from 0 to less than 1")
    if not 1 <= options.processes <= 256:
        raise DataError(f"--processes is {options.processes}; it can be 1 to 256")
    val = options.val if options.val_share is None else round(options.val_share * len(found))
    packing = Packing(
        samples_per_shard=options.samples_per_shard,
        val=val,
        seed=options.seed,
        short_side=options.short_side,
        max_side=options.max_side,
        quality=options.quality,
    )
    how = {"processes": options.processes, "overwrite": options.overwrite}
    if isinstance(found, AddressList):
        fetching = Fetching(timeout=options.timeout, retries=options.retries, threads=options.threads)
        return download(found, options.out, packing, fetching, cache=options.cache, own=options.img2dataset, **how)
    logging.info("%d images in %s", len(found), options.source)
    return pack(found, options.out, packing, **how)


def report(manifest: dict[str, Any], out: Path) -> str:
    """What was written, what was left out and why, and how to train on it."""
    train, val = manifest["samples"]["train"], manifest["samples"]["val"]
    lines = [f"{out}: {train} samples to train on, {val} to validate, {manifest['captions']} captions, {len(manifest['shards'])} shards"]
    lost = {reason: count for reason, count in manifest["images"].items() if reason != "written"}
    lines += [f"left out: {reason} {count}" for reason, count in lost.items()]
    lines += [f"lines passed over: {reason} {count}" for reason, count in manifest["rows"].items() if reason != "used" and reason not in lost]
    held = " 'data.val_shards=val-*.tar'" if val else ""
    lines.append(f"python train.py data=custom data.root={out} 'data.shards=train-*.tar'{held}")
    return "\n".join([*lines, f"details: {out / MANIFEST}"])


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake that the message explains."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(report(run(options), options.out))
    except VlpError as error:
        print(f"build_shards: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
