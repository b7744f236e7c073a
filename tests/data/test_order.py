"""The order is a pure function: complete, seekable, the same on every machine and for every world."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from vlpkit.data.order import Order, sample_rng
from vlpkit.data.share import divide
from vlpkit.errors import ConfigError

SIZES = [5, 0, 3, 7, 1, 4]
GOLDEN = [16, 15, 17, 19, 18, 14, 10, 12, 13, 9, 11, 8, 0, 7, 2, 1, 4, 3, 5, 6, 5, 17, 6, 19]
GOLDEN_DRAW = 666470977


def numbers(order: Order, start: int, stop: int) -> list[int]:
    return [int(number) for _, number in order.samples(start, stop)]


@pytest.mark.parametrize("window", [1, 2, 4, 100])
def test_every_epoch_has_each_sample_exactly_once(window: int) -> None:
    order = Order(SIZES, seed=1, window=window)
    for epoch in range(3):
        assert sorted(numbers(order, epoch * 20, (epoch + 1) * 20)) == list(range(20))


def test_equal_seeds_give_equal_orders_and_others_give_others() -> None:
    first = numbers(Order(SIZES, seed=1, window=2), 0, 20)
    assert numbers(Order(SIZES, seed=1, window=2), 0, 20) == first
    assert numbers(Order(SIZES, seed=2, window=2), 0, 20) != first


def test_every_epoch_has_an_order_of_its_own() -> None:
    order = Order(SIZES, seed=1, window=2)
    assert len({tuple(numbers(order, epoch * 20, (epoch + 1) * 20)) for epoch in range(5)}) == 5


def test_a_slice_is_the_same_however_it_is_asked_for() -> None:
    whole = Order(SIZES, seed=4, window=2).samples(0, 61)
    for width in (1, 7, 20, 33):
        order = Order(SIZES, seed=4, window=2)
        pieces = [order.samples(start, min(start + width, 61)) for start in range(0, 61, width)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    order = Order(SIZES, seed=4, window=2)
    assert [order.sample(position) for position in reversed(range(61))] == [tuple(row) for row in whole[::-1].tolist()]


def test_a_slice_runs_on_across_the_end_of_an_epoch() -> None:
    epochs = Order(SIZES, seed=1, window=2).samples(15, 45)[:, 0]
    assert epochs.tolist() == [0] * 5 + [1] * 20 + [2] * 5


def test_samples_mix_only_with_those_of_their_window() -> None:
    order = Order([10] * 12, seed=0, window=3)
    shards = [{number // 10 for number in numbers(order, start, start + 30)} for start in range(0, 120, 30)]
    assert [len(window) for window in shards] == [3, 3, 3, 3]
    assert set.union(*shards) == set(range(12))


def test_the_order_is_pinned() -> None:
    assert numbers(Order(SIZES, seed=7, window=2), 0, 24) == GOLDEN


def test_the_randomness_of_a_position_is_pinned_and_its_own() -> None:
    draws = [sample_rng(*words).integers(1 << 30) for words in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1))]
    assert draws[0] == sample_rng(0, 0, 0).integers(1 << 30) == GOLDEN_DRAW
    assert len(set(draws)) == 5


def test_a_long_order_is_never_laid_out() -> None:
    order = Order([10_000] * 200_000, seed=0, window=4)  # two thousand million samples
    epochs, found = order.samples(5_000_000_000, 5_000_000_256).T
    assert set(epochs) == {2}
    assert len(set(found)) == 256 and found.min() >= 0 and found.max() < len(order)


def test_substitutes_come_from_the_window_first_and_are_the_same_everywhere() -> None:
    order = Order([10] * 12, seed=0, window=3)
    here = {number // 10 for number in numbers(order, 30, 60)}
    near = [order.substitute(41, attempt) for attempt in range(1, 9)]
    far = [order.substitute(41, attempt) for attempt in range(9, 60)]
    assert {number // 10 for number in near} <= here
    assert {number // 10 for number in far} > here
    assert [pickle.loads(pickle.dumps(order)).substitute(41, attempt) for attempt in range(1, 60)] == near + far


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 2), (2, None), (2, 3), (4, 3), (6, 1)])
def test_the_ranks_together_read_one_unbroken_slice(world: int, micro: int | None) -> None:
    shares = [divide(12, world=world, micro=micro, rank=rank) for rank in range(world)]
    accumulation, width = shares[0].accumulation, shares[0].micro
    assert accumulation * width * world == 12
    read = [shares[r].start(turn) + i for turn in range(3 * accumulation) for r in range(world) for i in range(width)]
    assert read == list(range(36))
    assert shares[0].turn(24) == 2 * accumulation


@pytest.mark.parametrize(
    ("batch", "world", "micro", "message"),
    [
        (100, 8, None, r"^data\.batch=100 does not divide by 8 devices .*Use data\.batch=96 or data\.batch=104"),
        (128, 2, 48, r"^data\.batch=128 does not divide by 2 devices in micro-batches of 48 .*Use data\.batch=96 or data\.batch=192"),
        (3, 8, None, r"Use data\.batch=8, or"),
        (0, 1, None, r"at least 1"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch: int, world: int, micro: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divide(batch, world=world, micro=micro)
