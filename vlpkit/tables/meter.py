"""METER's checkpoints (key `state_dict` of the file): CLIP's image tower, RoBERTa, and two stacks in lockstep."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, layer_rows, words_rows
from vlpkit.tables.clip import open_image_rows


def roberta_rows(source: str, part: str, *, segments: bool = True) -> list[str]:
    """Rows of RoBERTa in a trunk of ours: position i of a text stands in row i + 2 of its table."""
    return [
        f"{source}embeddings.position_embeddings.weight  -> {part}.embed.position.weight | from 2 cut",
        *embedding_rows(source, f"{part}.embed", segments=segments),
        *layer_rows(f"{source}encoder.layer.*", f"{part}.trunk.blocks.*"),
        f"{source}pooler.**                                -> (dropped)",
    ]


def meter() -> list[Row]:
    """A pre-training checkpoint with CLIP and RoBERTa as its encoders."""
    return parse([
        *open_image_rows("vit_model.visual."),
        "vit_model.**                      -> (dropped)",   # what CLIP's text tower leaves behind
        *roberta_rows("text_transformer.", "text"),
        "cross_modal_image_transform.*     -> vision.neck.out.*",
        "cross_modal_text_transform.*      -> text.neck.out.*",
        "token_type_embeddings.weight      -> text.neck.side | row 0",
        "token_type_embeddings.weight      -> vision.neck.side | row 1",
        *layer_rows("cross_modal_image_layers.*", "fusion.v.blocks.*"),
        *layer_rows("cross_modal_text_layers.*", "fusion.w.blocks.*"),
        "cross_modal_text_pooler.dense.*   -> heads.itm.pool.0.dense.*",
        "cross_modal_image_pooler.dense.*  -> heads.itm.pool.1.dense.*",
        "itm_score.fc.*                    -> heads.itm.out.*",
        *words_rows("mlm_score.", "heads.mlm"),
    ])


def roberta(part: str = "text", *, source: str = "", segments: bool = True) -> list[Row]:
    """transformers' RobertaModel (source "") or RobertaForMaskedLM (source "roberta.") into the text part; everything outside it stays fresh."""
    others = [name for name in ("vision", "fusion", "decoder", "align", "heads") if name != part]
    return parse([
        *roberta_rows(source, part, segments=segments), "lm_head.** -> (dropped)", *(f"(fresh) -> {name}.**" for name in others), f"(fresh) -> {part}.neck.**",
    ])
