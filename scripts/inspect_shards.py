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

from vlpkit.data.inspect.stats import measure
from vlpkit.data.inspect.tables import stats_text, verdict_text
from vlpkit.data.inspect.tokens import load_tokens
from vlpkit.data.inspect.verify import verify
from vlpkit.data.shardlist import expand
from vlpkit.data.wishes import Holds
from vlpkit.errors import DataError, VlpError

EPILOG = """\
examples
  python scripts/inspect_shards.py verify 'data/flickr/*.tar' --decode

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
    for name, least in (("vocab", 1), ("length", 1), ("top", 0)):
        if (found := vars(options)[name]) < least:
            raise DataError(f"--{name} is {found}; it must be at least {least}")
    began = time.monotonic()
    tokens = None if options.tokenizer is None else load_tokens(options.tokenizer, paths, vocab=options.vocab, clean=options.clean)
    stats = measure(paths, tokens=tokens, processes=options.processes)
    length = None if tokens is None else options.length
    if options.json:
        print(json.dumps(stats.plain(length=length, top=options.top), indent=1))
    else:
        print(stats_text(stats, length=length, top=options.top, seconds=time.monotonic() - began))
    return 0


COMMANDS = {"verify": run_verify, "stats": run_stats}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 nothing wrong, 1 damage found, 2 a mistake that the message explains."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if not 1 <= options.processes <= 256:
            raise DataError(f"--processes is {options.processes}; it can be 1 to 256")
        return COMMANDS[options.command](options, expand(options.shards, os.getcwd(), key="SHARDS"))
    except VlpError as error:
        print(f"inspect_shards: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
