"""UNITER's checkpoints: one BERT over words and regions; its image embedding, its heads for words, regions and matching."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, layer_rows, words_rows


def uniter(*, features: str = "heads.mrfr", classes: str = "heads.mrc", words: str = "heads.mlm", match: str = "heads.itm") -> list[Row]:
    """A pre-training checkpoint of UNITER's own code; of the region heads, `classes` serves the hard and the soft labels alike."""
    image = "uniter.img_embeddings."
    return parse([
        *embedding_rows("uniter.", "text.embed", segments=True),
        f"{image}img_linear.*             -> vision.embed.feature.*",
        f"{image}img_layer_norm.*         -> vision.embed.feature_norm.*",
        f"{image}pos_linear.*             -> vision.embed.box.*",
        f"{image}pos_layer_norm.*         -> vision.embed.box_norm.*",
        f"{image}mask_embedding.weight    -> vision.embed.hide.weight",
        f"{image}LayerNorm.*              -> vision.embed.norm.*",
        *layer_rows("uniter.encoder.layer.*", "fusion.joint.trunk.blocks.*"),
        f"uniter.pooler.dense.*           -> {match}.pool.0.dense.*",
        f"itm_output.*                    -> {match}.out.*",
        *words_rows("cls.predictions.", words),
        f"feat_regress.net.0.*            -> {features}.dense.*",
        f"feat_regress.net.2.*            -> {features}.norm.*",
        f"feat_regress.weight             -> {features}.weight",
        f"feat_regress.bias               -> {features}.bias",
        f"region_classifier.net.0.*       -> {classes}.dense.*",
        f"region_classifier.net.2.*       -> {classes}.norm.*",
        f"region_classifier.net.3.*       -> {classes}.out.*",
    ])
