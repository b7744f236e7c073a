"""Collectives over two gloo processes, and the case of one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as td

from tests.run.ranks import codes, start_two
from vlpkit import dist
from vlpkit.errors import ConfigError


def two(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run `work` on two connected ranks."""

    def rank() -> None:
        torch.set_num_threads(1)
        td.init_process_group("gloo", timeout=timedelta(seconds=20))
        work(td.get_rank(), folder)
        td.destroy_process_group()

    assert codes(*start_two(rank)) == [0, 0]


def _rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def _loss(all_rows: torch.Tensor, own: torch.Tensor, start: int) -> torch.Tensor:
    """A contrastive sum over the rows of one rank: it reads every row of every rank."""
    sim = own @ all_rows.T
    return torch.nn.functional.cross_entropy(sim, torch.arange(start, start + len(own)), reduction="sum")


def _everything(rank: int, folder: Path) -> None:
    counts = (3, 2)
    x = _rows(counts[rank], rank).requires_grad_()
    start = dist.offset(len(x))
    _loss(dist.gather_grad(x), x, start).backward()
    even = _rows(2, 10 + rank).requires_grad_()
    _loss(dist.gather_grad(even, equal=True), even, dist.offset(2, equal=True)).backward()
    torch.save(
        {
            "grad": x.grad,
            "even": even.grad,
            "start": start,
            "gather": dist.gather(x),
            "bools": dist.gather(torch.tensor([rank == 0])),
            "none": dist.gather(torch.ones(rank, 2)),
            "mean": dist.mean(torch.tensor(float(rank))),
            "most": dist.maximum(rank),
            "most_tensor": dist.maximum(torch.tensor([rank, -rank])),
            "word": dist.broadcast_object(f"of rank {rank}"),
            "words": dist.gather_object({"rank": rank}),
            "once": dist.once(),
            "world": dist.world(),
        },
        folder / f"{rank}.pt",
    )
    dist.barrier()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    two(_everything, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_gathered_gradients_equal_those_of_one_process(said: list[dict[str, torch.Tensor]]) -> None:
    for word, rows in (("grad", [_rows(3, 0), _rows(2, 1)]), ("even", [_rows(2, 10), _rows(2, 11)])):
        whole = torch.cat(rows).requires_grad_()
        _loss(whole, whole, 0).backward()
        torch.testing.assert_close(torch.cat([r[word] for r in said]), whole.grad, rtol=1e-6, atol=1e-6)  # sums in another order


def test_rows_stand_in_rank_order(said: list[dict[str, torch.Tensor]]) -> None:
    for r in said:
        assert torch.equal(r["gather"], torch.cat([_rows(3, 0), _rows(2, 1)]))
        assert not r["gather"].requires_grad
        assert r["bools"].tolist() == [True, False]
        assert r["none"].shape == (1, 2)
    assert [r["start"] for r in said] == [0, 3]


def test_words_and_numbers_reach_every_rank(said: list[dict[str, object]]) -> None:
    for r in said:
        assert float(r["mean"]) == 0.5  # type: ignore[arg-type]
        assert r["most"] == 1
        assert r["most_tensor"].tolist() == [1, 0]  # type: ignore[attr-defined]
        assert r["word"] == "of rank 0"
        assert r["words"] == [{"rank": 0}, {"rank": 1}]
        assert r["world"] == 2
    assert [r["once"] for r in said] == [True, False]


def test_one_process_needs_no_group() -> None:
    x = _rows(2, 0).requires_grad_()
    assert dist.gather_grad(x) is x
    assert torch.equal(dist.gather(x), x) and not dist.gather(x).requires_grad
    assert (dist.offset(2), dist.world(), dist.once(), dist.maximum(3)) == (0, 1, True, 3)
    assert dist.gather_object("a") == ["a"] and dist.broadcast_object("a") == "a"
    dist.barrier()


def test_ranks_that_cannot_meet_are_told_to_name_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(ConfigError, match=r"run_dir: null, but processes that torchrun did not start cannot agree .* run_dir=runs/NAME"):
        dist.agree("runs/a", about="run_dir")
