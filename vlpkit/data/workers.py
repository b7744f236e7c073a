"""Reading processes: started with one thread each, deaf to the signals meant for the trainer, and never missed in silence.
Knows nothing of samples; `load` gives the items of any map-style data set in the order asked for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vlpkit.errors import DataError, VlpError

_PATIENCE = 600.0  # seconds a worker may take for one item before the run stops rather than hangs
T = TypeVar("T")


def load(items: Dataset[T], sampler: Sequence[Any], *, workers: int, key: str) -> Iterator[T]:
    """Items in the sampler's order from `workers` processes; 0: from this one.

    Args:
        key: configuration key of the shards, named in messages.

    Raises:
        DataError: a worker was killed or stalls; at most some seconds later, and only while an item is awaited. Or what a worker says of the
            data, such as a full disk, in its own words.
    """
    loader: DataLoader[T | _Refusal] = DataLoader(
        _Items(items),
        sampler=sampler,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        timeout=_PATIENCE if workers else 0,
        worker_init_fn=_start,
        generator=torch.Generator().manual_seed(0),  # its own: starting a loader must not move the run's random numbers
    )
    stream: Any = None
    try:
        stream = iter(loader)
        if workers:
            _watch.install()
        while True:
            try:
                item = _watch.next(stream)
            except StopIteration:
                return
            if isinstance(item, _Refusal):
                raise DataError(item.words)
            yield item
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise DataError(
            f"{key}: a reading process ended or stalled ({str(error).splitlines()[0]}) The usual cause is memory: lower data.workers={workers}, "
            f"or look for a killed process in the system log. The run can be continued with resume=auto."
        ) from error
    finally:
        stream = None  # the readers end with it, and not when the last traceback is forgotten


class _Refusal(NamedTuple):
    """What a user must be told, on its way out of a worker: torch would wrap an exception in its traceback."""

    words: str


class _Items(Dataset["T | _Refusal"], Generic[T]):
    def __init__(self, items: Dataset[T]) -> None:
        self.items = items

    def __getitem__(self, index: Any) -> T | _Refusal:
        try:
            return self.items[index]
        except VlpError as error:
            return _Refusal(str(error))


class _Watch:
    """Torch reports a dead worker by raising wherever the main thread happens to be, in the middle of a step or of a checkpoint.
    This holds the report back until an item is awaited."""

    def __init__(self) -> None:
        self._waiting = self._missed = False
        self._theirs: Any = None
        self._readers: Sequence[Any] = ()  # processes behind the item that is awaited

    def install(self) -> None:
        """Stand before torch's handler, once it is there."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        standing = signal.getsignal(signal.SIGCHLD)
        if callable(standing) and standing != self._handle:
            self._theirs = standing
            signal.signal(signal.SIGCHLD, self._handle)

    def next(self, stream: Iterator[T]) -> T:
        """The next item, or RuntimeError when a worker has died."""
        self._waiting, self._readers = True, getattr(stream, "_workers", ())
        try:
            if self._missed:
                self._missed = False
                self._theirs(signal.SIGCHLD, None)
            self._look()
            return next(stream)
        finally:
            self._waiting, self._readers = False, ()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._waiting:
            self._theirs(number, frame)
            self._look()
        else:
            self._missed = True

    def _look(self) -> None:
        # Torch asks the system, which has forgotten a process that somebody has waited for already: then the items of a
        # dead reader would be awaited until patience ends.
        for reader in self._readers:
            if reader.exitcode not in (None, 0):
                raise RuntimeError(f"DataLoader worker (pid {reader.pid}) ended with {reader.exitcode}")


_watch = _Watch()


def _same(item: T) -> T:
    return item


def _start(_: int) -> None:
    """A signal to the whole process group must reach the trainer alone, which still needs its readers to finish a step."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first_only)


def _first_only(_: int, __: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
