"""Data that bring nothing to learn from are told of, once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shards import module, write_shards

from vlpkit.data.absent import Absent
from vlpkit.data.phrases import Phrases
from vlpkit.types import IGNORE, Batch


def batch(*, answers: list[int], boxes: list[list[float]]) -> Batch:
    targets = {"answer": torch.tensor(answers), "box": torch.tensor(boxes)}
    return Batch({}, {}, targets, torch.arange(len(answers)))


NOTHING = batch(answers=[IGNORE] * 400, boxes=[[0.0] * 4] * 400)
BOTH = batch(answers=[IGNORE] * 399 + [3], boxes=[[0.0] * 4] * 399 + [[0.1, 0.2, 0.3, 0.4]])


def said(batches: list[Batch], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    absent = Absent("data.shards")
    with caplog.at_level(logging.WARNING, "vlpkit"):
        for one in batches:
            absent.watch(one)
    return [record.getMessage() for record in caplog.records]


def test_a_thousand_samples_without_any_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    told = said([NOTHING] * 6, caplog)
    assert len(told) == 2
    assert "none of the first 1200 samples" in told[0] and "data.questions" in told[0] and "data.phrases" in told[1] and "`regions`" in told[1]
    assert said([NOTHING] * 2, caplog) == []   # not yet a thousand


def test_one_is_enough_and_what_was_not_asked_for_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    assert said([BOTH, *[NOTHING] * 5], caplog) == []
    assert said([NOTHING, NOTHING, BOTH], caplog) == []
    assert said([replace(NOTHING, targets={})] * 5, caplog) == []


def test_a_run_on_captions_alone_is_told_that_there_are_no_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlpkit.data.absent.PATIENCE", 40)
    write_shards(tmp_path, [60])
    data = module(tmp_path, phrases=Phrases(), batch=20)
    data.plan(world=1, total=3)
    with caplog.at_level(logging.WARNING, "vlpkit"):
        assert len(list(data.train_dataloader())) == 3
    assert [record.getMessage() for record in caplog.records if "data.phrases" in record.getMessage()] == [
        "data.shards: none of the first 40 samples has a phrase with a box (`regions` in KEY.json, read by data.phrases), so what learns from these learns nothing"
    ]
