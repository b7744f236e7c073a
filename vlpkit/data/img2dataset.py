"""img2dataset, which pins an old webdataset and OpenCV, as a program in an environment of its own that is made on first use.
It fetches and nothing else: images are checked and reduced by the same code as those of every other source."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vlpkit.data.decode import LIMITS
from vlpkit.errors import DataError

log = logging.getLogger(__name__)

# Its other libraries follow from its own metadata; imghdr left the standard library in Python 3.13.
REQUIREMENTS = ("img2dataset>=1.47,<2", "standard-imghdr; python_version >= '3.13'")
ASKED = "import img2dataset, importlib.metadata; print(importlib.metadata.version('img2dataset'))"
# Without the first it looks for updates over the network in every process that it starts.
QUIET = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
DIGITS = 7  # of its shards' numbers, enough that their order by name is that by number
WHOLE = 6  # times the timeout that a whole download may take


@dataclass(frozen=True)
class Fetching:
    """How addresses are fetched.

    Args:
        timeout: seconds that a server may be silent; a whole download may take `WHOLE` times as long.
        retries: further attempts after a failed one.
        threads: downloads at a time in each process.
    """

    timeout: int = 10
    retries: int = 1
    threads: int = 32

    def __post_init__(self) -> None:
        for name, low, high in (("timeout", 1, 3600), ("retries", 0, 100), ("threads", 1, 1024)):
            if not low <= (found := getattr(self, name)) <= high:
                raise DataError(f"--{name} is {found}; it can be {low} to {high}")


def environment(cache: Path, own: Path | None = None) -> Path:
    """The Python of an environment with img2dataset: of `own`, or of one in the folder `cache`, made if it is not there.

    Raises:
        DataError: `own` does not have it, or no environment can be made.
    """
    if own is not None:
        python = own / "bin" / "python"
        try:
            subprocess.run([python, "-I", "-c", ASKED], check=True, capture_output=True, env=_clean())
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"--img2dataset {own} is no environment with img2dataset: {_said(error)}. {_by_hand(own)}") from None
        return python
    asked = json.dumps([REQUIREMENTS, sys.version_info[:2]])
    home = cache.absolute() / f"img2dataset-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    if not home.is_dir():
        _make(home)
    return home / "bin" / "python"


def _make(home: Path) -> None:
    """Made under another name and renamed, so that half an environment is never used and two runs do not meet."""
    log.info("making an environment for img2dataset in %s", home)
    uv = shutil.which("uv")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{home.name}.", dir=home.parent) as folder:
            made = Path(folder) / "made"
            python = made / "bin" / "python"
            commands: list[list[str | Path]] = [
                [uv, "venv", "--quiet", "--python", sys.executable, made] if uv else [sys.executable, "-m", "venv", made],
                [uv, "pip", "install", "--quiet", "--python", python, *REQUIREMENTS] if uv else [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
                [python, "-I", "-c", ASKED],
            ]
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, env=_clean())
            try:
                os.rename(made, home)
            except OSError:
                if not home.is_dir():  # otherwise another run was faster
                    raise
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"cannot make an environment for img2dataset in {home}: {_said(error)}. {_by_hand(home.with_name('img2dataset'))}") from None


class Program:
    """img2dataset at work on the lists of a folder; leaving the context ends it and all its processes.

    Args:
        python: of its environment.
        lists: folder of .jsonl lists with `url` and `row`, each one shard.
        out: folder of its tars with the bytes as they came, and of its statistics.
        log: file of what it says.
    """

    def __init__(self, python: Path, *, lists: Path, out: Path, log: Path, samples_per_shard: int, fetching: Fetching, processes: int) -> None:
        settings = {
            "seconds": WHOLE * fetching.timeout,
            "bytes": LIMITS.bytes,
            "download": {
                "url_list": str(lists),
                "input_format": "jsonl",
                "save_additional_columns": ["row"],
                "output_folder": str(out),
                "output_format": "webdataset",
                "oom_shard_count": DIGITS,
                "number_sample_per_shard": samples_per_shard,
                "processes_count": processes,
                "thread_count": fetching.threads,
                "timeout": fetching.timeout,
                "retries": fetching.retries,
                # It would drop the Exif rotation, clip 16-bit images to white, and by default add a border.
                "disable_all_reencoding": True,
                "resize_mode": "no",
                "compute_hash": None,
                "extract_exif": False,
                "incremental_mode": "incremental",
            },
        }
        self._settings = log.with_suffix(".json")
        self._settings.write_text(json.dumps(settings), encoding="utf-8")
        self._command = [str(python), "-I", "-u", "-W", "ignore", str(Path(__file__).with_name("launch_img2dataset.py")), str(self._settings)]
        self.log = log

    def __enter__(self) -> Program:
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=_clean(), cwd=self.log.parent, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """The exit code and the last error it spoke of, else the last line."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines
        return f"exit code {self._process.wait()}" + (f", {lines[-1].strip()[:300]}" if lines else "")


def _clean() -> dict[str, str]:
    """The environment variables without those that would lead another Python to the libraries of this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")} | QUIET


def _said(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return str(error)
    lines = [line.strip() for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
    return (lines or [str(error)])[-1][:300]


def _by_hand(folder: Path) -> str:
    wanted = " ".join(f'"{requirement}"' for requirement in REQUIREMENTS)
    return f"By hand: python -m venv {folder}; {folder}/bin/pip install {wanted}; then add --img2dataset {folder}"
