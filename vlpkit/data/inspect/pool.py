"""The same work on every shard, in this process or in several: results come in the order of the shards, a bounded number ahead."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vlpkit.errors import DataError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
PATIENCE = 10.0  # seconds between lines of progress
_AHEAD = 2  # shards handed out for each process: the results that wait stay few
_work: Callable[[str], Any]  # of a worker process, handed over once since it may hold a tokenizer


def each(work: Callable[[str], Result], paths: Sequence[str], *, processes: int, doing: str) -> Iterator[Result]:
    """`work(path)` for every path, in order.

    Args:
        work: a function of a module, or a `partial` of one.
        processes: that work beside this one; 1: this one works.
        doing: what the lines of progress call it.

    Raises:
        DataError: a worker process was killed.
    """
    progress = Progress(len(paths), doing)
    if processes == 1 or len(paths) < 2:
        for path in paths:
            yield work(path)
            progress.tick()
        return
    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(processes, initializer=_settle, initargs=(work,))
    try:
        for path in paths:
            waiting.append(pool.submit(_run, path))
            if len(waiting) > _AHEAD * processes:
                yield waiting.popleft().result()
                progress.tick()
        while waiting:
            yield waiting.popleft().result()
            progress.tick()
    except BrokenProcessPool:
        raise DataError("a worker process ended unexpectedly, perhaps for want of memory; try fewer --processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


class Progress:
    """A line every ten seconds.

    Args:
        total: of the units that `tick` counts.
        doing: words in front of the numbers.
        unit: what is counted.
    """

    def __init__(self, total: int, doing: str, *, unit: str = "shards") -> None:
        self.total, self.doing, self.unit, self.done = total, doing, unit, 0
        self._shown = self._began = time.monotonic()

    def tick(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= PATIENCE:
            self._shown = now
            left = (now - self._began) / self.done * (self.total - self.done)
            log.info("%s: %d of %d %s, about %.0f s left", self.doing, self.done, self.total, self.unit, left)


def _settle(work: Callable[[str], Any]) -> None:
    global _work
    _work = work


def _run(path: str) -> Any:
    return _work(path)
