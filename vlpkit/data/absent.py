"""What some samples bring and others do not: that none brings it is worth a word before weeks are spent on it."""

from __future__ import annotations

import logging

from torch import Tensor

from vlpkit.maths.boxes import extended
from vlpkit.types import IGNORE, Batch

log = logging.getLogger(__name__)

PATIENCE = 1000  # samples; what fewer than one in a thousand brings is hardly learned


class Absent:
    """Watches the batches of a source from its first, and warns once when PATIENCE samples or more have brought none of a target.

    Args:
        key: configuration key of the shards, named in the message.
    """

    def __init__(self, key: str) -> None:
        self.key, self.seen = key, 0
        self.missed = {"answer": ("data.questions", "questions", "answer that is in the list"), "box": ("data.phrases", "regions", "phrase with a box")}

    def watch(self, batch: Batch) -> None:
        """Takes one more batch into account."""
        if self.seen >= PATIENCE:
            return
        self.seen += len(batch)
        self.missed = {name: what for name, what in self.missed.items() if name in batch.targets and not _any(name, batch.targets[name])}
        if self.seen >= PATIENCE:
            for option, field, what in self.missed.values():
                log.warning("%s: none of the first %d samples has a %s (`%s` in KEY.json, read by %s), so what learns from these learns nothing", self.key, self.seen, what, field, option)


def _any(name: str, target: Tensor) -> bool:
    return bool((target != IGNORE).any()) if name == "answer" else bool(extended(target).any())
