"""`train.py ... resume=auto` on what is no longer the same run: data, seed, tokenizer or global batch. It ends with 2 and shows both values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.data.shards import write_shards
from tests.recipes.runs import NARROW
from tests.test_readme import run as train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs in two shards, and a run of two steps over them."""
    here = tmp_path_factory.mktemp("refused")
    write_shards(here / "data", [25, 15])
    write_shards(here / "other", [12], prefix="more")
    code, said = command(here)
    assert code == 0, said[-3000:]
    return here


def command(folder: Path, *changes: str) -> tuple[int, str]:
    words = [
        "data=custom", "size=tiny", f"paths.data={folder / 'data'}", "data.shards=train-*.tar", "data.workers=0", "seed=3", "total=2_steps", "resume=auto",
        f"run_dir={folder / 'run'}", f"paths.cache={folder / 'cache'}", *(word for word in NARROW if not word.startswith("data.world")), *changes,
    ]  # fmt: skip
    return train(words, folder / "log")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seed=4"], r"  seed: 3 -> 4\n"),
        (["data.batch=32"], r"  data\.batch: 16 -> 32\n"),
        (["size.vocab=200"], r"  model\.text\.words\.size: 300 -> 200\n"),
        (["data.limit=20"], r"  data\.limit: \(absent\) -> 20\n"),
        (["data.mix={custom: 1.0, more: {shards: ../other/more-*.tar, weight: 0.5}}"], r"  data\.mix\.more\.weight: \(absent\) -> 0\.5\n"),
    ],
)
def test_a_changed_command_is_refused_with_the_difference(folder: Path, changes: list[str], message: str) -> None:
    code, said = command(folder, *changes)
    assert code == 2, said[-3000:]
    assert re.search(r"resume: .*/checkpoints/\S+ belongs to another run\.\n(.*\n)*" + message, said), said[-3000:]
    assert said.endswith("\nPut these back, or start a new run with another run_dir.\n")
    assert "Traceback" not in said


def test_other_shards_are_refused_with_their_numbers(folder: Path) -> None:
    code, said = command(folder, "data.shards=train-000.tar", "total=4_steps")
    assert code == 2, said[-3000:]
    mark = r"fingerprint [0-9a-f]{12}"
    assert re.search(rf"the shards of data\.shards: 40 samples in 2 shards, {mark} in the checkpoint, 25 samples in 1 shard, {mark} now\n", said), said[-3000:]
    assert "Traceback" not in said


def test_shards_that_changed_under_the_same_names_are_refused_with_their_numbers(folder: Path) -> None:
    (folder / "data" / "train-002.tar").write_bytes((folder / "other" / "more-000.tar").read_bytes())
    code, said = command(folder, "total=4_steps")
    (folder / "data" / "train-002.tar").unlink()
    assert code == 2, said[-3000:]
    mark = r"fingerprint [0-9a-f]{12}"
    wanted = rf"the shards of data\.shards: 40 samples in 2 shards, {mark} in the checkpoint, 52 samples in 3 shards, {mark} now\nPut them back, or start a new run"
    assert re.search(wanted, said), said[-3000:]
    assert "Traceback" not in said


def test_a_tokenizer_that_changed_in_the_run_folder_is_refused(folder: Path) -> None:
    kept = {path: path.read_bytes() for path in (folder / "run" / "tokenizer").iterdir()}
    code, said = command(folder, f"run_dir={folder / 'second'}", "size.vocab=265")   # another run, whose tokenizer has come to lie here
    assert code == 0, said[-3000:]
    for path in kept:
        path.write_bytes((folder / "second" / "tokenizer" / path.name).read_bytes())
    code, said = command(folder, "total=4_steps")
    for path, content in kept.items():
        path.write_bytes(content)
    assert code == 2, said[-3000:]
    one = r"words, at most 48 a text, fingerprint [0-9a-f]{12}"
    assert re.search(rf"resume: the tokenizer \(model\.text\.words\) is another one: 280 {one} in the checkpoint, 265 {one} now\.\nPut the run's folder", said), said[-3000:]
    assert "Traceback" not in said


def test_what_was_refused_can_still_be_continued_as_it_was(folder: Path) -> None:
    code, said = command(folder, "total=3_steps", "data.workers=1", "trainer.micro_batch=8")
    assert code == 0, said[-3000:]
