#!/usr/bin/env python
"""Weights in and out: `python scripts/convert.py IN OUT [--layout L] [--to folder|transformers|open_clip] [KEY=VALUE ...]`; --help says more."""

from __future__ import annotations

import sys
from pathlib import Path

from vlpkit.conversion import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], conf=Path(__file__).resolve().parent.parent / "conf"))
