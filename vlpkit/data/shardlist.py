"""What `data.shards` stands for: patterns expanded to existing files, or a refusal that names the missing ones.
Standard library only, since start-up asks this before anything heavy is imported; a pattern of addresses asks the store that holds them."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence

from vlpkit.data.place import folded, is_http, is_pipe, is_remote, shown
from vlpkit.errors import DataError

ACCEPTED = (
    "a path, a glob (cc3m/*.tar), a brace range (cc3m/{00000..00331}.tar), an address (https://host/cc3m/{00000..00331}.tar, s3://bucket/cc3m/*.tar), "
    "a list of these, or several joined by '::'"
)
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_JOINED = re.compile(r"::(?![^\[\]]*\]:?\d*/)")  # but not inside the brackets of a host
_NAMES_SHARDS = re.compile(r"^\+{0,2}data\.([\w.]+\.)?(val_)?shards$")
_COMMA = re.compile(r",(?![^{]*\})")  # but not inside braces
PIPES = "VLP_PIPES"  # the variable that lets shards be what a command writes
_TIMEOUT, _TRIES = 30.0, 4  # seconds for a list of files, and how often it is asked for


def expand(shards: str | Sequence[str] | None, root: str, *, key: str = "data.shards", root_key: str = "data.root") -> list[str]:
    """Absolute paths and addresses of the shards in the order given, globs sorted by name. Whether an address is there is asked by the index.

    Args:
        shards: what the configuration says: path, address, glob, brace range, list, or several joined by `::`.
        root: folder that relative patterns start from, here or elsewhere.
        key: configuration key named in refusals.
        root_key: likewise, of `root`; "" where it is simply the working folder.

    Raises:
        DataError: nothing is named, a file is missing, a glob is empty or cannot be asked for, or a shard is named twice.
        MissingExtra: the package that lists a store is absent.
    """
    patterns = _patterns(shards, key)
    found: list[str] = []
    missing: list[str] = []
    for pattern in patterns:
        for name in braces(pattern, key=key):
            if is_remote(address := _joined(root, name)):
                found += _remote(address, key)
                continue
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
        raise DataError(f"{key} names {len(twice)} shard{'s' * (len(twice) > 1)} more than once, the first: {shown(twice[0])}. Name each shard once.")
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
        raise DataError(f"{key}: unbalanced brace in {shown(pattern)!r}. Accepted: {ACCEPTED}.")
    return ["".join(parts) for parts in itertools.product(*choices, [tail])]


def quoted(argument: str) -> str:
    """A command-line argument that names shards, as Hydra takes it: braces and addresses mean something else in its grammar, so they go in quotes."""
    key, _, value = argument.partition("=")
    if not _NAMES_SHARDS.match(key) or not re.search(r"\{|://|pipe:", value):
        return argument
    items = _COMMA.split(value[1:-1]) if value.startswith("[") and value.endswith("]") else [value]
    if items == [value] and len(_COMMA.split(value)) > 1:  # a sweep
        return f"{key}=" + ",".join(map(_quoted, _COMMA.split(value)))
    return f"{key}=" + (_quoted(value) if items == [value] else f"[{','.join(map(_quoted, items))}]")


def _quoted(item: str) -> str:
    item = item.strip()
    return item if item[:1] in ("'", '"') else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _choices(inner: str, pattern: str, key: str) -> list[str]:
    span = _RANGE.match(inner)
    if span is None:
        if "," not in inner:
            raise DataError(f"{key}: {{{inner}}} in {shown(pattern)!r} is neither a range {{000..099}} nor a choice {{a,b}}.")
        return inner.split(",")
    first, last = int(span[1]), int(span[2])
    if last < first:
        raise DataError(f"{key}: the range {{{inner}}} in {shown(pattern)!r} runs backwards. Write {{{span[2]}..{span[1]}}}.")
    width = len(span[1]) if span[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def _patterns(shards: str | Sequence[str] | None, key: str) -> list[str]:
    entries = [shards] if isinstance(shards, str) else list(shards or ())
    if any(not isinstance(entry, str) for entry in entries):
        raise DataError(f"{key}: {entries!r} is not a list of texts. Accepted: {ACCEPTED}.")
    patterns = [part.strip().removeprefix("file://") for entry in entries for part in _JOINED.split(entry) if part.strip()]
    if not patterns:
        raise DataError(f"{key} names no shards. Accepted: {ACCEPTED}.")
    for pattern in patterns:
        if is_pipe(pattern) and os.environ.get(PIPES) != "1":
            raise DataError(
                f"{key}: {pattern!r} would run a shell command, which a configuration may not do by itself. Name what the command reads: https://..., s3://..., "
                f"gs://..., which is also asked less often; or allow commands for this once, with {PIPES}=1 in the environment. Accepted: {ACCEPTED}."
            )
    return patterns


def _joined(root: str, name: str) -> str:
    """The address that a name means; a path of this machine is left to the caller."""
    return f"{root.rstrip('/')}/{name}" if is_remote(root) and not is_remote(name) and not os.path.isabs(os.path.expanduser(name)) else name


def _remote(address: str, key: str) -> list[str]:
    """The addresses that one pattern stands for."""
    if is_pipe(address):
        return [address]
    if not is_http(address):
        from vlpkit.data.stores import check

        check(address, where=f"{key}: {shown(address)}")
    if not glob.has_magic(address):
        return [address]
    from vlpkit.data import wire

    if not wire.has_magic(address):
        return [address]
    try:
        hits = wire.patiently(lambda: wire.listed(address, timeout=_TIMEOUT), tries=_TRIES)
    except FileNotFoundError:
        if not is_http(address):
            hits = []
        else:
            raise DataError(
                f"{key}: {shown(address)!r} is a pattern, and a web server cannot be asked for its files. Write a brace range such as "
                f"https://host/cc3m/{{00000..00331}}.tar, or put a shards.index beside the shards (python scripts/inspect_shards.py index)."
            ) from None
    except OSError as error:
        raise DataError(f"{key}: {shown(address)!r} cannot be looked up: {error.strerror or type(error).__name__}. Look at the address and the credentials.") from None
    if not hits:
        raise DataError(f"{key}: {shown(address)!r} matches nothing. Look at the address, or name the shards one by one.")
    return hits


def _missing(key: str, missing: Sequence[str], total: int, root: str, relative: str) -> str:
    if any(os.path.isdir(path) for path in missing):
        folder = next(path for path in missing if os.path.isdir(path))
        return f"{key}: {folder} is a folder, not a shard. Name its files: {key}='{os.path.relpath(folder, root)}/*.tar'."
    remedy = f"Paths are {relative}."
    if len(missing) < total:
        remedy = f"Fetch them, or let a glob take what is there ({key}='.../*.tar')."
    return f"{key}: {len(missing)} of {total} shards are missing: {folded(missing)}. {remedy}"


def _empty_glob(key: str, name: str, path: str, relative: str) -> str:
    folder = os.path.dirname(path)
    where = f"{folder} has no such file" if os.path.isdir(folder) else f"the folder {folder} does not exist"
    return f"{key}: {name!r} matches nothing; {where}. Patterns are {relative}."


def _relative(root: str, root_key: str, key: str) -> str:
    return f"relative to {root_key}={root}; set {root_key} or {key}" if root_key else f"relative to {root}"
