"""Ranks and collectives: the only importer of torch.distributed. Before a process group exists, everything is the single-process case.
Letters: G ranks, B rows of this rank, R rows of all ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar, overload

import torch
import torch.distributed as td
from torch import Tensor

from vlpkit.errors import ConfigError

T = TypeVar("T")
_RANK_WORDS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
_control: tuple[object, td.ProcessGroup] | None = None
_patience = timedelta(minutes=5)


def live() -> bool:
    """Whether several processes are connected right now."""
    return td.is_available() and td.is_initialized() and td.get_world_size() > 1


def rank() -> int:
    """This process among all, from 0; before the group exists, what the launcher said."""
    if td.is_available() and td.is_initialized():
        return td.get_rank()
    return next((int(os.environ[word]) for word in _RANK_WORDS if word in os.environ), 0)


def world() -> int:
    """G; 1 before the group exists."""
    return td.get_world_size() if live() else 1


def once() -> bool:
    """True on the one process that writes files and speaks."""
    return rank() == 0


def set_timeout(minutes: float) -> None:
    """Longest wait for a word from another rank; call it before the first collective."""
    global _patience
    _patience = timedelta(minutes=minutes)


def _talk() -> td.ProcessGroup:
    """A gloo group for plain numbers and objects, so that a word between ranks never waits for a device."""
    global _control
    whole = td.group.WORLD
    if _control is None or _control[0] is not whole:  # the group of an earlier launch in this process is of no use
        made: Any = td.new_group(backend="gloo", timeout=_patience)
        _control = (whole, made)
    return _control[1]


def rows_of(rows: int) -> list[int]:
    """How many rows each rank brings, in rank order."""
    if not live():
        return [rows]
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(td.get_world_size())]
    td.all_gather(counts, torch.tensor(rows), group=_talk())
    return [int(count) for count in counts]


def offset(rows: int, *, equal: bool = False) -> int:
    """Where this rank's rows start among all; `equal` promises that all ranks bring as many, which saves a question."""
    if not live():
        return 0
    return rank() * rows if equal else sum(rows_of(rows)[: rank()])


def gather(x: Tensor, *, equal: bool = False) -> Tensor:
    """(R, ...) rows of all ranks in rank order, without gradient.

    Args:
        x: (B, ...) rows of this rank; B may differ between ranks, also 0.
        equal: promises that it does not.
    """
    if not live():
        return x.detach()
    return _gather(x.detach(), None if equal else rows_of(len(x)))


def gather_grad(x: Tensor, *, equal: bool = False) -> Tensor:
    """(R, ...) rows of all ranks in rank order; backward sums what every rank's loss says about this rank's rows.

    Args:
        x: (B, ...) rows of this rank.
        equal: promises that B is the same on all ranks.
    """
    if not live():
        return x
    rows = [len(x)] * td.get_world_size() if equal else rows_of(len(x))
    gathered: Tensor = _GatherGrad.apply(x, rows)
    return gathered


class _GatherGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[int]) -> Tensor:
        ctx.rows = rows
        return _gather(x, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # gloo knows no reduce-scatter: every rank sums the whole and keeps its own rows
        grad = grad.contiguous().clone()
        td.all_reduce(grad)
        start = sum(ctx.rows[: td.get_rank()])
        return grad[start : start + ctx.rows[td.get_rank()]], None


def _gather(x: Tensor, rows: Sequence[int] | None) -> Tensor:
    flat = x.to(torch.uint8) if x.dtype == torch.bool else x.contiguous()
    most = len(x) if rows is None else max(rows)
    if len(x) < most:  # collectives want equal shapes
        flat = torch.cat([flat, flat.new_zeros(most - len(x), *x.shape[1:])])
    parts = [torch.empty_like(flat) for _ in range(td.get_world_size())]
    td.all_gather(parts, flat)
    if rows is not None:
        parts = [part[:count] for part, count in zip(parts, rows)]
    return torch.cat(parts).to(x.dtype)


def mean(x: Tensor) -> Tensor:
    """Mean over ranks, of the same shape, without gradient."""
    x = x.detach()
    if not live():
        return x
    total = x.clone()
    td.all_reduce(total)
    return total / td.get_world_size()


@overload
def maximum(x: Tensor) -> Tensor: ...
@overload
def maximum(x: int) -> int: ...
def maximum(x: Tensor | int) -> Tensor | int:
    """Largest value over ranks; a tensor stays on its device, an integer never touches one."""
    if not live():
        return x
    if isinstance(x, int):
        number = torch.tensor(x)
        td.all_reduce(number, op=td.ReduceOp.MAX, group=_talk())
        return int(number)
    most = x.detach().clone()
    td.all_reduce(most, op=td.ReduceOp.MAX)
    return most


def broadcast_object(x: T) -> T:
    """What rank 0 holds; plain picklable values."""
    if not live():
        return x
    held = [x]
    td.broadcast_object_list(held, src=0, group=_talk())
    return held[0]


def gather_object(x: T) -> list[T]:
    """What each rank holds, in rank order; plain picklable values."""
    if not live():
        return [x]
    held: list[Any] = [None] * td.get_world_size()
    td.all_gather_object(held, x, group=_talk())
    return held


def barrier() -> None:
    """Wait for all ranks."""
    if live():
        td.barrier(group=_talk())


def agree(value: str, *, about: str) -> str:
    """The value of rank 0, before any process group exists: through the store that torchrun keeps for its workers.

    Args:
        value: what this process would choose.
        about: name of the question, equal on all ranks; a restarted group asks anew.

    Raises:
        ConfigError: the processes were not started by torchrun, so there is no store to talk through.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(f"{about}: null, but processes that torchrun did not start cannot agree on one before they meet. Set it: {about}=runs/NAME")
    store = td.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=2)
    )
    word = f"vlpkit/{about}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank() == 0:
        store.set(word, value)
    return store.get(word).decode()
