"""What `data.shards` stands for: patterns expanded to existing files, or a refusal that names the first missing ones.
Standard library only, since start-up asks this before anything heavy is imported."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence

from vlpkit.errors import DataError

ACCEPTED = "a path, a glob (cc3m/*.tar), a brace range (cc3m/{00000..00331}.tar), a list of these, or several joined by '::'"
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SHOWN = 3  # missing files named in a message


def expand(shards: str | Sequence[str] | None, root: str, *, key: str = "data.shards", root_key: str = "data.root") -> list[str]:
    """Absolute paths of the shards in the order given, globs sorted by name.

    Args:
        shards: what the configuration says: path, glob, brace range, list, or several joined by `::`.
        root: folder that relative patterns start from.
        key: configuration key named in refusals.
        root_key: likewise, of `root`; "" where it is simply the working folder.

    Raises:
        DataError: nothing is named, a file is missing, a glob is empty, a shard is named twice, or an address is not local.
    """
    patterns = _patterns(shards, key)
    found: list[str] = []
    missing: list[str] = []
    for pattern in patterns:
        for name in braces(pattern, key=key):
            path = os.path.abspath(os.path.join(root, os.path.expanduser(name)))
            if not glob.has_magic(name):
                (found if os.path.isfile(path) else missing).append(path)
                continue
            hits = sorted(hit for hit in glob.glob(path, recursive=True) if os.path.isfile(hit))
            if not hits:
                raise DataError(_empty_glob(key, name, path, _relative(root, root_key, key)))
            found += hits
    if missing:
        raise DataError(_missing(key, missing, len(missing) + len(found), root, _relative(root, root_key, key)))
    twice = sorted(path for path in set(found) if found.count(path) > 1) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"{key} names {len(twice)} shard{'s' * (len(twice) > 1)} more than once, the first: {twice[0]}. Name each shard once.")
    return found


def braces(pattern: str, *, key: str = "data.shards") -> list[str]:
    """`a{00..02}` to its three names, `{x,y}` to both; the zeros of the left end set the width."""
    choices: list[list[str]] = []
    last = 0
    for group in _BRACE.finditer(pattern):
        choices.append([pattern[last : group.start()]])
        choices.append(_choices(group[1], pattern, key))
        last = group.end()
    tail = pattern[last:]
    if "{" in tail or "}" in tail or any("{" in part[0] or "}" in part[0] for part in choices[::2]):
        raise DataError(f"{key}: unbalanced brace in {pattern!r}. Accepted: {ACCEPTED}.")
    return ["".join(parts) for parts in itertools.product(*choices, [tail])]


def _choices(inner: str, pattern: str, key: str) -> list[str]:
    span = _RANGE.match(inner)
    if span is None:
        if "," not in inner:
            raise DataError(f"{key}: {{{inner}}} in {pattern!r} is neither a range {{000..099}} nor a choice {{a,b}}.")
        return inner.split(",")
    first, last = int(span[1]), int(span[2])
    if last < first:
        raise DataError(f"{key}: the range {{{inner}}} in {pattern!r} runs backwards. Write {{{span[2]}..{span[1]}}}.")
    width = len(span[1]) if span[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def _patterns(shards: str | Sequence[str] | None, key: str) -> list[str]:
    entries = [shards] if isinstance(shards, str) else list(shards or ())
    if any(not isinstance(entry, str) for entry in entries):
        raise DataError(f"{key}: {entries!r} is not a list of texts. Accepted: {ACCEPTED}.")
    patterns = [part.strip() for entry in entries for part in entry.split("::") if part.strip()]
    if not patterns:
        raise DataError(f"{key} names no shards. Accepted: {ACCEPTED}.")
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise DataError(f"{key}: {pattern!r} would run a shell command, which shards never do. Accepted: {ACCEPTED}.")
        scheme = _SCHEME.match(pattern)
        if scheme is not None:
            raise DataError(f"{key}: {pattern!r} is not a local file, and only local shards are read. Copy them under data.root first.")
    return patterns


def _missing(key: str, missing: Sequence[str], total: int, root: str, relative: str) -> str:
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    if any(os.path.isdir(path) for path in missing):
        folder = next(path for path in missing if os.path.isdir(path))
        return f"{key}: {folder} is a folder, not a shard. Name its files: {key}='{os.path.relpath(folder, root)}/*.tar'."
    remedy = f"Paths are {relative}."
    if len(missing) < total:
        remedy = f"Fetch them, or let a glob take what is there ({key}='.../*.tar')."
    return f"{key}: {len(missing)} of {total} shards are missing, the first: {shown}. {remedy}"


def _empty_glob(key: str, name: str, path: str, relative: str) -> str:
    folder = os.path.dirname(path)
    where = f"{folder} has no such file" if os.path.isdir(folder) else f"the folder {folder} does not exist"
    return f"{key}: {name!r} matches nothing; {where}. Patterns are {relative}."


def _relative(root: str, root_key: str, key: str) -> str:
    return f"relative to {root_key}={root}; set {root_key} or {key}" if root_key else f"relative to {root}"
