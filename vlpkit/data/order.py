"""The global sample order: which sample stands at which position, a pure function of (seed, epoch, shard sizes, window).
It knows no rank and no worker, so every world reads the same sequence and a run resumes by seeking.

Randomness comes from Philox4x64-10 keyed by the BLAKE2b-128 hash of the words it depends on. Permutations sort its raw 64-bit
output (stable sort), so they hang on no library routine that may change between versions: the golden test pins them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.recent import Recent

_WORD = (1 << 64) - 1
_NEAR = 8  # substitutes tried in the same window, whose shards are at hand, before any other sample is


def _key(*words: int | str) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=16).digest(), "little")


def _permutation(length: int, *words: int | str) -> NDArray[np.int64]:
    return np.argsort(np.random.Philox(key=_key(*words)).random_raw(length), kind="stable")


def sample_rng(seed: int, epoch: int, position: int, attempt: int = 0) -> np.random.Generator:
    """The randomness of one position: caption, crop, flip. Equal on every rank and worker; `attempt` counts substitutes."""
    return np.random.Generator(np.random.Philox(key=_key("sample", seed, epoch, position, attempt)))


def set_rng(rng: np.random.Generator, seed: int, epoch: int, position: int, attempt: int = 0) -> None:
    """Gives a generator over Philox the state of `sample_rng`, in a fifth of the time that a new one takes."""
    key = _key("sample", seed, epoch, position, attempt)
    state = {"counter": (0, 0, 0, 0), "key": (key & _WORD, key >> 64)}
    rng.bit_generator.state = {"bit_generator": "Philox", "state": state, "buffer": (0, 0, 0, 0), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}


def seed_beside(seed: int, source: str) -> int:
    """The seed of a source that stands beside the pairs, or of a set among them: over the same shards it gives another order."""
    return _key("source", seed, source)


class _Epoch(NamedTuple):
    shards: NDArray[np.int64]  # (S,) permuted
    ends: NDArray[np.int64]  # offset within the epoch at which each window ends


class Order:
    """Shards permuted per epoch, then samples permuted within each window of consecutive shards.

    So a shard is needed during one window only. Position p lies in epoch p // len; epochs follow one another without a gap.

    Args:
        sizes: samples of each of S shards.
        seed: of the run.
        window: W shards whose samples mix; 1 keeps shards apart, S or more mixes everything.
    """

    def __init__(self, sizes: Sequence[int] | NDArray[np.int64], *, seed: int, window: int) -> None:
        if window < 1:
            raise ValueError(f"a window of {window} shards holds nothing")
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._length = int(self._sizes.sum())
        if self._length < 1:
            raise ValueError("an order of no samples")
        self.seed, self.window = seed, window
        self._epochs: Recent[int, _Epoch] = Recent(self._epoch, limit=2)
        self._windows: Recent[tuple[int, int], NDArray[np.int64]] = Recent(self._window, limit=4)

    def __len__(self) -> int:
        return self._length

    def sample(self, position: int) -> tuple[int, int]:
        """(epoch, global sample number) at one position."""
        epoch, number = self.samples(position, position + 1)[0]
        return int(epoch), int(number)

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start, 2) rows of (epoch, global sample number) for positions [start, stop)."""
        runs: list[NDArray[np.int64]] = []
        while start < stop:
            epoch, offset, at = self._locate(start)
            block = self._windows.get((epoch, at))
            first = offset - (int(self._epochs.get(epoch).ends[at]) - len(block))
            numbers = block[first : first + stop - start]
            runs.append(np.stack([np.full(len(numbers), epoch, dtype=np.int64), numbers], axis=1))
            start += len(numbers)
        return np.concatenate(runs) if runs else np.empty((0, 2), dtype=np.int64)

    def substitute(self, position: int, attempt: int) -> int:
        """Sample number that stands in at `position` after `attempt` >= 1 refusals; the same in every process."""
        epoch, _, at = self._locate(position)
        draw = int(np.random.Philox(key=_key("substitute", self.seed, epoch, position, attempt)).random_raw())
        if attempt > _NEAR:
            return draw % self._length
        block = self._windows.get((epoch, at))
        return int(block[draw % len(block)])

    def sets(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) zeros: of one source, every sample belongs to the one set."""
        return np.zeros_like(numbers)

    def numbers(self) -> Iterator[int]:
        """Every sample once, in the order of the index."""
        return iter(range(self._length))

    def _locate(self, position: int) -> tuple[int, int, int]:
        if position < 0:
            raise IndexError(f"position {position} is before the first")
        epoch, offset = divmod(position, self._length)
        return epoch, offset, int(np.searchsorted(self._epochs.get(epoch).ends, offset, side="right"))

    def _epoch(self, epoch: int) -> _Epoch:
        shards = _permutation(len(self._sizes), "shards", self.seed, epoch)
        lasts = np.arange(self.window - 1, len(shards) + self.window - 1, self.window).clip(max=len(shards) - 1)
        return _Epoch(shards, np.cumsum(self._sizes[shards])[lasts])

    def _window(self, which: tuple[int, int]) -> NDArray[np.int64]:
        epoch, at = which
        shards = self._epochs.get(epoch).shards[at * self.window : (at + 1) * self.window]
        numbers = np.concatenate([np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in shards])
        return numbers[_permutation(len(numbers), "window", self.seed, epoch, at)]
