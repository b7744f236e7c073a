"""The main job in minutes on a CPU: write the embedded world, train CLIP on its shards, evaluate on unseen scenes, report.

    python scripts/demo.py [run_dir]        # default runs/demo; run again after an interruption and it goes on where it was
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 250
SHOWN = (1, 50, 100, 150, 200, 250)


def call(*words: str) -> float:
    """Run one of our own commands as a user would, its lines on the screen; seconds it took."""
    sys.stdout.write(f"\n$ python {' '.join(words)}\n")
    sys.stdout.flush()
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)
    return time.perf_counter() - started


def logged(run: Path) -> dict[int, dict[str, str]]:
    """What was written of the training steps, by step."""
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file) if row.get("train/loss")}


def stepping(rows: dict[int, dict[str, str]]) -> float:
    """Seconds that the steps took, from the samples and the rate of each line: without the world, imports and evaluation."""
    seen = [0.0, *(float(row["train/samples_seen"]) for row in rows.values())]
    return sum((after - before) / float(row["perf/samples_per_s"]) for before, after, row in zip(seen, seen[1:], rows.values()))


def curve(rows: dict[int, dict[str, str]]) -> list[str]:
    """Loss and in-batch accuracy at a few steps."""
    lines = [f"{'step':>6} {'loss':>8} {'i2t acc':>8} {'t2i acc':>8}"]
    for step in [step for step in rows if step in SHOWN or step == max(rows)]:
        row = rows[step]
        lines.append(f"{step:>6} {float(row['train/loss']):>8.3f} {float(row['train/itc/i2t_acc']):>8.3f} {float(row['train/itc/t2i_acc']):>8.3f}")
    return lines


def evaluations(run: Path) -> list[str]:
    """Every number of every task."""
    lines = []
    for path in sorted((run / "eval").glob("*.json")):
        metrics = json.loads(path.read_text())["metrics"]
        lines += [f"{path.stem}/{name:<24} {value:>8.2f}" for name, value in metrics.items()]
    return lines


def main() -> None:
    """Train, evaluate, report."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    trained = call("train.py", "model=clip", "size=tiny", "data=shapes", f"total={STEPS}_steps", "seed=1", f"run_dir={run}", "resume=auto")
    evaluated = call("evaluate.py", f"run={run}", "task=all")
    here = ROOT / run
    rows = logged(here)
    report = [
        "", "report", f"  run folder            {run}", f"  data, training        {trained:.0f} s, of which {STEPS} steps {stepping(rows):.0f} s", f"  evaluation            {evaluated:.0f} s", "",
        *(f"  {line}" for line in curve(rows)), "", "  on 500 scenes that share no composition with the training scenes:", *(f"  {line}" for line in evaluations(here)), "",
        "  next: python train.py model=blip, or python train.py --help",
    ]
    sys.stdout.write("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
