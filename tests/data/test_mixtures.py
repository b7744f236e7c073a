"""Sets of pairs mixed in one order: exact proportions in every prefix, each set in its own order, resumable from any position."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import module, pair, write_shards
from worlds import batches, global_batches, rows

from vlpkit.data.mixture import Interleaving, Mixture, counted
from vlpkit.data.module import DataModule
from vlpkit.data.order import Order
from vlpkit.errors import ConfigError, DataError, ResumeError

torch.set_num_threads(1)
A, B, C = [5, 0, 3, 7, 1, 4], [6, 4], [8]   # 20, 10 and 8 samples
GOLDEN = [16, 32, 15, 24, 17, 19, 34, 18, 22, 14, 10, 33, 12, 36, 13, 9, 26, 11, 8, 30]
PAPER = [2_900_000, 10_400_000, 860_000, 113_000, 108_000]   # images of CC3M, CC12M, SBU, COCO and VG
MIX = {"tiny": 1.0, "wide": 0.5}


def mixture(*weights: float, seed: int = 7, window: int = 2) -> Mixture:
    sizes = [A, B, C][: len(weights)]
    orders = [Order(each, seed=seed + at, window=window) for at, each in enumerate(sizes)]
    lengths = [sum(each) for each in sizes]
    return Mixture(orders, lengths=lengths, counts=counted(weights, lengths, percent=False), seed=seed)


def numbers(order: Mixture | Order, start: int, stop: int) -> list[int]:
    return order.samples(start, stop)[:, 1].tolist()


@pytest.mark.parametrize(("counts", "bound"), [([3, 1], 0.5), ([20, 5], 0.5), ([7, 7, 7], 2), ([1, 1, 2, 3, 5, 8, 13], 2), ([1000, 1, 1, 1], 2), (PAPER, 2)])
def test_of_any_prefix_every_set_has_its_share_to_within_a_sample_or_two(counts: list[int], bound: float) -> None:
    length = min(3 * sum(counts), 200_000)
    sets, _ = Interleaving(counts).places(0, length)
    for at, count in enumerate(counts):
        served, due = np.cumsum(sets == at), np.arange(1, length + 1) * (count / sum(counts))
        assert np.abs(served - due).max() <= bound + 1e-6


@pytest.mark.parametrize("counts", [[3, 1], [1, 1, 2, 3, 5, 8, 13], [1], [4, 4, 4]])
def test_every_epoch_of_the_mixture_is_exact(counts: list[int]) -> None:
    sets, _ = Interleaving(counts).places(0, 4 * sum(counts))
    for epoch in sets.reshape(4, -1):
        assert np.bincount(epoch, minlength=len(counts)).tolist() == counts


def test_the_places_before_a_position_are_counted_and_not_walked() -> None:
    between = Interleaving(PAPER)
    sets, _ = between.places(0, 5000)
    for start in (0, 1, 777, 4096):
        assert between.places(start, start)[1] == np.bincount(sets[:start], minlength=5).tolist()
    far = 10**12 * sum(PAPER)
    found, before = between.places(far, far + 5000)
    assert before == [10**12 * count for count in PAPER]
    assert found.tolist() == sets.tolist()


def test_a_set_keeps_its_own_order_whatever_is_mixed_with_it() -> None:
    mixed = numbers(mixture(1.0, 0.5, 2.0), 0, 200)
    for starts, stop, own in ((0, 20, Order(A, seed=7, window=2)), (20, 30, Order(B, seed=8, window=2)), (30, 38, Order(C, seed=9, window=2))):
        mine = [number - starts for number in mixed if starts <= number < stop]
        assert mine == numbers(own, 0, len(mine))


def test_half_a_pass_is_another_half_in_the_next_epoch_and_two_passes_are_every_sample_twice() -> None:
    order = mixture(1.0, 0.5, 2.0)
    assert len(order) == 20 + 5 + 16
    for epoch in (0, 2):
        first, second = (Counter(numbers(order, at * 41, (at + 1) * 41)) for at in (epoch, epoch + 1))
        assert all(first[number] == 1 for number in range(20))
        assert all(first[number] == 2 for number in range(30, 38))
        assert sorted(first[number] + second[number] for number in range(20, 30)) == [1] * 10
    assert order.samples(40, 43)[:, 0].tolist() == [0, 1, 1]


def test_a_share_in_percent_makes_an_epoch_as_long_as_the_sets_together() -> None:
    assert counted([70, 30], [20, 10], percent=True) == [21, 9]
    assert counted([1.0, 0.25], [20, 10], percent=False) == [20, 3]
    assert counted([1.0, 0.001], [20, 10], percent=False) == [20, 1]


def test_a_slice_is_the_same_however_it_is_asked_for_and_in_every_process() -> None:
    whole = mixture(1.0, 0.5, 2.0).samples(0, 130)
    for width in (1, 7, 41, 64):
        order = mixture(1.0, 0.5, 2.0)
        np.testing.assert_array_equal(np.concatenate([order.samples(start, min(start + width, 130)) for start in range(0, 130, width)]), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mixture(1.0, 0.5, 2.0))).samples(99, 130), whole[99:])


def test_the_order_of_a_mixture_is_pinned() -> None:
    assert numbers(mixture(1.0, 0.5, 1.0), 0, 20) == GOLDEN


def test_substitutes_come_from_the_set_that_stands_there() -> None:
    order = mixture(1.0, 0.5, 2.0)
    for position in range(60):
        due, found = order.samples(position, position + 1)[:, 1], np.array([order.substitute(position, attempt) for attempt in range(1, 20)])
        assert set(order.sets(found).tolist()) == set(order.sets(due).tolist())
    assert order.sets(np.array([0, 19, 20, 29, 30, 37])).tolist() == [0, 0, 1, 1, 2, 2]


def test_every_number_comes_once_and_from_the_sets_in_turn() -> None:
    found = list(mixture(1.0, 0.5, 2.0).numbers())
    assert sorted(found) == list(range(38))
    assert {int(at) for at in mixture(1.0, 0.5, 2.0).sets(np.array(found[:8]))} == {0, 1, 2}


# -- through the data module -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 pairs in uneven shards, and 30 more that another set holds."""
    here = tmp_path_factory.mktemp("mixed")
    write_shards(here, [13, 1, 17, 9, 10], captions=3)
    write_shards(here, [10, 20], prefix="wide", captions=2, first=50)
    return here


def mixed(folder: Path, mix: Any = None, **changes: Any) -> DataModule:
    wanted = {name: {"weight": weight, **({} if name == "tiny" else {"shards": f"{name}-*.tar"})} for name, weight in MIX.items()}
    return module(folder, val_shards=None, mix=wanted if mix is None else mix, **changes)


def test_batches_hold_the_sets_in_proportion_and_every_sample_of_the_first_once_an_epoch(folder: Path) -> None:
    data = mixed(folder, batch=13)
    assert len(data) == 50 + 15
    found = [batch.pair_id.tolist() for batch in batches(data, 10)]
    assert all(2 <= sum(number >= 50 for number in batch) <= 4 for batch in found)   # 3 of 13
    for epoch in (found[:5], found[5:]):
        assert sorted(number for batch in epoch for number in batch if number < 50) == list(range(50))
    assert sorted(number for batch in found for number in batch if number >= 50) == list(range(50, 80))


@pytest.mark.parametrize(("world", "workers", "micro"), [(1, 2, None), (2, 0, None), (2, 2, 2), (4, 0, 1)])
def test_a_mixture_goes_on_the_same_on_any_ranks_and_workers(folder: Path, world: int, workers: int, micro: int | None) -> None:
    whole = global_batches(folder, 16, make=mixed)
    assert global_batches(folder, 5, world=world, workers=workers, micro=micro, make=mixed) == whole[:5]
    assert global_batches(folder, 5, world=world, workers=workers, micro=micro, seen=11 * 8, make=mixed) == whole[11:]


def test_it_does_not_matter_in_which_order_the_sets_are_written_down(folder: Path) -> None:
    there, back = mixed(folder), mixed(folder, {"wide": {"shards": "wide-*.tar", "weight": 0.5}, "tiny": 1.0})
    back.load_state_dict(there.state_dict())
    assert back.order.samples(0, 300).tolist() == there.order.samples(0, 300).tolist()


def test_a_set_alone_is_a_mixture_of_one_whose_epoch_is_its_passes(folder: Path) -> None:
    data = mixed(folder, {"tiny": 0.5}, batch=25)
    assert len(data) == 25
    first, second = (set(batch.pair_id.tolist()) for batch in batches(data, 2))
    assert first | second == set(range(50))


def test_data_without_a_mixture_is_read_as_ever(folder: Path) -> None:
    plain = [rows(batch) for batch in batches(module(folder, val_shards=None), 8)]
    assert [rows(batch) for batch in batches(module(folder, val_shards=None, mix={}), 8)] == plain
    assert isinstance(module(folder, val_shards=None, mix={}).order, Order)


def test_a_limit_holds_for_every_set(folder: Path) -> None:
    data = mixed(folder, {"tiny": {"limit": 7}, "wide": {"shards": "wide-*.tar"}}, limit=9)
    assert len(data) == 7 + 9
    assert {number for batch in batches(data, 4) for number in batch.pair_id.tolist()} == {*range(7), *range(50, 59)}


def test_what_captions_survive_is_kept_set_by_set(folder: Path) -> None:
    """Every image is mirrored but those of the set whose captions say left and right."""
    flip, whole = {"scale": [1.0, 1.0], "flip": 1.0, "randaugment": None}, {"scale": [1.0, 1.0], "flip": 0.0, "randaugment": None}
    wanted = {"tiny": 1.0, "wide": {"shards": "wide-*.tar", "safe": {"mirror": False}}}
    turned, plain = batches(mixed(folder, wanted, augment=flip), 6), batches(mixed(folder, wanted, augment=whole), 6)
    for one, other in zip(turned, plain):
        for number, a, b in zip(one.pair_id.tolist(), one.images["clean"].pixels, other.images["clean"].pixels):  # type: ignore[arg-type]
            assert torch.equal(a, b if number >= 50 else b.flip(-1))


def test_what_is_refused_is_booked_and_replaced_within_its_set(tmp_path: Path) -> None:
    write_shards(tmp_path, [30])
    write_shards(tmp_path, [10], prefix="wide", odd={4: pair(4, text=b"  "), 6: pair(6, image=None)})
    data = mixed(tmp_path, {"tiny": 1.0, "wide": {"shards": "wide-*.tar", "weight": 1.0}}, max_bad_share=0.5)
    found = [number for batch in batches(data, 10) for number in batch.pair_id.tolist()]
    assert sum(number >= 30 for number in found) == 20
    assert not {34, 36} & set(found)
    report = data.report()
    assert {name: (one["served"], one["replaced"]) for name, one in report["sets"].items()} == {
        "tiny": (60, {}), "wide": (20, {"empty_caption": 2, "missing_image": 2}),
    }  # fmt: skip
    assert (report["train"]["served"], report["train"]["replaced"]) == (80, {"empty_caption": 2, "missing_image": 2})
    assert data.ledger.bad_share == 4 / 80


def test_a_small_set_cannot_hide_its_damage_behind_a_large_one(tmp_path: Path) -> None:
    write_shards(tmp_path, [90])
    write_shards(tmp_path, [10], prefix="wide", odd={number: pair(number, text=b" ") for number in range(5)})
    data = mixed(tmp_path, {"tiny": 1.0, "wide": {"shards": "wide-*.tar"}}, max_bad_share=0.1, batch=50)
    with pytest.raises(DataError, match=r"^data\.mix\.wide\.shards: .*data\.max_bad_share=0\.1 permits 10 %"):
        batches(data, 100)   # 5 % of all samples, half of the set's


def test_a_source_beside_the_pairs_reads_the_same_mixture_in_another_order(folder: Path) -> None:
    data = mixed(folder, sources={"texts": {"holds": "texts"}}, batch=13)
    steps = list(islice(data.train_dataloader(), 5))
    told = [step["texts"].pair_id.tolist() for step in steps]
    assert Counter(number >= 50 for batch in told for number in batch) == {False: 50, True: 15}
    assert told != [step["pairs"].pair_id.tolist() for step in steps]


def test_the_captions_of_all_sets_come_in_turn(folder: Path) -> None:
    assert len(list(mixed(folder).captions())) == 50 * 3 + 30 * 2
    first = list(mixed(folder, {"tiny": 1.0, "wide": {"shards": "wide-*.tar", "weight": 2.0}}).captions(limit=12))
    assert Counter(first) == Counter([f"caption {c} of {n}" for n in (0, 1) for c in range(3)] + [f"caption {c} of {n}" for n in (50, 51, 52) for c in range(2)])


def test_the_account_says_how_often_each_set_is_seen(folder: Path) -> None:
    assert mixed(folder).pool.account(650) == [
        "tiny: 76.9 % of the samples, 1.00 passes an epoch, 10.00 in the run", "wide: 23.1 % of the samples, 0.50 passes an epoch, 5.00 in the run",
    ]  # fmt: skip
    assert module(folder).pool.account(650) == []


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"tiny": 1.0, "wide": {"shards": "wide-*.tar", "weight": 1.0}}, r"data\.mix\.wide\.weight: 0\.5 passes an epoch in the checkpoint, 1\.0 passes an epoch now"),
        ({"tiny": 1.0, "wide": {"shards": "wide-000.tar", "weight": 0.5}}, r"data\.mix\.wide\.samples: 30 in the checkpoint, 10 now"),
        ({"tiny": 1.0, "other": {"shards": "wide-*.tar", "weight": 0.5}}, r"data\.mix\.other: null in the checkpoint, weight, limit"),
        ({"tiny": 1.0, "wide": {"shards": "wide-*.tar", "weight": 0.5, "limit": 9}}, r"data\.mix\.wide\.limit: null in the checkpoint, 9 now"),
        ({}, r"data\.mix: tiny, wide in the checkpoint, null now"),
    ],
)
def test_another_mixture_cannot_go_on_with_a_run(folder: Path, now: Any, message: str) -> None:
    state = mixed(folder).state_dict()
    with pytest.raises(ResumeError, match=message) as refused:
        mixed(folder, now).load_state_dict(state)
    assert "data.shards" not in str(refused.value)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"wide": 1.0}, r"data\.mix: leaves out tiny, the data itself\. Add it, such as 'data\.mix\.tiny=1\.0', or .*data\.mix\.tiny=null"),
        ({"tiny": None}, r"data\.mix: every set is null"),
        ({"tiny": 1.0, "wide": 1.0}, r"data\.mix\.wide: names no shards\. Write data\.mix\.wide\.shards="),
        ({"tiny": 0}, r"data\.mix\.tiny\.weight is 0 \(accepted: passes over the set an epoch, such as 1\.0 or 0\.5, or a share such as 30%"),
        ({"tiny": "half"}, r"data\.mix\.tiny\.weight is 'half'"),
        ({"tiny": True}, r"data\.mix\.tiny\.weight is True"),
        ({"tiny": {"wieght": 1}}, r"data\.mix\.tiny: no key 'wieght' \(there are: weight, shards, root, limit, safe\)\. Did you mean 'weight'"),
        ({"tiny": {"limit": 0}}, r"data\.mix\.tiny\.limit is 0; it must be at least 1"),
        ({"tiny": "70%", "wide": {"shards": "wide-*.tar"}}, r"data\.mix: tiny has 70\.0 %, but wide 1\.0 passes an epoch\. Give every set the one or the other"),
        ({"tiny": "70%", "wide": {"shards": "wide-*.tar", "weight": "20%"}}, r"data\.mix: the percentages come to 90 %; they must come to 100 %"),
        ({"tiny": {"safe": {"miror": False}}}, r"data\.safe has the keys .*miror"),
        ({"tiny": 1.0, "wide": {"shards": "wide-*.tar", "safe": {"min_crop": 2}}}, r"data\.mix\.wide\.safe\.min_crop is 2"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(folder: Path, mix: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixed(folder, mix)


def test_a_shard_of_two_sets_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.mix: .*wide-001\.tar stands in again and in wide\. Leave it to one of them"):
        _ = mixed(folder, {"tiny": 1.0, "wide": {"shards": "wide-*.tar"}, "again": {"shards": "wide-001.tar"}}).index


def test_shards_that_are_missing_are_named_by_their_set(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.mix\.wide\.shards: 'none-\*\.tar' matches nothing"):
        _ = mixed(folder, {"tiny": 1.0, "wide": {"shards": "none-*.tar"}}).index
