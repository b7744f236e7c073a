"""The format number of the `vlpkit` entry in checkpoints, and the chain of upgrades that leads to it.
Plain dictionaries only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlpkit.errors import ResumeError

FORMAT = 2
# number n: what turns an entry of format n into one of format n + 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda entry: {**entry, "format": 2, "loaded": []},   # which parameters outside weights had filled: no optimiser group could ask yet
}


def upgrade(checkpoint: dict[str, Any], *, place: str) -> dict[str, Any]:
    """The same checkpoint with its `vlpkit` entry in the present format.

    Args:
        checkpoint: as loaded; changed in place.
        place: file that an error names.

    Raises:
        ResumeError: no such entry, or a format that this version does not know.
    """
    entry = checkpoint.get("vlpkit")
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int):
        raise ResumeError(f"{place}: no checkpoint of vlpkit, since it has no `vlpkit` entry with a format number")
    while entry["format"] != FORMAT:
        step = UPGRADES.get(entry["format"])
        if step is None:
            raise ResumeError(
                f"{place}: written in format {entry['format']} by vlpkit {entry.get('version', 'of unknown version')}, this version reads {FORMAT}. "
                f"Use the version that wrote it."
            )
        entry = step(entry)
    checkpoint["vlpkit"] = entry
    return checkpoint
