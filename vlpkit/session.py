"""The heavy half of a run: data, tokenizer, card, module, trainer, fit. One function a line of train.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch

from vlpkit import dist
from vlpkit.assemble import assemble, give_teacher, image_size
from vlpkit.build import build
from vlpkit.callbacks import Keep, LoaderClock
from vlpkit.card import card
from vlpkit.data.durable import write_json
from vlpkit.data.module import DataModule
from vlpkit.data.tokenize import Words
from vlpkit.data.vocabulary import TRAINING_CAPTIONS
from vlpkit.data.wishes import read_wishes
from vlpkit.dry import dry_step
from vlpkit.durations import Clock, total
from vlpkit.errors import ConfigError
from vlpkit.evals.base import Evaluator, fitting
from vlpkit.evals.record import stamp, write
from vlpkit.lit import PretrainModule
from vlpkit.loggers import build_loggers
from vlpkit.program import Job
from vlpkit.runfolder import record
from vlpkit.sidecar import write_text
from vlpkit.start import ACCOUNT, loaded, start
from vlpkit.streams import seed_of
from vlpkit.trainer import Settings, build_callbacks, build_trainer

log = logging.getLogger(__name__)

WORDS = "tokenizer"  # folder beneath the run folder


def open_data(job: Job) -> DataModule:
    """The data of the run, indexed. Raises DataError as the index does."""
    data: DataModule = build(job.settings["data"], None, where="data", image_size=image_size(job.settings), seed=job.settings["seed"])
    log.info("data: %d samples an epoch", len(data))
    return data


def open_words(job: Job, data: DataModule) -> Words:
    """The tokenizer: that of the run when it is continued, else trained on the data or loaded by name, and kept in the run folder."""
    folder = job.run.folder / WORDS
    if job.run.checkpoint is not None and folder.is_dir():
        words = Words.load(folder)
    else:
        node = job.settings["model"]["text"]["words"]
        words = build(node, None, where="model.text.words", captions=lambda: data.captions(limit=TRAINING_CAPTIONS))
        if dist.once() and not job.only_check:
            words.save(folder)
    data.words = words
    return words


def make_clock(job: Job, data: DataModule) -> Clock:
    """Turns every duration of the settings into optimiser steps."""
    clock = total(job.settings["total"], Clock(batch=data.batch, samples_per_epoch=len(data)))
    for line in data.pool.account((clock.total_steps or 0) * data.batch):
        log.info("data.mix: %s", line)
    return clock


def make_card(job: Job, words: Words, clock: Clock) -> str:
    """Assemble and step on the meta device; returns the card, which is also kept in the run folder.

    Raises:
        AssemblyError: what would have failed in the first step.
        WeightsError: weights to start from that do not fit.
    """
    made, passes = dry_step(job.settings, words=words, clock=clock)
    taken = start(made.model, job.weights, words=words)
    fitting(_evaluators(job), made)
    data = job.settings["data"]
    facts = {
        "batch": ", ".join([f"{data['batch']} pairs", *(f"{wish.batch(data['batch'])} of {name}" for name, wish in read_wishes(data.get("sources")).items())]) + " a step",
        "length": f"{clock.total_steps} steps, {(clock.total_steps or 0) * data['batch'] / (clock.samples_per_epoch or 1):.2f} epochs of {clock.samples_per_epoch} pairs",
        "words": f"{words.size}, at most {words.length} a text",
    }
    facts |= {f"starts from{f' ({one.address})' if one.address else ''}": f"{one.path} ({one.layout.name})" for one in taken}
    text = card(made, passes, job.dropped, facts)
    if not job.only_check:
        record(job.run, config=job.settings, card=text)
        log.info("%s\n%s", job.run.folder, text)
    return text


def _evaluators(job: Job) -> list[Evaluator]:
    return [build(node, None, where=f"evals.{name}", name=name) for name, node in job.settings["evals"].items() if node is not None]


def _keep(job: Job, data: DataModule) -> Keep:
    def keep(evaluator: Evaluator, values: Mapping[str, float], trainer: pl.Trainer, step: int) -> None:
        device = trainer.strategy.root_device
        write(job.run.folder, evaluator.name, stamp(evaluator, values, data, step=step, device=device, precision=str(trainer.precision)), evaluator)

    return keep


def make_trainer(job: Job, data: DataModule, module: PretrainModule, clock: Clock) -> pl.Trainer:
    """Lightning's trainer with our checkpoints, loggers and evaluations; the global batch is divided here.

    Raises:
        ConfigError: devices, batch or precision that do not fit.
    """
    where, steps = job.run.folder, clock.total_steps or 0
    settings: Settings = build(job.settings["trainer"], clock, where="trainer")
    if settings.world() > 1 and len(module.assembly.plan.turns) > 1 and not settings.sampled:
        raise ConfigError("plan: a step asks for some objectives only, which several processes must know. Use trainer=ddp_sampled, or trainer.sampled=true")
    share = data.plan(world=settings.world(), micro=settings.micro_batch, total=steps)
    loader = LoaderClock()
    callbacks = build_callbacks(
        settings, run_dir=where, batch=data.batch, max_steps=steps, loader=loader, evaluators=fitting(_evaluators(job), module.assembly) if data.val_shards else (),
        extra=[lambda: {"data/bad_share": data.ledger.bad_share}], keep=_keep(job, data),
    )
    loggers = build_loggers(job.settings["logger"], run_dir=where, resumed=job.run.step, config=job.settings)
    return build_trainer(
        settings, run_dir=where, loggers=loggers, callbacks=callbacks, max_steps=steps, accumulate=share.accumulation, loader=loader
    )


def make_module(job: Job, words: Words, clock: Clock, text: str) -> PretrainModule:
    """The model with weights: random from the seed, or those that `weights` names; then its teacher."""
    settings = job.settings
    torch.manual_seed(seed_of(settings["seed"], "weights"))
    assembly = assemble(settings, words=words, clock=clock, with_teacher=False)
    taken = start(assembly.model, job.weights, words=words)
    for one in taken:
        log.info("%s", one)
    if taken and dist.once():
        write_text(job.run.folder / ACCOUNT, "\n\n".join(one.full() for one in taken) + "\n")
    give_teacher(assembly, settings, clock)
    optim = build(settings["optim"], clock, where="optim", total=clock.total_steps)
    trainer = settings["trainer"]
    extra = {"config": settings, "words": words.to_state(), "card": text}
    return PretrainModule(
        assembly, optim, seed=settings["seed"], clip=trainer["clip"], recompute=trainer["recompute"], record=extra, loaded=loaded(taken, assembly.model, settings)
    )


def fit(job: Job, trainer: pl.Trainer, module: PretrainModule, data: DataModule) -> None:
    """Train to the end; then say what became of the data, and where everything lies."""
    state: dict[str, Any] = {} if job.run.checkpoint is None else {"ckpt_path": str(job.run.checkpoint)}
    try:
        trainer.fit(module, datamodule=data, **state)
    finally:
        with suppress(OSError):  # a full disk has been reported by what could not be saved
            write_json(job.run.folder / f"data_{dist.rank()}.json", data.report())
    log.info("data, on this rank: %s", data.ledger.line())
    log.info("done: %s", job.run.folder)
