"""The front door as a process: exit codes, folders, sweeps, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def job(cwd: Path, *argv: str, module: str = "tests.config.job") -> subprocess.CompletedProcess[str]:
    """Run the two-line program in an empty folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = f"import runpy, sys; from vlpkit.check import trust; trust(['tests.config']); sys.argv[0] = 'job.py'; runpy.run_module({module!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", start, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_job_runs_where_it_was_started_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = job(tmp_path, "model=fused", "data.root=x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "fused seed=0 run_dir=None dropped=['objectives.itm'] torch=False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_each_job_of_a_sweep_has_its_own_folder(tmp_path: Path) -> None:
    done = job(tmp_path, "-m", "run_dir=swept", "seed=1,2", "data.root=x")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("dual")] == [
        f"dual seed={seed} run_dir={tmp_path}/swept/{i} dropped=['teacher'] torch=False" for i, seed in enumerate((1, 2))
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=fusd"], "model: there is no option 'fusd' (there are: dual, fused). Did you mean model=fused?\n"),
        (["optim.lrr=1"], "optim.lrr: Optim takes no 'lrr' (it takes: lr, betas, warmup, rate, folder).\n  Did you mean optim.lr?\n"),
        (["weights=refuse", "data.root=x"], "weights: this run was asked to refuse.\n"),
    ],
)
def test_what_is_refused_says_only_why_and_exits_with_two(tmp_path: Path, argv: list[str], message: str) -> None:
    done = job(tmp_path, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_after_a_job_that_was_refused_and_exits_with_two(tmp_path: Path) -> None:
    done = job(tmp_path, "-m", "weights=refuse,fine", "data.root=x")
    assert done.returncode == 2
    assert "dual seed=0" in done.stdout
    assert done.stderr.endswith("weights: this run was asked to refuse.\n")
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback_and_exits_with_one(tmp_path: Path) -> None:
    done = job(tmp_path, "weights=crash", "data.root=x")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: a bug\n")


@pytest.mark.parametrize(("argv", "shown"), [(["--help"], "  objective  itc\n             itc_momentum\n             lm\n"), (["--hydra-help"], "--multirun"), (["--cfg", "job", "seed=3"], "seed: 3"), (["--info", "searchpath"], "schema")])
def test_what_only_shows_something_works_and_exits_with_zero(tmp_path: Path, argv: list[str], shown: str) -> None:
    done = job(tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_and_refusals_import_nothing_heavy(tmp_path: Path) -> None:
    """Also build is light: the objects bring what they need."""
    program = """
import sys
from pathlib import Path
from vlpkit import build, check, compose, schema
from vlpkit.errors import ConfigError
conf = Path(sys.argv.pop())
for argv in (["model=blipp"], ["optim.lrr=1"], ["-m", "model=clip,blip", "objectives.itc.queu=1"]):
    try:
        compose.look_ahead(argv, conf=conf, check=lambda cfg: check.settle(cfg, conf=conf))
    except ConfigError:
        continue
    raise SystemExit("not refused")
heavy = {"torch", "torchvision", "timm", "transformers", "pytorch_lightning", "numpy", "PIL", "webdataset", "wandb"} & set(sys.modules)
raise SystemExit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program, str(ROOT / "conf")], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
