"""What parts.py imports under other names."""

from __future__ import annotations

import os
from shutil import copyfile  # noqa: F401 - a way out that has to stay shut
from typing import Literal

Place = Literal["pre", "post"]


class Renamed:
    def __init__(self, *, value: int | str = 0) -> None:
        self.value = value


system = os.system
