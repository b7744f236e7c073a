"""What makes the engine fast changes nothing of what it delivers, and holds no more than it says: encoded images, uint8 pixels, one thread."""

from __future__ import annotations

import importlib.util
import io
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from shards import jpeg, module, pair, words, write_shards
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlpkit.bench.made import many, photographs
from vlpkit.bench.rates import Task, decoder, open_clip_pipeline, pipeline, plain, rates
from vlpkit.data import feed
from vlpkit.data.feed import Item
from vlpkit.data.order import sample_rng, set_rng
from vlpkit.data.transforms import TrainTransform, View
from vlpkit.data.workers import load
from vlpkit.errors import DataError, MissingExtra
from vlpkit.layers.embed import Normalise
from vlpkit.types import Batch

STRAY = jpeg(3)[:-2] + bytes(100) + jpeg(3)[-2:]  # only a strict decoder minds bytes before the end marker


def items(folder: Path, **changes: Any) -> feed.TrainItems:
    """The micro-batches of a data module, by number."""
    return module(folder, val_shards=None, **changes).train_dataloader().items  # type: ignore[union-attr,arg-type,return-value]


def pixels(item: Item) -> torch.Tensor:
    assert item.batch is not None
    found = item.batch.images["clean"].pixels
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 samples, three of them unusable: known from the text, from the header, and from the pixels alone."""
    cut = jpeg(9)[:-40]
    write_shards(tmp_path, [10, 6, 8], odd={5: pair(5, text=None), 9: pair(9, image=cut), 17: pair(17, image=b"no image")})
    return tmp_path


def test_a_generator_that_is_set_gives_what_a_new_one_gives() -> None:
    rng = sample_rng(0, 0, 0)
    for position, attempt in ((0, 0), (7, 2), (2**40, 0)):
        rng.integers(5), rng.random(3)  # leaves half a word and half a block behind
        set_rng(rng, 11, 4, position, attempt)
        other = sample_rng(11, 4, position, attempt)
        assert rng.integers(9, size=5).tolist() == other.integers(9, size=5).tolist()
        assert rng.random(9).tolist() == other.random(9).tolist()


@pytest.mark.parametrize(("block", "held"), [(64, 1), (3, 1 << 20), (1, 1 << 20)])
def test_batches_and_faults_do_not_depend_on_how_many_encoded_images_are_held(folder: Path, monkeypatch: pytest.MonkeyPatch, block: int, held: int) -> None:
    whole = [items(folder)[turn] for turn in range(6)]
    monkeypatch.setattr(feed, "BLOCK", block)
    monkeypatch.setattr(feed, "BLOCK_BYTES", held)
    parts = [items(folder)[turn] for turn in range(6)]
    assert [item.faults for item in whole] == [item.faults for item in parts]
    assert {fault.reason for item in whole for fault in item.faults} == {"missing_caption", "truncated_image", "not_an_image"}
    for one, other in zip(whole, parts):
        assert one.batch is not None and other.batch is not None
        assert one.batch.keys == other.batch.keys
        assert torch.equal(pixels(one), pixels(other))


class Watched(TrainTransform):
    """Notes in which order headers are read and images decoded."""

    def __init__(self) -> None:
        super().__init__(image_size=16)
        self.seen: list[str] = []

    def look(self, payload: bytes, rng: np.random.Generator) -> View:
        self.seen.append("look")
        return super().look(payload, rng)

    def draw(self, payload: bytes, view: View, rng: np.random.Generator, row: torch.Tensor) -> None:
        self.seen.append("draw")
        super().draw(payload, view, rng, row)


@pytest.mark.parametrize(("held", "expected"), [(64 << 20, ["look"] * 8 + ["draw"] * 8), (1, ["look", "draw"] * 8)], ids=["many", "one at a time"])
def test_encoded_images_are_held_up_to_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, expected: list[str]) -> None:
    write_shards(tmp_path, [24])
    monkeypatch.setattr(feed, "BLOCK_BYTES", held)
    found, watched = items(tmp_path), Watched()
    found.looks[0].transform = watched
    found[0]
    assert watched.seen == expected


class Images(TorchDispatchMode):
    """Notes the kinds of all tensors that are large enough to be an image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.kinds = size, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.kinds |= {t.dtype for t in tree_leaves(made) if isinstance(t, torch.Tensor) and t.numel() >= 3 * self.size**2}
        return made


def test_pixels_are_bytes_from_the_decoder_to_the_device(folder: Path) -> None:
    found = items(folder, image_size=40)
    with Images(40) as images:
        delivered = pixels(found[0])
    assert images.kinds == {torch.uint8}
    assert (delivered.dtype, delivered.is_contiguous(memory_format=torch.channels_last)) == (torch.uint8, True)


def test_normalised_pixels_lie_alike_however_they_were_delivered() -> None:
    given = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    planes, interleaved = normalise(given), normalise(given.contiguous(memory_format=torch.channels_last))
    assert torch.equal(planes, interleaved)
    assert planes.is_contiguous()
    assert interleaved.is_contiguous()


class Threads(torch.utils.data.Dataset[int]):
    """How many threads torch takes where an item is read."""

    def __getitem__(self, number: int) -> int:
        return torch.get_num_threads()


def test_a_reading_process_takes_one_thread() -> None:
    assert list(load(Threads(), [0, 1], workers=1, key="data.shards")) == [1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_only_the_slow_decoder_took_are_counted_in_the_report(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [16], odd={3: pair(3, image=STRAY), 8: pair(8, image=STRAY)})
    data = module(tmp_path, val_shards=None, workers=workers)
    before = data.report()["slow_path"].get("strict", 0)
    served = list(itertools.islice(data.train_dataloader(), 2))
    assert sum(len(batches["pairs"]) for batches in served) == 16
    assert data.report()["slow_path"]["strict"] == before + 2
    assert data.report()["train"]["replaced"] == {}


def test_shards_to_measure_with_are_what_webdataset_reads(tmp_path: Path) -> None:
    paths = many(tmp_path, shards=2, samples=12)
    found = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == [f"{number:09d}" for number in range(24)]
    assert {sample["txt"] for sample in found} == {b"a the of and two small large old young man"}
    batch: Batch = next(iter(module(tmp_path, shards="*.tar", val_shards=None, max_bad_share=0.0).train_dataloader()))["pairs"]  # type: ignore[assignment]
    assert len(batch) == 8


def test_every_contestant_reads_the_same_shards(tmp_path: Path) -> None:
    task = Task(photographs(tmp_path, 64, distinct=3, samples=64, shards=2), 32, (0.9, 1.0), words())
    contestants = {"vlpkit": pipeline(task, tmp_path), "plain": plain(task), "bare": decoder(task, reuse=False), "reused": decoder(task, reuse=True)}
    found = rates(contestants, 0.01)
    assert list(found) == list(contestants)
    assert min(found.values()) > 0


def test_shards_without_jpegs_are_not_measured(tmp_path: Path) -> None:
    file = io.BytesIO()
    with webdataset.TarWriter(file) as tar:
        tar.write({"__key__": "0", "txt": "a dog"})
    (tmp_path / "0.tar").write_bytes(file.getvalue())
    with pytest.raises(DataError, match="bare: these shards hold no JPEG"):
        rates({"bare": decoder(Task([str(tmp_path / "0.tar")], 32, (0.9, 1.0), words()), reuse=True)}, 0.01)


def test_the_comparison_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"scripts/bench_data.py needs open_clip: pip install 'vlpkit\[parity\]'"):
        next(open_clip_pipeline(Task([], 32, (0.9, 1.0), words())))


def test_the_command_names_shards_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("bench_data", Path(__file__).parents[2] / "scripts" / "bench_data.py")
    assert spec is not None and spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    monkeypatch.setattr(sys, "argv", ["bench_data.py", "--shards", str(tmp_path / "*.tar")])
    assert command.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("bench_data: data.shards: ")
