"""Flamingo's two borrowed halves with transformers' weights: IDEFICS' resampler, and GPT-2 behind gates that are still closed."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from tests.parity.beside import CLOSE, CLOSE_GRAD, LENGTH, VOCAB, apart, batch, ours, probe, shake
from vlpkit.layers.neck import Resampler
from vlpkit.rows import parse
from vlpkit.streams import Streams
from vlpkit.tables.gpt2 import transformers_gpt2
from vlpkit.types import Stream, full_mask
from vlpkit.weights import load

RESAMPLER = parse([
    "latents                                          -> query | squeeze",
    "blocks.*.0.context_layer_norm.*                  -> layers.*.norm_memory.*",
    "blocks.*.0.latents_layer_norm.*                  -> layers.*.norm_query.*",
    "blocks.*.0.q_proj.weight                         -> layers.*.attention.q.weight",
    "blocks.*.0.{k_proj,v_proj}.weight                -> layers.*.attention.kv.weight",
    "blocks.*.0.output_proj.weight                    -> layers.*.attention.out.weight",
    "blocks.*.1.ln.*                                  -> layers.*.ffn.norm.*",
    "blocks.*.1.fc.weight                             -> layers.*.ffn.body.fc1.weight",
    "blocks.*.1.c_proj.weight                         -> layers.*.ffn.body.fc2.weight",
    "layer_norm.*                                     -> norm.*",
])


def test_the_resampler_is_that_of_idefics() -> None:
    torch.set_num_threads(1)
    config = IdeficsConfig(perceiver_config={"qk_layer_norms_perceiver": False}, vision_config={"embed_dim": 32})
    theirs = IdeficsPerceiverResampler(config, embed_dim=32, depth=3, n_heads=4, head_dim=8, n_latents=5)
    shake(theirs)
    mine = Resampler(32, queries=5, depth=3, heads=4, activation="relu")
    load(mine, dict(theirs.state_dict()), RESAMPLER)
    x = torch.randn(2, 1 + 9, 32, generator=torch.Generator().manual_seed(3))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found = mine(Stream(inputs[0], full_mask(2, 10, "cpu"), (("v_cls", 1), ("v", 9))))
    expected = theirs(inputs[1][:, 1:])   # patches alone
    assert found.parts == (("v", 5),)
    assert apart(found.x, expected) < CLOSE
    probe(found.x).backward()
    probe(expected).backward()
    assert apart(inputs[0].grad, inputs[1].grad) < CLOSE_GRAD  # type: ignore[arg-type]
    assert not inputs[0].grad[:, 0].any()  # type: ignore[index]
    far = {a: apart(mine.get_parameter(a).grad, theirs.get_parameter(b).grad) for a, b in same()}  # type: ignore[arg-type]
    assert {name: error for name, error in far.items() if not error < CLOSE_GRAD} == {}


def same() -> list[tuple[str, str]]:
    """Parameters that stand under one name on either side."""
    pairs = [("norm.weight", "layer_norm.weight")]
    for i in range(3):
        pairs += [(f"layers.{i}.{a}.weight", f"blocks.{i}.{b}.weight") for a, b in [
            ("norm_query", "0.latents_layer_norm"), ("norm_memory", "0.context_layer_norm"), ("attention.q", "0.q_proj"), ("attention.out", "0.output_proj"),
            ("ffn.body.fc1", "1.fc"), ("ffn.body.fc2", "1.c_proj"), ("ffn.norm", "1.ln"),
        ]]
    return pairs


@pytest.mark.parametrize("every", [1, 2])
def test_closed_gates_leave_gpt2_as_it_is(every: int) -> None:
    size = {"n_layer": 2, "n_head": 4, "n_embd": 48}
    theirs = GPT2LMHeadModel(GPT2Config(**size, vocab_size=VOCAB, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2))
    shake(theirs)
    made = ours(
        "model=flamingo", "objective=[lm_docs]", "model.text.words.template='[enc] {caption} [dec]'", "model.text.words.add=[enc,dec]", "model.text.embed.extra=[]", "draws.docs.start=cls",
        "draws.docs.images=1", f"model.decoder.w.every={{cross: {every}, ffn: {every}}}",
    )  # fmt: skip
    report = load(made.model, dict(theirs.state_dict()), transformers_gpt2())
    assert sum("cross" in name for name in report.fresh) == 9 * 2 // every
    given = batch()
    s = Streams(made.model, given, draws=made.draws, seed=(0,))
    text = s.text("docs.text")
    answer = theirs(input_ids=text.ids, attention_mask=text.mask.long())
    logits = s.head("lm", s.fused("clean", "docs.text", "docs.pairing", by="decoder").w.x)
    assert apart(logits[text.mask], answer.logits[text.mask]) < CLOSE
