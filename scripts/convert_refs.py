#!/usr/bin/env python
"""The references of RefCOCO, RefCOCO+ and RefCOCOg from refer's pickle, refs(unc).p and its like, to the JSON that build_shards.py reads.
Only lists, dicts, texts and numbers are built: a pickle that asks for anything else is refused, and nothing it names is called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlpkit.data.sources.refer import convert_references
from vlpkit.errors import DataError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake that the message explains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pickles", nargs="+", type=Path, metavar="FILE", help="such as 'refs(unc).p'; the JSON is written beside it")
    try:
        for path in parser.parse_args(arguments).pickles:
            print(convert_references(path))
    except DataError as error:
        print(f"convert_refs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
