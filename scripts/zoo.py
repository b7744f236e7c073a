"""Every recipe at tiny on the embedded world: do its losses fall, and does it learn what it is for? Writes one table.

    python scripts/zoo.py [--models clip,blip] [--steps N] [--batch 128] [--seed 1] [--jobs 1] [--again] [--runs runs/zoo] [--table docs/zoo.md]

Each recipe is trained and measured twice by train.py: for one step at a rate of 0, which is what chance gives, and for --steps or its own length. The table has
one row a recipe and length; a row that is there stays as it is without --again; runs that are complete are read, not repeated. Exit code 1 when, in the longest
row of a recipe, a loss did not fall or a number is not finite; the table is written all the same.
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
from collections.abc import Iterable, Mapping, Sequence
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


def composed(model: str) -> tuple[list[str], int]:
    """The evaluations that a recipe names, and its own objectives on held-out data; and its steps at tiny."""
    from hydra import compose, initialize_config_dir

    from vlpkit.schema import register

    register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=None):
        config = compose(config_name="train", overrides=[f"model={model}", "size=tiny", "data=shapes"])
    return [*dict.fromkeys([*config.evals, "heldout"])], int(config.total.removesuffix("_steps"))


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
    metrics: dict[str, float] = {}
    where = set()
    for path in sorted((folder / "eval").glob("*.json")):
        record = json.loads(path.read_text())
        found = record["metrics"]
        kept = SHOWN.get(path.stem, [*found])
        metrics |= {f"{path.stem}/{name}": value for name, value in found.items() if name in kept and name not in COUNTS}
        where.add(f"{named(record['device'])}, {record['precision']}, torch {record['versions']['torch']}")
    return Run(json.loads(spent.read_text()), losses(rows), metrics, int(rows[-1]["step"]), "; ".join(sorted(where)))


def named(device: str) -> str:
    """What this machine calls a kind of device."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


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


def longest(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each recipe, the record of the most steps."""
    return {key.split("/")[0]: records[key] for key in ordered(records)}


def ordered(keys: Iterable[str]) -> list[str]:
    """`recipe/steps` by name, then by length."""
    return sorted(keys, key=lambda key: (key.split("/")[0], int(key.split("/")[1])))


def page(records: Mapping[str, dict[str, Any]]) -> str:
    """All records as one table, each with the command that makes it again."""
    rows, devices = [], sorted({kept["device"] for kept in records.values()})
    for key in ordered(records):
        kept = records[key]
        fell = ", ".join(f"{name} {first:.2f} > {last:.2f}" for name, (first, last) in kept["losses"].items())
        learned = ", ".join(f"{name} {first:.1f} > {last:.1f}" for name, (first, last) in kept["learned"].items())
        where = devices.index(kept["device"]) + 1
        rows.append(f"| {key.split('/')[0]} | {kept['steps']} x {kept['batch']}, seed {kept['seed']} | {kept['minutes']} ({where}) | {fell} | {learned} |")
    flat = [f"{model} {what}, {kept['steps']} steps" for model, kept in longest(records).items() for what in kept["wrong"]]
    some, kept = next(((key.split("/")[0], records[key]) for key in ordered(records)), ("clip", {"batch": 128, "seed": 1, "steps": 300}))
    return "\n".join([
        "# Every recipe on the embedded world", "",
        "Each recipe is trained at `size=tiny` for so many steps of so many pairs, and measured on 500 unseen scenes before and after. Losses are means over the first and the last tenth of the",
        "logged steps, in nats unless the objective says otherwise; accuracies and recalls are percent. A row is made again by naming its recipe, batch, steps and seed:", "",
        "```", f"python scripts/zoo.py --models {some} --batch {kept['batch']} --steps {kept['steps']} --seed {kept['seed']} --again", "```", "",
        "Minutes are those of the machine in brackets, with evaluations and whatever else it did at the time: " + "; ".join(f"({number}) {device}" for number, device in enumerate(devices, 1)) + ".", "",
        "A matching head that has learned nothing is right in half of the pairs, and in two of three where negatives are mined, since two of three pairs are false then (ALBEF, BLIP, VLMo). Hard",
        "captions (`pairs`) are at 50 % by chance, and below where bf16 gives both captions one score: a tie counts as wrong.", "",
        "| recipe | steps | minutes | losses, first > last | untrained > trained |", "|---|---|---|---|---|", *rows, "",
        "What did not fall in a recipe's longest row: " + ("; ".join(flat) or "nothing") + ".",
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
    kept = ROOT / asked.table.with_suffix(".json")
    records: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    known = {model: composed(model) for model in asked.models.split(",")}  # before the threads: Hydra composes in one at a time
    steps = {model: asked.steps or own for model, (_, own) in known.items()}
    models = [model for model in known if asked.again or f"{model}/{steps[model]}" not in records]

    def both(model: str) -> dict[str, Any]:
        tasks, folders = known[model][0], [ROOT / asked.runs / name for name in (f"{model}_untrained", f"{model}_{steps[model]}")]
        for folder in folders if asked.again else ():
            shutil.rmtree(folder, ignore_errors=True)
        before = trained(folders[0], model, tasks, "total=1_steps", "optim.lr=0", *common)
        after = trained(folders[1], model, tasks, f"total={steps[model]}_steps", *common)
        return record(before, after, batch=asked.batch, seed=asked.seed, date=time.strftime("%Y-%m-%d"))

    with ThreadPoolExecutor(asked.jobs) as pool:
        running = {pool.submit(both, model): model for model in models}
        for done in as_completed(running):  # each is on disk as soon as it is there
            records[f"{running[done]}/{steps[running[done]]}"] = done.result()
            kept.write_text(json.dumps({key: records[key] for key in ordered(records)}, indent=1) + "\n")
            (ROOT / asked.table).write_text(page(records))
    sys.stdout.write(page(records))
    return 1 if any(found["wrong"] for found in longest(records).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
