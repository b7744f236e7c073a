"""scripts/inspect_shards.py called in this process, as a user would call it."""

from __future__ import annotations

import pytest
from inspecting import ROOT, Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, standard output and standard error."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import inspect_shards

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = inspect_shards.main([*map(str, words), "--processes", "1"])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
