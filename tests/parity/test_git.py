"""GIT's one stack over image and words with transformers' weights: states, logits, loss and gradients; image and text of different width."""

from __future__ import annotations

import pytest
import torch
from transformers import GitConfig, GitForCausalLM

from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, Beside, apart, ours
from vlpkit.maths.masking import mean_tokens, pick
from vlpkit.tables.git import transformers_git
from vlpkit.types import IGNORE


def config() -> GitConfig:
    """Theirs, with an output table that is that of the words, as in released files."""
    size = {"num_hidden_layers": 2, "num_attention_heads": 4}
    return GitConfig(
        vision_config={**size, "hidden_size": 32, "intermediate_size": 128, "image_size": IMAGE, "patch_size": 8, "attention_dropout": 0.0},
        **size, vocab_size=VOCAB, hidden_size=48, intermediate_size=192, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=0, bos_token_id=SPECIAL["cls"], eos_token_id=SPECIAL["sep"], tie_word_embeddings=True,
    )


@pytest.fixture
def both() -> Beside:
    return Beside(ours("model=git", "model.vision.embed.dim=32"), GitForCausalLM(config()), transformers_git())


def test_the_same_logits_loss_and_gradients(both: Beside) -> None:
    text, tokens = both.text, 1 + (IMAGE // 8) ** 2
    labels = torch.where(text.mask, text.ids, IGNORE)
    answer = both.theirs(input_ids=text.ids, attention_mask=text.mask.long(), pixel_values=both.pixels, labels=labels)
    logits = both.s.head("lm", both.s.fused("clean", "caption.text").w.x)
    assert apart(logits[text.mask], answer.logits[:, tokens:][text.mask]) < CLOSE
    both.made.objectives["lm"].smoothing = 0.0   # transformers' loss has none
    loss = both.loss("lm")
    assert apart(loss, answer.loss) < 1e-6
    assert both.gradients_apart(loss, answer.loss) == {}
    assert both.report.fresh == ()


def test_the_image_side_ends_as_theirs(both: Beside) -> None:
    seen = both.theirs.git.visual_projection(both.theirs.git.image_encoder(both.pixels).last_hidden_state)
    assert apart(both.s.v().x, seen) < CLOSE


def test_the_smoothed_mass_goes_to_the_other_words_alone(both: Beside) -> None:
    """GIT's code takes the divergence from (1 - e) on the right word and e / (V - 1) on each other: ours plus a constant."""
    fused = both.s.fused("clean", "caption.text")
    states, asked = pick(fused.w.x[:, :-1], both.s.labels("caption.labels")[:, 1:])
    logits = both.s.head("lm", states)
    target = torch.full_like(logits, 0.1 / (VOCAB - 1)).scatter(1, asked[:, None], 0.9)
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    assert apart(both.loss("lm"), expected) < 1e-6
    usual = mean_tokens(logits, asked, smoothing=0.1)   # shares it with the right word, too
    pulls = [torch.autograd.grad(loss, logits, retain_graph=True)[0].gather(1, asked[:, None]).mean() for loss in (usual, expected)]
    assert torch.isclose((pulls[1] - pulls[0]) * len(asked), torch.tensor(0.1 / VOCAB), rtol=1e-3)
