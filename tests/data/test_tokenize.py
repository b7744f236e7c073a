"""One object from caption to ids and back, equal in every process, whether its vocabulary was trained here or elsewhere."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.vocabulary import numbered_words
from vlpkit.data.tokenize import Words, clean_words, load_words
from vlpkit.errors import ConfigError, DataError

SHAPES = [f"a {size} {colour} {shape} left of a {other} {shape}." for size in ("small", "large") for colour in ("red", "blue", "green")
          for other in ("yellow", "black") for shape in ("circle", "square", "triangle")]


def trained(kind: str = "wordpiece", **settings: Any) -> Words:
    options: dict[str, Any] = {"size": 400, "length": 20, "captions": lambda: SHAPES} | settings
    return load_words(name="", kind=kind, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_captions_survive_the_round_trip(kind: str) -> None:
    words = trained(kind, length=40)
    assert words.decode(words.encode(SHAPES).ids) == SHAPES


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_specials_come_first_in_a_fixed_order_and_added_ones_follow(kind: str) -> None:
    words = trained(kind, add=("enc", "dec"))
    assert words.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "enc": 5, "dec": 6}
    assert words.special_ids == (0, 1, 2, 3, 4, 5, 6)
    assert words.pad == 0


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_rows_are_padded_on_the_right_to_the_longest(kind: str) -> None:
    words = trained(kind)
    text = words.encode(["a red circle", "red"])
    assert text.ids.dtype == torch.int64
    assert text.mask.dtype == torch.bool
    assert text.mask.sum(1).tolist() == [5, 3]
    assert text.ids.shape == (2, 5)
    assert (text.ids[~text.mask] == words.pad).all()
    assert text.ids[:, 0].tolist() == [2, 2]
    assert text.ids[0, 4] == text.ids[1, 2] == 3


def test_a_long_caption_is_cut_and_keeps_the_closing_special() -> None:
    text = trained(length=6).encode(["a small red circle left of a square"])
    assert text.ids.shape == (1, 6)
    assert (int(text.ids[0, 0]), int(text.ids[0, -1])) == (2, 3)
    assert text.ids[0, 1:5].tolist() == trained().encode(["a small red circle"]).ids[0, 1:5].tolist()


def test_the_template_without_a_closing_special_uses_the_room() -> None:
    text = trained(length=6, template="[cls] {caption}").encode(["a small red circle left of a square", "red"])
    assert text.ids.shape == (2, 6)
    assert int(text.ids[0, 5]) not in range(5)
    assert text.mask.sum(1).tolist() == [6, 2]


def test_a_template_may_hold_words_and_added_specials() -> None:
    words = trained(template="[enc] a small {caption} [sep]", add=("enc",))
    assert words.decode(words.encode(["red circle"]).ids) == ["a small red circle"]
    assert int(words.encode(["red"]).ids[0, 0]) == words.special["enc"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("[cls] {caption} [eos]", r"no special \[eos\], only \[pad\], \[unk\], \[cls\], \[sep\], \[mask\]"),
        ("[cls] {caption} [spe]", "Did you mean 'sep'"),
        ("[cls] caption", "{caption} once"),
        ("[cls] {caption} {caption}", "{caption} once"),
        ("[cls] {caption} [sep] more", "not between"),
    ],
)
def test_a_wrong_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(template=template)


def test_a_length_without_room_for_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        trained(length=2)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_caption_that_spells_a_special_stays_text(kind: str) -> None:
    words = trained(kind)
    for copy in (words, Words.from_state(words.to_state()), pickle.loads(pickle.dumps(words))):
        ids = copy.encode(["red [SEP] [PAD] [CLS] blue"]).ids[0, 1:-1]
        assert not set(ids.tolist()) & {0, 2, 3, 4}


def test_nothing_and_unknown_letters_encode_to_something() -> None:
    words = trained()
    assert words.encode([""]).ids.tolist() == [[2, 3]]
    assert words.encode(["\u6f22"]).ids.tolist() == [[2, 1, 3]]
    assert words.encode([]).ids.shape == (0, 0)
    assert trained("bpe").special["unk"] not in trained("bpe").encode(["\u6f22 \U0001f600"]).ids


def test_lower_case_and_accents_follow_the_setting() -> None:
    assert torch.equal(trained().encode(["R\u00c9D Circle"]).ids, trained().encode(["red circle"]).ids)
    cased = trained(lower=False, captions=lambda: [*SHAPES, "Red Red Red"])
    assert not torch.equal(cased.encode(["Red"]).ids, cased.encode(["red"]).ids)


def test_decode_stops_at_the_first_closing_special_after_the_start() -> None:
    words = trained()
    red, blue = (int(words.encode([c]).ids[0, 1]) for c in ("red", "blue"))
    rows = torch.tensor([[3, red, 3, blue, 0], [2, red, blue, 4, 0], [2, 3, red, red, red]])
    assert words.decode(rows) == ["red", "red blue", ""]


def test_the_size_is_the_truth_and_no_more_than_asked() -> None:
    words = trained(size=5000)
    assert words.size == 1 + max(words.tokenizer.get_vocab().values()) < 200
    assert trained(size=60).size == 60


@pytest.mark.parametrize(("kind", "size"), [("bpe", 200), ("wordpiece", 12)])
def test_a_size_below_the_alphabet_is_refused(kind: str, size: int) -> None:
    with pytest.raises(ConfigError, match="so at least"):
        trained(kind, size=size)


def test_training_needs_captions() -> None:
    with pytest.raises(DataError, match="needs captions"):
        trained(captions=None)
    with pytest.raises(DataError, match=r"check data\.shards"):
        trained(captions=list)
    with pytest.raises(DataError, match=r"check data\.shards"):
        trained("bpe", captions=list)


def test_another_process_trains_the_same_bytes() -> None:
    program = (
        "import sys, json; from vlpkit.data.tokenize import load_words; captions = json.load(sys.stdin)\n"
        "for kind in ('wordpiece', 'bpe'):\n"
        "    print(load_words(name='', kind=kind, size=400, length=20, captions=lambda: captions).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", program], input=json.dumps(SHAPES), capture_output=True, text=True, check=True)
    assert run.stdout.split() == [trained("wordpiece").fingerprint, trained("bpe").fingerprint]


def test_the_order_of_captions_does_not_matter() -> None:
    assert trained().fingerprint == trained(captions=lambda: SHAPES[::-1]).fingerprint


def test_the_fingerprint_tells_vocabulary_template_length_and_cleaning_apart() -> None:
    variants = [trained(), trained(length=21), trained(template="[cls] {caption}"), trained(clean="blip"), trained(captions=lambda: SHAPES[:9])]
    assert len({words.fingerprint for words in variants}) == 5
    assert trained().fingerprint == trained().fingerprint


def test_a_saved_folder_and_a_state_are_self_sufficient(tmp_path: Path) -> None:
    words = trained(template="[enc] {caption} [sep]", add=("enc",), clean="albef")
    words.save(tmp_path / "words")
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["tokenizer.json", "words.json"]
    state = words.to_state()
    assert all(isinstance(value, str) for value in state.values())
    for copy in (Words.load(tmp_path / "words"), Words.from_state(state), pickle.loads(pickle.dumps(words))):
        assert copy.fingerprint == words.fingerprint
        assert torch.equal(copy.encode(SHAPES).ids, words.encode(SHAPES).ids)


def test_a_saved_folder_can_be_named_in_another_recipe(tmp_path: Path) -> None:
    trained().save(tmp_path)
    words = load_words(name=str(tmp_path), kind="bpe", size=None, length=9, template="[cls] {caption}", add=("dec",))
    assert (words.length, words.special["dec"]) == (9, trained().size)
    assert words.size == trained().size + 1


@pytest.mark.parametrize("damage", ["missing", "cut", "format"])
def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    trained().save(tmp_path)
    if damage == "missing":
        (tmp_path / "words.json").unlink()
    elif damage == "cut":
        (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text()[:500])
    else:
        (tmp_path / "words.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=str(tmp_path)):
        Words.load(tmp_path)


@pytest.mark.parametrize(
    ("clean", "caption", "expected"),
    [
        ("none", "  A dog,\n runs! ", "A dog, runs!"),
        ("albef", "A <person>'s dog, isn't it? (well-fed/happy) #1: yes; ~no * \"ok\"", "a persons dog isnt it well fed happy 1 yes no ok"),
        ("blip", "A man's dog, isn't it? (well-fed/happy) #1: yes; ~no * \"ok\".", "a man's dog, isn't it? well-fed/happy 1 yes no ok"),
        ("siglip", "A man's dog, isn't it? (well-fed/happy)  #1_of_2.", "a mans dog isnt it wellfedhappy 1 of 2"),
        ("siglip", " ".join(map(str, range(50))), " ".join(map(str, range(50)))),
        ("albef", " ".join(map(str, range(50))), " ".join(map(str, range(30)))),
        ("blip", " ".join(map(str, range(50))), " ".join(map(str, range(30)))),
    ],
)
def test_captions_are_cleaned_as_the_published_systems_do(clean: Any, caption: str, expected: str) -> None:
    assert clean_words(caption, clean) == expected


def test_cleaning_is_part_of_encoding() -> None:
    words = trained(clean="albef")
    assert torch.equal(words.encode(["Red, circle!"]).ids, words.encode(["red circle"]).ids)
    with pytest.raises(ConfigError, match="none, albef, blip, siglip"):
        trained(clean="belif")


def as_transformers(folder: Path, **specials: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained().tokenizer, **specials)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_a_transformers_folder_gives_its_ids_and_specials(tmp_path: Path) -> None:
    as_transformers(tmp_path, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    words = load_words(name=str(tmp_path), kind="wordpiece", size=None, length=20, add=("enc", "dec"))
    own = trained()
    assert torch.equal(words.encode(SHAPES).ids, own.encode(SHAPES).ids)
    assert words.special == {**own.special, "enc": own.size, "dec": own.size + 1}
    assert words.size == own.size + 2


def test_beginning_and_end_of_sequence_stand_in_for_cls_and_sep(tmp_path: Path) -> None:
    as_transformers(tmp_path, bos_token="[CLS]", eos_token="[SEP]")
    special = load_words(name=str(tmp_path), kind="bpe", size=None, length=20).special
    assert special == {"cls": 2, "sep": 3, "unk": 3, "pad": 3}


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    as_transformers(tmp_path, cls_token="[CLS]")
    with pytest.raises(DataError, match="no sep token"):
        load_words(name=str(tmp_path), kind="bpe", size=None, length=20)


@pytest.mark.parametrize("name", ["no-such-tokenizer-anywhere", "/no/such/folder"])
def test_a_name_that_cannot_be_had_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"model\.text\.words\.name is .*folder.*size=tiny"):
        load_words(name=name, kind="wordpiece", size=None, length=20)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.text\.words\.name"):
        load_words(name=str(tmp_path), kind="wordpiece", size=None, length=20)


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip_torch (the extra 'parity') is not installed")
def test_clips_vocabulary_gives_the_ids_of_open_clip(tmp_path: Path) -> None:
    from open_clip import tokenizer as reference

    letters = list(reference.bytes_to_unicode().values())
    text = gzip.decompress(Path(reference.default_bpe()).read_bytes()).decode("utf-8")
    lines = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    merged = ["".join(line.split()) for line in lines]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    words = load_words(name=str(tmp_path), kind="bpe", size=None, length=77)
    assert (words.size, words.special["cls"], words.special["sep"]) == (49408, 49406, 49407)
    captions = [*SHAPES, "A man's dog isn't 25 years old!", "Caf\u00e9 at 10:30, (really)?", "two-tone #hashtag"]
    ours, theirs = words.encode(captions), reference.SimpleTokenizer()(captions)
    for row, mask, expected in zip(ours.ids, ours.mask, theirs):
        assert row[mask].tolist() == expected[: int(mask.sum())].tolist()
        assert not expected[int(mask.sum()) :].any()


# -- where words start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_as_many_tokens_open_a_word_as_there_are_words(kind: str) -> None:
    words = trained(kind, length=60)
    captions = ["a circlet", "reddle greener triangle left of a smaller yellowed circle", "reddle"]   # made of pieces of what was trained on
    text = words.encode(captions)
    inner = text.mask & ~torch.isin(text.ids, torch.tensor(words.special_ids))
    assert (inner.sum(1) > torch.tensor([len(caption.split()) for caption in captions])).all()
    opens = torch.tensor(words.starts)[text.ids]
    assert (opens & inner).sum(1).tolist() == [len(caption.split()) for caption in captions]
    assert opens[~inner].all()
    assert len(words.starts) == words.size


def test_a_vocabulary_of_whole_words_has_nothing_but_openings() -> None:
    assert all(numbered_words(9, {"pad": 0, "cls": 1, "sep": 2}, length=5).starts)


def test_a_vocabulary_that_marks_ends_cannot_say_where_words_start() -> None:
    model = BPE({"<p>": 0, "<c>": 1, "<s>": 2, "a</w>": 3}, [], end_of_word_suffix="</w>")
    words = Words(Tokenizer(model), special={"pad": 0, "cls": 1, "sep": 2}, length=5, template="[cls] {caption} [sep]")
    with pytest.raises(ConfigError, match=r"marks where a word ends[\s\S]*draws\.mask\.whole=false"):
        _ = words.starts
