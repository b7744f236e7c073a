"""What a shell command writes, as the bytes of a shard: for stores that nothing but a command reaches. It runs only where the environment
says `VLP_PIPES=1`, since a configuration of somebody else might name any command."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress

from vlpkit.data.place import command
from vlpkit.data.web import CHUNK, Stat

_TOLD = 200  # characters of what the command complained about


def stat(place: str, timeout: float) -> Stat:
    """Size of what comes; the command is run for it, since nothing else could tell. Raises OSError."""
    return Stat(sum(len(chunk) for _, chunk in stream(place, timeout)), "")


def stream(place: str, timeout: float) -> Iterator[tuple[int, bytes]]:
    """All that the command writes, as (offset, bytes). It and what it started end when the reader leaves.

    Raises:
        TimeoutError: for `timeout` seconds nothing was written.
        OSError: it ended with another code than 0.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command(place)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        )
        assert process.stdout is not None
        try:
            at, pipe = 0, process.stdout.fileno()
            while True:
                if not select.select([pipe], [], [], timeout)[0]:
                    raise TimeoutError(errno.ETIMEDOUT, f"the command wrote nothing for {timeout:g} seconds")
                if not (chunk := os.read(pipe, CHUNK)):
                    break
                yield at, chunk
                at += len(chunk)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(errno.ETIMEDOUT, f"the command closed its output and did not end for {timeout:g} seconds") from None
            if code:
                complaints.seek(0)
                last = complaints.read().decode("utf-8", "replace").strip().rpartition("\n")[2][:_TOLD]
                raise OSError(errno.EIO, f"the command ended with code {code}" + (f": {last}" if last else ""))
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
