"""Reading weights that somebody else wrote: safetensors, or torch's files as tensors and plain types. Nothing in a file is ever executed,
and what is peeled off around the weights is written down."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlpkit.data.tokenize import Words
from vlpkit.errors import WeightsError
from vlpkit.sidecar import find_checkpoint, sidecar_path

log = logging.getLogger(__name__)

WEIGHTS, CONFIG, TOKENIZER, CHECKPOINTS = "model.safetensors", "config.yaml", "tokenizer", "checkpoints"
# What a folder of other libraries may hold, the safest first; an index names several files.
_FOLDER = (
    WEIGHTS, f"{WEIGHTS}.index.json", "open_clip_model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin",
)  # fmt: skip
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
ACCEPTED = f"a run folder, a folder with {WEIGHTS} or its kin, a .safetensors file, or a {', '.join(_TORCH)} file of tensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model")    # entries that hold the weights, first wins
_PREFIXES = ("module.", "_orig_mod.", "model.")            # that DistributedDataParallel, torch.compile and Lightning put before every key


@dataclass(frozen=True, eq=False)
class Source:
    """The weights of one file or folder.

    Args:
        path: as it was named.
        tensors: on the CPU, by the keys of the file.
        peeled: what stood around them, in words.
        words: the tokenizer of one of our own runs or folders; None for outside weights.
        config: likewise the configuration.
        facts: likewise where the run stood: step, samples_seen.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    peeled: tuple[str, ...] = ()
    words: Words | None = None
    config: Mapping[str, Any] | None = None
    facts: Mapping[str, int] | None = None

    @property
    def own(self) -> bool:
        """Whether vlpkit wrote it, so that its keys are ours."""
        return self.words is not None


def read(path: Path) -> Source:
    """The weights that a path names.

    Raises:
        WeightsError: there are none, or they cannot be read without executing something.
        ResumeError: a checkpoint of a run is damaged.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file or folder (accepted: {ACCEPTED})")
    if path.suffix == ".safetensors":
        return Source(path, *_peel(_read_safetensors(path), path))
    if path.suffix in _TORCH:
        content = _read_torch(path)
        if isinstance(content.get("vlpkit"), Mapping) and "state_dict" in content:
            return _read_checkpoint(path)
        return Source(path, *_peel(content, path))
    raise WeightsError(f"{path}: {path.suffix or 'a name without an ending'} is no format that is read (accepted: {ACCEPTED})")


def is_own_folder(path: Path) -> bool:
    """Whether a folder is one that `vlpkit.folder.write` made."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file() and (path / TOKENIZER).is_dir()


def is_run(path: Path) -> bool:
    """Whether `read` would find a model of our own: one of our folders, a run, or a checkpoint with its sidecar."""
    if path.is_dir():
        return is_own_folder(path) or any(any(path.glob(pattern)) for pattern in (f"{CHECKPOINTS}/*.ckpt", "*.ckpt"))
    return path.suffix == ".ckpt" and sidecar_path(path).is_file()


def _read_folder(path: Path) -> Source:
    if is_own_folder(path):
        return read_own_folder(path)
    inside = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    found, _ = find_checkpoint(inside)
    if found is not None:
        return _read_checkpoint(found)
    for name in _FOLDER:
        file = path / name
        if not file.is_file():
            continue
        log.info("weights: %s", file)
        if name.endswith(".index.json"):
            return Source(path, *_peel(_read_shards(file), path))
        return Source(path, *_peel(_read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file), path))
    raise WeightsError(f"{path}: holds no weights (looked for: {CHECKPOINTS}/step_*.ckpt, {', '.join(_FOLDER)})")


def read_own_folder(path: Path) -> Source:
    """What `vlpkit.folder.write` wrote."""
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("vlpkit", "{}"))
        facts = {word: int(said.get(word, 0)) for word in ("step", "samples_seen")}
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError, yaml.YAMLError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path / CONFIG}: is empty or no mapping")
    return Source(path, _read_safetensors(path / WEIGHTS), words=Words.load(path / TOKENIZER), config=config, facts=facts)


def _read_checkpoint(path: Path) -> Source:
    from vlpkit.checkpoint import load_checkpoint  # brings Lightning, which outside weights do without

    checkpoint = load_checkpoint(path)
    entry = checkpoint["vlpkit"]
    lacking = [word for word in ("config", "words") if word not in entry]
    if lacking or "state_dict" not in checkpoint:
        raise WeightsError(f"{path}: has no {' and no '.join(lacking or ['state_dict'])} (accepted: a checkpoint of a training run)")
    tensors = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("model.")}
    beside = sorted({name.partition(".")[0] for name in checkpoint["state_dict"]} - {"model"})
    peeled = (f"of the checkpoint only the model was read, not {', '.join(beside)}",) if beside else ()
    facts = {"step": int(checkpoint["global_step"]), "samples_seen": int(entry["samples_seen"])}
    return Source(path, tensors, peeled, Words.from_state(entry["words"]), entry["config"], facts)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: is no safetensors file, or not all of it ({error})") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Tensors of the files that an index names; only names in the same folder are followed."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: is no index of weights ({type(error).__name__}: {error})") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        file = index.parent / str(name)
        if Path(str(name)).name != name or not file.is_file():
            raise WeightsError(f"{index}: names {name!r}, which is no file beside it")
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    return tensors


def _read_torch(path: Path) -> dict[str, Any]:
    """A torch file as tensors and plain types, never more."""
    packed = zipfile.is_zipfile(path)
    if packed:
        with zipfile.ZipFile(path) as archive:
            script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if script:
            raise WeightsError(
                f"{path}: is a TorchScript archive, which holds a program, and none is executed here.\n  Take the safetensors of the same model, or, "
                "if you trust the file, turn it into one:\n"
                f'  python -c "import torch; from safetensors.torch import save_file; save_file(dict(torch.jit.load({str(path)!r}, map_location=\'cpu\').state_dict()), \'weights.safetensors\')"'
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if packed else None)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors and plain types, and reading that could run code, so it was not read.\n  {_first_line(error)}\n"
            "  Take the safetensors of the same model, or, if you trust the file, save its tensors alone:\n"
            f'  python -c "import torch; x = torch.load({str(path)!r}, map_location=\'cpu\', weights_only=False); torch.save(x.get(\'model\', x.get(\'state_dict\', x)), \'weights.pt\')"'
        ) from error
    except Exception as error:  # torch answers damaged bytes with errors of any kind
        raise WeightsError(f"{path}: is no torch file, or not all of it ({type(error).__name__}: {_first_line(error)})") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return dict(content)


def _first_line(error: Exception) -> str:
    """What torch says of the file, without its advice to read it in another way."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported"))), lines[0] if lines else "")


def _peel(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors inside what trainers put around them, and what was taken off."""
    peeled: list[str] = []
    while (inner := next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)) is not None:
        beside = [str(key) for key in content if key != inner]
        peeled.append(f"read the entry {inner!r}" + (f", not {', '.join(beside)}" if beside else ""))
        content = content[inner]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if others := [str(key) for key in content if str(key) not in tensors]:
        peeled.append(f"no tensors, so not read: {', '.join(others)}")
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name (it has: {', '.join(map(str, content)) or 'nothing'})")
    while (prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None)) is not None:
        peeled.append(f"every key stood behind {prefix!r}")
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors, tuple(peeled)
