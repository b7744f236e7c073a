"""The README's commands run: every `python train.py` line is composed, refused or built as a user would see it."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.builders import CONF, ROOT
from tests.recipes.runs import NARROW

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip() for block in re.findall(r"^```\n(.*?)^```", README, re.S | re.M) for line in block.splitlines() if line.startswith("python train.py")
]
# an experiment in stages starts processes of its own; tests/recipes/test_stages.py runs that very command
ON_SCENES = [line for line in COMMANDS if "data=" not in line and " -m " not in line and "resume=" not in line and "experiment=" not in line]
SMALL = [word for word in NARROW if word.startswith(("data.world", "size."))]


def _child(words: list[str], log: Path) -> None:
    sys.stdout = sys.stderr = log.open("w")
    sys.path.insert(0, str(ROOT))
    import train
    from vlpkit.compose import run_hydra
    from vlpkit.program import check

    sys.stdout.flush()
    code = run_hydra(train.train, conf=CONF, check=lambda cfg: check(cfg, conf=CONF), argv=words)
    sys.stdout.flush()
    os._exit(code)


def run(words: list[str], log: Path) -> tuple[int, str]:
    """Exit code and everything that train.py printed."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(words, log))
    process.start()
    process.join(120)
    code = process.exitcode
    if code is None:
        process.kill()
    return -1000 if code is None else code, log.read_text()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) >= 12
    assert len(ON_SCENES) >= 8


@pytest.mark.parametrize("line", ON_SCENES)
def test_a_command_of_the_readme_builds_its_model(line: str, cache: Path, tmp_path: Path) -> None:
    words = [word for word in shlex.split(line)[2:] if not word.startswith(("run_dir=", "debug="))]
    code, said = run([*words, *SMALL, f"paths.cache={cache}", "debug=check"], tmp_path / "log")
    assert code == 0, said
    assert "passes a step" in said


@pytest.mark.parametrize(
    "words",
    [["model=albef", "objective=[itc_momentum,itm_hard]"], ["model=blip", "objective=[itc_momentum,itm_hard]", "decoder=null", "evals=[retrieval]"]],
)
def test_ties_and_teacher_parts_of_what_was_taken_away_go_with_it(words: list[str], cache: Path, tmp_path: Path) -> None:
    code, said = run([*words, *SMALL, f"paths.cache={cache}", "debug=check"], tmp_path / "log")
    assert code == 0, said
    assert "left out, because their option was not chosen" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=clip", "objective=[itc,itm]"], "objectives.itm asks for the part 'fusion', but 'clip' builds vision, text, align."),
        (["model=blip", "text=bert"], "model.ties[2]: 'text.trunk.blocks.*.cross' matches nothing"),
        (["model=albef", "teacher=null"], "objectives.itc asks for a teacher"),
        (["data.batch=10", "trainer.micro_batch=4"], "data.batch"),
        (["data=custom", "data.shards=nowhere/*.tar"], "data.shards"),
        (["modle=clip"], "Did you mean"),
        (["optim.lrr=1"], "optim.lrr"),
        (["model.vision.trunk.dept=3"], "dept"),
        (["total=many"], "total"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(words: list[str], message: str, cache: Path, tmp_path: Path) -> None:
    code, said = run([*words, *(SMALL if "data=custom" not in words else []), f"paths.cache={cache}", f"run_dir={tmp_path / 'run'}"], tmp_path / "log")
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()
