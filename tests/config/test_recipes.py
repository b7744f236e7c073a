"""The real configuration: every recipe at every size on every data preset, and every option of every group, passes both gates."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlpkit.check import settle
from vlpkit.compose import look_ahead
from vlpkit.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
SHARDS = ["data.shards=train.tar"]  # the one thing that data=custom cannot know


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def settled(*argv: str) -> tuple[dict[str, Any], list[str]]:
    kept: list[tuple[dict[str, Any], list[str]]] = []
    look_ahead(argv, conf=CONF, check=lambda cfg: kept.append(settle(cfg, conf=CONF)))
    return kept[0]


def told(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        settled(*argv)
    return str(error.value)


@pytest.mark.parametrize("size", options("size"))
@pytest.mark.parametrize("model", options("model"))
def test_every_recipe_composes_at_every_size(model: str, size: str) -> None:
    plain, _ = settled(f"model={model}", f"size={size}")
    assert (plain["name"], plain["size"]["name"]) == (model, size)


@pytest.mark.parametrize("data", options("data"))
def test_a_recipe_composes_on_every_data_preset(data: str) -> None:
    plain, _ = settled("model=blip", f"data={data}", *(SHARDS if data == "custom" else []))
    assert plain["data"]["name"] == data
    first = (CONF / "data" / f"{data}.yaml").read_text().partition("\n")[0]
    assert first == f"# size: {plain['size']['name']}"


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in ("vision", "text", "optim", "trainer", "logger", "debug", "plan") for option in options(group)]
)  # fmt: skip
def test_every_option_composes_with_a_recipe(group: str, option: str) -> None:
    settled("model=albef", f"{group}={option}")


@pytest.mark.parametrize("option", options("fusion"))
def test_every_fusion_composes_with_albef(option: str) -> None:
    assert settled("model=albef", f"fusion={option}")[0]["model"]["fusion"]["_target_"] == "vlpkit.fusion.Fusion"


def test_objectives_recombine_and_what_is_left_over_is_named() -> None:
    plain, dropped = settled("model=albef", "objective=[itc_momentum,mlm]")
    assert list(plain["objectives"]) == ["itc", "mlm"]
    assert "draws.hard" in dropped


def test_settings_of_the_momentum_contrast_do_not_land_on_the_plain_one_unnoticed() -> None:
    message = told("model=blip", "objective=[itc,lm]")
    assert message.startswith("objectives.itc: Contrast takes no ")
    assert message.endswith("\n  Did you mean objective=[itc_momentum,...], or should the recipe's objectives.itc block go?")


def test_any_parameter_of_any_part_can_be_set_from_the_command_line() -> None:
    plain, _ = settled("model=clip", "model.vision.trunk.drop_path=0.1", "objectives.itc.weight=0.5", "+model.freeze=[vision.embed]")
    assert (plain["model"]["vision"]["trunk"]["drop_path"], plain["objectives"]["itc"]["weight"], plain["model"]["freeze"]) == (0.1, 0.5, ["vision.embed"])


def train(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("VLP_")}
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=blipp"], "model: there is no option 'blipp' (there are: albef, align, blip, clip, siglip). Did you mean model=blip?\n"),
        (["data.bacth=8"], "data.bacth: WorldData takes no 'bacth'"),
        (["data=custom", "data.shards=nowhere/*.tar"], "data.shards: "),
        (["data.batch=9", "trainer.devices=2"], "data.batch"),
        (["total=3_weeks"], "total: '3_weeks' has no unit that is known (units: steps, samples, epochs, percent).\n"),
        (["-m", "model=clip,albef,blip", "seed=1,x"], "In the job model=clip seed=x:\nseed: takes a whole number, found 'x'.\n"),
    ],
)
def test_train_refuses_with_one_message_and_code_two_and_writes_nothing(tmp_path: Path, argv: list[str], message: str) -> None:
    done = train(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_choices_within_seconds(tmp_path: Path) -> None:
    """Processor time, not wall time, as other tests may share the machine; importing torch alone takes longer than this."""
    before = time.monotonic(), os.times().children_user
    done = train(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert [f"{group}/{option}" for group in ("model", "vision", "data") for option in options(group) if option not in words] == []
    assert max(len(line) for line in done.stdout.splitlines()) <= 130
    assert os.times().children_user - before[1] < 3
    assert list(tmp_path.iterdir()) == []
