"""A tokenizer whose vocabulary has a given size and given special ids, for models that must match another's embedding table."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from vlpkit.data.tokenize import Words


def numbered_words(size: int, special: Mapping[str, int], *, length: int) -> Words:
    """Words of `size` ids; the words themselves are their numbers, and `unk` is made up where it is not given."""
    spelled = {f"word{i}": i for i in range(size)}
    named = {"unk": special["pad"], **special}
    return Words(Tokenizer(WordLevel(spelled, unk_token=f"word{named['unk']}")), special=named, length=length, template="[cls] {caption} [sep]")
