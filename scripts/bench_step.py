"""Step time of train.py's own loop against a bare PyTorch loop over the same modules and batch, of CLIP against open_clip, and of recipes
at equal size side by side: size=tiny, one width and depth, one batch size, the same pictures and captions.

    python scripts/bench_step.py [--models clip,albef,blip] [--rounds 5] [--steps 4] [--batch 128] [--clock wall]

All contestants take turns within one process, so a machine that slows down slows all of them; medians over rounds.
One JSON line a case: seconds a step, and the ratio to the one it is measured against. Every recipe is also measured against the first one
that is named: `--models coca,albef,blip` tells what ALBEF's and BLIP's step cost beside CoCa's. `--clock cpu` counts the processor seconds of
this process, for a machine that others use at the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlpkit import schema  # noqa: E402
from vlpkit.assemble import assemble, image_size  # noqa: E402
from vlpkit.build import build  # noqa: E402
from vlpkit.callbacks import LoaderClock  # noqa: E402
from vlpkit.check import settle  # noqa: E402
from vlpkit.data.tokenize import Words, load_words  # noqa: E402
from vlpkit.durations import Clock  # noqa: E402
from vlpkit.lit import PretrainModule  # noqa: E402
from vlpkit.loggers import build_loggers  # noqa: E402
from vlpkit.streams import Streams  # noqa: E402
from vlpkit.trainer import build_callbacks, build_trainer  # noqa: E402
from vlpkit.types import Batch, ImageInput  # noqa: E402

WORDS = ["a", "large", "small", "red", "green", "blue", "yellow", "circle", "square", "triangle", "star", "left", "right", "above", "below", "of", "the", "to", "in", "on", "striped", "dotted", "plain"]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now = CLOCKS["wall"]


class OneBatch(pl.LightningDataModule):
    """The same micro-batch again and again: what is measured is the step."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.one, self.samples_seen = batch, 0

    def train_dataloader(self) -> Iterator[dict[str, Batch]]:
        """An endless loader."""
        return _Endless(self.one)  # type: ignore[return-value]


class _Endless:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        while True:
            yield {"pairs": self.batch}


def settings_of(model: str, batch: int) -> dict[str, Any]:
    """The recipe at tiny, as train.py would compose it."""
    schema.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=None):
        cfg = compose(config_name="train", overrides=[f"model={model}", f"data.batch={batch}", "trainer.precision=fp32"])
    return settle(cfg, conf=ROOT / "conf")[0]


def make(model: str, batch: int) -> tuple[PretrainModule, Batch, dict[str, Any], Words]:
    """The module that train.py would fit, and one random batch."""
    settings = settings_of(model, batch)
    rng = torch.Generator().manual_seed(0)
    captions = [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (14,), generator=rng)) for _ in range(max(batch, 64))]
    node = {k: v for k, v in settings["model"]["text"]["words"].items() if k != "_target_"}
    words = load_words(**node, captions=lambda: captions)
    clock = Clock(batch=batch, samples_per_epoch=10_000, total_steps=1_000)
    torch.manual_seed(0)
    assembly = assemble(settings, words=words, clock=clock)
    module = PretrainModule(assembly, build(settings["optim"], clock, where="optim", total=1_000), seed=0)
    pixels = torch.randint(0, 256, (batch, 3, image_size(settings), image_size(settings)), generator=rng, dtype=torch.uint8)
    return module, Batch({"clean": ImageInput(pixels)}, {"clean": words.encode(captions[:batch])}, {}, torch.arange(batch)), settings, words


def through_trainer(module: PretrainModule, batch: Batch, settings: dict[str, Any], steps: int) -> list[float]:
    """Seconds of each step of a fit as train.py sets it up: callbacks, loggers, metrics every 10 steps."""
    marks: list[float] = []

    class Stopwatch(pl.Callback):
        """Marks the end of every step."""

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            """The step is over."""
            marks.append(now())

    with tempfile.TemporaryDirectory() as folder:
        where, loader = Path(folder), LoaderClock()
        trainer_settings = build({**settings["trainer"], "checkpoint_every": 10**6, "eval_every": None}, None, where="trainer")
        callbacks = build_callbacks(trainer_settings, run_dir=where, batch=len(batch), max_steps=steps + 1, loader=loader)
        # The last callback writes checkpoints; a run writes one in hundreds of steps, this one would write one in four.
        trainer = build_trainer(
            trainer_settings, run_dir=where, loggers=build_loggers({}, run_dir=where, resumed=0, config={}), callbacks=[*callbacks[:-1], Stopwatch()],
            max_steps=steps + 1, accumulate=1, loader=loader,
        )
        trainer.fit(module, datamodule=OneBatch(batch))
    return [b - a for a, b in pairwise(marks)]


def bare(module: PretrainModule, batch: Batch, steps: int) -> list[float]:
    """Seconds of each step of the plainest loop over the same modules."""
    optimizer, schedule = module.optim.build(module.model)
    teacher = None if module.teacher is None else module.teacher.model
    module.train()

    def step(index: int) -> None:
        s = Streams(module.model, batch, draws=module.assembly.draws, seed=(0, index), step=index, teacher=teacher)
        losses = {name: objective(s) for name, objective in module.assembly.objectives.items()}
        torch.stack([loss.value for loss in losses.values()]).sum().backward()
        for objective in module.assembly.objectives.values():
            objective.after_batch(s)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        module.model.after_step()
        if module.teacher is not None:
            module.teacher.after_step(module.model)

    return timed(step, steps)


def timed(step: Callable[[int], None], steps: int) -> list[float]:
    """Seconds of each call after one that is not counted."""
    step(0)
    taken = []
    for index in range(steps):
        started = now()
        step(index + 1)
        taken.append(now() - started)
    return taken


def open_clip_steps(batch: Batch, settings: dict[str, Any], words: Words) -> Callable[[int], list[float]]:
    """Steps of open_clip's CLIP at the same sizes, with its own loss and the same optimiser."""
    import open_clip

    size, narrow = settings["size"], settings["size"]["narrow"]
    length = int(batch.texts["clean"].ids.shape[1])
    model = open_clip.CLIP(
        embed_dim=narrow["dim"],
        vision_cfg={"image_size": size["image"], "patch_size": size["patch"], "width": size["dim"], "layers": size["depth"], "head_width": size["dim"] // size["heads"]},
        text_cfg={"context_length": length, "vocab_size": words.size, "width": narrow["dim"], "heads": narrow["heads"], "layers": size["depth"]},
        quick_gelu=True,
    )
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))

    def step(index: int) -> None:
        pixels = (batch.images["clean"].pixels.float() / 255 - mean) / std
        image, text, scale = model(pixels, batch.texts["clean"].ids)
        loss(image, text, scale).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda steps: timed(step, steps)


class Contestant:
    """A recipe at tiny size and what its turns took: lists of seconds, one list a round.

    Args:
        name: of the recipe.
        batch: pairs a step.
    """

    def __init__(self, name: str, batch: int) -> None:
        self.name = name
        self.module, self.batch, self.settings, words = make(name, batch)
        self.loop: list[list[float]] = []
        self.plain: list[list[float]] = []
        self.other: list[list[float]] = []
        self.rival = open_clip_steps(self.batch, self.settings, words) if name == "clip" else None

    def turn(self, steps: int) -> None:
        """One round: train.py's loop, the bare loop and, where there is one, the rival's."""
        self.loop.append(through_trainer(self.module, self.batch, self.settings, steps))
        self.plain.append(bare(self.module, self.batch, steps))
        if self.rival is not None:
            self.other.append(self.rival(steps))


def report(case: str, ours: list[list[float]], theirs: list[list[float]], against: str) -> None:
    """One JSON line: the ratio is the median of the ratios of rounds that ran beside each other."""
    pairs = [(statistics.median(a), statistics.median(b)) for a, b in zip(ours, theirs)]
    line = {
        "case": case, "seconds": round(statistics.median(a for a, _ in pairs), 4), "against": against,
        "seconds_against": round(statistics.median(b for _, b in pairs), 4), "ratio": round(statistics.median(a / b for a, b in pairs), 4), "rounds": len(pairs),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="clip,albef,blip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    global now
    now = CLOCKS[asked.clock]
    models = [Contestant(model, asked.batch) for model in asked.models.split(",")]
    for _ in range(asked.rounds):
        for model in models:
            model.turn(asked.steps)
    for model in models:
        report(f"{model.name}: train.py's loop", model.loop, model.plain, "bare loop")
        if model.rival is not None:
            report(f"{model.name}: bare loop", model.plain, model.other, "open_clip")
    for model in models[1:]:
        report(f"{model.name}: bare loop", model.plain, models[0].plain, f"{models[0].name}: bare loop")


if __name__ == "__main__":
    main()
