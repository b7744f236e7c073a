"""Evaluate a run: `python evaluate.py run=runs/a task=retrieval`. --help lists tasks and keys."""

from __future__ import annotations

import sys
from pathlib import Path

from vlpkit.evals.command import main

CONF = Path(__file__).resolve().parent / "conf"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], conf=CONF))
