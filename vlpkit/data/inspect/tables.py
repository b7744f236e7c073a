"""Numbers as text for a terminal: columns that line up, bytes and shares that can be read at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlpkit.data.inspect.findings import printable
from vlpkit.data.inspect.spread import QUANTILES, Spread
from vlpkit.data.inspect.stats import Stats
from vlpkit.data.inspect.verify import Verdict

_ROWS = 40  # shards of a table; all of them are in the JSON
_LABELS = {
    "width": "width, pixels", "height": "height, pixels", "short_side": "shorter side, pixels", "image_bytes": "encoded image, bytes",
    "captions": "captions of a sample", "words": "words of a caption", "tokens": "tokens of a caption", "regions": "regions of an image",
}  # fmt: skip


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


def counted(number: int, what: str) -> str:
    """1 shard, 2 shards."""
    return f"{number} {what}{'s' * (number != 1)}"


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
    speed = f"{seconds:.1f} s, {size(verdict.size / max(seconds, 1e-9))}/s"
    return "\n".join([*lines, f"{counted(verdict.shards, 'shard')}, {counted(verdict.samples, 'sample')}, {size(verdict.size)}: {state} ({speed})"])


def stats_text(stats: Stats, *, length: int | None, top: int, seconds: float) -> str:
    """What `stats` says: counts, a table of quantiles, the most common captions, how even the shards are."""
    samples, sizes = stats.shards["samples"], stats.shards["bytes"]
    lines = [f"{counted(len(samples), 'shard')}, {counted(samples.total, 'sample')}, {size(sizes.total)} ({seconds:.1f} s, {size(sizes.total / max(seconds, 1e-9))}/s)"]
    lines += [f"left out: {reason} {count}, for example {stats.left_out.examples[reason]}" for reason, count in stats.left_out.counts.most_common()]
    for what, counts in (("members", stats.members), ("images", stats.formats), ("records", stats.fields)):
        if counts:
            lines.append(f"{what}: " + ", ".join(f"{printable(name)} {count}" for name, count in counts.most_common()))
    spreads = {_LABELS[name]: spread for name, spread in stats.spreads.items()}
    spreads |= {f"{printable(name)} in a record": spread for name, spread in stats.lists.items()}
    spreads |= {"samples of a shard": samples, "bytes of a shard": sizes}
    lines += ["", *_quantiles({name: spread for name, spread in spreads.items() if len(spread)}), ""]
    tokens = stats.spreads["tokens"]
    if length is not None and len(tokens):
        cut = tokens.above(length)
        lines.append(f"{share(cut, len(tokens))} of the captions ({cut} of {len(tokens)}) have more than {length} tokens and would be cut")
    lines += _common(stats, top)
    if samples.total:
        lines.append(f"the largest shard has {(samples.most or 0) / samples.mean:.2f} times the mean number of samples, the smallest {(samples.least or 0) / samples.mean:.2f} times")
    return "\n".join(lines)


def _quantiles(spreads: Mapping[str, Spread]) -> list[str]:
    head = ("", "count", "min", *(f"{100 * share:g} %" for share in QUANTILES), "max", "mean")
    rows = [
        (name, str(len(spread)), str(spread.least), *(str(spread.quantile(share)) for share in QUANTILES), str(spread.most), f"{spread.mean:.1f}")
        for name, spread in spreads.items()
    ]
    return columns([head, *rows], right=range(1, len(head)))


def _common(stats: Stats, top: int) -> list[str]:
    captions = len(stats.spreads["words"])
    if not captions:
        return []
    least = "at least " if stats.texts.missed else ""
    lines = [f"{least}{share(stats.texts.repeated, captions)} of the captions occur more than once"]
    if ranked := stats.texts.top(top):
        lines += ["most common:", *(f"  {line}" for line in columns([(str(times), share(times, captions), printable(text)) for text, times in ranked], right=(0, 1)))]
    return lines


def duplicates_text(report: Mapping[str, Any], seconds: float) -> str:
    """What `duplicates` says; `report` is its JSON."""
    images, within, captions, against = report["images"], report["copies"], report["captions"], report["against"]
    lines = [f"{counted(images, 'image')} of {counted(report['samples'], 'sample')} in {counted(report['shards'], 'shard')} ({seconds:.1f} s)"]
    lines += [f"left out: {reason} {one['count']}, for example {one['example']}" for reason, one in report["left_out"].items()]
    if report["even"]:
        lines.append(f"{report['even']} images are of one even colour, and compared by their bytes alone")
    lines.append(f"copies: {within['exact'] + within['near']} ({share(within['exact'] + within['near'], images)}), {within['exact']} of the same bytes and {within['near']} that look the same")
    lines += _rows(within["first"])
    lines.append(
        f"captions: {captions['captions']}, {captions['distinct']} different; of {captions['samples']} samples {captions['all_shared']} "
        f"({share(captions['all_shared'], captions['samples'])}) have none of their own"
    )
    lines += [f"  {line}" for line in columns([(str(count), printable(text)) for count, text in captions["top"]], right=(0,))]
    if against is not None:
        both = against["exact"] + against["near"]
        lines.append(f"in the evaluation set, too: {both} ({share(both, images)}), {against['exact']} of the same bytes and {against['near']} that look the same, of its {against['images']} images")
        lines += _rows(against["first"])
    if report["list"] is not None:
        lines.append(f"listed in {report['list']}: a suggestion of what to leave out; the shards are as they were")
    return "\n".join(lines)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [(f"{row['shard']}: {row['key']}", "is" if row["exact"] else f"looks like ({row['distance']} of 256 bits differ)", f"{row['of_shard']}: {row['of_key']}") for row in rows]
    return [f"  {line}" for line in columns([tuple(map(printable, row)) for row in cells])]
