"""Gate 1: what a command line gets to hear, in whole messages, before anything heavy is imported."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vlpkit.check import settle
from vlpkit.compose import complete_arguments, look_ahead, run_hydra
from vlpkit.errors import ConfigError

KEYS = "name, model, size, draws, objectives, teacher, plan, data, optim, trainer, logger, evals, paths, debug, total, seed, run_dir, resume, weights, stages, plugins"


def refusal(conf: Path, *argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        look_ahead(argv, conf=conf, check=lambda cfg: settle(cfg, conf=conf))
    return str(error.value)


def accepted(conf: Path, *argv: str) -> list[DictConfig]:
    """The configs of the jobs that a command line makes."""
    jobs: list[DictConfig] = []
    look_ahead(argv, conf=conf, check=jobs.append)
    return jobs


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("model=fusd", "model: there is no option 'fusd' (there are: dual, fused). Did you mean model=fused?"),
        ("model=zzz", "model: there is no option 'zzz' (there are: dual, fused)."),
        ("model=dual.yaml", "model: there is no option 'dual.yaml' (there are: dual, fused). Did you mean model=dual?"),
        ("objective=[itcc,lm]", "objective: there is no option 'itcc' (there are: itc, itc_momentum, lm). Did you mean objective=[itc]?"),
        ("optim.lrr=1", "optim.lrr: Optim takes no 'lrr' (it takes: lr, betas, warmup, rate, folder).\n  Did you mean optim.lr?"),
        ("size.dpth=1", "size.dpth: no such key (size has: depth, heads). Did you mean size.depth?"),
        (
            "model.vision.trunk.plce=pre",
            "model.vision.trunk.plce: Trunk takes no 'plce' (it takes: depth, block, place, ratio).\n  Did you mean model.vision.trunk.place?",
        ),
        ("model.fusion.dim=3", "model.fusion.dim: no such key (model has: vision, text). Choose one: fusion=cross (there are: cross)."),
        ("model.vision=vit", "model.vision: is a block of keys (_target_, trunk), found 'vit'. Did you mean vision=vit?"),
        ("seed=abc", "seed: takes a whole number, found 'abc'."),
        ("run_dir=[a]", "run_dir: takes text or null, found ['a']."),
        ("optim.warmup=soon", "optim.warmup: Optim takes a duration (2000_steps, 2_epochs, 1.5M_samples or 10_percent) here, found 'soon'."),
        ("teacher.momentum=0.9", "teacher.momentum: has no effect, as this command builds no teacher. Choose one: teacher=ema (there are: ema)."),
        ("total.steps=3", "total.steps: total is '30_steps' here, so it has no keys."),
        ("model=dual,fused", "model=dual,fused: several values are a sweep. Run them one after another with -m, or write a list: 'model=[dual,fused]'"),
        ("+fusion=cross", "+fusion=cross: fusion is chosen from already. Write fusion=cross"),
        ("~objective", "~objective: objective is a list; take all away with objective=[]"),
        (
            "text@model.second=bert",
            "text@model.second=bert: nothing stands at model.second to be replaced. To add it there, write +text@model.second=bert",
        ),
        ("+colour=red", f"colour: no such key (a config has: {KEYS})."),
        ("+size.wings=2", "size.wings: no such key (size has: depth, heads)."),
        (
            "optim.lr=[1",
            "'optim.lr=[1' cannot be read as an override (no viable alternative at input '[1').\n"
            "  Write key=value, such as optim.lr=1e-4, and quote what the shell would take for itself: 'objective=[itc,lm]'.",
        ),
        ("hydra/launcher=slurm", "hydra/launcher: there is no option 'slurm' (there are: basic)."),
        ("hydra.colour=1", "hydra.colour: Hydra has no such setting, or takes another type there (--cfg hydra shows them)."),
        ("--config-name=trian", "--config-name: there is no 'trian' in conf/ (there are: train)."),
        ("--config-dir=/nowhere", "--config-dir: '/nowhere' is no folder."),
    ],
)
def test_a_mistake_on_the_command_line(conf: Path, argv: str, message: str) -> None:
    assert refusal(conf, argv) == message


@pytest.mark.parametrize(
    ("argv", "guess"), [("modle=dual", "model=dual"), ("modle=dul", "model=dual"), ("lr=1", "optim.lr"), ("batch=4", "data.batch"), ("sede=1", "seed")],
)  # fmt: skip
def test_a_group_or_key_that_does_not_exist_is_answered_with_both_lists(conf: Path, argv: str, guess: str) -> None:
    word = argv.partition("=")[0]
    assert refusal(conf, argv) == (
        f"{word}: there is no group and no key {word!r}. Did you mean {guess}?\n"
        f"  groups: data, fusion, model, objective, optim, size, teacher, text, vision\n  keys: {KEYS}"
    )


def test_all_mistakes_of_a_command_come_at_once(conf: Path) -> None:
    assert refusal(conf, "optim.lrr=1", "seed=x", "size.dpth=1").splitlines() == [
        "optim.lrr: Optim takes no 'lrr' (it takes: lr, betas, warmup, rate, folder).", "  Did you mean optim.lr?",
        "seed: takes a whole number, found 'x'.", "size.dpth: no such key (size has: depth, heads). Did you mean size.depth?",
    ]  # fmt: skip


def test_a_recipe_block_on_another_option_names_the_option_that_fits(conf: Path) -> None:
    assert refusal(conf, "model=fused", "objective=[itc,lm]") == (
        "objectives.itc.queue: Contrast takes no 'queue' (it takes: on, weight, gather, smoothing).\n"
        "  Did you mean objective=[itc_momentum,...], or should the recipe's objectives.itc block go?"
    )


def test_every_parameter_of_a_part_can_be_set_whether_its_yaml_mentions_it_or_not(conf: Path) -> None:
    argv = ["model.vision.trunk.ratio=2", "model.ties=['a -> b']", "objectives.itc.weight=0.5", "optim.lr=0.1"]
    assert look_ahead(argv, conf=conf).arguments == ["++model.vision.trunk.ratio=2", "++model.ties=['a -> b']", "++objectives.itc.weight=0.5", "optim.lr=0.1"]
    cfg = accepted(conf, *argv)[0]
    assert (cfg.model.vision.trunk.ratio, cfg.objectives.itc.weight, cfg.optim.lr, cfg.model.ties) == (2, 0.5, 0.1, ["a -> b"])


@pytest.mark.parametrize(("argv", "spelled"), [("fusion=null", "~fusion"), ("objective=null", "objective=[]"), ("teacher=null", "~teacher")])
def test_null_takes_a_group_away(conf: Path, argv: str, spelled: str) -> None:
    assert look_ahead(["model=fused", argv], conf=conf).arguments == ["model=fused", spelled]
    cfg = accepted(conf, "model=fused", argv)[0]
    assert {"fusion": "fusion" not in cfg.model, "objective": "_target_" not in cfg.objectives.itc, "teacher": cfg.teacher is None}[argv.partition("=")[0]]


def test_a_run_is_composed_once_and_is_what_was_checked(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed, checked, ran = 0, list[DictConfig](), list[tuple[DictConfig, list[str]]]()
    load = ConfigLoaderImpl.load_configuration

    def counted(*args: Any, **kwargs: Any) -> DictConfig:
        nonlocal composed
        composed += 1
        return load(*args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    monkeypatch.setattr(sys, "argv", ["job.py"])
    argv = ["model=fused", "data.root=x", "seed=3", "model.vision.trunk.ratio=2"]
    code = run_hydra(lambda cfg: ran.append((cfg, list(HydraConfig.get().overrides.task))), conf=conf, check=checked.append, argv=argv)
    assert (code, composed, len(ran)) == (0, 1, 1)
    assert ran[0][0] == checked[0]
    assert (ran[0][0].seed, ran[0][0].model.vision.trunk.ratio) == (3, 2)
    assert ran[0][1] == ["model=fused", "++data.root=x", "seed=3", "++model.vision.trunk.ratio=2"]
    assert not HydraConfig.initialized()


def test_flags_may_stand_anywhere(conf: Path) -> None:
    assert look_ahead(["seed=1", "--cfg", "job", "model=fused", "--resolve"], conf=conf).arguments == ["--cfg", "job", "--resolve", "seed=1", "model=fused"]


def test_every_combination_of_a_sweep_is_composed(conf: Path) -> None:
    jobs = accepted(conf, "-m", "model=dual,fused", "seed=1,2")
    assert [(job.name, job.seed) for job in jobs] == [("dual", 1), ("dual", 2), ("fused", 1), ("fused", 2)]


def test_of_a_large_sweep_each_value_is_composed_once(conf: Path) -> None:
    jobs = accepted(conf, "-m", "model=dual,fused", "seed=range(0,100)")
    assert {job.name for job in jobs} == {"dual", "fused"}
    assert len(jobs) == 1 + 1 + 23


def test_a_continuous_range_is_tried_at_its_lower_end(conf: Path) -> None:
    assert [job.optim.lr for job in accepted(conf, "-m", "optim.lr=interval(0.25,0.5)")] == [0.25]
    assert refusal(conf, "-m", "optim.lrr=interval(0.25,0.5)").startswith("In the job optim.lrr=0.25:\noptim.lrr: Optim takes no 'lrr'")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=dual,fsed"], "model: there is no option 'fsed' (there are: dual, fused). Did you mean model=fused?"),
        (["model=dual,fused", "objectives.itc.smoothing=0.1"], "In the job model=fused:\nobjectives.itc.smoothing: MomentumContrast takes no 'smoothing'"),
        (["model=dual,fused", "teacher.momentum=0.1"], "In the job model=dual:\nteacher.momentum: has no effect"),
        (["seed=1,x"], "In the job seed=x:\nseed: takes a whole number, found 'x'."),
        (["teacher=ema,null"], "teacher: an option is a name, found None (there are: ema)."),
    ],
)
def test_a_mistake_in_any_job_of_a_sweep_refuses_all(conf: Path, argv: list[str], message: str) -> None:
    assert refusal(conf, "-m", *argv).startswith(message)


def test_a_sweep_that_a_file_asks_for_is_composed_too(conf: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(conf, tmp_path / "conf")
    (mine / "experiment").mkdir()
    (mine / "experiment" / "grid.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {model: 'dual,fused', optim.lr: '0.1,0.2'}}}\n")
    assert [(job.name, job.optim.lr) for job in accepted(mine, "-m", "experiment=grid", "optim.lr=0.3")] == [("dual", 0.3), ("fused", 0.3)]
    assert len(accepted(mine, "-m", "experiment=grid")) == 4


def test_a_command_that_is_started_again_in_its_completed_form_is_the_same(conf: Path) -> None:
    """Processes of one node are started by repeating the command with settings of Hydra's own behind it."""
    again = look_ahead(["data=web", "data.root=x", "model.vision.trunk.ratio=2", "fusion=null"], conf=conf).arguments
    own = ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    assert look_ahead([*again, *own], conf=conf).arguments == [*again, *own]


def test_the_jobs_of_a_sweep_share_the_folder_that_was_asked_for(conf: Path) -> None:
    assert look_ahead(["-m", "run_dir=runs/a", "seed=1,2"], conf=conf).arguments == ["-m", "hydra.sweep.dir=runs/a", "seed=1,2"]


def test_data_of_web_scale_asks_for_base_unless_a_size_is_given(conf: Path) -> None:
    assert complete_arguments(["data=web"], conf=conf) == ["data=web", "size=base"]
    assert complete_arguments(["data=web", "size=tiny"], conf=conf) == ["data=web", "size=tiny"]
    assert complete_arguments(["data=small,small"], conf=conf) == ["data=small,small", "size=tiny"]
    assert complete_arguments(["seed=1"], conf=conf) == ["seed=1"]
    assert accepted(conf, "data=web", "data.root=x")[0].size.depth == 12


def test_data_that_ask_for_different_sizes_cannot_be_swept_without_one(conf: Path) -> None:
    with pytest.raises(ConfigError) as error:
        complete_arguments(["data=small,web"], conf=conf)
    assert str(error.value) == "data=small,web: small asks for tiny, web asks for base.\n  Say which one: size=tiny"


def test_an_experiment_that_sets_the_size_keeps_it(conf: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(conf, tmp_path / "conf")
    (mine / "experiment").mkdir()
    (mine / "experiment" / "e.yaml").write_text("# @package _global_\ndefaults:\n  - override /size: tiny\n  - _self_\nseed: 7\n")
    assert complete_arguments(["data=web", "experiment=e"], conf=mine) == ["data=web", "experiment=e"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model/new", "# @package _global_\nmodle: {}\n", f"conf/model/new.yaml: modle: no such key (a config has: {KEYS}). Did you mean 'model'?"),
        ("model/new", "# @package _global_\nseed: many\n", "conf/model/new.yaml: seed: takes a whole number. Value 'many' of type 'str' could not be converted to Integer."),
        (
            "model/new", "# @package _global_\ndefaults:\n  - override /vision: vitt\n",
            "conf/model/new.yaml: vision: there is no option 'vitt' (there are: bare, vit). Did you mean 'vit'?",
        ),
        (
            "model/new", "# @package _global_\ndefaults:\n  - override /visoin: vit\n  - _self_\nname: new\n",
            "conf/model/new.yaml: Could not override 'visoin'. No match in the defaults list.",
        ),
        ("model/new", "# @package _global_\nname: [\n", "conf/model/new.yaml, line 3, column 1: this is not YAML (expected the node content, but found '<stream end>')."),
        (
            "model/new", "# @package _global_\nname: ${}\n",
            "conf/model/new.yaml: name: an interpolation is written ${key} or ${a.b}, and this is none.",
        ),
        ("model/new", "# @package _global_\nname: new\nsize: {dpth: 3}\n", "size.dpth: no such key (size has: depth, heads). Did you mean size.depth?"),
        ("model/new", "# @package _global_\nname: new\noptim: {lrr: 3}\n", "optim.lrr: Optim takes no 'lrr' (it takes: lr, betas, warmup, rate, folder).\n  Did you mean optim.lr?"),
        ("model/new", "# @package _global_\nseed: 1\n", "name: this has to be given. Write name=..."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_file(conf: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    mine = shutil.copytree(conf, tmp_path / "conf")
    (mine / f"{file}.yaml").write_text(text)
    assert refusal(mine, "model=new", "data.root=x") == message


def test_a_folder_of_ones_own_adds_options(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "huge.yaml").write_text("# @package _global_\nsize: {depth: 99, heads: 9, wings: 2}\n")
    assert accepted(conf, "--config-dir", str(tmp_path), "size=huge")[0].size.wings == 2
