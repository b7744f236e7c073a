"""Files that survive a crash: atomic writing, the JSON sidecar that proves a checkpoint whole, and the search for the newest whole one.
No torch: the cheap checks look for checkpoints, too."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlpkit.errors import ResumeError

log = logging.getLogger(__name__)

LAST = "last.ckpt"
_STEP = re.compile(r"step_(\d+)\.ckpt")
_CHUNK = 1 << 22


class Sidecar(NamedTuple):
    """What `NAME.ckpt.json` says of `NAME.ckpt`.

    Args:
        sha256: hexadecimal hash of the file.
        size: bytes.
        step: optimiser steps done.
        config_hash: of the part of the configuration that a resumed run must share; "" when unknown.
        fingerprint: of the data index; "" when unknown.
        versions: of the libraries that wrote it.
        format: of the vlpkit entry inside; 0 when there is none.
    """

    sha256: str
    size: int
    step: int
    config_hash: str
    fingerprint: str
    versions: dict[str, str]
    format: int


def sidecar_path(path: Path) -> Path:
    """`NAME.ckpt.json` beside `NAME.ckpt`."""
    return path.with_name(path.name + ".json")


def step_name(step: int) -> str:
    """`step_00000300.ckpt`."""
    return f"step_{step:08d}.ckpt"


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """Step files under their final names, newest first; they may be damaged."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.ckpt") if (match := _STEP.fullmatch(path.name))]
    return sorted(found, reverse=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """A name in the same folder: a rename is atomic only within one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends well, and leaves no trace otherwise."""
    part = temporary(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as file:
        file.write(text.encode())


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Replace the sidecar of the checkpoint `path`."""
    write_text(sidecar_path(path), json.dumps(sidecar._asdict(), indent=1) + "\n")


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of the checkpoint `path`. Raises ResumeError when it is missing or makes no sense."""
    if path.name == LAST and path.is_file():  # a kill may come between the link and its sidecar; that of the step file cannot be stale
        path = next((step for _, step in step_files(path.parent) if step.samefile(path)), path)
    try:
        record: dict[str, Any] = json.loads(sidecar_path(path).read_text())
        return Sidecar(**{word: kind(record[word]) for word, kind in _FIELDS.items()})
    except FileNotFoundError:
        raise ResumeError(f"{path}: its sidecar {sidecar_path(path).name} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResumeError(f"{path}: its sidecar {sidecar_path(path).name} cannot be read ({type(error).__name__}: {error})") from error


_FIELDS: dict[str, type] = {"sha256": str, "size": int, "step": int, "config_hash": str, "fingerprint": str, "versions": dict, "format": int}


def verify(path: Path) -> Sidecar:
    """The sidecar of a checkpoint that is whole.

    Raises:
        ResumeError: the file or its sidecar is missing, empty, cut short or altered; the message says which.
    """
    if not path.is_file():
        raise ResumeError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size == 0:
        raise ResumeError(f"{path}: the file is empty")
    sidecar = read_sidecar(path)
    if size != sidecar.size:
        raise ResumeError(f"{path}: {size} bytes instead of {sidecar.size}, {'cut short' if size < sidecar.size else 'too long'}")
    try:
        found = digest(path)
    except OSError as error:
        raise ResumeError(f"{path}: cannot be read ({error})") from error
    if found != sidecar.sha256:
        raise ResumeError(f"{path}: altered, its sha256 is {found[:12]}... instead of {sidecar.sha256[:12]}...")
    return sidecar


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a folder, and what is wrong with the newer ones, each reason naming its file.

    Every problem is also logged as a warning. A folder without any checkpoint gives None.

    Raises:
        ResumeError: there are checkpoints, but none is whole.
    """
    problems = [f"{path}: left over from a save that was interrupted" for path in sorted(folder.glob(".*.tmp"))]
    for problem in problems:
        log.warning("%s", problem)
    reasons: list[str] = []
    for path, also in _candidates(folder):
        try:
            found = verify(path)
        except ResumeError as error:
            reasons.append(f"{error}{also}")
            log.warning("damaged checkpoint, looking for the one before: %s", reasons[-1])
            continue
        if reasons:
            log.warning("%d damaged checkpoint(s) passed over; using %s (step %d)", len(reasons), path, found.step)
        return path, problems + reasons
    if reasons:
        listed = "\n".join(f"  {reason}" for reason in reasons)
        raise ResumeError(f"{folder}: no checkpoint is whole.\n{listed}\nRestore one of them from a copy, or start a new run with another run_dir.")
    return None, problems


def _candidates(folder: Path) -> list[tuple[Path, str]]:
    """Files that may be checkpoints, newest first, each with what else it is called."""
    last = folder / LAST
    ranked = [(step, 1, path, " (last.ckpt is the same file)" * (last.exists() and last.samefile(path))) for step, path in step_files(folder)]
    if last.exists() and not any(also for *_, also in ranked):  # a copy, where links are impossible, or all that somebody kept
        try:
            ranked.append((read_sidecar(last).step, 2, last, ""))
        except ResumeError:
            ranked.append((sys.maxsize, 2, last, ""))  # it claims to be the last, so what is wrong with it must be said
    return [(path, also) for _, _, path, also in sorted(ranked, key=lambda entry: entry[:2], reverse=True)]


def sweep(folder: Path) -> None:
    """Remove what interrupted saves left behind; nobody else may be saving in `folder`."""
    for path in folder.glob(".*.tmp"):
        log.warning("removing %s, left over from a save that was interrupted", path)
        path.unlink(missing_ok=True)
