"""What img2dataset left of one part becomes a shard and a receipt: images checked as training will check them, failures named in one word each.
Nothing is taken for whole that does not prove it: downloads are packed after their statistics agree with their tar."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from vlpkit.data.decode import Refused
from vlpkit.data.durable import ShardFile, read_json, write_json
from vlpkit.data.parts import Part
from vlpkit.data.prepare import Packing, members_of
from vlpkit.data.sources.listing import Candidate
from vlpkit.data.tarscan import scan

log = logging.getLogger(__name__)

WORK = "download"  # folder inside the result, there until all is done
STATISTICS, SUCCESS = "_stats.json", "success"  # img2dataset's words
UNKNOWN = "fetch_error"
# What urllib and the servers say, to one word each; the first that fits counts.
REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"HTTP Error (\d{3})", r"http_\1"),
        (r"X-Robots-Tag", "opted_out"),
        (r"too many bytes", "too_many_bytes"),
        (r"timed out", "timeout"),
        (r"name or service|name resolution|nodename|getaddrinfo|no address associated", "no_host"),
        (r"certificate|\bssl\b|\btls\b", "tls_error"),
        (r"refused|unreachable|no route", "no_connection"),
        (r"incompleteread|closed connection|reset by peer|aborted|broken pipe|eof occurred", "cut_off"),
        (r"unknown url|can't contain|no host given|nonnumeric port|invalid url", "bad_address"),
    )
)


def reason(message: str) -> str:
    """One word for an error message of a download: http_404, timeout, no_host, ..., fetch_error for what is not known."""
    for pattern, word in REASONS:
        if found := pattern.search(message):
            return found.expand(word)
    return UNKNOWN


def pack_part(part: Part, out: Path, packing: Packing) -> dict[str, Any] | None:
    """Checks the downloads of one part, writes its shard and then its receipt; None when they are not whole.

    Returns:
        outcomes: counts by word that sum to the addresses of the part; shard: as in the manifest, None when it would be empty.
    """
    messages, places = _arrived(part, out / WORK / "raw")
    if messages is None:
        return None
    outcomes: Counter[str] = Counter()
    for message, count in messages.items():
        outcomes[word := reason(message)] += count
        if word == UNKNOWN:
            log.info("%s: %d times %s", part.shard, count, message[:200])
    shard, captions, candidates = ShardFile(out / part.shard), 0, part.candidates(out / WORK)
    with (out / WORK / "raw" / f"{part.name}.tar").open("rb") as file:
        for key in sorted(places):  # in the order of the list; they arrived in another
            image, meta = (os.pread(file.fileno(), size, offset) for offset, size in (places[key]["jpg"], places[key]["json"]))
            one = candidates[json.loads(meta)["row"]]
            outcome = _add(shard, one, image, packing)
            outcomes[outcome] += 1
            captions += len(one.captions) if outcome == "written" else 0
    if missing := part.addresses - outcomes.total():  # downloads that failed inside img2dataset itself are in none of its counts
        outcomes[UNKNOWN] += missing
    receipt = {"outcomes": dict(outcomes), "shard": {**shard.close(), "split": part.split, "captions": captions} if shard.samples else None}
    write_json(out / WORK / "done" / f"{part.name}.json", receipt)
    return receipt


def _arrived(part: Part, raw: Path) -> tuple[dict[str, int] | None, dict[str, dict[str, tuple[int, int]]]]:
    """Counts of failures by message, and offset and size of the members of what arrived; None when the part is not whole."""
    places: dict[str, dict[str, tuple[int, int]]] = {}
    statistics, tar = read_json(raw / f"{part.name}{STATISTICS}"), raw / f"{part.name}.tar"
    if statistics is None or not tar.is_file():
        return None, places
    scanned = scan(str(tar))
    if not scanned.closed or any(flaw.reason != "empty_tar" for flaw in scanned.flaws):
        return None, places
    for member in scanned.members:
        key, _, suffix = member.name.partition(".")
        places.setdefault(key, {})[suffix] = (member.offset, member.size)
    messages = dict(statistics["status_dict"])
    whole = sum({"jpg", "json"} <= members.keys() for members in places.values())
    agree = messages.pop(SUCCESS, 0) == whole == len(places)  # it counts first and writes then
    return messages if agree else None, places


def _add(shard: ShardFile, one: Candidate, payload: bytes, packing: Packing) -> str:
    try:
        shard.add(one.key, members_of(one, payload, packing))
    except Refused as refused:
        return refused.reason
    return "written"
