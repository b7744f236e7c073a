"""Memory that one decoded image after another is written to. Fresh memory for each costs a quarter of a small image's decoding, since the
system hands out pages one by one; and what is held stays bounded, however large a single image is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 32 << 20  # bytes; a larger image has memory of its own, which goes with it


class Scratch:
    """Lends the same bytes again and again: what was lent before is overwritten.

    Args:
        limit: most bytes kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._held = np.empty(0, np.uint8)

    def lend(self, size: int) -> NDArray[np.uint8]:
        """(size,) uint8 of any content."""
        if size > self.limit:
            return np.empty(size, np.uint8)
        if size > len(self._held):
            self._held = np.empty(min(self.limit, size + size // 2), np.uint8)  # sizes vary: the next larger one shall fit, too
        return self._held[:size]

    def __getstate__(self) -> dict[str, object]:
        return {"limit": self.limit, "_held": np.empty(0, np.uint8)}  # what is held means nothing to another process
