"""Whether shards hold what they should: their tar, what is written down about them, and every sample as training would judge it.
Nothing is repaired and nothing stops at the first trouble; each kind of damage is counted by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlpkit.data.arrays import MEMBER, Archive, boxes_of, fractions, shape_of
from vlpkit.data.decode import Refused, decode, read_header, read_record
from vlpkit.data.inspect.findings import Findings
from vlpkit.data.inspect.manifests import Listed, Manifest, arranged, read_manifests, written_down
from vlpkit.data.inspect.opened import Opened, open_shard
from vlpkit.data.inspect.pool import each
from vlpkit.data.inspect.said import tasks_of, texts_of
from vlpkit.data.table import load_shard, load_table
from vlpkit.data.tarscan import NO_END
from vlpkit.data.wishes import Holds

_NAMED = 20  # shards with repeated keys that are opened again to name one


@dataclass(frozen=True)
class Checks:
    """What is looked at.

    Args:
        quick: headers, counts and sizes alone; no payload is read.
        decode: every image to its last pixel.
        holds: what a sample must have: both sides, a caption alone or an image alone.
        cache: folder whose index is held against the shards; None: none is.
        listed: what is written down, by path of the shard.
    """

    quick: bool = False
    decode: bool = False
    holds: Holds = "pairs"
    cache: Path | None = None
    listed: Mapping[str, Listed] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """One shard, looked at.

    Args:
        keys: all keys, each followed by a line feed.
        hashes: (S,) a 64-bit hash of folder and key of each sample.
    """

    path: str
    samples: int
    size: int  # bytes
    findings: Findings
    notes: list[str]
    keys: bytes
    hashes: NDArray[np.uint64]


@dataclass
class Verdict:
    """All shards, looked at.

    Args:
        damaged: path of a shard, or of a manifest, to what was found.
        notes: oddities that lose nothing, and what could not be checked.
    """

    shards: int = 0
    samples: int = 0
    size: int = 0
    damaged: dict[str, Findings] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def book(self, path: str, findings: Findings) -> None:
        """Merge findings about a file, if there are any."""
        if findings:
            self.damaged.setdefault(path, Findings()).merge(findings)

    @property
    def totals(self) -> Findings:
        """By reason over all files."""
        total = Findings()
        for path, findings in self.damaged.items():
            total.merge(findings, place=f"{Path(path).name}: ")
        return total

    def plain(self) -> dict[str, object]:
        """As JSON has it."""
        damaged = {path: findings.plain() for path, findings in self.damaged.items()}
        sums = {"shards": self.shards, "samples": self.samples, "bytes": self.size}
        return {**sums, "damaged": damaged, "by_reason": self.totals.plain(), "notes": self.notes}


def verify(
    paths: Sequence[str], *, quick: bool = False, decode: bool = False, holds: Holds = "pairs", cache: Path | None = None, processes: int = 1
) -> Verdict:
    """Look at shards, and at what the manifest.json of their folders says of them. Arguments as of `Checks`.

    Raises:
        DataError: a worker process was killed.
    """
    manifests, trouble = read_manifests(paths)
    ordered = arranged(paths, manifests)
    checks = Checks(quick, decode, holds, cache, written_down(ordered, manifests))
    verdict, hashes = Verdict(), []
    if trouble:
        verdict.book("manifest.json", trouble)
    for one in each(partial(check_shard, checks=checks), ordered, processes=processes, doing="verified"):
        verdict.shards, verdict.samples, verdict.size = verdict.shards + 1, verdict.samples + one.samples, verdict.size + one.size
        verdict.book(one.path, one.findings)
        verdict.notes += [f"{one.path}: {note}" for note in one.notes]
        hashes.append(one.hashes)
        if (manifest := manifests.get(Path(one.path).parent)) is not None:
            manifest.keys(Path(one.path).name, one.keys)
    _judge_folders(ordered, manifests, verdict)
    for path, findings in repeated(ordered, hashes):
        verdict.book(path, findings)
    return verdict


def check_shard(path: str, checks: Checks) -> Checked:
    """Everything about one shard that needs no other; damage is booked, never raised."""
    opened, findings = open_shard(path), Findings()
    shard = opened.shard
    findings.flaws(shard.flaws)
    if NO_END in shard.notes and not shard.flaws:
        findings.add("no_end_marker", "its last samples may be missing: the writer was stopped, or the file cut exactly between two members")
    notes = [note for note in shard.notes if note != NO_END]
    readable = bool(shard.digest)
    listed = checks.listed.get(path)
    try:
        if listed is not None and readable:
            listed.compare(path, samples=shard.samples, size=shard.size, findings=findings, hashed=not checks.quick)
        if checks.cache is not None and readable:
            _compare_index(opened, checks.cache, findings)
    except OSError as error:
        findings.add("unreadable", error.strerror or str(error))
    if not checks.quick:
        notes += _payloads(opened, checks, findings, ours=listed is not None and listed.size is not None)
    names = [key.encode("utf-8", "surrogateescape") for key in opened.table.keys]
    folder = hashlib.sha256(str(Path(path).parent).encode("utf-8", "surrogateescape")).digest()
    hashes = b"".join(hashlib.blake2b(name, digest_size=8, key=folder).digest() for name in names)
    return Checked(path, shard.samples, shard.size, findings, notes, b"".join(name + b"\n" for name in names), np.frombuffer(hashes, np.uint64))


def repeated(paths: Sequence[str], hashes: Sequence[NDArray[np.uint64]]) -> Iterator[tuple[str, Findings]]:
    """The shards with keys that stand in an earlier shard of their folder, too. Webdataset would deliver both."""
    whole = np.concatenate([np.zeros(0, np.uint64), *hashes])
    ends = np.cumsum([len(part) for part in hashes])
    order = np.argsort(whole, kind="stable")
    again = np.flatnonzero(whole[order[1:]] == whole[order[:-1]]) + 1
    shards = np.searchsorted(ends, order[again], side="right")
    for turn, (shard, count) in enumerate(zip(*np.unique(shards, return_counts=True))):
        findings, example = Findings(), ""
        if turn < _NAMED:
            mine = again[shards == shard]
            place = mine[np.argmin(order[mine])]
            at, first = int(order[place]), int(order[place - 1])
            key = open_shard(paths[shard]).table.keys[at - int(ends[shard] - len(hashes[shard]))]
            example = f"{key} is also in {Path(paths[int(np.searchsorted(ends, first, side='right'))]).name}"
        findings.add("repeated_key", example, count=int(count))
        yield paths[shard], findings


class _Claims:
    """What records say of images. Of a shard in which no image agrees, the records speak of other files, such as the original downloads."""

    def __init__(self, reason: str, what: str, *, ours: bool) -> None:
        self.reason, self.what, self.ours = reason, what, ours
        self.agreed, self.differ = 0, Findings()

    def say(self, key: str, claimed: object, found: object) -> None:
        if claimed == found:
            self.agreed += 1
        else:
            self.differ.add(self.reason, f"{key}: {self.what} is {found}, the record says {claimed}")

    def settle(self, findings: Findings) -> list[str]:
        """Books what differs, or says why it is none."""
        if not self.differ or self.agreed or self.ours:
            findings.merge(self.differ)
            return []
        return [f"{self.what} of no image is that of its record, which seems to speak of the image before it was reduced"]


def _payloads(opened: Opened, checks: Checks, findings: Findings, *, ours: bool) -> list[str]:
    hashed = _Claims("altered_image", "sha256", ours=ours)
    sized = _Claims("wrong_size", "size", ours=ours)
    images = opened.images
    for _, key, found in opened.samples(findings):
        record = _record(key, found, checks.holds, findings)
        if checks.holds != "texts":
            for ext, size in _images(key, {ext: found[ext] for ext in images if ext in found}, checks.decode, findings).items():
                claims = _claims(record, ext)
                if "sha256" in claims and (ours or not _reduced(claims)):
                    hashed.say(key, claims["sha256"], hashlib.sha256(found[ext]).hexdigest())
                if "width" in claims and "height" in claims:
                    sized.say(key, (claims["width"], claims["height"]), size)
        if MEMBER in found:
            try:
                stored = Archive(found[MEMBER])
                fractions(boxes_of(stored), shape_of(stored, record))
            except Refused as refused:
                if refused.reason != "no_regions":
                    findings.refuse(key, refused)
    return hashed.settle(findings) + sized.settle(findings)


def _record(key: str, found: Mapping[str, bytes], holds: Holds, findings: Findings) -> dict[str, Any]:
    """The KEY.json of a sample, {} when it has none that can be read; captions are judged where they must be there, questions and statements stand in for them."""
    try:
        if holds == "images":
            return read_record(found["json"]) if "json" in found else {}
        captions, record = texts_of(found)
        if not captions and not tasks_of(record):
            findings.refuse(key, Refused("missing_caption"))
        return record
    except Refused as refused:
        findings.refuse(key, refused)
        return {}


def _images(key: str, images: Mapping[str, bytes], whole: bool, findings: Findings) -> dict[str, tuple[int, int]]:
    """Width and height of the images of a sample that training would take, by extension."""
    sizes = {}
    for ext, payload in images.items():
        try:
            header = read_header(payload)
            if whole:
                decode(payload, header)
            sizes[ext] = (header.width, header.height)
        except Refused as refused:
            findings.refuse(key, refused)
    if not images:
        findings.refuse(key, Refused("missing_image"))
    return sizes


def _claims(record: Mapping[str, Any], ext: str) -> Mapping[str, Any]:
    """What a record says of an image: of KEY.jpg in its own fields, of KEY.right.jpg under `right`."""
    name = ext.rpartition(".")[0]
    claims = record.get(name) if name else record
    return claims if isinstance(claims, Mapping) else {}


def _reduced(claims: Mapping[str, Any]) -> bool:
    """Whether an image was reduced on its way, by a tool that writes down both sizes and the hash of the download, as img2dataset does."""
    return any(f"original_{edge}" in claims and claims[f"original_{edge}"] != claims.get(edge) for edge in ("width", "height"))


def _compare_index(opened: Opened, cache: Path, findings: Findings) -> None:
    """The index that training would take from its cache against the tar; made there when it is absent."""
    shard, _ = load_shard(opened.shard.path, folder=cache / "index")
    table = load_table(shard, folder=cache / "index")
    if table is None or table.pack() != opened.table.pack():
        findings.add("stale_index", f"the index in {cache} is not that of this file; remove {cache / 'index'}")


def _judge_folders(paths: Sequence[str], manifests: Mapping[Path, Manifest], verdict: Verdict) -> None:
    for folder, manifest in manifests.items():
        findings = Findings()
        verdict.notes += manifest.judge([Path(path).name for path in paths if Path(path).parent == folder], findings)
        verdict.book(str(manifest.path), findings)
