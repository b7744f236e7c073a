"""Processes without the price of an import: forked from the test, with the environment that torchrun gives to its ranks."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from vlpkit.errors import VlpError


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(work: Callable[[], Any], **environment: str) -> int:
    """Fork: the child does `work` and ends with the exit code that a command would have."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(environment)
            work()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        except VlpError:
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def start_two(work: Callable[[], Any]) -> list[int]:
    """Two ranks with the environment that torchrun gives."""
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    return [start(work, **both, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0") for rank in range(2)]


def codes(*pids: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
