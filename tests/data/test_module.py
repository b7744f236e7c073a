"""What the data engine promises: the same global batches for every world, resume by seeking, faults that shift nothing."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from shards import jpeg, module, pair, words, write_shards
from worlds import Row, batches, global_batches, rows

from vlpkit.data.faults import Fault, Ledger
from vlpkit.data.module import DataModule
from vlpkit.data.tokenize import load_words
from vlpkit.errors import ConfigError, DataError, ResumeError
from vlpkit.types import Batch

torch.set_num_threads(1)


def cut_jpeg() -> bytes:
    return jpeg(3)[: len(jpeg(3)) // 2]


def gif() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "GIF")
    return stream.getvalue()


ODD = {
    2: (pair(2, image=cut_jpeg()), "truncated_image"),
    5: (pair(5, image=b"<html><body>403 Forbidden</body></html>"), "not_an_image"),
    7: ([("000007.jpg", b""), ("000007.txt", b"nothing to see")], "empty_image"),
    11: (pair(11, text=None), "missing_caption"),
    13: (pair(13, image=None), "missing_image"),
    17: (pair(17, text="Stra\u00dfe".encode("latin-1")), "bad_utf8"),
    19: (pair(19, text=b"  \n "), "empty_caption"),
    23: ([("000023.jpg", jpeg(23)), ("000023.json", b"{broken")], "bad_record"),
    29: (pair(29, image=gif()), "unsupported_format"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 good training samples with three captions each, in shards of uneven sizes, and 10 for validation."""
    here = tmp_path_factory.mktemp("good")
    write_shards(here, [13, 1, 17, 9, 10], captions=3)
    write_shards(here, [6, 4], prefix="val", captions=2)
    return here


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training samples, 9 of them unusable in as many ways; the same without the damage beside it."""
    here = tmp_path_factory.mktemp("odd")
    write_shards(here, [20, 20], odd={number: members for number, (members, _) in ODD.items()})
    write_shards(here, [20, 20], odd={number: members for number, (members, _) in ODD.items()}, prefix="val")
    write_shards(here / "whole", [20, 20])
    return here


def test_a_batch_carries_pixels_words_numbers_and_keys(folder: Path) -> None:
    (batch,) = batches(module(folder), 1)
    assert (batch.images["clean"].pixels.shape, batch.images["clean"].pixels.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert batch.images["clean"].pixels.is_contiguous(memory_format=torch.channels_last)  # as decoded: never turned round on the way to the device
    assert batch.texts["clean"].ids.shape == batch.texts["clean"].mask.shape
    assert [f"{number:06d}" for number in batch.pair_id.tolist()] == list(batch.keys)
    assert batch.targets == {}


@pytest.mark.parametrize(("world", "workers", "micro"), [(1, 2, None), (2, 0, None), (2, 2, 2), (1, 0, 2), (4, 0, 1)])
def test_global_batches_do_not_depend_on_ranks_workers_or_accumulation(folder: Path, world: int, workers: int, micro: int | None) -> None:
    assert global_batches(folder, 8, world=world, workers=workers, micro=micro) == global_batches(folder, 8)


def test_over_ranks_and_workers_each_sample_is_seen_exactly_once_an_epoch(folder: Path) -> None:
    found = global_batches(folder, 10, world=2, workers=2, batch=10)  # 50 samples an epoch: 5 steps
    for epoch in (found[:5], found[5:]):
        assert sorted(key for step in epoch for key, _, _ in step) == [f"{number:06d}" for number in range(50)]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(folder: Path) -> None:
    first = global_batches(folder, 3)
    assert global_batches(folder, 3) == first
    other = global_batches(folder, 3, seed=4)
    assert [key for key, _, _ in other[0]] != [key for key, _, _ in first[0]]


def test_a_sample_is_cropped_and_captioned_anew_each_epoch(folder: Path) -> None:
    seen: dict[str, set[tuple[bytes, tuple[int, ...]]]] = {}
    for step in global_batches(folder, 20, batch=10):
        for key, pixels, ids in step:
            seen.setdefault(key, set()).add((pixels, ids))
    assert {len(views) for views in seen.values()} == {4}
    captions = Counter(ids for views in seen.values() for _, ids in views)
    assert len(captions) > 100  # of 150, in four epochs of 50


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 13])
def test_a_loader_started_at_a_position_equals_the_tail_of_an_unbroken_one(folder: Path, steps: int, workers: int) -> None:
    whole = [rows(batch) for batch in batches(module(folder), 16)]
    before = module(folder)
    before.samples_seen = steps * 8
    state = json.loads(json.dumps(before.state_dict()))
    after = module(folder, workers=workers)
    after.load_state_dict(state)
    assert [rows(batch) for batch in batches(after, 16 - steps)] == whole[steps:]


def test_a_checkpoint_of_one_rank_continues_on_two(folder: Path) -> None:
    whole = global_batches(folder, 10)
    tail: list[list[Row]] = []
    data = [module(folder) for _ in range(2)]
    for rank, each in enumerate(data):
        each.plan(world=2, rank=rank, micro=2)
        each.load_state_dict({**module(folder).state_dict(), "samples_seen": 4 * 8})
    ranks = [batches(each, 12) for each in data]
    for step in range(6):
        tail.append([row for turn in (2 * step, 2 * step + 1) for rank in ranks for row in rows(rank[turn])])
    assert tail == whole[4:]


def test_the_loader_ends_after_the_planned_steps_and_has_no_length(folder: Path) -> None:
    data = module(folder)
    data.plan(world=1, micro=4, total=5)
    data.samples_seen = 16
    loader = data.train_dataloader()
    assert len(list(loader)) == (5 - 2) * 2
    assert not hasattr(loader, "__len__")


def test_starting_a_loader_leaves_the_global_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    batches(module(folder, workers=1), 1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_global_batch_larger_than_the_data_runs_through_several_epochs(folder: Path) -> None:
    (batch,) = batches(module(folder, batch=128), 1)
    counts = Counter(batch.pair_id.tolist())
    assert (len(counts), set(counts.values())) == (50, {2, 3})


def test_limit_keeps_the_first_samples_only(folder: Path) -> None:
    data = module(folder, limit=15, batch=15)
    assert len(data) == 15
    assert sorted(batches(data, 1)[0].pair_id.tolist()) == list(range(15))


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_members_are_replaced_where_they_stand_and_counted_by_reason(odd_folder: Path, workers: int) -> None:
    data = module(odd_folder, max_bad_share=0.5, workers=workers)
    found = [row for batch in batches(data, 15) for row in rows(batch)]
    whole = [row for batch in batches(module(odd_folder / "whole"), 15) for row in rows(batch)]
    keys = {f"{number:06d}" for number in ODD}
    assert all((here == there) == (there[0] not in keys) for here, there in zip(found, whole))
    assert not keys & {key for key, _, _ in found}
    report = data.report()["train"]
    assert report["replaced"] == {reason: 3 for _, reason in ODD.values()}  # three epochs of 40
    assert report["served"] == 120 == report["read"] + sum(report["replaced"].values())


def test_replacements_do_not_depend_on_ranks(odd_folder: Path) -> None:
    assert global_batches(odd_folder, 8, world=2, micro=2, max_bad_share=0.5) == global_batches(odd_folder, 8, max_bad_share=0.5)


def test_a_shard_that_vanishes_during_the_run_is_replaced(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [8, 8, 8, 8])
    data = module(tmp_path, max_bad_share=0.5, window=4)
    assert len(data) == 32
    os.unlink(paths[2])
    assert {number // 8 for batch in batches(data, 4) for number in batch.pair_id.tolist()} == {0, 1, 3}
    assert data.report()["train"]["replaced"] == {"shard_missing": 8}


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_usable_sample_stops_with_the_table_of_reasons(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [6, 6], odd={number: pair(number, image=cut_jpeg()) for number in range(12)})
    with pytest.raises(DataError, match=r"no usable sample for position 0: it and 32 substitutes(.|\n)*truncated_image +33 +0000\d\d in .*train-00"):
        batches(module(tmp_path, max_bad_share=1.0, workers=workers), 1)


def test_more_bad_samples_than_the_budget_stop_the_run_with_the_table(odd_folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.max_bad_share=0\.05 permits 5 %(.|\n)*reason +refused +for example\n(.|\n)*bad_utf8"):
        batches(module(odd_folder, max_bad_share=0.05), 100)


def fault(position: int, reason: str = "broken_image") -> Fault:
    return Fault(position, 0, reason, f"{position:06d}", "a.tar", "")


def served_until_stop(ledger: Ledger, every: int, most: int) -> int:
    """Samples served, one in `every` of them bad, before the ledger stops the run."""
    for position in range(most):
        try:
            ledger.add(*((0, [fault(position)]) if position % every == every - 1 else (1, [])))
        except DataError:
            return position + 1
    return most


@pytest.mark.parametrize(("every", "budget", "least", "most"), [(50, 0.01, 200, 10_000), (125, 0.01, 30_000, 30_000), (10, 0.01, 200, 200), (300, 0.0, 300, 300)])
def test_the_budget_stops_within_a_window_and_never_below(every: int, budget: float, least: int, most: int) -> None:
    assert least <= served_until_stop(Ledger(max_bad_share=budget), every, 30_000) <= most


def test_a_good_past_does_not_pay_for_a_bad_present() -> None:
    ledger = Ledger(max_bad_share=0.01)
    for _ in range(100_000):
        ledger.add(1, [])
    assert served_until_stop(ledger, 50, 30_000) < 10_000


def test_a_flood_of_refusals_is_a_trickle_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(max_bad_share=1.0)
    for position in range(1000):
        ledger.add(0, [fault(position)])
    assert len(caplog.records) == 10
    assert "sample 000000 of a.tar refused: broken_image" in caplog.records[0].getMessage()


def test_a_killed_worker_is_a_clear_error(folder: Path) -> None:
    stream = iter(module(folder, workers=1).train_dataloader())
    next(stream)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    time.sleep(0.1)  # the report of the death waits until a batch is asked for: a step or a checkpoint is not torn
    with pytest.raises(DataError, match=r"a reading process ended or stalled .*data\.workers=1"):
        for _ in range(50):
            next(stream)


def test_a_signal_to_the_whole_group_leaves_the_workers_reading(folder: Path) -> None:
    stream = iter(module(folder, workers=2).train_dataloader())
    next(stream)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGTERM)
        os.kill(child.pid or 0, signal.SIGINT)
    assert len(list(islice(stream, 30))) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"seed: 3 in the checkpoint, 4 now"),
        ({"batch": 16}, r"data\.batch: 8 in the checkpoint, 16 now"),
        ({"window": 3}, r"data\.window: 2 in the checkpoint, 3 now"),
        ({"limit": 9}, r"data\.limit: null in the checkpoint, 9 now"),
        ({"shards": "train-00[0-3].tar"}, r"the shards of data\.shards: 50 samples in 5 shards, fingerprint [0-9a-f]{12} in the checkpoint, 40 samples in 4 shards, fingerprint [0-9a-f]{12} now"),
        ({"words": "another"}, r"the tokenizer \(model\.text\.words\): [0-9a-f]{12} in the checkpoint, [0-9a-f]{12} now"),
    ],
)
def test_a_state_of_other_batches_is_refused_with_both_values(folder: Path, changes: dict[str, Any], message: str) -> None:
    if "words" in changes:
        changes = {"words": load_words(name="none", kind="wordpiece", size=60, length=12, captions=lambda: ["a b c"])}
    state = module(folder).state_dict()
    with pytest.raises(ResumeError, match=message + r"(.|\n)*new run"):
        module(folder, **changes).load_state_dict(state)


def test_ranks_workers_and_augmentation_are_no_part_of_the_state(folder: Path) -> None:
    data = module(folder, workers=3, max_bad_share=0.2, name="other")
    data.plan(world=4, micro=1, rank=2)
    data.load_state_dict(module(folder).state_dict())
    assert data.samples_seen == 0
    assert set(data.state_dict()) == {
        "format", "name", "samples_seen", "fingerprint", "samples", "shards", "limit", "window", "seed", "global_batch", "words",
    }  # fmt: skip


def test_a_position_inside_a_global_batch_is_refused(folder: Path) -> None:
    data = module(folder)
    with pytest.raises(ResumeError, match="12 samples seen is no whole number of global batches of 8"):
        data.load_state_dict({**data.state_dict(), "samples_seen": 12})


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_in_index_order_and_ranks_share_it(folder: Path, workers: int) -> None:
    data = module(folder, workers=workers)
    alone = list(data.eval_batches(batch=3))
    assert [batch.index.tolist() for batch in alone] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert alone[1].captions[0] == ["caption 0 of 3", "caption 1 of 3"]
    assert alone[1].records[0]["captions"] == alone[1].captions[0]
    assert alone[0].images.pixels.shape == (3, 3, 16, 16)
    shared = [list(data.eval_batches(batch=3, rank=rank, world=2)) for rank in range(2)]
    assert [[batch.index.tolist() for batch in rank] for rank in shared] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9]]]
    assert torch.equal(shared[1][0].images.pixels, alone[1].images.pixels)
    assert [batch.index.tolist() for batch in data.eval_batches(batch=3, limit=4)] == [[0, 1, 2], [3]]


def test_evaluation_leaves_out_what_is_unusable_and_counts_it(odd_folder: Path) -> None:
    data = module(odd_folder, max_bad_share=0.5)
    found = [number for batch in data.eval_batches(batch=1) for number in batch.index.tolist()]
    assert found == [number for number in range(40) if number not in ODD]
    assert data.report()["val"]["replaced"] == {reason: 1 for _, reason in ODD.values()}


def test_evaluation_without_shards_says_which_key_to_set(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val_shards is empty"):
        list(module(folder, val_shards=None).eval_batches(batch=2))


def test_evaluating_on_training_shards_is_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(module(folder, val_shards="train-001.tar").val_index) == 1
    assert "evaluation sees training samples" in caplog.text


def test_captions_come_in_index_order_without_the_images(folder: Path, odd_folder: Path) -> None:
    assert list(module(folder).captions(limit=4)) == ["caption 0 of 0", "caption 1 of 0", "caption 2 of 0", "caption 0 of 1"]
    assert len(list(module(folder).captions())) == 150
    assert len(list(module(odd_folder).captions())) == 36  # a broken image has a caption all the same


def test_the_tokenizer_may_be_attached_after_reading_the_captions(folder: Path) -> None:
    data = module(folder, words=None)
    with pytest.raises(ConfigError, match="no tokenizer yet"):
        data.train_dataloader()
    data.words = words()
    assert len(batches(data, 1)[0]) == 8


def test_every_epoch_ends_with_a_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlpkit"):
        batches(module(folder, batch=10), 11)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    assert lines == [f"epoch {epoch} of the data ends; on this rank 50 samples due: 50 read, 0 replaced" for epoch in range(2)]


def test_steps_per_epoch_are_samples_over_the_global_batch(folder: Path) -> None:
    assert module(folder).steps_per_epoch == 50 / 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, r"data\.window is 0"),
        ({"workers": -1}, r"data\.workers is -1"),
        ({"max_bad_share": 1.5}, r"data\.max_bad_share is 1\.5"),
        ({"augment": {"scale": [0.5, 1.0]}}, r"data\.augment"),
    ],
)
def test_settings_out_of_range_are_refused_when_the_module_is_made(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(folder, **changes)


class Counting(pl.LightningModule):
    """Remembers the keys of every step and tells the data module what is consumed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys: list[tuple[str, ...]] = []

    def training_step(self, batch: dict[str, Batch], _: int) -> torch.Tensor:
        self.keys.append(batch["pairs"].keys)
        return self.weight * batch["pairs"].images["clean"].pixels.float().mean()

    def on_train_batch_end(self, *_: object) -> None:
        self.trainer.datamodule.samples_seen = self.trainer.global_step * 8  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, *, resume: Path | None = None) -> tuple[list[tuple[str, ...]], pl.Trainer]:
    data, model = module(folder), Counting()
    data.plan(world=1, micro=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, accumulate_grad_batches=2, **quiet)  # type: ignore[arg-type]
    trainer.fit(model, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=resume is None)
    return model.keys, trainer


def test_a_trainer_resumes_with_the_next_sample(folder: Path, tmp_path: Path) -> None:
    whole, _ = fit(folder, 9)
    first, trainer = fit(folder, 4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = fit(folder, 9, resume=tmp_path / "a.ckpt")
    assert (len(whole), first + rest) == (18, whole)


def _alive(stream: Iterator[Any]) -> int:
    next(stream)
    return len(torch.multiprocessing.active_children())


def test_workers_end_with_the_iterator(folder: Path) -> None:
    before = len(torch.multiprocessing.active_children())
    stream = iter(module(folder, workers=2).train_dataloader())
    assert _alive(stream) == before + 2
    stream.close()  # type: ignore[attr-defined]
    assert len(torch.multiprocessing.active_children()) == before


def test_what_workers_are_given_survives_the_journey_to_a_fresh_process(folder: Path) -> None:
    items = module(folder).train_dataloader().items
    there = pickle.loads(pickle.dumps(items))
    assert rows(there[3].batch) == rows(items[3].batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "data").glob("*.yaml") if path.stem != "shapes"))
def test_presets_name_the_settings_of_the_constructor_and_no_others(preset: str) -> None:
    text = (Path(__file__).parents[2] / "conf" / "data" / f"{preset}.yaml").read_text()
    signature = inspect.signature(DataModule).parameters
    offered = {"image_size", "seed", "words", "regions", "questions", "phrases", "second"}  # by the program; the last four by what reads them
    assert text.startswith("# size: ")
    assert set(yaml.safe_load(text)) == set(signature) - offered | {"_target_"}
