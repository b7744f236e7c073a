"""Every recipe at tiny on the embedded world: do its losses fall, and does it learn what it is for? Writes one table.

    python scripts/zoo.py [--models clip,blip] [--steps N] [--batch 128] [--seed 1] [--jobs 1] [--again] [--runs runs/zoo] [--table docs/zoo.md]

Each recipe is trained and measured twice by train.py: for one step at a rate of 0, which is what chance gives, and for --steps or its own length. Recipes that
are in the table stay as they are without --again; runs that are complete are read, not repeated. Exit code 1 when a loss of the table did not fall or a number is
not finite; the table is written all the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("count", "r_mean", "rsum")  # not worth a cell
SHOWN = {"retrieval": ("i2t_R@1", "t2i_R@1"), "caption": ("exact_match", "bleu4", "cider")}  # of tasks with many numbers; of others, all


class Run(NamedTuple):
    """What a finished run left behind.

    Args:
        seconds: from the first line of train.py to its last, evaluations included.
        losses: of each objective, the mean of the first and of the last tenth of its logged values.
        metrics: `task/metric` to number.
        steps: of the optimiser.
        device: that trained and measured, with precision and torch.
    """

    seconds: float
    losses: dict[str, tuple[float, float]]
    metrics: dict[str, float]
    steps: int
    device: str


def tasks_of(model: str) -> list[str]:
    """The evaluations that a recipe names, and its own objectives on held-out data."""
    from hydra import compose, initialize_config_dir

    from vlpkit.schema import register

    register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=None):
        return [*dict.fromkeys([*compose(config_name="train", overrides=[f"model={model}"]).evals, "heldout"])]


def trained(folder: Path, model: str, tasks: Sequence[str], *settings: str) -> Run:
    """Run train.py, or read what it left when it was run before. Raises SystemExit with its code when it fails."""
    spent = folder / "seconds.json"
    if not spent.exists():
        words = ["train.py", f"model={model}", "size=tiny", "data=shapes", f"run_dir={folder}", "resume=auto", "trainer.log_every=1_steps", f"evals=[{','.join(tasks)}]", *settings]
        sys.stdout.write(f"$ python {' '.join(words)}\n")
        sys.stdout.flush()
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=sys.stderr)
        if done.returncode:
            sys.exit(done.returncode)
        spent.write_text(json.dumps(time.perf_counter() - started))
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    metrics, where = {}, set()
    for path in sorted((folder / "eval").glob("*.json")):
        record = json.loads(path.read_text())
        found = record["metrics"]
        kept = SHOWN.get(path.stem, [*found])
        metrics |= {f"{path.stem}/{name}": value for name, value in found.items() if name in kept and name not in COUNTS}
        where.add(f"{record['device']}, {record['precision']}, torch {record['versions']['torch']}")
    return Run(json.loads(spent.read_text()), losses(rows), metrics, int(rows[-1]["step"]), "; ".join(sorted(where)))


def losses(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """First and last tenth of what each objective logged; a sampled one logs only some of the steps."""
    found = {}
    for column in rows[0] if rows else ():
        if column.startswith("train/") and column.endswith("/loss") and column.count("/") == 2:
            values = [float(row[column]) for row in rows if row[column]]
            part = max(len(values) // 10, 1)
            if values:
                found[column.split("/")[1]] = (sum(values[:part]) / part, sum(values[-part:]) / part)
    return found


def wrong(run: Run) -> list[str]:
    """Losses that did not fall and numbers that are not finite."""
    bad = [f"{name} {first:.3f} -> {last:.3f}" for name, (first, last) in run.losses.items() if not last < first]
    return bad + [name for name, value in run.metrics.items() if not math.isfinite(value)]


def record(before: Run, after: Run, *, batch: int, seed: int, date: str) -> dict[str, Any]:
    """What the page says of a recipe, as it is kept beside it."""
    return {
        "date": date, "device": after.device, "batch": batch, "seed": seed, "steps": after.steps, "minutes": round(after.seconds / 60, 1),
        "losses": {name: [round(value, 3) for value in pair] for name, pair in after.losses.items()},
        "learned": {name: [round(before.metrics[name], 2), round(value, 2)] for name, value in after.metrics.items() if not name.endswith("_loss")},
        "wrong": wrong(after),
    }  # fmt: skip


def page(records: dict[str, dict[str, Any]]) -> str:
    """All records as one table, each with the command that makes it again."""
    rows, devices = [], sorted({kept["device"] for kept in records.values()})
    for model, kept in sorted(records.items()):
        fell = ", ".join(f"{name} {first:.2f} > {last:.2f}" for name, (first, last) in kept["losses"].items())
        learned = ", ".join(f"{name} {first:.1f} > {last:.1f}" for name, (first, last) in kept["learned"].items())
        where = devices.index(kept["device"]) + 1
        rows.append(f"| {model} | {kept['steps']} x {kept['batch']}, seed {kept['seed']} | {kept['minutes']} ({where}) | {fell} | {learned} |")
    some = next(iter(sorted(records.items())), ("clip", {"batch": 64, "seed": 1, "steps": 300}))
    return "\n".join([
        "# Every recipe on the embedded world", "",
        "Each recipe is trained at `size=tiny` for so many steps of so many pairs, and measured on 500 unseen scenes before and after. Losses are means over the first and the last tenth of the",
        "logged steps, in nats unless the objective says otherwise; accuracies and recalls are percent. A row is made again by naming its recipe, batch, steps and seed:", "",
        "```", f"python scripts/zoo.py --models {some[0]} --batch {some[1]['batch']} --steps {some[1]['steps']} --seed {some[1]['seed']} --again", "```", "",
        "Minutes are those of the machine in brackets, with evaluations and whatever else it did at the time: " + "; ".join(f"({number}) {device}" for number, device in enumerate(devices, 1)) + ".", "",
        "| recipe | steps | minutes | losses, first > last | untrained > trained |", "|---|---|---|---|---|", *rows,
        *(["", "What did not fall: " + "; ".join(f"{model} {what}" for model, kept in sorted(records.items()) for what in kept["wrong"]) + "."] if any(r["wrong"] for r in records.values()) else []),
    ]) + "\n"  # fmt: skip


def main() -> int:
    """Train all, write the table."""
    recipes = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(recipes))
    parser.add_argument("--steps", type=int, help="of each recipe (default: its own length at size=tiny)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="recipes at a time (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--table", type=Path, default=Path("docs/zoo.md"), help="the page; its numbers are kept beside it as .json (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="train recipes anew whose numbers are in the table already")
    asked = parser.parse_args()
    common = (f"seed={asked.seed}", f"data.batch={asked.batch}")
    length = [f"total={asked.steps}_steps"] if asked.steps else []
    kept = ROOT / asked.table.with_suffix(".json")
    records: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    models = [model for model in asked.models.split(",") if asked.again or model not in records]
    tasks = {model: tasks_of(model) for model in models}  # before the threads: Hydra composes in one at a time

    def both(model: str) -> dict[str, Any]:
        for folder in (f"{model}_untrained", model) if asked.again else ():
            shutil.rmtree(ROOT / asked.runs / folder, ignore_errors=True)
        before = trained(ROOT / asked.runs / f"{model}_untrained", model, tasks[model], "total=1_steps", "optim.lr=0", *common)
        after = trained(ROOT / asked.runs / model, model, tasks[model], *length, *common)
        return record(before, after, batch=asked.batch, seed=asked.seed, date=time.strftime("%Y-%m-%d"))

    with ThreadPoolExecutor(asked.jobs) as pool:
        running = {pool.submit(both, model): model for model in models}
        for done in as_completed(running):  # each is on disk as soon as it is there
            records |= {running[done]: done.result()}
            kept.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n")
            (ROOT / asked.table).write_text(page(records))
    sys.stdout.write(page(records))
    return 1 if any(found["wrong"] for found in records.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
