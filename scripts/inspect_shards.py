#!/usr/bin/env python
"""Looks at WebDataset shards: verify (is all there and whole), stats (what is in them), duplicates (what is in them twice, or in an
evaluation set, too) and sheet (what they look like). Any webdataset tar of images and captions will do; nothing is changed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, get_args

from vlpkit.data.inspect.duplicates import LIMIT, MOST
from vlpkit.data.inspect.listing import SUFFIXES, report
from vlpkit.data.inspect.sheet import Sheet, make_sheet
from vlpkit.data.inspect.stats import measure
from vlpkit.data.inspect.tables import counted, duplicates_text, stats_text, verdict_text
from vlpkit.data.inspect.tokens import Tokens, load_tokens
from vlpkit.data.inspect.verify import verify
from vlpkit.data.shardlist import expand
from vlpkit.data.wishes import Holds
from vlpkit.errors import DataError, VlpError

EPILOG = """\
examples
  python scripts/inspect_shards.py verify 'data/flickr/*.tar' --decode
  python scripts/inspect_shards.py stats 'cc3m/*.tar' --tokenizer wordpiece --length 40
  python scripts/inspect_shards.py duplicates 'cc3m/*.tar' --against 'coco/val-*.tar' --out copies.csv
  python scripts/inspect_shards.py sheet 'cc3m/*.tar' --out cc3m.png --seed 1

exit code
  0 done and nothing wrong, 1 damage found (verify), 2 a mistake that the message explains
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = _command(commands, "verify", "tar, index, manifest and every sample; nothing is decoded unless asked")
    one.add_argument("--quick", action="store_true", help="headers, counts and sizes alone, no payload")
    one.add_argument("--decode", action="store_true", help="decode every image to its last pixel")
    one.add_argument("--holds", choices=get_args(Holds), default="pairs", help="what a sample must have (default: %(default)s)")
    one.add_argument("--cache", type=Path, metavar="DIR", help="also hold the index that training keeps in DIR against the shards")
    one = _command(commands, "stats", "sizes, formats, captions, tokens, records, shards; images are not decoded")
    one.add_argument("--tokenizer", metavar="NAME", help="count tokens: wordpiece or bpe trains one on the captions; else a name on the hub, or a folder")
    one.add_argument("--vocab", type=int, default=30000, metavar="N", help="most tokens of a trained tokenizer (default: %(default)s)")
    one.add_argument("--clean", default="none", metavar="HOW", help="what is done to captions before they are tokenized: none, albef, blip or siglip (default: %(default)s)")
    one.add_argument("--length", type=int, default=40, metavar="N", help="say how many captions have more tokens than N (default: %(default)s)")
    one.add_argument("--top", type=int, default=10, metavar="N", help="most common captions to name (default: %(default)s)")
    one = _command(commands, "duplicates", "images that are there twice or look the same, equal captions, and what an evaluation set has, too")
    one.add_argument("--against", nargs="+", default=[], metavar="SHARDS", help="an evaluation set: which of its images are in the shards, too")
    one.add_argument("--out", type=Path, metavar="FILE", help="list all copies, with keys, in a .csv or .jsonl")
    one.add_argument("--distance", type=int, default=LIMIT, metavar="BITS", help="of 256 by which the looks of two images may differ (default: %(default)s)")
    one.add_argument("--top", type=int, default=10, metavar="N", help="copies and captions to name here (default: %(default)s)")
    one = _command(commands, "sheet", "a picture of some samples, chosen by a seed, with keys, captions and regions")
    one.add_argument("--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="a .png (default: %(default)s)")
    one.add_argument("--count", type=int, default=Sheet.count, metavar="N", help="samples (default: %(default)s)")
    one.add_argument("--columns", type=int, default=Sheet.columns, metavar="N", help="samples in a row (default: %(default)s)")
    one.add_argument("--tile", type=int, default=Sheet.tile, metavar="PIXELS", help="side of the square of an image (default: %(default)s)")
    one.add_argument("--seed", type=int, default=Sheet.seed, metavar="N", help="of the choice (default: %(default)s)")
    one.add_argument("--no-regions", dest="regions", action="store_false", help="draw no boxes")
    return p


def _command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    one.add_argument("shards", nargs="+", metavar="SHARDS", help="paths, globs ('cc3m/*.tar') or ranges ('cc3m/{00000..00331}.tar')")
    one.add_argument("--json", action="store_true", help="print JSON in place of a table")
    one.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="that work side by side (default here: %(default)s)")
    return one


def run_verify(options: argparse.Namespace, paths: list[str]) -> int:
    """1 when there is damage."""
    if options.quick and options.decode:
        raise DataError("--quick reads no payload and --decode reads all of them; give one of the two")
    began = time.monotonic()
    verdict = verify(paths, quick=options.quick, decode=options.decode, holds=options.holds, cache=options.cache, processes=options.processes)
    print(json.dumps(verdict.plain(), indent=1) if options.json else verdict_text(verdict, time.monotonic() - began))
    return 1 if verdict.damaged else 0


def run_stats(options: argparse.Namespace, paths: list[str]) -> int:
    """Always 0: what stats leave out is for verify to judge."""
    _at_least(options, vocab=1, length=1, top=0)
    began = time.monotonic()
    tokens = _tokens(options, paths)
    stats = measure(paths, tokens=tokens, processes=options.processes)
    length = None if tokens is None else options.length
    if options.json:
        print(json.dumps(stats.plain(length=length, top=options.top), indent=1))
    else:
        print(stats_text(stats, length=length, top=options.top, seconds=time.monotonic() - began))
    return 0


def _tokens(options: argparse.Namespace, paths: list[str]) -> Tokens | None:
    if options.tokenizer is None:
        return None
    try:
        return load_tokens(options.tokenizer, paths, vocab=options.vocab, clean=options.clean)
    except VlpError as error:  # it names keys of the configuration
        raise DataError(f"--tokenizer {options.tokenizer}: {error}") from None


def run_duplicates(options: argparse.Namespace, paths: list[str]) -> int:
    """Always 0: a copy is no damage."""
    _at_least(options, top=0)
    if not 0 <= options.distance <= MOST:
        raise DataError(f"--distance is {options.distance}; it can be 0 to {MOST}, beyond which unrelated images are as near as copies")
    _suffix(options.out, *SUFFIXES)
    began = time.monotonic()
    against = _local(options.against, "--against") if options.against else []
    found = report(paths, against, options.out, limit=options.distance, top=options.top, processes=options.processes)
    print(json.dumps(found, indent=1) if options.json else duplicates_text(found, time.monotonic() - began))
    return 0


def run_sheet(options: argparse.Namespace, paths: list[str]) -> int:
    """Always 0: a broken sample is shown as one."""
    _suffix(options.out, ".png")
    sheet = Sheet(options.count, options.columns, options.tile, options.seed, options.regions)
    shown, findings = make_sheet(paths, options.out, sheet)
    if options.json:
        print(json.dumps({"sheet": str(options.out), "shown": shown, "findings": findings.plain()}, indent=1))
        return 0
    print(f"{options.out}: {counted(shown, 'sample')} of {counted(len(paths), 'shard')}")
    for reason, count in findings.counts.most_common():
        print(f"{reason} {count}, for example {findings.examples[reason]}")
    return 0


def _local(patterns: list[str], key: str) -> list[str]:
    """Absolute paths of the shards that an option names. Raises DataError."""
    paths = expand(patterns, os.getcwd(), key=key, root_key="")
    if elsewhere := [path for path in paths if not os.path.isabs(path)]:
        raise DataError(f"{key}: {elsewhere[0]} is not a local file, and only local shards are looked at. Fetch them first")
    return paths


def _at_least(options: argparse.Namespace, **least: int) -> None:
    for name, limit in least.items():
        if (found := vars(options)[name]) < limit:
            raise DataError(f"--{name} is {found}; it must be at least {limit}")


def _suffix(out: Path | None, *suffixes: str) -> None:
    if out is not None and out.suffix not in suffixes:
        raise DataError(f"--out is {out}; its name must end in {' or '.join(suffixes)}")
    if out is not None and not out.parent.is_dir():
        raise DataError(f"--out is {out}, but there is no folder {out.parent}; make it first")


COMMANDS = {"verify": run_verify, "stats": run_stats, "duplicates": run_duplicates, "sheet": run_sheet}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 nothing wrong, 1 damage found, 2 a mistake that the message explains."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if not 1 <= options.processes <= 256:
            raise DataError(f"--processes is {options.processes}; it can be 1 to 256")
        return COMMANDS[options.command](options, _local(options.shards, "SHARDS"))
    except VlpError as error:
        print(f"inspect_shards: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
