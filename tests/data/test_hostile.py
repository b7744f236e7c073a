"""Files of strangers run no code and write nothing outside: each way in is tried with a canary that would leave a mark.
What a canary meets is the function or command that a user would call, and never a rehearsal of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shards import jpeg, module, pair, tar_bytes, write_shards
from transformers import PreTrainedTokenizerFast, RobertaConfig

from tests.builders import CONF
from tests.evals.runs import saved, world
from vlpkit.checkpoint import SafeCheckpointIO, load_checkpoint
from vlpkit.compose import run_hydra
from vlpkit.data.index import build_index
from vlpkit.data.packing import Packing, pack
from vlpkit.data.reader import Reader
from vlpkit.data.sources import read_source
from vlpkit.data.tokenize import Words, load_words
from vlpkit.encoders.hf import TransformersText
from vlpkit.errors import VlpError
from vlpkit.evals import command
from vlpkit.program import check
from vlpkit.restore import restore
from vlpkit.source import read

Vector = Callable[[Path, Path], object]
torch.set_num_threads(1)


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {shlex.quote(str(self.mark))}",)


def pickled(mark: Path) -> bytes:
    return pickle.dumps(Canary(mark), protocol=2)


def objects(mark: Path) -> bytes:
    """An npy file of objects, which is a pickle behind a header."""
    stream = io.BytesIO()
    array = np.empty(4, dtype=object)
    array[:] = Canary(mark)
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_the_canaries_sing_where_nobody_takes_care(tmp_path: Path) -> None:
    """Without this, a silent canary would prove nothing."""
    pickle.loads(pickled(tmp_path / "pickle"))
    np.load(io.BytesIO(objects(tmp_path / "array")), allow_pickle=True)
    yaml.unsafe_load(tagged(tmp_path / "yaml"))
    assert {path.name for path in tmp_path.iterdir()} == {"pickle", "array", "yaml"}


def tagged(mark: Path) -> str:
    return f"x: !!python/object/apply:os.system ['touch {mark}']\n"


# -- ways in ----------------------------------------------------------------------------------------------------------------


def train(folder: Path, *words: str) -> int:
    """train.py up to where a model would be built; its exit code, 0 when nothing was refused."""
    write_shards(folder, [4])
    argv = [f"data.root={folder}", "data=custom", "data.shards=train-*.tar", "data.batch=4", "trainer.devices=1", *words]
    return run_hydra(lambda cfg: None, conf=CONF, check=lambda cfg: check(cfg, conf=CONF), argv=argv)


def test_a_command_without_a_gift_is_not_refused(tmp_path: Path) -> None:
    assert train(tmp_path) == train(tmp_path, "-m", "seed=1", f"run_dir={tmp_path / 'swept'}") == 0


def a_checkpoint_to_resume_from(folder: Path, mark: Path) -> object:
    path = folder / "step_00000001.ckpt"
    SafeCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {}, "extra": Canary(mark)}, path)
    return load_checkpoint(path)


def hyper_parameters_of_a_checkpoint(folder: Path, mark: Path) -> object:
    path = folder / "step_00000001.ckpt"
    SafeCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {}, "hyper_parameters": {"model": Canary(mark)}, "vlpkit": {"format": 1}}, path)
    return restore(path)


def weights_in_a_zip(folder: Path, mark: Path) -> object:
    torch.save({"model": {"w": torch.zeros(1)}, "args": Canary(mark)}, folder / "weights.pt")
    return read(folder / "weights.pt")


def weights_in_a_pickle(folder: Path, mark: Path) -> object:
    (folder / "weights.bin").write_bytes(pickled(mark))
    return read(folder / "weights.bin")


def a_folder_of_weights(folder: Path, mark: Path) -> object:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "evil.Evil"}}))
    (folder / "evil.py").write_text(f"import os\nos.system('touch {mark}')\n")
    (folder / "pytorch_model.bin").write_bytes(pickled(mark))
    return read(folder)


def members_that_readers_unpickle(folder: Path, mark: Path) -> object:
    odd = {}
    for number, (ext, payload) in enumerate([("pyd", pickled), ("pkl", pickled), ("pickle", pickled), ("pth", pickled), ("npy", objects), ("cls.pickle", pickled)]):
        odd[number] = [*pair(number), (f"{number:06d}.{ext}", payload(mark))]
    write_shards(folder, [8], odd=odd)
    data = module(folder)
    (found,) = islice(iter(data.train_dataloader()), 1)
    return found, [Reader(data.index).read(number) for number in range(8)]


def images_and_texts_that_are_pickles(folder: Path, mark: Path) -> object:
    names = ("jpg", "png", "webp", "txt", "json")
    odd = {number: [(f"{number:06d}.{name}", pickled(mark)), *(pair(number) if name in ("png", "webp", "json") else pair(number)[name == "jpg" :])] for number, name in enumerate(names)}
    write_shards(folder, [16], odd=odd)
    return next(iter(module(folder, max_bad_share=0.9).train_dataloader()))


def regions_of_objects(folder: Path, mark: Path) -> object:
    from vlpkit.data.regions import Detections

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("boxes", "features", "confidences", "size"):
            archive.writestr(f"{name}.npy", objects(mark))
    write_shards(folder, [8], odd={number: [*pair(number), (f"{number:06d}.regions.npz", stream.getvalue())] for number in range(8)})
    return next(iter(module(folder, max_bad_share=1.0, image_size=None, regions=Detections(size=4)).train_dataloader()))


def a_command_in_place_of_a_shard(folder: Path, mark: Path) -> object:
    return module(folder, shards=[f"pipe:touch {mark}"]).index


def a_command_among_the_shards_of_a_configuration(folder: Path, mark: Path) -> object:
    return train(folder, f"data.shards='train-*.tar::pipe:touch {mark}'")


def a_target_in_a_configuration(target: str) -> Vector:
    def vector(folder: Path, mark: Path) -> object:
        return train(folder, f"+objectives.evil={{_target_: {target}, command: 'touch {mark}', cmd: 'touch {mark}', args: 'touch {mark}', shell: true}}")

    return vector


def a_call_that_hydra_itself_would_make(name: str) -> Vector:
    """A preset with a `hydra` block, in a single run, or in a sweep, which builds more."""

    def vector(folder: Path, mark: Path) -> object:
        (folder / "conf" / "experiment").mkdir(parents=True)
        (folder / "conf" / "experiment" / "gift.yaml").write_text("# @package _global_\nhydra: " + CALLS[name].replace("TOUCH", f"touch {mark}").replace("MARK", str(mark)) + "\n")
        sweep = () if name in ALONE else ("-m", "seed=1", f"run_dir={folder / 'swept'}")
        return train(folder, "--config-dir", str(folder / "conf"), "experiment=gift", *sweep)

    return vector


CALLS = {
    "callback": "{callbacks: {evil: {_target_: os.system, _args_: [TOUCH]}}}",
    "callback_by_another_name": "{callbacks: {evil: {_target_: vlpkit.runfolder.subprocess.run, _args_: [[touch, MARK]]}}}",
    "callback_that_hydra_lets_pass": "{callbacks: {evil: {_target_: shutil.copyfile, _args_: [/etc/hostname, MARK]}}}",
    "launcher": "{launcher: {_target_: os.system, command: TOUCH}}",
    "sweeper": "{sweeper: {_target_: os.system, command: TOUCH}}",
    "handler_of_jobs": "{job_logging: {handlers: {console: {class: shutil.copyfile, src: /etc/hostname, dst: MARK}}}}",
    "factory_of_handlers": "{hydra_logging: {handlers: {evil: {(): os.system, command: TOUCH}}, root: {handlers: [evil]}}}",
    "filter": "{job_logging: {filters: {evil: {(): logging.os.system, command: TOUCH}}}}",
}
ALONE = ("callback_that_hydra_lets_pass", "handler_of_jobs", "filter")


def a_tag_in_a_preset(folder: Path, mark: Path) -> object:
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "gift.yaml").write_text("# @package _global_\n" + tagged(mark))
    return train(folder, "--config-dir", str(folder / "conf"), "experiment=gift")


def a_tag_in_the_configuration_of_a_run(folder: Path, mark: Path) -> object:
    (folder / "checkpoints").mkdir()
    SafeCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {}}, folder / "checkpoints" / "step_00000001.ckpt")
    (folder / "config.yaml").write_text(tagged(mark))
    from vlpkit.runfolder import open_run

    return open_run(folder, name="x", resume="auto", config={"seed": 1}, runs=folder)


def a_tag_on_the_command_line_of_an_evaluation(folder: Path, mark: Path) -> object:
    saved(folder, world(folder), "model=clip")
    return command.main([f"run={folder}", "task=retrieval", f"limit={tagged(mark).strip()[3:]}"], conf=CONF)


def a_target_in_a_checkpoint(folder: Path, mark: Path) -> object:
    saved(folder, world(folder), "model=clip")
    path = folder / "checkpoints" / "step_00000007.ckpt"
    checkpoint = load_checkpoint(path)
    node = checkpoint["vlpkit"]["config"]["objectives"].setdefault("evil", {})
    node.update({"_target_": "os.system", "command": f"touch {mark}"})
    checkpoint["vlpkit"]["config"]["plugins"] = ["os", "posix"]
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return command.main([f"run={folder}", "task=retrieval"], conf=CONF) or restore(folder)


def tokenizer(folder: Path) -> dict[str, Any]:
    """A tokenizer of transformers, saved; its configuration."""
    words = load_words(name="none", kind="wordpiece", size=120, length=12, captions=lambda: ["a picture of number one"] * 9)
    PreTrainedTokenizerFast(tokenizer_object=words.tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]").save_pretrained(folder)
    return dict(json.loads((folder / "tokenizer_config.json").read_text()))


def a_tokenizer_with_code_of_its_own(folder: Path, mark: Path) -> object:
    config = tokenizer(folder)
    code = f"import os\nos.system('touch {mark}')\nclass Evil:\n    pass\n"
    (folder / "evil.py").write_text(code)
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoTokenizer": "evil.Evil"}}))
    return load_words(name=str(folder), kind="wordpiece", size=None, length=12)


def a_text_model_with_code_of_its_own(folder: Path, mark: Path) -> object:
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}))
    (folder / "evil.py").write_text(f"import os\nos.system('touch {mark}')\nclass Evil:\n    pass\n")
    return TransformersText("roberta", dim=32, depth=1, heads=2, vocab=50, length=8, pretrained=str(folder))


def a_text_model_of_pickled_weights(folder: Path, mark: Path) -> object:
    RobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(pickled(mark))
    return TransformersText("roberta", dim=32, depth=1, heads=2, vocab=50, length=8, pretrained=str(folder))


def a_saved_tokenizer(folder: Path, mark: Path) -> object:
    (folder / "tokenizer.json").write_bytes(pickled(mark))
    (folder / "words.json").write_bytes(pickled(mark))
    return Words.load(folder)


def an_index_in_the_cache(folder: Path, mark: Path) -> object:
    paths = write_shards(folder, [4])
    build_index(paths, cache=folder / "cache")
    for file in (folder / "cache" / "index").iterdir():
        file.write_bytes(pickled(mark))
    return len(build_index(paths, cache=folder / "cache"))


def a_manifest(folder: Path, mark: Path) -> object:
    paths = write_shards(folder, [4])
    (folder / "manifest.json").write_bytes(pickled(mark))
    return build_index(paths, cache=None)


VECTORS: dict[str, Vector] = {
    **{
        vector.__name__: vector
        for vector in (
            a_checkpoint_to_resume_from, hyper_parameters_of_a_checkpoint, weights_in_a_zip, weights_in_a_pickle, a_folder_of_weights, members_that_readers_unpickle,
            images_and_texts_that_are_pickles, regions_of_objects, a_command_in_place_of_a_shard, a_command_among_the_shards_of_a_configuration, a_tag_in_a_preset,
            a_tag_in_the_configuration_of_a_run, a_tag_on_the_command_line_of_an_evaluation, a_target_in_a_checkpoint, a_tokenizer_with_code_of_its_own,
            a_text_model_with_code_of_its_own, a_text_model_of_pickled_weights, a_saved_tokenizer, an_index_in_the_cache, a_manifest,
        )
    },
    **{f"a_target_{name}": a_target_in_a_configuration(name) for name in ("os.system", "subprocess.run", "vlpkit.runfolder.subprocess.run", "vlpkit.runfolder.os.system", "builtins.exec")},
    **{f"a_{name}_of_hydra": a_call_that_hydra_itself_would_make(name) for name in CALLS},
}  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS)
def test_no_file_of_a_stranger_runs_code(vector: str, tmp_path: Path) -> None:
    assert len(VECTORS) >= 12
    folder, mark = tmp_path / "gift", tmp_path / "executed"
    folder.mkdir()
    with suppress(VlpError):  # its words are pinned where each refusal is tested
        VECTORS[vector](folder, mark)
    assert not mark.exists()


# -- names of members ---------------------------------------------------------------------------------------------------------

NAMES = {
    "parent": "../../escaped.jpg", "absolute": "OUTSIDE/escaped.jpg", "NUL": "in\0/../escaped.jpg", "long": "d/" * 150 + "k" * 4000 + ".jpg", "windows": "C:\\escaped\\..\\k.jpg",
    "dots": "..\\..\\escaped.jpg",
}  # fmt: skip


def with_device() -> bytes:
    """A tar of a symbolic link, a hard link, a device, a pipe and a folder, all named as images, and one sample."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    return stream.getvalue()[: 6 * 512] + tar_bytes(pair(7))


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", [*NAMES, "links and devices"])
def test_no_name_of_a_member_becomes_a_path(tmp_path: Path, kind: str) -> None:
    """The whole way of a sample: index, order, reader, decoder, batch; then the only tree that grew is the cache."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    if kind in NAMES:
        name = NAMES[kind].replace("OUTSIDE", str(tmp_path))
        payload = tar_bytes([(name, jpeg(1)), (name[:-3] + "txt", b"a picture"), *pair(2)], kind=tarfile.PAX_FORMAT)
    else:
        payload = with_device()
    (folder / "train-000.tar").write_bytes(payload)
    before = everything_under(tmp_path)
    data = module(folder, batch=2, max_bad_share=1.0, cache=str(tmp_path / "cache"))
    batch = next(iter(data.train_dataloader()))["pairs"]
    assert len(batch) == 2
    assert set(batch.keys) <= {data.index.key(number) for number in range(len(data.index))}
    assert [path for path in everything_under(tmp_path) if not path.startswith("cache")] == before
    assert all(path.startswith(("cache", "cache/index")) for path in everything_under(tmp_path) if path not in before)


def test_keys_of_packed_shards_hold_no_path(tmp_path: Path) -> None:
    """Names in somebody's list become keys; no key leads anywhere."""
    source, images = tmp_path / "list.jsonl", tmp_path / "in"
    images.mkdir()
    rows = []
    for number, name in enumerate(("../outside.jpg", "./a/../b.jpg", "..\\w.jpg", "k" * 200 + ".jpg", "plain.jpg")):
        (images / name).parent.mkdir(parents=True, exist_ok=True) if "a/.." not in name else (images / "a").mkdir()
        (images / name).write_bytes(jpeg(number))
        rows.append(json.dumps({"image": name, "caption": f"number {number}"}))
    source.write_text("\n".join(rows))
    pack(read_source(source, images=images), tmp_path / "out", Packing())
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = tar.getnames()
    assert len(names) == 10
    assert not any(set("/\\:\0") & set(name) or ".." in name for name in names)
