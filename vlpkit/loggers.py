"""Where metrics go: a CSV file always, TensorBoard and W&B when asked; none of them can stop a run.
After a resume the CSV file is the one that an uninterrupted run would have written."""

from __future__ import annotations

import csv
import io
import logging
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from vlpkit import dist
from vlpkit.build import build
from vlpkit.identity import redact
from vlpkit.runfolder import METRICS
from vlpkit.sidecar import replacing, write_text

log = logging.getLogger(__name__)

_NOT_METRICS = ("epoch",)  # Lightning adds its own count of passes over the loader, which is always 0 here


class CsvLogger(Logger):
    """`metrics.csv`: one row an optimiser step, flushed as it is written; the columns grow when a new name appears.

    Floats are written so that reading them gives the same float.

    Args:
        run_dir: run folder.
        resumed: step that the run continues from; later rows are cut off before the first new one is written.
    """

    def __init__(self, *, run_dir: Path, resumed: int = 0) -> None:
        super().__init__()
        self.path, self.resumed = Path(run_dir) / METRICS, resumed
        self._columns: list[str] = ["step"]
        self._file: IO[bytes] | None = None
        self._row: dict[str, str] = {}
        self._start = 0  # where the last row begins

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Not used: the run folder is the version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run folder holds the configuration already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of `step`; steps never decrease."""
        if not dist.once():
            return
        file = self._open()
        row = {"step": str(step)} | {name: _spell(value) for name, value in metrics.items() if name not in _NOT_METRICS}
        again = self._row.get("step") == row["step"]
        self._row = {**self._row, **row} if again else row
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            file = self._rewrite(rows[:-1] if again else rows)
            again = False
        if again:
            file.truncate(self._start)
            file.seek(self._start)
        self._start = file.tell()
        file.write(self._line(self._row.get(name, "") for name in self._columns))
        file.flush()

    def save(self) -> None:
        """Force to disk; a checkpoint of this step follows."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finalize(self, status: str) -> None:
        """Close the file; a later row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file, self.resumed = None, int(self._row.get("step", self.resumed))

    def _open(self) -> IO[bytes]:
        if self._file is None:
            rows = [row for row in self._read() if int(row["step"]) <= self.resumed]
            filled = {name for row in rows for name, value in row.items() if value}
            self._columns = [name for name in self._columns if name == "step" or name in filled]
            self._row = rows[-1] if rows else {}
            self._rewrite(rows)
        assert self._file is not None
        return self._file

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file, without a last line that was cut short."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes().decode()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if not lines:
            return []
        self._columns = lines[0]
        return [dict(zip(self._columns, line)) for line in lines[1:]]

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> IO[bytes]:
        if self._file is not None:
            self._file.close()
        with replacing(self.path) as new:
            new.write(self._line(self._columns))
            for row in rows:
                self._start = new.tell()
                new.write(self._line(row.get(name, "") for name in self._columns))
        self._file = open(self.path, "r+b")  # noqa: SIM115 - stays open between rows
        self._file.seek(0, os.SEEK_END)
        return self._file

    @staticmethod
    def _line(cells: Any) -> bytes:
        held = io.StringIO()
        csv.writer(held, lineterminator="\n").writerow(cells)
        return held.getvalue().encode()


def _spell(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return repr(float(value)) if isinstance(value, float) else str(value)


class Guarded(Logger):
    """A tracker that is made when first needed, on the first process only, and is silenced after its first failure.

    Args:
        make: builds the tracker.
        word: what a warning calls it.
        config: sent to it once, secrets redacted.
    """

    def __init__(self, make: Callable[[], Logger], *, word: str, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._make, self._word, self._config = make, word, config
        self._inner: Logger | None = None
        self._muted = False

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self._word

    @property
    def version(self) -> str:
        """Not used: the run folder is the version."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass on."""
        kept = {name: value for name, value in metrics.items() if name not in _NOT_METRICS}
        self._do(lambda inner: inner.log_metrics(kept, step=step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is sent when the tracker is made."""

    def save(self) -> None:
        """Pass on, unless nothing was logged yet."""
        if self._inner is not None:
            self._do(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        """Pass on, unless nothing was logged."""
        if self._inner is not None:
            self._do(lambda inner: inner.finalize(status))

    def _do(self, action: Callable[[Logger], Any]) -> None:
        if self._muted or not dist.once():
            return
        try:
            if self._inner is None:
                self._inner = self._make()
                if self._config is not None:
                    self._inner.log_hyperparams(redact(self._config))
            action(self._inner)
        except Exception as error:  # a tracker is somebody else's code and network; training does not depend on it
            self._muted = True
            log.warning("logger.%s failed and is silent from now on; training goes on (%s: %s)", self._word, type(error).__name__, error)


def tensorboard(*, run_dir: Path, resumed: int = 0) -> Logger:
    """Event files under `<run_dir>/tensorboard`; what lies beyond a resumed step is hidden."""
    purge: dict[str, Any] = {"purge_step": resumed + 1} if resumed else {}
    return TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard", default_hp_metric=False, **purge)


def wandb(
    *,
    run_dir: Path,
    project: str = "vlpkit",
    name: str | None = None,
    entity: str | None = None,
    tags: Sequence[str] = (),
    offline: bool | None = None,
    api_key: str | None = None,
) -> Logger:
    """A W&B run whose id lives in the run folder, so that a resumed run goes on in it. Never asks for a login.

    Args:
        run_dir: run folder; its name is the run's name unless `name` is given.
        project, entity, tags: where it is filed.
        offline: None: offline exactly when no key is found.
        api_key: instead of the environment's.
    """
    if api_key is not None:
        os.environ["WANDB_API_KEY"] = api_key
    path = Path(run_dir) / "wandb_id.txt"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    missing = not has_wandb_key()
    if missing and offline is None:
        log.info("logger.wandb: no key was found, so the run is kept offline under %s/wandb; `wandb sync` sends it", run_dir)
    return WandbLogger(
        save_dir=run_dir,
        id=path.read_text().strip(),
        resume="allow",
        offline=missing if offline is None else offline,
        project=project,
        name=name or Path(run_dir).name,
        entity=entity,
        tags=list(tags),
    )


def has_wandb_key() -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def build_loggers(blocks: Mapping[str, Any] | None, *, run_dir: Path, resumed: int, config: Mapping[str, Any]) -> list[Logger]:
    """The CSV logger, and the ones that `logger` names, each guarded.

    Args:
        blocks: `logger` of the configuration: name to block; `csv` needs none.
        run_dir: run folder.
        resumed: step that the run continues from, 0 for a new one.
        config: whole configuration, sent to trackers with secrets redacted.

    Raises:
        ConfigError: a block does not fit its signature.
    """
    loggers: list[Logger] = [CsvLogger(run_dir=run_dir, resumed=resumed)]
    for word, block in (blocks or {}).items():
        if block is None or word == "csv":
            continue
        made = _builder(word, block, run_dir=run_dir, resumed=resumed)
        loggers.append(Guarded(made, word=word, config=config))
    return loggers


def _builder(word: str, block: Mapping[str, Any], *, run_dir: Path, resumed: int) -> Callable[[], Logger]:
    def make() -> Logger:
        made: Logger = build(block, where=f"logger.{word}", run_dir=run_dir, resumed=resumed)
        return made

    return make
