"""Train a recipe: `python train.py model=blip data=cc3m`. This file is the table of contents of a run; --help lists the choices."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlpkit.compose import run_hydra
from vlpkit.program import check, open_job

CONF = Path(__file__).resolve().parent / "conf"


def train(cfg: DictConfig) -> None:
    """One run, from the composed configuration to the last checkpoint."""
    job = open_job(cfg, conf=CONF)                        # gates 1 and 2, the run folder, what to resume: no torch so far

    from vlpkit.rehearsal import rehearse

    rehearse(job.settings, weights=job.weights)           # gate 3: assembly, one step and outside weights on the meta device, without data

    from vlpkit import session

    data = session.open_data(job)                         # shards, index, length
    words = session.open_words(job, data)                 # the tokenizer: trained, loaded, or the resumed run's own
    clock = session.make_clock(job, data)                 # durations become steps
    card = session.make_card(job, words, clock)           # what was built, and the passes that each step will cost
    if job.only_check:
        sys.stdout.write(card)
        return
    module = session.make_module(job, words, clock, card)
    trainer = session.make_trainer(job, data, module, clock)   # gate 4: devices, batch, precision, loggers, callbacks
    session.fit(job, trainer, module, data)


if __name__ == "__main__":
    sys.exit(run_hydra(train, conf=CONF, check=lambda cfg: check(cfg, conf=CONF)))
