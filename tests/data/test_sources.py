"""Several sources in a step: each with its own samples, order and share; where they stand follows from the number of the step."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import module, pair, words, write_shards

from vlpkit.errors import ConfigError, DataError, ResumeError
from vlpkit.types import Batch

torch.set_num_threads(1)
TEXTS = {"texts": {"holds": "texts", "share": 0.25}}
Step = dict[str, Batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 pairs with three captions each, and 30 texts without images in shards of their own."""
    here = tmp_path_factory.mktemp("both")
    write_shards(here, [13, 1, 17, 9, 10], captions=3)
    write_shards(here, [10, 20], prefix="only", odd={number: pair(number, image=None) for number in range(30)})
    return here


def steps(folder: Path, count: int, **changes: Any) -> list[Step]:
    return list(islice(module(folder, val_shards=None, **changes).train_dataloader(), count))


def said(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    """Key and words of each sample, free of padding."""
    text = batch.texts["clean"]
    return [(key, tuple(row[mask].tolist())) for key, row, mask in zip(batch.keys, text.ids, text.mask)]


def told(run: list[Step]) -> list[dict[str, list[tuple[str, tuple[int, ...]]]]]:
    return [{name: said(batch) for name, batch in step.items()} for step in run]


def test_a_source_of_texts_brings_its_share_of_captions_and_no_image(folder: Path) -> None:
    for step in steps(folder, 3, sources=TEXTS):
        assert list(step) == ["pairs", "texts"]
        assert (len(step["pairs"]), len(step["texts"])) == (8, 2)
        assert step["texts"].images == {}
        assert step["texts"].texts["clean"].ids.shape[0] == 2
        assert set(step["pairs"].images) == {"clean"}


def test_the_pairs_are_the_same_whatever_stands_beside_them(folder: Path) -> None:
    alone, beside = steps(folder, 8), steps(folder, 8, sources=TEXTS)
    for a, b in zip(alone, beside):
        assert said(a["pairs"]) == said(b["pairs"])
        assert torch.equal(a["pairs"].images["clean"].pixels, b["pairs"].images["clean"].pixels)  # type: ignore[arg-type]


def test_over_the_same_shards_a_source_has_an_order_of_its_own(folder: Path) -> None:
    run = steps(folder, 6, sources={"texts": {"holds": "texts"}})
    assert [step["texts"].keys for step in run] != [step["pairs"].keys for step in run]
    other = steps(folder, 6, sources={"more": {"holds": "texts"}})
    assert [step["texts"].keys for step in run] != [step["more"].keys for step in other]


def test_a_source_is_read_once_an_epoch_of_its_own(folder: Path) -> None:
    run = steps(folder, 15, sources={"texts": {"holds": "texts", "share": 0.25, "shards": "only-*.tar"}})
    assert Counter(key for step in run for key in step["texts"].keys) == Counter(f"{number:06d}" for number in range(30))
    assert len({key for step in run[:7] for key in step["pairs"].keys}) == 50   # these have begun anew by then


def test_a_source_may_hold_pairs_too_and_be_limited(folder: Path) -> None:
    run = steps(folder, 10, sources={"few": {"holds": "pairs", "share": 0.5, "limit": 5}})
    assert {key for step in run for key in step["few"].keys} == {f"{number:06d}" for number in range(5)}
    assert run[0]["few"].images["clean"].pixels is not None


@pytest.mark.parametrize(("world", "micro"), [(2, 4), (2, 2), (1, 4)])
def test_ranks_and_micro_batches_together_read_what_one_reads(folder: Path, world: int, micro: int) -> None:
    sources = {"texts": {"holds": "texts", "share": 0.5}}
    whole = told(steps(folder, 4, sources=sources))
    found: list[dict[str, list[Any]]] = [{"pairs": [], "texts": []} for _ in whole]
    for rank in range(world):
        data = module(folder, val_shards=None, sources=sources)
        turns = data.plan(world=world, micro=micro, rank=rank).accumulation
        for number, step in enumerate(islice(data.train_dataloader(), 4 * turns)):
            assert len(step["texts"]) == 4 // (world * turns)
            for name, batch in step.items():
                found[number // turns][name] += said(batch)
    assert [{name: sorted(rows) for name, rows in step.items()} for step in found] == [{name: sorted(rows) for name, rows in step.items()} for step in whole]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_at_the_next_sample_of_every_source(folder: Path, workers: int) -> None:
    whole = told(steps(folder, 20, sources=TEXTS))
    before = module(folder, val_shards=None, sources=TEXTS)
    before.samples_seen = 13 * 8
    after = module(folder, val_shards=None, sources=TEXTS, workers=workers)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert told(list(islice(after.train_dataloader(), 7))) == whole[13:]


@pytest.mark.parametrize("now", [None, {"texts": {"holds": "texts", "share": 0.5}}, {"other": {"holds": "texts", "share": 0.25}}, {"texts": {"holds": "texts", "share": 0.25, "limit": 9}}])
def test_other_sources_cannot_go_on_with_a_run(folder: Path, now: Any) -> None:
    state = module(folder, sources=TEXTS).state_dict()
    with pytest.raises(ResumeError, match=r"data\.sources[.:]"):
        module(folder, sources=now).load_state_dict(state)


def test_a_run_of_pairs_alone_writes_and_reads_what_it_always_did(folder: Path) -> None:
    state = module(folder, sources={"texts": None}).state_dict()
    assert "sources" not in state
    module(folder).load_state_dict(state)
    with pytest.raises(ResumeError, match=r"data\.sources: null in the checkpoint, texts now"):
        module(folder, sources=TEXTS).load_state_dict(state)


def test_what_is_refused_is_booked_with_its_source(tmp_path: Path) -> None:
    write_shards(tmp_path, [40])
    write_shards(tmp_path, [20], prefix="only", odd={4: pair(4, image=None, text=b"  ")} | {n: pair(n, image=None) for n in range(20) if n != 4})
    data = module(tmp_path, val_shards=None, sources={"texts": {"holds": "texts", "share": 0.5, "shards": "only-*.tar"}}, max_bad_share=0.5)
    list(islice(data.train_dataloader(), 5))
    report = data.report()
    assert report["train"]["replaced"] == {}
    assert report["sources"]["texts"]["replaced"] == {"empty_caption": 1}
    assert report["sources"]["texts"]["served"] == 20


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"pairs": {"holds": "texts"}}, r"data\.sources\.pairs: the pairs are data\.shards themselves"),
        ({"texts": {"hold": "texts"}}, r"data\.sources\.texts: no key 'hold' \(there are: holds, share, shards, limit\)\. Did you mean"),
        ({"texts": {"holds": "text"}}, r"data\.sources\.texts\.holds is 'text'; it can be pairs, texts, images\. Did you mean"),
        ({"texts": {"share": 0}}, r"data\.sources\.texts\.share is 0; it is a share of data\.batch, above 0"),
        ({"texts": {"limit": 0}}, r"data\.sources\.texts\.limit is 0; it must be at least 1"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(folder: Path, sources: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(folder, sources=sources)


def test_a_share_that_gives_no_whole_number_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.texts\.share is 0\.3; of data\.batch=8 that is 2\.4 samples, and it must be a whole number"):
        module(folder, sources={"texts": {"holds": "texts", "share": 0.3}}).plan(world=1)


def test_a_share_that_does_not_divide_among_devices_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 samples of each step, which 4 devices cannot take in 1 micro-batches each: it must come to a multiple of 4"):
        module(folder, sources=TEXTS).plan(world=4)


def test_shards_that_are_missing_are_named_by_their_source(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.texts\.shards"):
        _ = module(folder, sources={"texts": {"holds": "texts", "shards": "none-*.tar"}}).stocks


def test_the_words_of_both_sources_are_those_of_one_tokenizer(folder: Path) -> None:
    (step,) = steps(folder, 1, sources={"texts": {"holds": "texts", "shards": "only-*.tar"}})
    spoken = words().decode(step["texts"].texts["clean"].ids)
    assert spoken == [f"a picture of number {int(key)}" for key in step["texts"].keys]


def test_a_source_of_images_needs_no_caption_and_brings_none(tmp_path: Path) -> None:
    write_shards(tmp_path, [13, 17], captions=3)
    write_shards(tmp_path, [10, 20], prefix="only", odd={number: pair(number, text=None) for number in range(30)})
    asked = {"images": {"holds": "images", "share": 0.5, "shards": "only-*.tar"}}
    for step in steps(tmp_path, 12, sources=asked):
        assert step["images"].texts == {}
        pixels = step["images"].images["clean"].pixels
        assert pixels is not None
        assert pixels.shape[0] == len(step["images"]) == 4
    made = module(tmp_path, val_shards=None, sources=asked)
    list(islice(made.train_dataloader(), 12))
    assert made.stocks["images"].ledger.report().replaced == {}
