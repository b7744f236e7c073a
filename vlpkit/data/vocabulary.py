"""Where a vocabulary comes from: trained on captions, deterministically, or taken from a transformers tokenizer.
Used once, when a run starts; `tokenize.Words` is what the rest of the house sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlpkit.errors import ConfigError, DataError

Kind = Literal["wordpiece", "bpe"]

KEY = "model.text.words"
TRAINING_CAPTIONS = 200_000  # that a tokenizer is trained on at most
SPECIALS = ("pad", "unk", "cls", "sep", "mask")  # in this order, ids 0 to 4, in every trained vocabulary
_NOTHING = KEY + ".size={size} trains a tokenizer, but the training data has no captions to learn from; check data.shards"


def spelled(name: str) -> str:
    """How the special `name` is written in a vocabulary made here: "cls" is [CLS]."""
    return f"[{name.upper()}]"


def id_of(tokenizer: Tokenizer, name: str) -> int:
    """The id of the special `name`, which the tokenizer must have."""
    found = tokenizer.token_to_id(spelled(name))
    if found is None:
        raise KeyError(spelled(name))
    return int(found)


def train(captions: Iterable[str], *, kind: Kind, size: int, lower: bool, specials: Sequence[str]) -> Tokenizer:
    """A tokenizer from captions; equal captions give equal bytes. Raises DataError when there are none."""
    if kind == "wordpiece":
        return _train_word_piece(captions, size=size, lower=lower, specials=specials)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lower else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _roomy(size, len(specials) + len(alphabet), "every byte")
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() <= len(specials) + len(alphabet):
        raise DataError(_NOTHING.format(size=size))
    return tokenizer


def _train_word_piece(captions: Iterable[str], *, size: int, lower: bool, specials: Sequence[str]) -> Tokenizer:
    """BERT's normaliser and splitting, pieces merged by frequency.

    The library numbers the inner characters (##a) in the order of a hash table, another one in every process, and ties
    are broken by those numbers; so they are counted and numbered here first and handed over as if they were specials.
    """
    tokenizer = _word_piece({}, lower)
    count: Counter[str] = Counter()
    for caption in captions:
        text = tokenizer.normalizer.normalize_str(caption)
        count.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    if not count:
        raise DataError(_NOTHING.format(size=size))
    letters: Counter[str] = Counter()
    for word, times in count.items():
        for letter in word:
            letters[letter] += times
    alphabet = sorted(sorted(letters, key=lambda c: (-letters[c], c))[: size // 3])
    inner = sorted({f"##{c}" for word in count for c in word[1:]} & {f"##{c}" for c in alphabet})
    _roomy(size, len(specials) + len(alphabet) + len(inner), "every letter")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*specials, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(count), trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    done = _word_piece({token: vocab[token] for token in sorted(vocab, key=vocab.__getitem__)}, lower)
    done.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return done


def _word_piece(vocab: dict[str, int], lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=spelled("unk")))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def _repeated(count: Mapping[str, int], most: int = 1000) -> Iterator[str]:
    """Every word as often as it was counted, in lines of at most `most`."""
    for word in sorted(count):
        for done in range(0, count[word], most):
            yield " ".join([word] * min(most, count[word] - done))


def _roomy(size: int, least: int, what: str) -> None:
    if size <= least:
        raise ConfigError(f"{KEY}.size is {size}; the specials and {what} of the captions alone take {least}, so at least {least + 1}")


def from_transformers(name: str) -> tuple[Tokenizer, dict[str, int]]:
    """The fast tokenizer `name` (hub or local folder) and its specials by our names. Raises DataError."""
    folder = Path(name).is_dir()
    if not folder and (trouble := _out_of_reach(name)):
        raise _not_had(name, folder, trouble)
    outer = _fast(name, folder)
    chosen = {
        "cls": (outer.cls_token_id, outer.bos_token_id),
        "sep": (outer.sep_token_id, outer.eos_token_id),
        "mask": (outer.mask_token_id,),
        "unk": (outer.unk_token_id, outer.pad_token_id, outer.eos_token_id),
        "pad": (outer.pad_token_id, outer.eos_token_id),
    }
    special = {key: next(i for i in ids if i is not None) for key, ids in chosen.items() if any(i is not None for i in ids)}
    for key in ("sep", "pad"):   # what opens a text, a template asks for or not (SigLIP and T5 have nothing)
        if key not in special:
            raise DataError(f"{KEY}.name is {name!r}, whose tokenizer has no {key} token; it has {', '.join(special) or 'none'}")
    return Tokenizer.from_str(outer.backend_tokenizer.to_str()), special


def _fast(name: str, folder: bool) -> Any:
    """The tokenizer by its own class; where that is slow, or wants a library (SigLIP's: sentencepiece), by tokenizer.json, which holds the same pieces."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # heavy, and only this branch needs them

    try:
        outer = AutoTokenizer.from_pretrained(name, local_files_only=folder, trust_remote_code=False)
        if outer.is_fast:
            return outer
    except ImportError:
        pass
    except (OSError, ValueError, KeyError) as error:
        raise _not_had(name, folder, str(error)) from None
    try:
        return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=folder)
    except Exception:  # whatever its other files are, without this one nothing here can read them
        raise DataError(
            f"{KEY}.name is {name!r}, whose tokenizer has no tokenizer.json, as a bare sentencepiece model; nothing else is read here. Point {KEY}.name at a folder "
            "that has one of the same pieces (timm's copies of SigLIP do), or choose size=tiny, which trains one from the captions"
        ) from None


def _out_of_reach(name: str) -> str:
    """Why the hub cannot serve `name`, or "". One question, asked here because the library repeats its own for a minute."""
    import huggingface_hub as hub

    try:
        cached = [hub.try_to_load_from_cache(name, file) for file in ("tokenizer_config.json", "tokenizer.json", "config.json")]
    except hub.errors.HFValidationError:
        return "there is no such folder, and a hub name looks otherwise"
    if any(isinstance(path, str) for path in cached):
        return ""
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=5)
    except hub.errors.HfHubHTTPError as error:  # an answer: the file, the name or the permission is missing
        return "" if isinstance(error, hub.errors.EntryNotFoundError) else str(error)
    except Exception as error:  # no answer; the class depends on the version of the library's http client
        return str(error)
    return ""


def _not_had(name: str, folder: bool, trouble: str) -> DataError:
    tried = "as a local folder" if folder else "as a local folder, in the local cache and on the hub"
    first = trouble.strip().partition("\n")[0].rstrip(".")
    return DataError(
        f"{KEY}.name is {name!r}, which cannot be had (tried {tried}: {first}). Point {KEY}.name at a folder that holds the "
        f"tokenizer's files, or choose size=tiny, which trains one from the captions"
    )
