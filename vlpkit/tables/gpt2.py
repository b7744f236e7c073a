"""GPT-2 as transformers names its weights: the frozen language model of a decoder with gated layers between its blocks."""

from __future__ import annotations

from vlpkit.rows import Row, parse


def transformers_gpt2(*, source: str = "transformer.") -> list[Row]:
    """transformers' GPT2LMHeadModel, or GPT2Model (source ""), into a Flamingo; its matrices stand the other way round, and the output table is
    the word table."""
    block, ours, ffn = f"{source}h.*", "decoder.w.blocks.*", "ffn2"   # gated layers stand before self and ffn2
    return parse([
        f"{source}wte.weight         -> text.embed.word.weight | words",
        f"{source}wpe.weight         -> text.embed.position.weight | cut",
        f"{block}.ln_1.*              -> {ours}.self.norm.*",
        f"{block}.attn.c_attn.weight  -> {ours}.self.body.qkv.weight | transpose",
        f"{block}.attn.c_attn.bias    -> {ours}.self.body.qkv.bias",
        f"{block}.attn.c_proj.weight  -> {ours}.self.body.out.weight | transpose",
        f"{block}.attn.c_proj.bias    -> {ours}.self.body.out.bias",
        f"{block}.attn.bias           -> (dropped)",
        f"{block}.attn.masked_bias    -> (dropped)",
        f"{block}.ln_2.*              -> {ours}.{ffn}.norm.*",
        f"{block}.mlp.c_fc.weight     -> {ours}.{ffn}.body.fc1.weight | transpose",
        f"{block}.mlp.c_fc.bias       -> {ours}.{ffn}.body.fc1.bias",
        f"{block}.mlp.c_proj.weight   -> {ours}.{ffn}.body.fc2.weight | transpose",
        f"{block}.mlp.c_proj.bias     -> {ours}.{ffn}.body.fc2.bias",
        f"{source}ln_f.*             -> decoder.w.norm.*",
        "lm_head.weight               -> (dropped)",
        "(fresh) -> vision.**", "(fresh) -> text.embed.extra", f"(fresh) -> {ours}.{{cross,ffn}}.**",
    ])
