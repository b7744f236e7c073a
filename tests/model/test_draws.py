"""Draws over words: what is masked, and what stands at the opening."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.draws.pairs import joined
from vlpkit.errors import AssemblyError
from vlpkit.streams import Streams
from vlpkit.types import IGNORE, TextInput


def test_special_tokens_and_padding_are_never_masked() -> None:
    made, words = tiny_model("model=albef", "draws.mask.rate=1.0", "model.text.words.template='[cls] {caption} [sep]'")
    s = tiny_streams(made, tiny_batch(words))
    clean, labels = s.text(), s.labels("mask.labels")
    special = torch.isin(clean.ids, torch.tensor(words.special_ids))
    assert torch.equal(labels != IGNORE, clean.mask & ~special)
    assert torch.equal(s.text("mask.text").ids[special], clean.ids[special])


def test_a_masked_text_shares_what_it_leaves_alone() -> None:
    made, words = tiny_model("model=albef")
    s = tiny_streams(made, tiny_batch(words))
    assert s.text("mask.text").mask is s.text().mask


@pytest.mark.parametrize("recipe", ["vilt", "meter"])
def test_whole_words_are_masked_in_all_their_pieces(recipe: str) -> None:
    """With pieces of words, whichever way a tokenizer marks them; piece by piece some word would be torn."""
    torn = {}
    for whole in (True, False):
        made, words = tiny_model(f"model={recipe}", f"++draws.mask.whole={whole}", "draws.mask.rate=0.5")
        text = words.encode(["a circlet of bluest starlets", "reddish triangular barbells"] * 8)
        s = tiny_streams(made, replace(tiny_batch(words, rows=16), texts={"clean": text}))
        asked, inner = s.labels("mask.labels") != IGNORE, text.mask & ~torch.isin(text.ids, torch.tensor(words.special_ids))
        word = (torch.tensor(words.starts)[text.ids] & inner).cumsum(-1)
        of = [asked[row][inner[row] & (word[row] == i)] for row in range(16) for i in range(1, int(word[row].max()) + 1)]
        torn[whole] = sum(bool(chosen.any() and not chosen.all()) for chosen in of)
        assert any(len(chosen) > 1 for chosen in of)
        assert sum(bool(chosen.any()) for chosen in of) / len(of) > 0.3
    assert torn[True] == 0
    assert torn[False] > 5


@pytest.mark.parametrize(("name", "start", "ordered"), [("match", "enc", False), ("caption", "dec", True)])
def test_an_opening_replaces_the_first_token_alone(name: str, start: str, ordered: bool) -> None:
    made, words = tiny_model("model=blip")
    s = tiny_streams(made, tiny_batch(words))
    clean, opened = s.text(), s.text(f"{name}.text")
    assert (opened.ids[:, 0] == words.special[start]).all()
    assert torch.equal(opened.ids[:, 1:], clean.ids[:, 1:])
    assert (opened.order is not None) is ordered


def test_every_real_word_after_the_opening_is_asked_for_and_the_closing_one_too() -> None:
    made, words = tiny_model("model=blip")
    s = tiny_streams(made, tiny_batch(words))
    clean, labels = s.text(), s.labels("caption.labels")
    assert (labels[:, 0] == IGNORE).all()
    assert torch.equal(labels[:, 1:] != IGNORE, clean.mask[:, 1:])
    assert torch.equal(labels[:, 1:][clean.mask[:, 1:]], clean.ids[:, 1:][clean.mask[:, 1:]])
    assert (labels == words.special["sep"]).sum(1).tolist() == [1] * len(clean)


def test_a_tokenizer_without_the_opening_is_refused_with_the_key_that_adds_it() -> None:
    with pytest.raises(AssemblyError, match=r"draws\.caption: the tokenizer has no special token 'dec'[\s\S]*model\.text\.words\.add=\[dec\]"):
        tiny_model("model=blip", "model.text.words.add=[enc]")


def test_two_sentences_are_joined_without_a_gap_and_told_apart_by_segment() -> None:
    ids, mask = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2]]), torch.tensor([[True, True, True, False], [True] * 4])
    more, real = torch.tensor([[1, 8, 9, 2], [1, 3, 2, 0]]), torch.tensor([[True] * 4, [True, True, True, False]])
    both = joined(TextInput(ids, mask), TextInput(more, real))
    assert both.ids.tolist() == [[1, 5, 2, 8, 9, 2, 0], [1, 6, 7, 2, 3, 2, 0]]
    assert both.mask.tolist() == [[True] * 6 + [False], [True] * 6 + [False]]
    assert both.segment is not None
    assert both.segment[both.mask].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_the_second_sentence_is_of_another_image_half_of_the_time_and_told_by_what_it_is() -> None:
    made, words = tiny_model("model=visualbert")
    batch = tiny_batch(words, rows=8)
    second, right = batch.texts["second"], 0
    for seed in range(20):
        s = tiny_streams(made, batch, seed=(seed,))
        text, pairing = s.text("two.text"), s.pairing("two.pairing")
        assert torch.equal(pairing.image, pairing.text)   # the first sentence and its image stay together
        for row in range(8):
            assert text.segment is not None
            said = text.ids[row][text.mask[row] & (text.segment[row] == 1)].tolist()
            own = second.ids[row][second.mask[row]].tolist()[1:]
            assert bool(pairing.match[row]) is (said == own)
        right += int(pairing.match.sum())
    assert 50 < right < 110   # of 160


def test_captions_of_the_same_image_are_a_true_second_sentence_whoever_drew_them() -> None:
    made, words = tiny_model("model=visualbert")
    batch = tiny_batch(words)
    s = tiny_streams(made, replace(batch, pair_id=torch.zeros(4, dtype=torch.int64)))
    assert s.pairing("two.pairing").match.tolist() == [1, 1, 1, 1]


def test_who_brings_own_pairs_gets_single_sentences() -> None:
    made, words = tiny_model("model=visualbert")
    batch = tiny_batch(words)
    s = Streams(made.model, batch, draws=made.draws, corrupt=False)
    assert s.text("two.text") is s.text()


def cuts(labels: torch.Tensor) -> list[int]:
    """The place of the first word asked for, by text."""
    return (labels != IGNORE).long().argmax(1).tolist()


def test_a_split_divides_the_words_between_prefix_and_rest_and_asks_for_all_of_the_rest() -> None:
    made, words = tiny_model("model=simvlm")
    s = tiny_streams(made, tiny_batch(words, rows=8))
    clean, prefix, suffix, labels = s.text(), s.text("split.prefix"), s.text("split.suffix"), s.labels("split.labels")
    asked = labels != IGNORE
    assert torch.equal(labels[asked], clean.ids[asked])
    assert torch.equal(prefix.mask | asked, clean.mask & (torch.arange(clean.ids.shape[1]) > 0))   # every word but the opening, in one of the two
    assert not (prefix.mask & asked).any()
    for row, cut in enumerate(cuts(labels)):
        assert suffix.ids[row, cut - 1] == words.special["cls"]
        assert suffix.mask[row].tolist() == [i >= cut - 1 and bool(m) for i, m in enumerate(clean.mask[row])]
        assert torch.equal(suffix.ids[row, cut:], clean.ids[row, cut:])
        assert torch.equal(prefix.ids[row], clean.ids[row])
    assert prefix.order is None
    assert suffix.order is not None
    assert suffix.order[0].tolist() == list(range(1, clean.ids.shape[1] + 1))


def test_a_text_is_cut_anywhere_from_before_its_first_word_to_behind_its_last() -> None:
    made, words = tiny_model("model=simvlm")
    batch = tiny_batch(words)
    lengths: list[int] = batch.texts["clean"].mask.sum(1).tolist()
    seen: list[set[int]] = [set() for _ in range(4)]
    for seed in range(200):
        for row, cut in enumerate(cuts(tiny_streams(made, batch, seed=(seed,)).labels("split.labels"))):
            seen[row].add(cut)
    assert seen == [set(range(1, length)) for length in lengths]   # the last leaves the closing token alone


def test_an_evaluation_cuts_before_all_words() -> None:
    made, words = tiny_model("model=simvlm")
    s = Streams(made.model, tiny_batch(words), draws=made.draws, corrupt=False)
    assert cuts(s.labels("split.labels")) == [1] * 4
    assert not s.text("split.prefix").mask.any()


def test_a_text_without_words_has_nothing_to_cut() -> None:
    made, words = tiny_model("model=simvlm")
    batch = tiny_batch(words)
    bare = replace(batch, texts={"clean": words.encode([""] * 4)})
    s = tiny_streams(made, bare)
    assert cuts(s.labels("split.labels")) == [1] * 4
    assert float(made.objectives["lm"](s).value) > 0


def test_a_split_without_its_opening_is_refused() -> None:
    with pytest.raises(AssemblyError, match=r"draws\.split: the tokenizer has no special token 'dcl'"):
        tiny_model("model=simvlm", "draws.split.start=dcl")


def test_a_document_is_its_texts_end_to_end_with_their_images() -> None:
    made, words = tiny_model("model=flamingo", "draws.docs.images=2", "size.positions=96")
    s = tiny_streams(made, tiny_batch(words, rows=5))
    clean, docs, labels, pairs = s.text(), s.text("docs.text"), s.labels("docs.labels"), s.pairing("docs.pairing")
    assert pairs.image.tolist() == [[0, 1], [2, 3], [4, -1]]
    assert docs.group is not None
    for row, shown in enumerate([(0, 1), (2, 3), (4,)]):
        pieces = [clean.ids[i][clean.mask[i]].tolist() for i in shown]
        whole = [i for piece in pieces for i in piece]
        assert docs.ids[row][docs.mask[row]].tolist() == whole
        assert docs.mask[row].tolist() == [i < len(whole) for i in range(docs.ids.shape[1])]
        assert docs.group[row][docs.mask[row]].tolist() == [t for t, piece in enumerate(pieces) for _ in piece]
        asked = [i if i != words.special["image"] else IGNORE for i in whole]
        assert labels[row].tolist() == asked + [IGNORE] * (docs.ids.shape[1] - len(whole))


def test_a_document_is_cut_where_its_length_ends() -> None:
    made, words = tiny_model("model=flamingo", "draws.docs.images=4", "draws.docs.length=30")
    s = tiny_streams(made, tiny_batch(words))
    assert s.text("docs.text").ids.shape == s.labels("docs.labels").shape == (1, 30)
    assert s.text("docs.text").mask.all()


def test_documents_without_their_image_token_are_refused() -> None:
    with pytest.raises(AssemblyError, match=r"draws\.docs: the tokenizer has no special token 'picture'"):
        tiny_model("model=flamingo", "draws.docs.start=picture")
