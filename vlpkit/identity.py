"""What makes a run the run it is: which configuration keys may change when it is continued, and which words must never be written down.
Standard library only, like all cheap checks."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from vlpkit.errors import ResumeError

log = logging.getLogger(__name__)

Kind = Literal["identity", "tunable", "free"]
absent = object()
MOST_SHOWN = 16  # differences in a message


class Difference(NamedTuple):
    """One key that differs between a saved and a present configuration; `absent` stands for "not there"."""

    key: str
    saved: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.saved)} -> {_show(self.new)}"


# First match wins; a key matches a rule that it equals or lies under, * standing for any name. What is not listed makes the run what it is.
_RULES: tuple[tuple[str, Kind], ...] = (
    ("data.workers", "free"),
    ("data.cache", "free"),
    ("data.cache_bytes", "free"),
    ("data.timeout", "free"),
    ("data.tries", "free"),
    ("data.shards", "free"),            # wherever they lie now; whether they are the same ones is told by their fingerprint
    ("data.root", "free"),              # a moved data set is the same one; its fingerprint is compared when it is opened
    ("data.mix.*.root", "free"),
    ("data.mix.*.shards", "free"),
    ("data.val_shards", "free"),
    ("data.val_batch", "free"),
    ("data.eval_resize", "free"),
    ("data.max_bad_share", "free"),
    ("data.verify", "free"),
    ("optim", "tunable"),
    ("total", "tunable"),
    ("trainer.precision", "tunable"),
    ("trainer.clip", "tunable"),
    ("trainer.micro_batch", "tunable"),
    ("trainer.deterministic", "tunable"),
    ("trainer", "free"),
    ("logger", "free"),
    ("evals", "free"),
    ("paths", "free"),
    ("debug", "free"),
    ("run_dir", "free"),
    ("resume", "free"),
    ("weights", "free"),                # read at the very start only
    ("plugins", "free"),
    ("hydra", "free"),
)


def kind_of(key: str) -> Kind:
    """What a change of a dotted key means to a run that is continued."""
    return next((kind for rule, kind in _RULES if fnmatchcase(key, rule) or fnmatchcase(key, f"{rule}.*")), "identity")


def compare_configs(saved: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """All keys that differ, in order; secrets and the spelling of equal numbers (1 and 1.0) do not count."""
    old, now = dict(_flat(redact(saved))), dict(_flat(redact(new)))
    keys = list(old) + [key for key in now if key not in old]
    found = [Difference(key, old.get(key, absent), now.get(key, absent), kind_of(key)) for key in keys]
    return [d for d in found if d.saved is absent or d.new is absent or d.saved != d.new]


def check_same_run(saved: Mapping[str, Any] | None, new: Mapping[str, Any], *, place: str) -> list[Difference]:
    """Say what changed; refuse what would make it another run.

    Args:
        saved: configuration of the run to continue; None: unknown, nothing is compared.
        new: the present one.
        place: what an error names.

    Raises:
        ResumeError: an identity key differs; they are listed.
    """
    if saved is None:
        log.warning("%s: no configuration was saved with it, so nothing can be compared", place)
        return []
    differences = compare_configs(saved, new)
    wrong = [str(d) for d in differences if d.kind == "identity"]
    if wrong:
        shown = wrong if len(wrong) <= MOST_SHOWN else [*wrong[:MOST_SHOWN], f"... and {len(wrong) - MOST_SHOWN} more"]
        listed = "\n".join(f"  {line}" for line in shown)
        raise ResumeError(f"resume: {place} belongs to another run.\n{listed}\nPut these back, or start a new run with another run_dir.")
    for d in differences:
        if d.kind == "tunable":
            log.warning("resume: changed from here on: %s", d)
        else:
            log.info("resume: changed: %s", d)
    return differences


def identity_hash(config: Mapping[str, Any]) -> str:
    """sha256 over the keys that make a run what it is."""
    kept = {key: value for key, value in _flat(redact(config)) if kind_of(key) == "identity"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def _flat(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(config, Mapping):
        # an empty block and a block of nulls mean the same nothing as an absent one
        return [pair for key, value in config.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(config, (list, tuple)):
        return [(prefix, [dict(_flat(item)) if isinstance(item, Mapping) else item for item in config])]
    return [] if config is None else [(prefix, config)]


def _show(value: Any) -> str:
    return "(absent)" if value is absent else repr(value)


SECRET = re.compile(r"(^|[_.-])(api[_-]?key|access[_-]?key|private[_-]?key|secret|token|password|passwd|credentials?|auth)($|[_.-])", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
# what signs an address for a while (S3, Google, CloudFront, Azure), in its query
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|s[eprstv]|sig|sip|spr|srt|sk(oid|tid|t|e|s|v)", re.IGNORECASE
)
_IN_QUERY = re.compile(r"([?&])([^=&\s]+)=([^&\s:]+)")
HIDDEN = "***"


def redact(value: Any) -> Any:
    """The same containers as plain ones, with values under secret-looking keys, and passwords and signatures in addresses, replaced by ***."""
    if isinstance(value, Mapping):
        return {str(key): HIDDEN if item is not None and SECRET.search(str(key)) and not isinstance(item, Mapping) else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return _IN_QUERY.sub(_unsigned, _IN_URL.sub(HIDDEN, value)) if isinstance(value, str) and "://" in value else value


def signs(key: str) -> bool:
    """Whether a parameter of an address proves who asks, and says nothing of what is asked for."""
    return _SIGNATURE.fullmatch(key) is not None or SECRET.search(key) is not None


def _unsigned(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={HIDDEN}" if signs(found[2]) else found[0]
