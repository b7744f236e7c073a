"""VLMo's checkpoints: one transformer with feed-forward experts, one table of relative positions, two shared spaces."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import words_rows

_EXPERTS = {"text": "w", "imag": "v", "vl": "vw"}


def vlmo() -> list[Row]:
    """A pre-training checkpoint of stage 3. Words have no learned positions beside the relative ones; theirs are stored and never read."""
    block, ours = "transformer.blocks.*", "vision.trunk.blocks.*"
    experts = [
        row for theirs, side in _EXPERTS.items()
        for row in (f"{block}.norm2_{theirs}.* -> {ours}.ffn.norm.{side}.*", f"{block}.mlp_{theirs}.*.* -> {ours}.ffn.body.{side}.*.*")
    ]
    return parse([
        "transformer.cls_token            -> vision.embed.cls",
        "transformer.patch_embed.proj.*   -> vision.embed.proj.*",
        f"{block}.gamma_1                 -> {ours}.self.scale",
        f"{block}.gamma_2                 -> {ours}.ffn.scale",
        f"{block}.norm1.*                 -> {ours}.self.norm.*",
        f"{block}.attn.{{q_bias,v_bias}}  -> {ours}.self.body.qkv.bias | around",
        f"{block}.attn.qkv.weight         -> {ours}.self.body.qkv.weight",
        f"{block}.attn.proj.*             -> {ours}.self.body.out.*",
        *experts,
        "transformer.norm.*               -> vision.trunk.norm.*",
        "relative_position_bias_table     -> vision.trunk.relative.table",
        "text_embeddings.word_embeddings.weight        -> text.embed.word.weight | words",
        "text_embeddings.token_type_embeddings.weight  -> text.embed.segment.weight",
        "text_embeddings.LayerNorm.*                   -> text.embed.norm.*",
        "text_embeddings.position_embeddings.weight    -> (dropped)",
        "text_embeddings.position_ids                  -> (dropped)",
        "token_type_embeddings.weight     -> text.embed.side | row 0",
        "token_type_embeddings.weight     -> vision.embed.side | row 1",
        "pooler.dense.*                   -> heads.itm.pool.0.dense.*",
        "itm_score.fc.*                   -> heads.itm.out.*",
        *words_rows("mlm_score.", "heads.mlm"),
        "itc_image_proj.fc.weight         -> align.v.out.weight",
        "itc_text_proj.fc.weight          -> align.w.out.weight",
        "itc_vl_image_proj.fc.weight      -> align_vl.v.out.weight",
        "itc_vl_text_proj.fc.weight       -> align_vl.w.out.weight",
        "logit_scale                      -> align.log_scale",
        "logit_vl_scale                   -> align_vl.log_scale",
        "relative_position_index          -> (dropped)",
        "text_relative_position_index     -> (dropped)",
        "text_imag_relative_position_index -> (dropped)",
    ])
