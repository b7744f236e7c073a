"""The parts of these tests may be named in their configs, and only while these tests run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vlpkit import check


@pytest.fixture(autouse=True)
def trusted() -> Iterator[None]:
    before = set(check._trusted)
    check.trust(["tests.config"])
    yield
    check._trusted.clear()
    check._trusted.update(before)


@pytest.fixture
def conf() -> Path:
    return Path(__file__).parent / "conf"
