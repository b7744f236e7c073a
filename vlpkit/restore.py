"""A model from a checkpoint alone: its configuration, tokenizer and weights are inside, so neither the data nor the recipe is needed.
The configuration is data that somebody else may have written: it names parts of a model and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlpkit.assemble import Assembly, assemble
from vlpkit.check import is_trusted
from vlpkit.checkpoint import load_checkpoint
from vlpkit.data.tokenize import Words
from vlpkit.durations import Clock
from vlpkit.errors import ConfigError, WeightsError
from vlpkit.model import VLModel
from vlpkit.sidecar import digest, find_checkpoint, read_sidecar
from vlpkit.source import WEIGHTS, is_own_folder, read_own_folder
from vlpkit.weights import canonical, everything

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # folder of a run that holds them
_PARTS = ("encoders", "layers", "fusion", "joint", "align", "objectives", "draws", "plan", "teacher", "queue")
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Restored:
    """A model as a checkpoint holds it, in eval mode.

    Args:
        assembly: parts, heads, objectives with their queues, draws; no teacher.
        words: the tokenizer.
        config: the configuration it was trained with, as plain containers.
        step: optimiser steps done.
        samples_seen: pairs consumed by them.
        path: the checkpoint.
        sha256: of that file.
        device: where the weights are.
    """

    assembly: Assembly
    words: Words
    config: Mapping[str, Any]
    step: int
    samples_seen: int
    path: Path
    sha256: str
    device: torch.device

    @property
    def model(self) -> VLModel:
        """Parts and heads."""
        return self.assembly.model


def find(source: str | Path) -> Path:
    """The newest whole checkpoint of a run folder or of a folder of checkpoints, or the file itself.

    Raises:
        ConfigError: there is nothing of that name, or no checkpoint in it.
        ResumeError: there are checkpoints, but none is whole.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such file or folder (accepted: a run folder or a checkpoint file).")
    found, _ = find_checkpoint(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)
    if found is None:
        raise ConfigError(f"{path}: holds no checkpoint (accepted: a run folder with checkpoints/step_*.ckpt, or a checkpoint file).")
    return found


def restore(source: str | Path, *, device: torch.device | str = "cpu") -> Restored:
    """Rebuild the model that a checkpoint holds, strictly: every weight is filled and every weight is used.

    Args:
        source: run folder, folder of checkpoints, checkpoint file, or a folder that `scripts/convert.py` wrote.
        device: where the weights go.

    Raises:
        ConfigError: there is nothing to restore, or its configuration names what may not be named.
        ResumeError: the file is damaged or holds anything but tensors and plain types.
        WeightsError: weights and configuration of the checkpoint do not belong together.
    """
    if is_own_folder(Path(source)):
        return _restore_folder(Path(source), device)
    path = find(source)
    checkpoint = load_checkpoint(path)
    entry = checkpoint["vlpkit"]
    lacking = [word for word in ("config", "words") if word not in entry]
    if lacking or "state_dict" not in checkpoint:
        raise WeightsError(f"{path}: has no {' and no '.join(lacking or ['state_dict'])}, so the model cannot be rebuilt from it (accepted: a checkpoint of a training run)")
    config, words = entry["config"], Words.from_state(entry["words"])
    assembly = _assembled(config, words, place=str(path))
    whole = nn.ModuleDict({"model": assembly.model, "objectives": nn.ModuleDict(assembly.objectives)})
    state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if not name.startswith("teacher.")}
    _fit(whole, state, place=str(path))
    whole.load_state_dict(state, strict=True)
    whole.eval().to(device)
    log.info("%s: %s after step %d", path, assembly.model.name, checkpoint["global_step"])
    return Restored(
        assembly, words, config, int(checkpoint["global_step"]), int(entry["samples_seen"]), path, read_sidecar(path).sha256, torch.device(device)
    )


def _restore_folder(folder: Path, device: torch.device | str) -> Restored:
    """What `vlpkit.folder.write` wrote: the model alone, so queues stand as they do at the start."""
    source, path = read_own_folder(folder), folder / WEIGHTS
    assert source.config is not None and source.words is not None and source.facts is not None
    assembly = _assembled(source.config, source.words, place=str(folder))
    first = canonical(everything(assembly.model))
    state = {name: source.tensors[kept] for name, kept in first.items() if kept in source.tensors}
    _fit(assembly.model, {**source.tensors, **state}, place=str(path))
    assembly.model.load_state_dict(state, strict=True)
    nn.ModuleDict({"model": assembly.model, "objectives": nn.ModuleDict(assembly.objectives)}).eval().to(device)
    log.info("%s: %s after step %d", path, assembly.model.name, source.facts["step"])
    return Restored(assembly, source.words, source.config, source.facts["step"], source.facts["samples_seen"], path, digest(path), torch.device(device))


def _assembled(config: Mapping[str, Any], words: Words, *, place: str) -> Assembly:
    _only_parts(config, place=place)
    # How long a warm-up or a ramp lasts depends on data that need not be here, and moves no weight: any clock will do.
    with torch.random.fork_rng(devices=[]):
        return assemble(_without_outside_weights(config), words=words, clock=Clock(batch=1, samples_per_epoch=1, total_steps=1), with_teacher=False)


def _fit(module: nn.Module, state: Mapping[str, Tensor], *, place: str) -> None:
    """Every difference between a model and the weights for it, in one message."""
    wanted = module.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{name} has no place" for name in state if name not in wanted]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, the model's {tuple(tensor.shape)}"
        for name, tensor in wanted.items() if name in state and state[name].shape != tensor.shape
    ]  # fmt: skip
    if wrong:
        more = [f"... and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        shown = "\n".join(f"  {line}" for line in [*wrong[:_SHOWN], *more])
        raise WeightsError(f"{place}: its weights do not fit the model that its configuration describes.\n{shown}\nUse the version of vlpkit that wrote it (env.txt of the run).")


def _only_parts(config: Mapping[str, Any], *, place: str) -> None:
    """Refuse a configuration that would call anything but a part of a model."""
    for block in ("model", "objectives", "draws", "plan", "teacher"):
        for where, target in _targets(config.get(block), block):
            if where == "model.text.words":
                continue  # the tokenizer comes from the checkpoint, this is never called
            ours = any(str(target).startswith(f"vlpkit.{part}.") for part in _PARTS)
            if not ours and (str(target).startswith("vlpkit.") or not is_trusted(str(target))):
                raise ConfigError(
                    f"{place}: its configuration names {target!r} at {where}, which is no part of a model (accepted: vlpkit.{', vlpkit.'.join(_PARTS)}, "
                    "and modules of your own that you let in: plugins=[my_parts])."
                )


def _targets(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _targets(value, f"{where}[{i}]")


def _without_outside_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration, with image backbones that fetch no weights: those of the checkpoint are better."""
    def plain(node: Any) -> Any:
        if isinstance(node, Mapping):
            changed = {key: plain(value) for key, value in node.items()}
            return changed | {"pretrained": False} if changed.get("_target_") == "vlpkit.encoders.timm.TimmBackbone" else changed
        return [plain(item) for item in node] if isinstance(node, list | tuple) else node

    return {key: plain(value) for key, value in config.items()}
