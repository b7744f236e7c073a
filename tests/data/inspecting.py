"""What tests of scripts/inspect_shards.py share; conftest.py has the fixture `run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]  # the words of a command to its exit code, standard output and standard error
