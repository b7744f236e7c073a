"""Signatures are read from source: every way to write a constructor, nothing executed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import vlpkit
from vlpkit.kinds import describe, read_kind
from vlpkit.signatures import Signature, locate, read

PARTS = "tests.config.parts"


def signature(name: str) -> Signature:
    found = locate(f"{PARTS}.{name}")
    assert found is not None
    result = read(found)
    assert result is not None
    return result


def spelled(name: str) -> dict[str, str]:
    return {key: describe(read_kind(p.annotation, p.source)) + ("" if p.required else " =") for key, p in signature(name).parameters.items()}


def test_keyword_only_parameters_keep_order_type_and_whether_they_have_a_default() -> None:
    assert spelled("Trunk") == {
        "dim": "a whole number", "depth": "a whole number", "block": "a list of self, cross or ffn =", "place": "pre or post =", "ratio": "a number =",
    }  # fmt: skip


def test_keywords_passed_on_to_the_base_are_those_of_the_base() -> None:
    assert spelled("Contrast") == {"on": "text =", "weight": "a number =", "gather": "true or false =", "smoothing": "a number ="}
    assert not signature("Contrast").anything


def test_keywords_that_go_nowhere_known_accept_anything() -> None:
    assert signature("Anything").anything
    assert list(signature("Anything").parameters) == ["first"]


def test_a_class_without_a_constructor_has_that_of_its_base() -> None:
    assert (signature("Quiet").name, list(signature("Quiet").parameters)) == ("Quiet", ["on", "weight"])


def test_fields_of_dataclasses_and_named_tuples_are_parameters() -> None:
    assert spelled("Optim") == {
        "lr": "a number", "betas": "a list of a number =", "warmup": "a duration (2000_steps, 2_epochs, 1.5M_samples or 10_percent) =",
        "rate": "a block with _target_ (Rate) or null =", "folder": "a path or null =",
    }  # fmt: skip
    assert spelled("Rate") == {"peak": "a number", "end": "a number ="}


@pytest.mark.parametrize(("name", "parameters"), [("refuse", ["why"]), ("Anything.small", ["second"]), ("Alias", ["value"]), ("Other", ["value"])])
def test_functions_methods_and_aliases_are_followed(name: str, parameters: list[str]) -> None:
    assert list(signature(name).parameters) == parameters


def test_annotations_may_be_quoted() -> None:
    assert spelled("Alias") == {"value": "a whole number or text ="}


def test_what_is_assigned_is_no_signature() -> None:
    found = locate("tests.config.aliases.Place")
    assert found is not None
    assert read(found) is None


@pytest.mark.parametrize("address", ["tests.config.parts.Missing", "tests.config.nowhere.Thing", "nowhere.Thing", "tests"])
def test_what_is_not_there_is_none(address: str) -> None:
    assert locate(address) is None


def everything_public() -> Iterator[tuple[str, object]]:
    for info in pkgutil.walk_packages(vlpkit.__path__, "vlpkit."):
        for name, thing in vars(importlib.import_module(info.name)).items():
            if getattr(thing, "__module__", None) == info.name and not name.startswith("_") and callable(thing):
                yield f"{info.name}.{name}", thing


def test_every_constructor_of_the_package_is_read_as_python_reads_it() -> None:
    compared = 0
    for address, thing in everything_public():
        if not (inspect.isfunction(thing) or type(thing) is type) or issubclass(thing if inspect.isclass(thing) else object, BaseException | tuple):
            continue
        real = inspect.signature(thing).parameters.values()
        found = locate(address)
        assert found is not None, address
        mine = read(found)
        assert mine is not None, address
        if any(p.kind is p.VAR_KEYWORD for p in real):
            continue  # there Python says less than the source does
        named = [p for p in real if p.kind is not p.VAR_POSITIONAL]
        assert {p.name: p.default is p.empty for p in named} == {p.name: p.required for p in mine.parameters.values()}, address
        compared += 1
    assert compared > 50
