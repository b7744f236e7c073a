"""Word masking and token losses: rates, loops, limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vlpkit.maths.masking import mask_words, mean_tokens, pick
from vlpkit.types import IGNORE

MASK, VOCAB = 3, 1000


def corrupt(rows: int = 200, *, rate: float = 0.15, keep: float = 0.1, random: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    ids = torch.randint(4, VOCAB, (rows, 50), generator=torch.Generator().manual_seed(99))
    allowed = torch.ones_like(ids, dtype=torch.bool)
    allowed[:, 0] = False
    masked, labels = mask_words(ids, allowed, torch.Generator().manual_seed(seed), rate=rate, mask=MASK, vocab=VOCAB, keep=keep, random=random)
    return ids, allowed, masked, labels


def test_a_label_is_what_stood_there_and_nothing_else_changes() -> None:
    ids, _, masked, labels = corrupt()
    asked = labels != IGNORE
    assert torch.equal(labels[asked], ids[asked])
    assert torch.equal(masked[~asked], ids[~asked])


def test_forbidden_positions_are_never_chosen() -> None:
    _, allowed, _, labels = corrupt(rate=1.0)
    assert (labels[~allowed] == IGNORE).all()
    assert (labels[allowed] != IGNORE).all()


def test_shares_are_fifteen_percent_and_eight_one_one() -> None:
    ids, allowed, masked, labels = corrupt()
    asked = labels != IGNORE
    count = int(asked.sum())   # about 1470 of 9800, whose standard deviations are below what is allowed here, four times
    assert count / int(allowed.sum()) == pytest.approx(0.15, abs=0.015)
    assert float((masked[asked] == MASK).float().mean()) == pytest.approx(0.8, abs=0.042)
    assert float((masked[asked] == ids[asked]).float().mean()) == pytest.approx(0.1, abs=0.032)


def test_random_words_spread_over_the_whole_vocabulary() -> None:
    _, _, masked, labels = corrupt(rate=1.0, keep=0.0, random=1.0)
    drawn = masked[labels != IGNORE]
    assert drawn.min() < 10
    assert drawn.max() > VOCAB - 10
    assert float(drawn.float().mean()) == pytest.approx(VOCAB / 2, rel=0.03)


def test_rate_zero_changes_nothing() -> None:
    ids, _, masked, labels = corrupt(rate=0.0)
    assert torch.equal(masked, ids)
    assert (labels == IGNORE).all()


def test_equal_generators_draw_equal_masks() -> None:
    assert torch.equal(corrupt(seed=5)[2], corrupt(seed=5)[2])
    assert not torch.equal(corrupt(seed=5)[2], corrupt(seed=6)[2])


def test_picked_states_are_those_with_a_label() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    states, labels = pick(x, torch.tensor([[IGNORE, 5, IGNORE], [7, IGNORE, IGNORE]]))
    assert states.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert labels.tolist() == [5, 7]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_over_tokens_is_the_loop(smoothing: float) -> None:
    logits, labels = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5, 0, 2])
    total = 0.0
    for row, label in zip(logits, labels):
        log_p = row - row.exp().sum().log()
        total -= (1 - smoothing) * float(log_p[label]) + smoothing * float(log_p.mean())
    assert float(mean_tokens(logits, labels, smoothing=smoothing)) == pytest.approx(total / 4, rel=1e-5)


def test_a_teacher_is_mixed_in_by_alpha() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, soft, labels = torch.randn(4, 6, generator=rng), torch.randn(4, 6, generator=rng), torch.tensor([1, 5, 0, 2])
    hard = F.cross_entropy(logits, labels)
    taught = -(soft.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(mean_tokens(logits, labels, soft=soft, alpha=0.4), 0.6 * hard + 0.4 * taught)
    assert torch.allclose(mean_tokens(logits, labels, soft=soft, alpha=0.0), hard)


def test_equal_logits_give_the_logarithm_of_the_vocabulary() -> None:
    assert float(mean_tokens(torch.zeros(3, 20), torch.tensor([0, 1, 19]))) == pytest.approx(math.log(20), rel=1e-6)


def test_no_token_gives_zero_and_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 20, requires_grad=True)
    loss = mean_tokens(logits, torch.zeros(0, dtype=torch.int64), soft=torch.zeros(0, 20), alpha=0.4)
    loss.backward()
    assert float(loss) == 0.0


def whole(rows: int = 400, *, rate: float = 0.15, least: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words of 1, 2 and 3 tokens between two specials and padding: word of each token (-1: none), masked ids, labels."""
    word = torch.tensor([-1, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, -1, -1]).expand(rows, -1)
    starts = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0]).bool().expand(rows, -1)   # the first word was cut: no token opens it
    ids = torch.randint(4, VOCAB, word.shape, generator=torch.Generator().manual_seed(9))
    masked, labels = mask_words(ids, word >= 0, torch.Generator().manual_seed(1), rate=rate, mask=MASK, vocab=VOCAB, least=least, starts=starts)
    return word, masked, labels


def test_a_word_is_chosen_whole_or_not_at_all_and_each_for_itself() -> None:
    word, _, labels = whole()
    asked = labels != IGNORE
    assert not asked[word < 0].any()
    of_word = torch.stack([(asked & (word == i)).sum(1) for i in range(6)], 1)
    sizes = torch.tensor([1, 2, 3, 1, 2, 1])
    assert ((of_word == 0) | (of_word == sizes)).all()
    chosen = (of_word > 0).float()
    assert float(chosen.mean()) == pytest.approx(0.15, abs=0.03)   # of 2400; four deviations
    assert bool((chosen.mean(0) > 0.07).all())
    assert float(torch.corrcoef(chosen.T).fill_diagonal_(0).abs().max()) < 0.2


def test_what_becomes_of_a_chosen_token_is_drawn_for_each_token_of_the_word() -> None:
    word, masked, labels = whole(rate=1.0)
    hidden = masked == MASK
    assert (labels[word >= 0] != IGNORE).all()
    assert float(hidden[word >= 0].float().mean()) == pytest.approx(0.8, abs=0.03)
    assert bool((hidden[:, 4] != hidden[:, 5]).any())


def test_a_text_without_a_chosen_word_gets_its_first_word_masked_whole() -> None:
    word, masked, labels = whole(rate=0.0, least=True)
    assert torch.equal(labels != IGNORE, word == 0)
    assert (masked[word == 0] == MASK).all()


def test_where_every_token_opens_a_word_whole_words_are_tokens() -> None:
    ids, allowed, masked, labels = corrupt()
    again = mask_words(ids, allowed, torch.Generator().manual_seed(0), rate=0.15, mask=MASK, vocab=VOCAB, starts=torch.ones_like(allowed))
    assert torch.equal(again.ids, masked)
    assert torch.equal(again.labels, labels)
