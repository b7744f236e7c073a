"""Numbers as text for a terminal: columns that line up, bytes and shares that can be read at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from vlpkit.data.inspect.findings import printable
from vlpkit.data.inspect.verify import Verdict

_ROWS = 40  # shards of a table; all of them are in the JSON


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines in which the columns stand below each other, those numbered in `right` flush right; the last is never padded."""
    if not rows:
        return []
    wide = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    cells = [[cell.rjust(wide[at]) if at in right else cell.ljust(wide[at]) for at, cell in enumerate(row)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def size(count: float) -> str:
    """Bytes with a unit: 17.6 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def share(part: float, whole: float) -> str:
    """A part as per cent of the whole, 0 of 0 as 0 %."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def shard_names(paths: Sequence[str]) -> dict[str, str]:
    """By path the shortest name that tells the shards apart: the path behind the folder that all share."""
    folders = [path.rpartition("/")[0].split("/") for path in paths]
    common = 0
    while folders and all(len(f) > common and f[common] == folders[0][common] for f in folders):
        common += 1
    return {path: "/".join(path.split("/")[common:]) for path in paths}


def verdict_text(verdict: Verdict, seconds: float) -> str:
    """What `verify` says: a line a shard and reason, then the totals."""
    names = shard_names(list(verdict.damaged))
    rows = [
        (printable(names[path]), reason, str(count), findings.examples[reason])
        for path, findings in verdict.damaged.items()
        for reason, count in findings.counts.most_common()
    ]
    lines = columns([("shard", "reason", "count", "for example"), *rows[:_ROWS]], right=(2,)) if rows else []
    if len(rows) > _ROWS:
        totals = ", ".join(f"{reason} {count}" for reason, count in verdict.totals.counts.most_common())
        lines += [f"and {len(rows) - _ROWS} more lines (--json has all)", f"in all: {totals}"]
    lines += [f"note: {printable(note)}" for note in verdict.notes[:_ROWS]]
    if len(verdict.notes) > _ROWS:
        lines.append(f"and {len(verdict.notes) - _ROWS} more notes (--json has all)")
    state = f"damage in {len(verdict.damaged)} of them" if verdict.damaged else "no damage found"
    speed = f"{seconds:.1f} s, {size(verdict.bytes / max(seconds, 1e-9))}/s"
    return "\n".join([*lines, f"{verdict.shards} shards, {verdict.samples} samples, {size(verdict.bytes)}: {state} ({speed})"])
