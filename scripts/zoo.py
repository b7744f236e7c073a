"""Every recipe at tiny on the embedded world: do its losses fall, and does it learn what it is for? Writes one table.

    python scripts/zoo.py [--models clip,blip] [--steps N] [--batch 128] [--seed 1] [--jobs 1] [--runs runs/zoo] [--table docs/zoo.md]

Each recipe is trained and measured twice by train.py: for one step at a rate of 0, which is what chance gives, and for --steps or its own length. Runs that
are complete are read, not repeated. Exit code 1 when a loss did not fall or a number is not finite; the table is written all the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
        words = ["train.py", f"model={model}", "size=tiny", "data=shapes", f"run_dir={folder}", "resume=auto", f"evals=[{','.join(tasks)}]", *settings]
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


def row(model: str, before: Run, after: Run) -> str:
    """One line of the table."""
    fell = ", ".join(f"{name} {first:.2f} > {last:.2f}" for name, (first, last) in after.losses.items())
    learned = ", ".join(f"{name} {before.metrics.get(name, math.nan):.1f} > {value:.1f}" for name, value in after.metrics.items() if not name.endswith("_loss"))
    return f"| {model} | {after.steps} | {after.seconds / 60:.1f} | {fell} | {learned} |"


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
    parser.add_argument("--table", type=Path, default=Path("docs/zoo.md"))
    asked = parser.parse_args()
    common = (f"seed={asked.seed}", f"data.batch={asked.batch}")
    length = [f"total={asked.steps}_steps"] if asked.steps else []
    models = asked.models.split(",")
    tasks = {model: tasks_of(model) for model in models}  # before the threads: Hydra composes in one at a time

    def both(model: str) -> tuple[Run, Run]:
        before = trained(ROOT / asked.runs / f"{model}_untrained", model, tasks[model], "total=1_steps", "optim.lr=0", *common)
        return before, trained(ROOT / asked.runs / model, model, tasks[model], *length, *common)

    with ThreadPoolExecutor(asked.jobs) as pool:
        runs = dict(zip(models, pool.map(both, models)))
    lines = [row(model, *pair) for model, pair in runs.items()]
    bad = [f"{model}: {what}" for model, (_, after) in runs.items() for what in wrong(after)]
    devices = sorted({run.device for pair in runs.values() for run in pair})
    some = "" if asked.models == ",".join(recipes) else f" --models {asked.models}"
    command = f"python scripts/zoo.py{f' --steps {asked.steps}' if asked.steps else ''} --batch {asked.batch} --seed {asked.seed}{some}"
    page = [
        "# Every recipe on the embedded world", "",
        f"`{command}` trains each recipe at `size=tiny` on steps of {asked.batch} pairs (seed {asked.seed}) and measures it on 500 unseen scenes before and after. Losses are means over the",
        "first and the last tenth of the logged steps, in nats unless the objective says otherwise; accuracies and recalls are percent. Minutes are those of the machine that wrote this page "
        f"({'; '.join(devices)}; {asked.jobs} recipe{'s' * (asked.jobs > 1)} at a time), evaluations included.", "",
        "| recipe | steps | minutes | losses, first > last | untrained > trained |", "|---|---|---|---|---|", *lines,
    ]  # fmt: skip
    (ROOT / asked.table).write_text("\n".join(page) + "\n")
    sys.stdout.write("\n".join([*page, "", *(f"did not learn: {what}" for what in bad)]) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
