"""What a run must find unchanged in its data when it is continued; every difference is said with both values.
No rank, no node and no worker is in it: the same global batches come from any number of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlpkit.data.index import Index
from vlpkit.data.tokenize import Words
from vlpkit.errors import ResumeError

FORMAT = 1
# what must be the same, and the configuration key that sets it
_WORDS = {
    "limit": "data.limit",
    "window": "data.window",
    "seed": "seed",
    "global_batch": "data.batch",
    "words": "the tokenizer (model.text.words)",
    "mix": "data.mix",
    "sources": "data.sources",
}
_WHOLE, _DIGITS = 64, 12  # of a fingerprint, and what tells two apart


def told_of(index: Index) -> dict[str, Any]:
    """What tells the samples of an index from others, and the two numbers by which a reader knows them."""
    return {"fingerprint": index.fingerprint, "samples": len(index), "shards": len(index.shards)}


def check_state(saved: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """The samples seen, of a state that the present data can go on from.

    Args:
        saved: the state in a checkpoint.
        now: that of the present data.

    Raises:
        ResumeError: with every difference.
    """
    if saved["format"] != FORMAT:
        raise ResumeError(f"the checkpoint's data state has format {saved['format']}, this version reads {FORMAT}")
    changed = [line for word, key in _WORDS.items() for line in _differences(key, saved.get(word), now.get(word))]
    if saved["fingerprint"] != now["fingerprint"] and "mix" not in saved and "mix" not in now:  # a mixture tells it set by set
        changed.insert(0, f"the shards of data.shards: {_samples(saved)} in the checkpoint, {_samples(now)} now")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise ResumeError(
            f"resume: the batches of this run cannot be continued, since these changed:\n{lines}\nPut them back, or start a new run with another run_dir. "
            f"(Devices, nodes and workers may change: the global batches stay the same.)"
        )
    seen, batch = int(saved["samples_seen"]), int(now["global_batch"])
    if seen % batch:
        raise ResumeError(f"resume: {seen} samples seen is no whole number of global batches of {batch}")
    return seen


def check_words(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse another tokenizer before weights are put on its words.

    Args:
        saved, now: `Words.to_state` of the checkpoint and of the run as it stands.

    Raises:
        ResumeError: with both.
    """
    then, here = Words.from_state(saved), Words.from_state(now)
    if then.fingerprint != here.fingerprint:
        both = (f"{words.size} words, at most {words.length} a text, fingerprint {_said(words.fingerprint)}" for words in (then, here))
        raise ResumeError(
            f"resume: {_WORDS['words']} is another one: {next(both)} in the checkpoint, {next(both)} now.\n"
            "Put the run's folder tokenizer back as it was, or start a new run with another run_dir."
        )


def _samples(state: Mapping[str, Any]) -> str:
    counts = f"{state['samples']} samples in {state['shards']} shard{'s' * (state['shards'] != 1)}, " if "samples" in state else ""  # which older checkpoints do not tell
    return f"{counts}fingerprint {state['fingerprint'][:_DIGITS]}"


def _differences(key: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name in [*then, *(name for name in now if name not in then)]:
            yield from _differences(f"{key}.{name}", then.get(name), now.get(name))
    elif then != now:
        yield f"{key}: {_said(then)} in the checkpoint, {_said(now)} now"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_said, value)) + "]"
    return "null" if value is None else str(value)[:_DIGITS] if isinstance(value, str) and len(value) == _WHOLE else str(value)
