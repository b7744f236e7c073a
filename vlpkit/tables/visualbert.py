"""VisualBERT's checkpoints as transformers names them: one BERT over words and regions, its visual tables, its heads for words and matching."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, layer_rows, words_rows


def transformers_visualbert(*, words: str = "heads.mlm", match: str = "heads.itm") -> list[Row]:
    """transformers' VisualBertForPreTraining; class 1 of its match head is the caption of the same image, as in ours."""
    embeddings = "visual_bert.embeddings."
    return parse([
        *embedding_rows("visual_bert.", "text.embed", segments=True),
        f"{embeddings}visual_projection.*                   -> vision.embed.feature.*",
        f"{embeddings}visual_position_embeddings.weight     -> vision.embed.position.weight",
        f"{embeddings}visual_token_type_embeddings.weight   -> vision.embed.segment.weight",
        *layer_rows("visual_bert.encoder.layer.*", "fusion.joint.trunk.blocks.*"),
        f"visual_bert.pooler.dense.*  -> {match}.pool.0.dense.*",
        f"cls.seq_relationship.*      -> {match}.out.*",
        *words_rows("cls.predictions.", words),
    ])
