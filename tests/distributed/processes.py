"""Two processes that find each other as torchrun's workers do; each runs a function and leaves what it found in a file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

Work = Callable[[int], Any]


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _worker(rank: int, work: Work, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="two",
    )
    torch.save(work(rank), folder / f"{rank}.pt")


def two(work: Work, folder: Path) -> list[Any]:
    """What `work(rank)` returned on both ranks."""
    mp.spawn(_worker, args=(work, folder, _port()), nprocs=2, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
