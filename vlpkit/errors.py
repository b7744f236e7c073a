"""One exception per kind of mistake, each a sentence that names the place, what was found, what is accepted and the remedy.
Standard library only: the cheap checks import this before anything heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class VlpError(Exception):
    """A mistake the user can mend; the command line prints it alone and exits with code 2."""


class ConfigError(VlpError):
    """The configuration asks for something that does not exist or does not fit."""


class AssemblyError(VlpError):
    """The parts do not make a model: a missing part, a tie without effect, widths that differ, a parameter nobody reaches."""


class DataError(VlpError):
    """The data cannot be used: missing or empty shards, too many bad samples, a manifest that disagrees."""


class WeightsError(VlpError):
    """Outside weights do not fit: a key left over, a key missing, a shape that differs."""


class ResumeError(VlpError):
    """A run cannot be continued: another model, other data, no readable checkpoint."""


class MissingExtra(VlpError):
    """An optional library is absent."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}: pip install 'vlpkit[{extra}]'")


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be; None when nothing is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A closing question such as "Did you mean 'fusion'?", or "" when nothing is close."""
    close = nearest(word, choices)
    return "" if close is None else f"Did you mean {close!r}?"


def several(problems: Sequence[str]) -> str:
    """All problems at once, one paragraph each."""
    return "\n".join(problems)


def no_part(part: str, recipe: str, parts: Iterable[str]) -> str:
    """What asks for a part that the recipe does not build."""
    return (
        f"asks for the part {part!r}, but {recipe!r} builds {', '.join(parts)}.\n"
        f"  Add one ({part}=..., see --help) or drop what asks for it (objective=[...])."
    )


def no_draw(name: str, draws: Iterable[str], *, makers: Sequence[str] = ()) -> str:
    """What reads `DRAW.KEY` where nobody makes that draw; `makers`: objectives that would."""
    draws, draw = list(draws), name.partition(".")[0]
    remedy = did_you_mean(draw, draws) or (f"These bring it: objective=[..., {' | '.join(makers)}]" if makers else "")
    return f"reads {name!r}, but no draw is called {draw!r} (there are: {', '.join(draws) or 'none'}). {remedy}".rstrip()


def opaque_text(kind: str) -> str:
    """What asks a transformers encoder for a text in which words must not see what follows them."""
    return (
        f"reads an ordered text, but text={kind} lets every word read every other. "
        "Take one of our own trunks (text=bert, text=causal) where words are predicted from those before them"
    )


def no_source(source: str, sources: Iterable[str]) -> str:
    """What reads a source that the data do not deliver."""
    return f"reads the source {source!r}, but the data deliver {', '.join(sources)}. Add it (+data.sources.{source}.holds=texts), or read another (on: pairs)"
