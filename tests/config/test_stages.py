"""An experiment in stages: which command each stage is, in which order, and what is refused before the first one starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.builders import CONF
from vlpkit.errors import ConfigError
from vlpkit.stages import Stage, read_stages, run_stages

STAGES: dict[str, Any] = {
    "order": ["a", "b"],
    "a": {"always": ["model=clip"], "first": ["seed=1"], "later": ["seed=2"], "weights": {"before": ["vision", "text"]}},
    "b": {"always": ["model=albef"], "first": [], "later": ["seed=3"], "weights": {"before": ["vision"], "a": ["heads.mlm"]}},
    "c": {"always": ["model=albef"], "weights": {"before": ["vision"], "a": ["heads.mlm"]}},
}  # fmt: skip
TYPED = ["experiment=x", "total=3_steps", "run_dir=r", "resume=auto", "stages.order=[a,b]", "+data.limit=4"]


def test_each_stage_is_a_command_in_a_folder_of_its_own_from_the_weights_of_the_one_before() -> None:
    first, second = read_stages(STAGES, TYPED, run_dir="r")
    assert first.command() == ["model=clip", "seed=1", "total=3_steps", "+data.limit=4", "run_dir=r/a", "resume=auto"]
    assert second.command() == ["model=albef", "seed=3", "total=3_steps", "+data.limit=4", "run_dir=r/b", "resume=auto", "weights={vision: r/a, heads.mlm: r/a}"]


def test_another_order_is_one_override() -> None:
    first, second = read_stages({**STAGES, "order": ["b", "a"]}, TYPED, run_dir="r")
    assert (first.name, first.weights, second.name, second.weights) == ("b", {}, "a", {"vision": Path("r/b"), "text": Path("r/b")})
    assert "seed=2" in second.arguments


def test_a_head_comes_from_the_stage_that_trained_it_however_long_ago(caplog: pytest.LogCaptureFixture) -> None:
    last = read_stages({**STAGES, "order": ["a", "b", "c"]}, TYPED, run_dir="r")[-1]
    assert last.weights == {"vision": Path("r/b"), "heads.mlm": Path("r/a")}
    with caplog.at_level("INFO"):
        last = read_stages({**STAGES, "order": ["b", "c"]}, TYPED, run_dir="r")[-1]
    assert last.weights == {"vision": Path("r/b")}
    assert caplog.messages == ["stages.c: heads.mlm of the stage a starts fresh, since that does not run before it"]


def test_a_stage_that_is_only_shown_starts_from_nothing() -> None:
    assert not any(word.startswith("weights") for stage in read_stages(STAGES, [*TYPED, "debug=check"], run_dir="r") for word in stage.command())


@pytest.mark.parametrize(("stages", "run_dir", "message"), [
    ({**STAGES, "order": ["a", "d"]}, "r", r"stages\.order\[1\]: there is no stage 'd' \(there are: a, b, c\)"),
    ({"a": {"allways": []}}, "r", r"stages\.a: no key 'allways' \(there are: always, first, later, weights\)\. Did you mean 'always'"),
    ({"a": {}, "b": {}}, "r", r"stages\.b\.weights: it does not come first, so say what it takes of an earlier stage, such as \{before: \[vision, text\]\}"),
    ({"first": {}, "b": {"weights": {"frist": ["vision"]}}}, "r", r"stages\.b\.weights: there is no stage 'frist' \(there are: before, first, b\)\. Did you mean 'first'"),
    ({"a": {}, "b": {"weights": {"before": ["vision"], "a": ["vision"]}}}, "r", r"stages\.b\.weights: vision is taken of a and of a; name it once"),
    (STAGES, None, r"run_dir: an experiment in stages keeps its runs together\. Name the folder"),
])  # fmt: skip
def test_stages_that_make_no_sense_are_refused(stages: dict[str, Any], run_dir: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_stages(stages, TYPED, run_dir=run_dir)


def test_a_mistake_in_the_last_stage_is_refused_before_the_first_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_: pytest.fail("nothing may run"))

    def ask(arguments: Any) -> None:
        if "model=albef" in arguments:
            raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match=r"In the stage b:\nno such thing"):
        run_stages(read_stages(STAGES, TYPED, run_dir="r"), ask=ask)


def test_what_comes_behind_a_stage_that_failed_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode = 7

    ran: list[Any] = []
    monkeypatch.setattr("subprocess.run", lambda command: ran.append(command) or Done())
    assert run_stages([Stage("a", ("x=1",), {}), Stage("b", ("x=2",), {"vision": Path("r/a")})], ask=lambda _: None) == 7
    assert len(ran) == 1


@pytest.mark.parametrize("file", sorted(path.name for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_read(file: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / file))
    assert isinstance(node, dict)
    assert len(read_stages(node["stages"], [], run_dir="r")) > 1
