#!/usr/bin/env python
"""Images with what is said about them as WebDataset shards: from a list or a folder of your own, from the annotation files of a
published data set, or from a list of addresses. Broken images and blank captions are left out and counted; the order and a drawn split depend on the seed alone."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from vlpkit.data.addresses import KIND as ADDRESSES
from vlpkit.data.addresses import AddressList, find_addresses
from vlpkit.data.download import download
from vlpkit.data.img2dataset import Fetching
from vlpkit.data.packing import MANIFEST, Packing, pack
from vlpkit.data.sources.kinds import KINDS, read_source
from vlpkit.data.sources.listing import Listing
from vlpkit.errors import DataError, VlpError

EPILOG = f"""\
kinds of sources (the one that a source looks like, unless --kind says otherwise)
{chr(10).join(f"  {kind.name:15} {kind.form}" for kind in KINDS)}
  {ADDRESSES:15} a list in which one column holds addresses (CC3M, CC12M, LAION; with or without a header line), or SBU's .json

lists of your own
  captions.csv     a header line, one row an image and caption; rows about the same image become one sample
  captions.tsv     the same, tabs between the columns, no quoting
  captions.jsonl   one object a line: {{"image": ..., "caption": ...}} or {{"image": ..., "captions": [...]}}; other
                   fields are kept in the sample's KEY.json
  a folder         every .jpg, .png and .webp in it and below, with one caption a line in the .txt of the same name

addresses
  The images are fetched by img2dataset, in an environment of its own made on first use; docs/shards.md says how.

result
  OUT/train-000000.tar ..., OUT/val-000000.tar ..., or those of the published splits: KEY.jpg (or .png, .webp), KEY.json
  with captions, width, height, sha256 and what else the source knows, and KEY.regions.npz where it knows boxes exactly;
  OUT/manifest.json: counts by outcome, sizes and hashes. When interrupted, run the same command again: it continues
  after the last finished shard, and the files come out the same. docs/shards.md says what is in KEY.json.

examples
  python scripts/build_shards.py flickr/captions.csv data/flickr --val 1000
  python scripts/build_shards.py dataset_coco.json data/coco --images coco --short-side 256
  python scripts/build_shards.py Train_GCC-training.tsv data/cc3m --short-side 384
  python train.py data=custom data.root=data/flickr 'data.shards=train-*.tar' 'data.val_shards=val-*.tar'
"""


def parser() -> argparse.ArgumentParser:
    """The command line, with the defaults of `Packing`."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, help="a list, a folder, or an annotation file")
    p.add_argument("out", type=Path, help="folder of the shards; made if it is not there")
    p.add_argument("--kind", metavar="NAME", help=f"of the source: {', '.join(kind.name for kind in KINDS)}, {ADDRESSES} (default: as it looks)")
    p.add_argument("--images", type=Path, metavar="DIR", help="where the names of images start (default: the folder 'images' beside the source, else the source's own)")
    p.add_argument("--split", metavar="NAMES", help="published splits to write, joined by commas (default: all, each to shards of its name)")
    p.add_argument("--captions", type=Path, metavar="FILE", help="COCO's captions of the same images, for a source of questions")
    p.add_argument("--image-column", default="image", metavar="NAME", help="of a list (default: %(default)s)")
    p.add_argument("--caption-column", default="caption", metavar="NAME", help="of a list (default: %(default)s)")
    split = p.add_mutually_exclusive_group()
    split.add_argument("--val", type=int, default=Packing.val, metavar="N", help="usable images drawn for validation (default: none)")
    split.add_argument("--val-share", type=float, metavar="SHARE", help="the same as a share of all images, such as 0.05")
    p.add_argument("--seed", type=int, default=Packing.seed, help="of the drawn split and the order (default: %(default)s)")
    p.add_argument("--samples-per-shard", type=int, default=Packing.samples_per_shard, metavar="N", help="default: %(default)s")
    p.add_argument("--short-side", type=int, default=Packing.short_side, metavar="PIXELS", help="reduce larger images to this short side, keeping their ratio (default: copy the files' bytes)")
    p.add_argument("--max-side", type=int, default=Packing.max_side, metavar="PIXELS", help="the same for the long side")
    p.add_argument("--quality", type=int, default=Packing.quality, help="of the JPEG then written (default: %(default)s)")
    p.add_argument("--features", type=int, default=Packing.features, metavar="N", help="numbers of the feature of an exact region, size.feature of the recipe; 0 writes no regions (default: %(default)s)")
    p.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="that check images (default here: %(default)s)")
    web = p.add_argument_group(ADDRESSES)
    web.add_argument("--timeout", type=int, default=Fetching.timeout, metavar="SECONDS", help="that a server may be silent (default: %(default)s); a whole download may take six times as long")
    web.add_argument("--retries", type=int, default=Fetching.retries, metavar="N", help="default: %(default)s")
    web.add_argument("--threads", type=int, default=Fetching.threads, metavar="N", help="downloads at a time in each process (default: %(default)s)")
    web.add_argument("--img2dataset", type=Path, metavar="DIR", help="an environment that has img2dataset, instead of making one")
    web.add_argument("--cache", type=Path, default=Path(os.environ.get("VLP_CACHE", ".cache")), metavar="DIR", help="where that environment is made (default: %(default)s)")
    p.add_argument("--overwrite", action="store_true", help="replace shards of another source or of other settings in OUT")
    return p


def read(options: argparse.Namespace) -> Listing | AddressList:
    """What the source holds. Raises DataError."""
    if options.kind in (None, ADDRESSES):
        addresses = find_addresses(options.source, image_column=options.image_column, caption_column=options.caption_column)
        if addresses is not None:
            for word in ("images", "split", "captions"):
                if getattr(options, word) is not None:
                    raise DataError(f"--{word} does not go with a list of addresses, such as {options.source}")
            return addresses
        if options.kind == ADDRESSES:
            raise DataError(f"{options.source} is no list of addresses: in no column do most of the first lines start like http://")
    return read_source(
        options.source,
        kind=options.kind,
        split=options.split,
        images=options.images,
        captions=options.captions,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads the source, writes the shards, returns the manifest. Raises DataError."""
    source = read(options)
    if options.val_share is not None and not 0 <= options.val_share < 1:
        raise DataError(f"--val-share is {options.val_share:g}; it can be from 0 to less than 1")
    if not 1 <= options.processes <= 256:
        raise DataError(f"--processes is {options.processes}; it can be 1 to 256")
    val = options.val if options.val_share is None else round(options.val_share * len(source))
    packing = Packing(
        samples_per_shard=options.samples_per_shard,
        val=val,
        seed=options.seed,
        short_side=options.short_side,
        max_side=options.max_side,
        quality=options.quality,
        features=options.features,
    )
    how = {"processes": options.processes, "overwrite": options.overwrite}
    if isinstance(source, AddressList):
        fetching = Fetching(timeout=options.timeout, retries=options.retries, threads=options.threads)
        return download(source, options.out, packing, fetching, cache=options.cache, own=options.img2dataset, **how)
    logging.info("%d images in %s (kind %s)", len(source), options.source, source.kind)
    return pack(source, options.out, packing, **how)


def report(manifest: dict[str, Any], out: Path) -> str:
    """What was written, what was left out and why, and how to train on it."""
    samples = manifest["samples"]
    others = "".join(f", {count} of {split}" for split, count in samples.items() if split not in ("train", "val"))
    lines = [f"{out}: {samples['train']} samples to train on, {samples['val']} to validate{others}, {manifest['captions']} captions, {len(manifest['shards'])} shards"]
    lost = {reason: count for reason, count in manifest["images"].items() if reason != "written"}
    lines += [f"left out: {reason} {count}" for reason, count in lost.items()]
    lines += [f"lines passed over: {reason} {count}" for reason, count in manifest["rows"].items() if reason != "used" and reason not in lost]
    shards = "".join(f" 'data.{key}={split}-*.tar'" for key, split in (("shards", "train"), ("val_shards", "val")) if samples[split])
    if samples["train"]:
        lines.append(f"python train.py data=custom data.root={out}{shards}")
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
