"""A run on the embedded world's shards that a web server holds is the run on the same files, from its start or from the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.webserver import Server, busy, cut
from tests.recipes.runs import in_child, keys, rows
from vlpkit.data.published import write_index
from vlpkit.data.shapes.write import write_world
from vlpkit.data.shardlist import expand, quoted

LENGTH = ("data=custom", "data.workers=1", "total=6_steps", "trainer.checkpoint_every=2_steps", "seed=7")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "w", train=120, val=16, image_size=32, samples_per_shard=30)


@pytest.fixture(scope="module")
def here(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on the files."""
    run = tmp_path_factory.mktemp("here") / "run"
    assert in_child(run, run.parent / "cache", *LENGTH, f"data.root={world}", "data.shards=train-*.tar") == 0, (run.parent / "run.log").read_text()[-3000:]
    return run


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server(world) as found:
        yield found
        found.close()


def test_a_run_on_remote_shards_is_the_run_on_the_same_files(server: Server, here: Path, tmp_path: Path) -> None:
    server.script["/train-000001.tar"].extend([busy, cut(20_000)])
    run = tmp_path / "run"
    words = (*LENGTH, quoted(f"data.shards={server.url}/train-{{000000..000003}}.tar"))
    assert in_child(run, tmp_path / "cache", *words) == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert not server.script["/train-000001.tar"]
    assert keys(run) == keys(here)
    assert rows(run) == rows(here)


def test_a_run_that_began_on_files_goes_on_with_the_same_shards_elsewhere(world: Path, server: Server, here: Path, tmp_path: Path) -> None:
    write_index(expand("*.tar", str(world)))
    run, cache = tmp_path / "run", tmp_path / "cache"
    try:
        assert in_child(run, cache, *LENGTH, f"data.root={world}", "data.shards=train-*.tar", die=("on_after_backward", 3)) == -9
        assert in_child(run, cache, *LENGTH, f"data.root={server.url}", "data.shards=train-*.tar", "resume=auto") == 0, (tmp_path / "run.log").read_text()[-3000:]
    finally:
        (world / "shards.index").unlink()
    assert keys(run) == keys(here)
    assert rows(run) == rows(here)
