"""The queue is a ring: any number of rows, oldest overwritten first."""

from __future__ import annotations

import pytest
import torch

from vlpkit.queue import Field, Queue


def ring(length: int, start: str = "empty") -> Queue:
    return Queue(length=length, fields={"z": Field((2,)), "id": Field((), "id")}, start=start)  # type: ignore[arg-type]


def rows(first: int, count: int) -> dict[str, torch.Tensor]:
    number = torch.arange(first, first + count)
    return {"z": torch.stack([number, -number], 1).float(), "id": number}


@pytest.mark.parametrize("pushes", [[3, 3, 3], [4, 4, 4, 4], [10], [7], [8, 1], [1] * 20, [5, 20, 2]])
def test_the_ring_holds_the_last_rows_whatever_divides(pushes: list[int]) -> None:
    queue, seen = ring(7), 0
    kept: dict[int, int] = {}   # place -> row, the slow way
    for count in pushes:
        queue.push(rows(seen, count))
        for i in range(count):
            kept[(seen + i) % 7] = seen + i
        seen += count
    held = queue.keys()
    assert held["valid"].tolist() == [place in kept for place in range(7)]
    assert {place: int(held["id"][place]) for place in kept} == kept
    assert all(held["z"][place].tolist() == [float(row), -float(row)] for place, row in kept.items())
    assert int(queue.cursor) == seen % 7
    assert int(queue.filled) == min(seen, 7)


def test_an_empty_queue_is_valid_nowhere_and_a_random_one_everywhere() -> None:
    assert not ring(5).keys()["valid"].any()
    assert ring(5, "random").keys()["valid"].all()
    assert torch.allclose(ring(5, "random").keys()["z"].norm(dim=-1), torch.ones(5))


def test_a_queue_keeps_no_graph_and_no_alias_of_what_was_pushed() -> None:
    queue, points = ring(4), torch.ones(2, 2, requires_grad=True)
    queue.push({"z": points, "id": torch.arange(2)})
    assert not queue.keys()["z"].requires_grad
    with torch.no_grad():
        points.zero_()
    assert queue.keys()["z"][0].tolist() == [1.0, 1.0]


def test_a_point_that_is_not_finite_does_not_stay_in_the_ring() -> None:
    queue = ring(3)
    queue.push({"z": torch.tensor([[float("nan"), 1.0], [float("inf"), -float("inf")]]), "id": torch.arange(2)})
    assert queue.keys()["z"][:2].tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_saving_and_loading_goes_on_where_it_stood() -> None:
    a, b = ring(5), ring(5)
    a.push(rows(0, 3))
    b.load_state_dict(a.state_dict())
    for queue in (a, b):
        queue.push(rows(3, 4))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
