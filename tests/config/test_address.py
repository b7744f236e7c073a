"""Addresses: one grammar for ties, freezing and optimiser groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlpkit.address import covers, find, matches, pairs, replace, resolve
from vlpkit.errors import AssemblyError


class Side(nn.Module):
    """A part with a hole that a tie may fill."""

    def __init__(self, depth: int, *, hole: bool = False) -> None:
        super().__init__()
        self.trunk = None if hole else nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleDict({"self": nn.Linear(2, 2), "ffn": nn.Linear(2, 2)}) for _ in range(depth))})
        self.register_buffer("scale", torch.ones(()))


def model() -> nn.Module:
    return nn.ModuleDict({"text": Side(4), "vision": Side(3), "fusion": Side(0, hole=True)})


def paths(root: nn.Module, pattern: str) -> list[str]:
    return [path for path, _ in find(root, pattern)]


@pytest.mark.parametrize(
    ("segment", "name", "covered"),
    [
        ("*", "anything", True), ("ffn", "ffn", True), ("ffn", "ffn2", False), ("{self,ffn}", "ffn", True), ("{self, ffn}", "cross", False),
        ("3", "3", True), ("3", "13", False), ("0-2", "2", True), ("0-2", "3", False), ("6-", "6", True), ("6-", "60", True), ("6-", "5", False),
        ("all", "11", True), ("all", "ffn", False), ("{0,6-}", "0", True), ("{0,6-}", "7", True), ("{0,6-}", "3", False), ("6-", "ffn", False),
    ],
)  # fmt: skip
def test_a_segment_covers(segment: str, name: str, covered: bool) -> None:
    assert covers(segment, name) is covered


def test_a_star_is_one_segment_and_ranges_count_layers() -> None:
    root = model()
    assert paths(root, "*.trunk.blocks.0.ffn") == ["text.trunk.blocks.0.ffn", "vision.trunk.blocks.0.ffn"]
    assert paths(root, "text.trunk.blocks.2-.{self,ffn}.bias") == [f"text.trunk.blocks.{i}.{kind}.bias" for i in (2, 3) for kind in ("self", "ffn")]


def test_modules_parameters_and_buffers_are_found() -> None:
    root = model()
    assert isinstance(find(root, "text.trunk")[0][1], nn.Module)
    assert isinstance(find(root, "text.trunk.blocks.0.ffn.weight")[0][1], nn.Parameter)
    assert find(root, "{text,vision,fusion}.scale")[2][0] == "fusion.scale"


def test_a_shared_module_is_found_under_each_of_its_names() -> None:
    root = model()
    replace(root, "fusion.trunk", resolve(root, "text.trunk"))
    assert paths(root, "*.trunk.blocks.1") == ["text.trunk.blocks.1", "vision.trunk.blocks.1", "fusion.trunk.blocks.1"]
    assert resolve(root, "fusion.trunk") is resolve(root, "text.trunk")


def test_a_pattern_that_names_a_module_covers_everything_beneath_it() -> None:
    assert matches("vision.trunk", "vision.trunk.blocks.0.ffn.weight")
    assert matches("*.trunk.blocks.1-", "vision.trunk.blocks.2.ffn.weight")
    assert not matches("vision.trunk", "vision.trunks.blocks")
    assert not matches("vision.trunk.blocks.0", "vision.trunk")


def test_pairs_go_in_order_into_holes_too_and_one_left_serves_all() -> None:
    root = model()
    assert pairs(root, "text.trunk -> fusion.trunk") == [("text.trunk", "fusion.trunk")]
    assert pairs(root, "text.trunk.blocks.0-1.ffn->vision.trunk.blocks.1-2.ffn") == [
        ("text.trunk.blocks.0.ffn", "vision.trunk.blocks.1.ffn"), ("text.trunk.blocks.1.ffn", "vision.trunk.blocks.2.ffn"),
    ]  # fmt: skip
    assert pairs(root, "text.scale -> {vision,fusion}.scale") == [("text.scale", "vision.scale"), ("text.scale", "fusion.scale")]


def test_replacing_keeps_order_and_identity() -> None:
    root = model()
    before = list(root.state_dict())
    replace(root, "vision.trunk.blocks.0.ffn", resolve(root, "text.trunk.blocks.0.ffn"))
    replace(root, "vision.trunk.blocks.1.ffn.weight", resolve(root, "text.trunk.blocks.1.ffn.weight"))
    replace(root, "vision.scale", resolve(root, "text.scale"))
    assert list(root.state_dict()) == before
    for path in ("trunk.blocks.0.ffn", "trunk.blocks.1.ffn.weight", "scale"):
        assert resolve(root, f"vision.{path}") is resolve(root, f"text.{path}")


def test_a_parameter_may_take_the_place_of_a_buffer() -> None:
    root = model()
    replace(root, "text.scale", nn.Parameter(torch.zeros(())))
    assert [name for name, _ in root.named_parameters() if name.endswith("scale")] == ["text.scale"]
    assert [name for name, _ in root.named_buffers()] == ["vision.scale", "fusion.scale"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("text.trunk.blocks.*.cross", "'text.trunk.blocks.*.cross' matches nothing: text.trunk.blocks.0 has no 'cross' (it has: self, ffn)."),
        ("text.trnk", "'text.trnk' matches nothing: text has no 'trnk' (it has: trunk, scale). Did you mean 'trunk'?"),
        ("texts.trunk", "'texts.trunk' matches nothing: the model has no 'texts' (it has: text, vision, fusion). Did you mean 'text'?"),
        ("text.trunk.blocks.9-", "'text.trunk.blocks.9-' matches nothing: text.trunk.blocks has no '9-' (it has: 0, 1, 2, 3)."),
        ("fusion.trunk.blocks", "'fusion.trunk.blocks' matches nothing: fusion.trunk is empty, with nothing below."),
        ("text.scale.x", "'text.scale.x' matches nothing: text.scale is a Tensor, with nothing below."),
        ("text..ffn", "'text..ffn' is no address: '' is not a name, *, {a,b} or a layer range (3, 0-2, 6-, all)."),
        ("te*t", "'te*t' is no address: 'te*t' is not a name, *, {a,b} or a layer range (3, 0-2, 6-, all)."),
    ],
)
def test_what_matches_nothing_is_told_where_the_path_ends(pattern: str, message: str) -> None:
    with pytest.raises(AssemblyError) as error:
        find(model(), pattern)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("text.trunk", "'text.trunk' is no tie; write 'WHAT STAYS -> WHAT IT REPLACES', such as 'text.trunk -> fusion.w'."),
        (
            "text.trunk.blocks.* -> vision.trunk.blocks.*",
            "'text.trunk.blocks.* -> vision.trunk.blocks.*' pairs 4 (text.trunk.blocks.0, ...) with 3 (vision.trunk.blocks.0, ...); "
            "both sides need equal numbers, or the left a single one.",
        ),
        ("fusion.trunk -> text.trunk", "'fusion.trunk' matches nothing: fusion.trunk is empty."),
        ("text.trunk -> fusion.w", "'fusion.w' matches nothing: fusion has no 'w' (it has: scale, trunk)."),
    ],
)
def test_a_tie_that_cannot_be_made_is_refused(rule: str, message: str) -> None:
    with pytest.raises(AssemblyError) as error:
        pairs(model(), rule)
    assert str(error.value) == message
