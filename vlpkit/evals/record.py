"""What an evaluation leaves behind: one JSON record a task, stamped with all that decides whether numbers may be compared, and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlpkit import __version__, dist
from vlpkit.data.module import DataModule
from vlpkit.evals.base import Evaluator, words_of
from vlpkit.sidecar import write_text


def stamp(evaluator: Evaluator, metrics: Mapping[str, float], data: DataModule, *, step: int, device: torch.device, precision: str) -> dict[str, Any]:
    """The record of one task as plain types.

    Args:
        evaluator: after its call.
        metrics: what it gave.
        data: what it was given.
        step: optimiser steps behind the weights.
        device: where the passes ran; scores are compared on the CPU in fp32.
        precision: of the passes.
    """
    return {
        "task": evaluator.name, "protocol": evaluator.protocol, "step": step, "metrics": dict(metrics), "facts": evaluator.facts,
        "data": {
            "name": data.name, "val_shards": data.val_shards, "samples": len(data.val_index), "fingerprint": data.val_index.fingerprint,
            "left_out": data.val_ledger.report().replaced,
        },
        "words": words_of(data).fingerprint, "world": dist.world(), "device": device.type, "precision": precision,
        "versions": {"vlpkit": __version__, "torch": torch.__version__},
    }  # fmt: skip


def write(folder: Path, name: str, record: Mapping[str, Any], evaluator: Evaluator) -> list[Path]:
    """Write `eval/<name>.json` and, if there are any, `predictions/<name>.json`; first rank only.

    Args:
        folder: run folder.
        name: of the files.
        record: from `stamp`.
        evaluator: whose predictions are written.
    """
    if not dist.once():
        return []
    files = {folder / "eval" / f"{name}.json": json.dumps(record, indent=1)}
    if evaluator.predictions:
        files[folder / "predictions" / f"{name}.json"] = "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in evaluator.predictions) + "\n]"
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")
    return list(files)
