"""ViLT's checkpoints (key `state_dict` of the file) and transformers' ViLT: one ViT that reads patches and words."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, words_rows
from vlpkit.tables.timm import vit_rows

_TRUNK = "fusion.joint.trunk"


def _type_rows(source: str) -> list[str]:
    """Rows of the table that tells words (0) from patches (1)."""
    return [f"{source} -> text.embed.side | row 0", f"{source} -> vision.embed.side | row 1"]


def vilt() -> list[Row]:
    """A pre-training checkpoint of the original code."""
    return parse([
        *(row.replace("embeddings.", "text_embeddings.", 1) for row in embedding_rows("", "text.embed", segments=True)),
        *_type_rows("token_type_embeddings.weight"),
        *vit_rows("transformer.", "vision", trunk=_TRUNK),
        "pooler.dense.*    -> heads.itm.pool.0.dense.*",
        "itm_score.fc.*    -> heads.itm.out.*",
        *words_rows("mlm_score.", "heads.mlm"),
    ])


def transformers_vilt(*, source: str = "vilt.") -> list[Row]:
    """transformers' ViltForMaskedLM, or ViltModel (source ""), which has no head for words; nor has either one for matching."""
    layer, ours = f"{source}encoder.layer.*", f"{_TRUNK}.blocks.*"
    attention = [
        f"{layer}.attention.attention.{{query,key,value}}.*  -> {ours}.self.body.qkv.*",
        f"{layer}.attention.output.dense.*                   -> {ours}.self.body.out.*",
    ]
    return parse([
        f"{source}embeddings.cls_token                       -> vision.embed.cls",
        f"{source}embeddings.position_embeddings             -> vision.embed.position | grid",
        f"{source}embeddings.patch_embeddings.projection.*   -> vision.embed.proj.*",
        *(row.replace("embeddings.", "embeddings.text_embeddings.", 1) for row in embedding_rows(source, "text.embed", segments=True)),
        *_type_rows(f"{source}embeddings.token_type_embeddings.weight"),
        *attention,
        f"{layer}.layernorm_before.*                         -> {ours}.self.norm.*",
        f"{layer}.layernorm_after.*                          -> {ours}.ffn.norm.*",
        f"{layer}.intermediate.dense.*                       -> {ours}.ffn.body.fc1.*",
        f"{layer}.output.dense.*                             -> {ours}.ffn.body.fc2.*",
        f"{source}layernorm.*                                -> {_TRUNK}.norm.*",
        f"{source}pooler.dense.*                             -> heads.itm.pool.0.dense.*",
        *(words_rows("mlm_score.", "heads.mlm") if source else ["(fresh) -> heads.mlm.**"]),
        "(fresh) -> heads.itm.out.**",
    ])
