#!/usr/bin/env python
"""Images with what is said about them as WebDataset shards: from a list or a folder of your own, or from the annotation files of a
published data set. Broken images and blank captions are left out and counted; the order and a drawn split depend on the seed alone."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from vlpkit.data.packing import MANIFEST, Packing, pack
from vlpkit.data.sources.kinds import KINDS, read_source
from vlpkit.errors import DataError, VlpError

EPILOG = f"""\
kinds of sources (the one that a source looks like, unless --kind says otherwise)
{chr(10).join(f"  {kind.name:15} {kind.form}" for kind in KINDS)}

lists of your own
  captions.csv     a header line, one row an image and caption; rows about the same image become one sample
  captions.tsv     the same, tabs between the columns, no quoting
  captions.jsonl   one object a line: {{"image": ..., "caption": ...}} or {{"image": ..., "captions": [...]}}; other
                   fields are kept in the sample's KEY.json
  a folder         every .jpg, .png and .webp in it and below, with one caption a line in the .txt of the same name

result
  OUT/train-000000.tar ..., OUT/val-000000.tar ..., or those of the published splits: KEY.jpg (or .png, .webp), KEY.json
  with captions, width, height, sha256 and what else the source knows, and KEY.regions.npz where it knows boxes exactly;
  OUT/manifest.json: counts by outcome, sizes and hashes. When interrupted, run the same command again: it continues
  after the last finished shard, and the files come out the same. docs/shards.md says what is in KEY.json.

examples
  python scripts/build_shards.py flickr/captions.csv data/flickr --val 1000
  python scripts/build_shards.py dataset_coco.json data/coco --images coco --short-side 256
  python train.py data=custom data.root=data/flickr 'data.shards=train-*.tar' 'data.val_shards=val-*.tar'
"""


def parser() -> argparse.ArgumentParser:
    """The command line, with the defaults of `Packing`."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, help="a list, a folder, or an annotation file")
    p.add_argument("out", type=Path, help="folder of the shards; made if it is not there")
    p.add_argument("--kind", metavar="NAME", help=f"of the source: {', '.join(kind.name for kind in KINDS)} (default: as it looks)")
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
    p.add_argument("--overwrite", action="store_true", help="replace shards of another source or of other settings in OUT")
    return p


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads the source, writes the shards, returns the manifest. Raises DataError."""
    listing = read_source(
        options.source,
        kind=options.kind,
        split=options.split,
        images=options.images,
        captions=options.captions,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    if options.val_share is not None and not 0 <= options.val_share < 1:
        raise DataError(f"--val-share is {options.val_share:g}; it can be from 0 to less than 1")
    if not 1 <= options.processes <= 256:
        raise DataError(f"--processes is {options.processes}; it can be 1 to 256")
    val = options.val if options.val_share is None else round(options.val_share * len(listing.candidates))
    packing = Packing(
        samples_per_shard=options.samples_per_shard,
        val=val,
        seed=options.seed,
        short_side=options.short_side,
        max_side=options.max_side,
        quality=options.quality,
        features=options.features,
    )
    logging.info("%d images in %s (kind %s)", len(listing.candidates), options.source, listing.kind)
    return pack(listing, options.out, packing, processes=options.processes, overwrite=options.overwrite)


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
