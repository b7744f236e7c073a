"""Captions to token ids: one `Words` object, shared by data, model parts and heads, and small enough to live in a checkpoint.
Trained here from captions (WordPiece, byte-level BPE) or taken from a transformers tokenizer; afterwards both are the same."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from vlpkit.data.vocabulary import KEY, SPECIALS, Kind, from_transformers, id_of, spelled, train
from vlpkit.errors import ConfigError, DataError, did_you_mean
from vlpkit.types import TextInput

Clean = Literal["none", "albef", "blip", "siglip"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
MAX_WORDS = 30  # of a cleaned caption, in ALBEF's and BLIP's pre-training and retrieval
FILES = ("tokenizer.json", "words.json")
_SPACES = ("\u0120", "\u2581")  # how byte-level BPE and sentencepiece write the space before a word


def clean_words(caption: str, clean: Clean) -> str:
    """The caption as ALBEF (also TCL, X-VLM, mPLUG), BLIP or SigLIP prepares it; "none" only joins white space.

    ALBEF deletes , . ' ! ? " ( ) * # : ; ~ and turns - and / into a space and <person> into person; BLIP turns
    . ! " ( ) * # : ; ~ into a space and keeps the rest. Both lower the case and stop after 30 words. SigLIP turns _ into a space,
    deletes all other ASCII punctuation and lowers the case.
    """
    if clean == "none":
        return " ".join(caption.split())
    caption = caption.lower()
    if clean == "siglip":
        return " ".join(caption.replace("_", " ").translate(_NO_PUNCTUATION).split())
    if clean == "albef":
        caption = re.sub(r"[-/]", " ", re.sub(r"[,.'!?\"()*#:;~]", "", caption)).replace("<person>", "person")
    else:
        caption = re.sub(r"[.!\"()*#:;~]", " ", caption)
    return " ".join(caption.split()[:MAX_WORDS])


@dataclass(frozen=True)
class Template:
    """What stands around a caption: special tokens first and last, words in between.

    Args:
        before, after: names of special tokens, such as ("cls",) and ("sep",).
        text: the words with "{caption}" in them, usually nothing else.
    """

    before: tuple[str, ...]
    text: str
    after: tuple[str, ...]

    @classmethod
    def read(cls, template: str, special: Mapping[str, int]) -> Template:
        """Parses "[cls] a picture of {caption} [sep]". Raises ConfigError for an unknown special or a missing {caption}."""
        found = re.fullmatch(r"((?:\[\w+\]\s*)*)(.*?)((?:\s*\[\w+\])*)", template.strip())
        if found is None or found[2].count("{caption}") != 1:
            raise ConfigError(f"{KEY}.template is {template!r}; it needs {{caption}} once, with specials such as [cls] and [sep] around it")
        before, after = (tuple(re.findall(r"\w+", found[i])) for i in (1, 3))
        for name in (*before, *after, *re.findall(r"\[(\w+)\]", found[2])):
            if name not in special:
                hint = did_you_mean(name, special)
                raise ConfigError(f"{KEY}.template is {template!r}; there is no special [{name}], only {_names(special)}. {hint}".rstrip())
        if "[" in found[2]:
            raise ConfigError(f"{KEY}.template is {template!r}; a special stands before or after all words, not between them")
        return cls(before, found[2].strip(), after)


class Words:
    """The tokenizer of a text part.

    Args:
        tokenizer: the fast tokenizer; it adds no special tokens of its own here.
        special: id by name; has sep, pad and unk, cls and mask where there are any, and those that a recipe added (enc, dec).
        length: most tokens of a text, specials included.
        template: such as "[cls] {caption} [sep]", or ALBEF's "[cls] {caption}".
        clean: what is done to a caption first (`clean_words`).
    """

    def __init__(self, tokenizer: Tokenizer, *, special: Mapping[str, int], length: int, template: str, clean: Clean = "none") -> None:
        if clean not in get_args(Clean):
            raise ConfigError(f"{KEY}.clean is {clean!r}; it can be {', '.join(get_args(Clean))}. {did_you_mean(clean, get_args(Clean))}".rstrip())
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # a caption that spells "[SEP]" must not become the token
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.special = dict(special)
        self.length, self.template, self.clean = length, template, clean
        self.pad = self.special["pad"]
        self.size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.special_ids = tuple(sorted(set(self.special.values())))
        parsed = Template.read(template, self.special)
        self._text = parsed.text
        self._before = [self.special[name] for name in parsed.before]
        self._after = [self.special[name] for name in parsed.after]
        self._room = length - len(self._before) - len(self._after)
        if self._room < 1:
            taken = length - self._room
            raise ConfigError(f"{KEY}.length is {length}; the template {template!r} alone takes {taken} of it, so at least {taken + 1}")

    def encode(self, captions: Sequence[str]) -> TextInput:
        """ids and mask (B, N), padded on the right to the longest; a text that is too long loses its last words, never the
        specials that close the template."""
        # One call a caption: a batch call would start threads, which workers forked later could not use.
        rows = [self._row(caption) for caption in captions]
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self.pad, np.int64)
        for to, row in zip(ids, rows):
            to[: len(row)] = row
        mask = np.arange(longest) < np.fromiter(map(len, rows), np.int64, len(rows))[:, None]
        return TextInput(torch.from_numpy(ids), torch.from_numpy(mask))

    def _row(self, caption: str) -> list[int]:
        text = self._text.replace("{caption}", clean_words(caption, self.clean))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._before, *ids[: self._room], *self._after]

    def decode(self, ids: Tensor) -> list[str]:
        """(B, N) ids to B texts: up to the first closing special after position 0, without any special."""
        texts = []
        for row in ids.tolist():
            end = row.index(self.special["sep"], 1) if self.special["sep"] in row[1:] else len(row)
            kept = [i for i in row[:end] if i not in self.special_ids]
            texts.append(self.tokenizer.decode(kept, skip_special_tokens=False).strip())
        return texts

    @cached_property
    def starts(self) -> tuple[bool, ...]:
        """For each id whether that token opens a word: no ## before it (WordPiece), or a space (byte-level BPE, sentencepiece).

        Raises:
            ConfigError: the vocabulary marks where words end, as CLIP's does.
        """
        model = json.loads(self.tokenizer.to_str())["model"]
        if model.get("end_of_word_suffix"):
            raise ConfigError(f"{KEY}: this tokenizer marks where a word ends, not where it starts, so whole words cannot be masked (draws.mask.whole=false)")
        inner = model.get("continuing_subword_prefix") or ""
        vocab, starts = self.tokenizer.get_vocab(with_added_tokens=True), [True] * self.size
        spaced = not inner and any(token.startswith(_SPACES) for token in vocab)
        for token, number in vocab.items():
            starts[number] = not token.startswith(inner) if inner else token.startswith(_SPACES) if spaced else True
        return tuple(opens or number in self.special_ids for number, opens in enumerate(starts))

    @property
    def stop(self) -> int:
        """id of the token that ends a text: the last of the template, or [sep] where that ends with a word."""
        return self._after[-1] if self._after else self.special["sep"]

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids of a caption."""
        return hashlib.sha256("\0".join(self.to_state().values()).encode()).hexdigest()

    def to_state(self) -> dict[str, str]:
        """The two files of `save` as plain strings, for a checkpoint."""
        settings = {"format": 1, "template": self.template, "length": self.length, "clean": self.clean, "special": self.special}
        return {FILES[0]: self.tokenizer.to_str(), FILES[1]: json.dumps(settings, indent=1)}

    @classmethod
    def from_state(cls, state: Mapping[str, str]) -> Words:
        """The inverse of `to_state`. Raises DataError when a part is missing or unreadable."""
        if lacking := [name for name in FILES if name not in state]:
            raise DataError(f"the tokenizer lacks {' and '.join(lacking)}; it needs {' and '.join(FILES)}")
        try:
            settings = json.loads(state[FILES[1]])
            tokenizer = Tokenizer.from_str(state[FILES[0]])
        except Exception as error:  # the library raises nothing narrower for a file it cannot parse
            raise DataError(f"the tokenizer cannot be read: {error}") from None
        if not isinstance(settings, dict) or settings.pop("format", None) != 1 or set(settings) != {"special", "length", "template", "clean"}:
            raise DataError(f"{FILES[1]} is not of format 1; a newer version of vlpkit may have written it")
        return cls(tokenizer, **settings)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).from_state, (self.to_state(),)  # the library's own pickling forgets `encode_special_tokens`

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and words.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in self.to_state().items():
            (Path(folder) / name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Words:
        """Reads what `save` wrote. Raises DataError naming the folder."""
        try:
            return cls.from_state({name: (Path(folder) / name).read_text(encoding="utf-8") for name in FILES})
        except (OSError, UnicodeDecodeError, DataError) as error:
            raise DataError(f"no tokenizer in {folder}: {error}") from None


def load_words(
    *,
    name: str,
    kind: Kind,
    size: int | None,
    length: int,
    template: str = "[cls] {caption} [sep]",
    lower: bool = True,
    add: Sequence[str] = (),
    clean: Clean = "none",
    captions: Callable[[], Iterable[str]] | None = None,
) -> Words:
    """The tokenizer that a configuration describes.

    Args:
        name: a transformers tokenizer on the hub, or a local folder of one (or of `Words.save`); read when `size` is None.
        kind: the algorithm when one is trained.
        size: most tokens of a trained vocabulary; it comes out smaller when the captions have no more to say. None: take `name`.
        length: most tokens of a text, specials included.
        lower: whether a trained one lowers the case; a ready one does as it was made.
        add: further specials, such as ("enc", "dec"), appended to a ready vocabulary in this order.
        captions: called once when one is trained.

    Raises:
        ConfigError for a setting that cannot be; DataError when `name` cannot be had or there is nothing to train on.
    """
    if size is None:
        tokenizer, special = _ready(name, add)
        return Words(tokenizer, special=special, length=length, template=template, clean=clean)
    if kind not in get_args(Kind):
        raise ConfigError(f"{KEY}.kind is {kind!r}; it can be wordpiece or bpe. {did_you_mean(kind, get_args(Kind))}".rstrip())
    if captions is None:
        raise DataError(f"{KEY}.size={size} trains a tokenizer, which needs captions to train on; or set {KEY}.size=null and a {KEY}.name")
    names = tuple(dict.fromkeys((*SPECIALS, *add)))
    tokenizer = train(
        (clean_words(caption, clean) for caption in captions()), kind=kind, size=size, lower=lower, specials=[spelled(n) for n in names]
    )
    special = {name: id_of(tokenizer, name) for name in names}
    return Words(tokenizer, special=special, length=length, template=template, clean=clean)


def _ready(name: str, add: Sequence[str]) -> tuple[Tokenizer, dict[str, int]]:
    """The fast tokenizer `name` and the ids of its specials, with those of `add` at the end of the vocabulary."""
    if Path(name, FILES[1]).is_file():
        words = Words.load(name)
        tokenizer, special = words.tokenizer, dict(words.special)
    else:
        tokenizer, special = from_transformers(name)
    for extra in add:
        if extra not in special:
            tokenizer.add_special_tokens([AddedToken(spelled(extra), special=True, normalized=False)])
            special[extra] = id_of(tokenizer, extra)
    return tokenizer, special


def _names(special: Iterable[str]) -> str:
    return ", ".join(f"[{name}]" for name in special)
