"""Gate 2: each class of mistake in a block, with its whole message, and nothing imported on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vlpkit.check import check_signatures, settle, trust
from vlpkit.errors import ConfigError

P = "tests.config.parts"


def refusal(block: dict[str, Any], *, place: str = "model.vision", conf: Path | None = None) -> str:
    """What is said about a block that stands at a place."""
    cfg: dict[str, Any] = block
    for name in reversed(place.split(".")):
        cfg = {name: cfg}
    with pytest.raises(ConfigError) as error:
        check_signatures(cfg, conf=conf)
    return str(error.value)


def test_a_misspelt_key_is_answered_with_what_is_taken_and_the_nearest() -> None:
    assert refusal({"_target_": f"{P}.Trunk", "depth": 2, "plce": "pre"}) == (
        "model.vision.plce: Trunk takes no 'plce' (it takes: depth, block, place, ratio).\n  Did you mean model.vision.place?"
    )


def test_a_key_of_another_option_names_the_option(conf: Path) -> None:
    assert refusal({"_target_": f"{P}.Contrast", "queue": 128}, place="objectives.itc", conf=conf) == (
        "objectives.itc.queue: Contrast takes no 'queue' (it takes: on, weight, gather, smoothing).\n"
        "  Did you mean objective=[itc_momentum,...], or should the recipe's objectives.itc block go?"
    )


def test_a_key_that_nobody_takes_asks_about_the_recipe(conf: Path) -> None:
    assert refusal({"_target_": f"{P}.Quiet", "smoothing": 0.1}, place="objectives.lm", conf=conf) == (
        "objectives.lm.smoothing: Quiet takes no 'smoothing' (it takes: on, weight).\n  Should the recipe's objectives.lm block go?"
    )


def test_several_strange_keys_of_a_block_share_a_paragraph() -> None:
    assert refusal({"_target_": f"{P}.Quiet", "a": 1, "b": 2}) == "model.vision: Quiet takes no 'a', 'b' (it takes: on, weight)."


def test_a_missing_key_is_named_unless_assembly_gives_it() -> None:
    assert refusal({"_target_": f"{P}.Trunk"}) == "model.vision.depth: Trunk needs 'depth', and nothing gives it.\n  Write model.vision.depth=..."


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"_target_": f"{P}.Trunk", "depth": "deep"}, "model.vision.depth: Trunk takes a whole number here, found 'deep'."),
        ({"_target_": f"{P}.Trunk", "depth": 2.5}, "model.vision.depth: Trunk takes a whole number here, found 2.5."),
        ({"_target_": f"{P}.Trunk", "depth": True}, "model.vision.depth: Trunk takes a whole number here, found true."),
        ({"_target_": f"{P}.Trunk", "depth": None}, "model.vision.depth: Trunk takes a whole number here, found null."),
        ({"_target_": f"{P}.Trunk", "depth": 2, "place": "prex"}, "model.vision.place: Trunk takes pre or post here, found 'prex'.\n  Did you mean 'pre'?"),
        (
            {"_target_": f"{P}.Trunk", "depth": 2, "block": ["self", "fnn"]},
            "model.vision.block[1]: Trunk takes self, cross or ffn here, found 'fnn'.\n  Did you mean 'ffn'?",
        ),
        ({"_target_": f"{P}.Trunk", "depth": 2, "block": "self"}, "model.vision.block: Trunk takes a list of self, cross or ffn here, found 'self'."),
        (
            {"_target_": f"{P}.Encoder", "trunk": {"depth": 2}},
            "model.vision.trunk: Encoder takes a block with _target_ (Trunk) or null here, found keys without a _target_ (depth).",
        ),
        ({"_target_": f"{P}.Encoder", "trunk": "vit"}, "model.vision.trunk: Encoder takes a block with _target_ (Trunk) or null here, found 'vit'."),
        ({"_target_": f"{P}.Encoder", "sizes": [1]}, "model.vision.sizes: Encoder takes a list of 2 (a whole number, a whole number) here, found [1]."),
        ({"_target_": f"{P}.Encoder", "names": {"a": "x"}}, "model.vision.names.a: Encoder takes a number here, found 'x'."),
        (
            {"_target_": f"{P}.Optim", "lr": 1e-3, "warmup": "2_epoks"},
            "model.vision.warmup: Optim takes a duration (2000_steps, 2_epochs, 1.5M_samples or 10_percent) here, found '2_epoks'.",
        ),
        ({"_target_": f"{P}.Data", "batch": 1, "key": 3}, "model.vision.key: Data takes a block with _target_ (Callable) or null here, found 3."),
    ],
)
def test_a_value_of_another_type_is_told_what_is_taken(block: dict[str, Any], message: str) -> None:
    assert refusal(block) == message


@pytest.mark.parametrize(
    "block",
    [
        {"_target_": f"{P}.Trunk", "depth": 2, "ratio": 4, "block": ["self"]},
        {"_target_": f"{P}.Encoder", "dim": 8, "trunk": None, "sizes": [1, 2], "names": {"a": 1, "b": 0.5}},
        {"_target_": f"{P}.Optim", "lr": 1, "warmup": 200, "rate": {"peak": 1.0}, "folder": "runs"},
        {"_target_": f"{P}.Optim", "lr": 1, "warmup": "0.5_epochs"},
        {"_target_": f"{P}.Alias", "value": "three"},
        {"_target_": f"{P}.Anything", "first": 1, "whatever": "else"},
        {"_target_": f"{P}.Anything.small", "second": 1},
    ],
)
def test_what_fits_passes(block: dict[str, Any]) -> None:
    check_signatures({"model": {"vision": block}})


def test_all_mistakes_come_at_once_a_paragraph_each() -> None:
    cfg = {
        "model": {"vision": {"_target_": f"{P}.Encoder", "trunk": {"_target_": f"{P}.Trunk", "depth": "x"}}},
        "objectives": {"itc": {"_target_": f"{P}.Contrast", "gather": 1}, "lm": {"_target_": f"{P}.Quite"}},
    }
    with pytest.raises(ConfigError) as error:
        check_signatures(cfg)
    assert str(error.value).splitlines() == [
        "model.vision.trunk.depth: Trunk takes a whole number here, found 'x'.",
        "objectives.itc.gather: Contrast takes true or false here, found 1.",
        "objectives.lm._target_: tests.config.parts has no 'Quite' (it has: Base, Contrast, MomentumContrast, Quiet, Trunk, Encoder, Rate, Optim, Data, "
        "Anything, refuse, pair, teacher).",
        "  Did you mean 'Quiet'?",
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "os.system",
            "model.vision._target_: 'os.system' may not be named here (accepted: names under tests.config, vlpkit).\n"
            "  A module of your own is let in by name: plugins=[my_parts]",
        ),
        ("tests.config.aliases.system", "model.vision._target_: tests.config.aliases has no 'system'"),
        (
            "tests.config.aliases.copyfile",
            "model.vision._target_: 'tests.config.aliases.copyfile' leads to 'shutil.copyfile', which is outside of tests.config, vlpkit.",
        ),
        ("tests.config.aliases.os.system", "model.vision._target_: "),
        ("vlpkit.nowhere.Thing", "model.vision._target_: vlpkit has no 'nowhere.Thing'."),
        ("tests.config.parts", "model.vision._target_: "),
        (3, "model.vision._target_: 3 may not be named here"),
    ],
)
def test_only_trusted_modules_may_be_named(target: Any, message: str) -> None:
    assert refusal({"_target_": target}).startswith(message)


def test_a_plugin_is_let_in_by_its_name_and_not_by_its_beginning() -> None:
    trust(["json"])
    check_signatures({"model": {"vision": {"_target_": "json.decoder.JSONDecoder"}}})
    assert refusal({"_target_": "jsonschema.validate"}).startswith("model.vision._target_: 'jsonschema.validate' may not be named here")


def test_a_list_where_a_part_belongs_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        check_signatures({"model": {"tise": ["a -> b"], "freeze": ["vision"]}, "objectives": {"itc": 3}})
    assert str(error.value) == (
        "model.tise: a block with _target_ stands here, or one of ties, freeze, found ['a -> b'].\n  Did you mean 'ties'?\n"
        "objectives.itc: a block with _target_ stands here, found 3."
    )


def settled(**top: Any) -> tuple[dict[str, Any], list[str]]:
    return settle(OmegaConf.create({"model": {}, "draws": {}, "objectives": {}, "teacher": None, "plan": None, **top}))


def test_settings_of_options_that_were_not_chosen_are_dropped_and_named() -> None:
    plain, dropped = settled(
        model={"decoder": {"reads": {"v": "vision"}}, "ties": ["a -> b"], "text": {"_target_": f"{P}.Encoder", "trunk": {"depth": 3}}},
        draws={"mask": {"rate": 0.1}}, objectives={"itm": {"weight": 2.0}, "lm": None}, teacher={"momentum": 0.9},
    )  # fmt: skip
    assert dropped == ["model.decoder", "draws.mask", "objectives.itm", "teacher", "model.text.trunk"]
    assert plain == {
        "model": {"ties": ["a -> b"], "text": {"_target_": f"{P}.Encoder", "trunk": None}}, "draws": {}, "objectives": {}, "teacher": None, "plan": None,
    }  # fmt: skip


def test_a_dropped_block_may_hold_what_cannot_be_resolved() -> None:
    assert settled(teacher={"momentum": "${nothing.here}"})[1] == ["teacher"]


def test_interpolations_are_resolved_and_one_that_leads_nowhere_is_named() -> None:
    part = {"_target_": f"{P}.Trunk", "depth": "${size.depth}"}
    assert settled(size={"depth": 3}, model={"vision": part})[0]["model"]["vision"]["depth"] == 3
    with pytest.raises(ConfigError) as error:
        settled(size={"half": 3}, model={"vision": part})
    assert str(error.value) == "model.vision.depth: '${size.depth}' leads nowhere. Interpolation key 'size.depth' not found."


def test_a_value_that_has_to_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError) as error:
        settled(data={"_target_": f"{P}.Data", "batch": "???"})
    assert str(error.value) == "data.batch: this has to be given. Write data.batch=..."
