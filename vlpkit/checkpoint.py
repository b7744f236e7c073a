"""Writing checkpoints so that a crash, a full disk or a signal never costs the one before, and reading them without running code.
Saves happen at optimiser-step boundaries inside the loop; the loop's counters are put in order on loading."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from vlpkit import __version__, dist, migrate
from vlpkit.errors import ResumeError, VlpError
from vlpkit.identity import identity_hash
from vlpkit.resume import retune, rewind, set_aside, settings_of
from vlpkit.sidecar import (
    LAST,
    Sidecar,
    find_checkpoint,
    replacing,
    sidecar_path,
    step_files,
    step_name,
    sweep,
    sync_folder,
    temporary,
    verify,
    write_sidecar,
)
from vlpkit.types import Steps

__all__ = ["Checkpoints", "SafeCheckpointIO", "SaveError", "Stopped", "find_checkpoint", "load_checkpoint"]
log = logging.getLogger(__name__)

HEADROOM = 1.2  # free space wanted before a save, in sizes of the last checkpoint
_LIBRARIES = ("torch", "pytorch-lightning", "transformers", "timm")


class SaveError(VlpError):
    """A checkpoint could not be written; what was there before is untouched."""


class Stopped(SystemExit):
    """A signal ended the run after a save; the exit code is 128 + the signal's number (143 for SIGTERM and SIGUSR1)."""


class _Hashing:
    """A file that is hashed while it is written, and keeps the system's own word for a failure."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.state, self.size = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, chunk: Any) -> int:
        """Called by torch for each piece, in order."""
        try:
            self._file.write(chunk)
        except OSError as error:
            self.failure = error  # torch turns this into a remark about an unexpected position
            raise
        self.state.update(chunk)
        self.size += memoryview(chunk).nbytes
        return memoryview(chunk).nbytes

    def flush(self) -> None:
        """Part of the file protocol."""
        self._file.flush()


class SafeCheckpointIO(CheckpointIO):
    """Lightning's plugin for reading and writing: temporary file in the same folder, fsync, sidecar, rename, fsync of the folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write `checkpoint` under `path`, or raise SaveError and leave everything as it was.

        Args:
            checkpoint: tensors and plain types.
            path: final name.
            storage_options: a list that collects the SaveError in place of raising it, so that one rank does not leave
                the others waiting.
        """
        try:
            self._save(checkpoint, Path(path))
        except SaveError as error:
            if storage_options is None:
                raise
            storage_options.append(str(error))

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        hashing: _Hashing | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_space(path)
            with replacing(path) as file:
                hashing = _Hashing(file)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
                write_sidecar(path, _describe(checkpoint, hashing))  # the last act before the rename: step files have new names
        except (OSError, RuntimeError) as error:
            cause = hashing.failure if hashing is not None and hashing.failure is not None else error
            raise SaveError(f"{path}: the checkpoint could not be written ({cause}). Earlier checkpoints are untouched. {_space(path.parent)}") from error

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify the hash, then load tensors and plain types; there is no way to ask for more. Raises ResumeError."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, then its sidecar."""
        Path(path).unlink(missing_ok=True)
        sidecar_path(Path(path)).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a whole checkpoint in the present format, on the CPU.

    Raises:
        ResumeError: damaged, of an unknown format, or holding anything but tensors and plain types.
    """
    verify(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler answers hostile bytes with errors of any kind
        raise ResumeError(f"{path}: refused, since it cannot be loaded as tensors and plain types ({type(error).__name__}: {error})") from error
    return migrate.upgrade(checkpoint, place=str(path))


def _describe(checkpoint: Mapping[str, Any], hashing: _Hashing) -> Sidecar:
    entry = checkpoint.get("vlpkit", {})
    states = [part for part in checkpoint.values() if isinstance(part, dict) and "fingerprint" in part]
    return Sidecar(
        sha256=hashing.state.hexdigest(),
        size=hashing.size,
        step=int(checkpoint.get("global_step", 0)),
        config_hash=identity_hash(entry["config"]) if "config" in entry else "",
        fingerprint=str(states[0]["fingerprint"]) if states else "",
        versions={"vlpkit": __version__, **{name: version(name) for name in _LIBRARIES}},
        format=int(entry.get("format", 0)),
    )


def _check_space(path: Path) -> None:
    before = step_files(path.parent)
    if not before:
        return
    wanted, free = HEADROOM * before[0][1].stat().st_size, shutil.disk_usage(path.parent).free
    if free < wanted:
        raise OSError(f"{free / 1e9:.2f} GB are free, {wanted / 1e9:.2f} GB are wanted: {HEADROOM} x the last one")


def _space(folder: Path) -> str:
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return f"{free / 1e9:.2f} GB are free in {folder}; make room, lower trainer.keep, or set trainer.checkpoint_every higher."


class Checkpoints(pl.callbacks.Checkpoint):
    """Saves every so many optimiser steps, at the end, and on SIGTERM, SIGUSR1 and Ctrl-C; keeps the newest few.

    Lightning calls subclasses of its Checkpoint after all other callbacks, so metrics and evaluations of a step are
    written before the step counts as saved.

    Args:
        folder: where `step_*.ckpt` and `last.ckpt` go.
        every: optimiser steps between two saves.
        keep: step files to keep, at least 2; an older one goes only after the new one has been read back.
        pause: entered while saving, so that throughput does not count it.
    """

    def __init__(self, folder: Path, *, every: Steps, keep: int = 2, pause: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        if keep < 2:
            raise VlpError(f"trainer.keep: {keep}, but at least 2 checkpoints are kept, so that a damaged one does not end the run. Use trainer.keep=2")
        if every < 1:
            raise VlpError(f"trainer.checkpoint_every: {every} steps, but at least 1 is needed. Use trainer.checkpoint_every=100_steps")
        self.folder, self.every, self.keep, self._pause = folder, every, keep, pause
        self._step = 0                              # last boundary seen
        self._saved = -1                            # step of the last save of this process
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._fresh: list[list[dict[str, Any]]] = []

    # -- resuming --------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the loop's counters where the step says, whatever the accumulation was before."""
        rewind(checkpoint, accumulate=trainer.accumulate_grad_batches)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the configuration says of each group, before the saved optimiser overwrites it."""
        self._fresh = [[settings_of(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that all ranks stand at one step, let changed optimiser settings take effect, listen for signals."""
        self._step = trainer.global_step
        steps = dist.gather_object(self._step)
        if len(set(steps)) > 1:
            raise ResumeError(f"resume: ranks read different checkpoints (steps {steps}). Point all nodes at one shared run_dir.")
        if self._step > 0:
            retune(trainer, self._fresh)
        if dist.once():
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            set_aside(self.folder, self._step)
        if threading.current_thread() is not threading.main_thread():
            return                                  # only the main thread may listen
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening; not in `teardown`, which comes after Lightning has put the first handlers back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the step in progress is finished and saved first; a second Ctrl-C does not wait."""
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        os.write(sys.stderr.fileno(), f"\nsignal {number}: finishing this step, saving, then leaving\n".encode())  # a logger may hold its lock here

    # -- saving ----------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a step has just been done and it is time; the only place that does."""
        step = trainer.global_step
        if step == self._step:
            return                                  # in the middle of an accumulated step
        self._step = step
        number = dist.maximum(int(self._signal))    # all ranks stop at the same step
        end = step >= trainer.max_steps
        if number or end or step % self.every == 0:
            with self._pause():
                saved = self.save(trainer, pl_module)
            if end and not saved and not number:
                raise SaveError(f"{self.folder}: the run is done, but its last checkpoint was not written (the log says why). Mend that, then resume=auto.")
        if number:
            log.warning("stopped by signal %d after step %d; resume=auto continues", number, step)
            raise Stopped(128 + number)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Write this step's checkpoint and thin out the older ones; False, with an error in the log, when it failed."""
        step = trainer.global_step
        if step == self._saved:
            return True
        if dist.maximum(int(not whole(pl_module))):
            log.error("step %d is not saved: a weight is not finite", step)
            return False
        started = time.perf_counter()
        for logger in trainer.loggers:
            logger.save()
        path, failures = self.folder / step_name(step), list[str]()
        trainer.save_checkpoint(path, weights_only=False, storage_options=failures)
        if dist.once() and not failures:
            failures += self.settle(path)
        failures = dist.broadcast_object(failures)
        for failure in failures:
            log.error("TRAINING GOES ON WITHOUT A CHECKPOINT OF STEP %d. %s", step, failure)
        if not failures:
            self._saved = step
            log.info("saved %s (%.1f s)", path, time.perf_counter() - started)
        return not failures

    def settle(self, path: Path) -> list[str]:
        """Read the new file back, point `last.ckpt` at it, then drop what is too old."""
        try:
            sidecar = verify(path)
            link(path, self.folder / LAST, sidecar)
            for _, old in step_files(self.folder)[self.keep :]:
                SafeCheckpointIO().remove_checkpoint(old)
        except (OSError, ResumeError) as error:
            return [f"{path}: {error}"]
        return []


def link(path: Path, last: Path, sidecar: Sidecar) -> None:
    """Make `last` a second name of `path`, or a copy where the file system has no hard links; in one step either way."""
    part = temporary(last)
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, last)
    write_sidecar(last, sidecar)
    sync_folder(last.parent)


def whole(module: torch.nn.Module) -> bool:
    """Whether every weight is finite and no buffer holds a NaN (a buffer may hold -inf, as masks do)."""
    weights = [p.detach() for p in module.parameters() if p.is_floating_point()]
    flags = [torch.isfinite(p).all() for p in weights] + [~torch.isnan(b).any() for b in module.buffers() if b.is_floating_point()]
    return all(bool(flag) for flag in flags)
