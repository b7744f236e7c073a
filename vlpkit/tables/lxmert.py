"""LXMERT's checkpoints: a stack over words, one over regions, and layers in which one cross-attention serves both directions."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import attention_rows, embedding_rows, ffn_rows, layer_rows, words_rows


def cross_layer_rows(layer: str) -> list[str]:
    """Rows of the layers over both sides; the attention across stands in the image stack and is tied into the text stack."""
    v, w = "fusion.v.blocks.*", "fusion.w.blocks.*"
    rows = [
        f"{layer}.visual_attention.att.query.*          -> {v}.cross.body.q.*",
        f"{layer}.visual_attention.att.{{key,value}}.*  -> {v}.cross.body.kv.*",
        f"{layer}.visual_attention.output.dense.*       -> {v}.cross.body.out.*",
        f"{layer}.visual_attention.output.LayerNorm.*   -> {v}.cross.norm.*",
    ]
    for theirs, ours in (("lang", w), ("visn", v)):
        self_rows = attention_rows(f"{layer}.", ours)
        rows += [row.replace(f"{layer}..attention", f"{layer}.{theirs}_self_att") for row in self_rows]
        rows += [row.replace(f"{layer}..", f"{layer}.{theirs}_").replace("_intermediate", "_inter") for row in ffn_rows(f"{layer}.", ours)]
    return rows


def lxmert(source: str = "bert.") -> list[Row]:
    """A pre-training checkpoint of LXMERT's own code; of transformers' LxmertForPreTraining with the source "lxmert."."""
    regions = f"{source}encoder.visn_fc."
    return parse([
        *embedding_rows(source, "text.embed", segments=True),
        f"{regions}visn_fc.*                           -> vision.embed.feature.*",
        f"{regions}visn_layer_norm.*                   -> vision.embed.feature_norm.*",
        f"{regions}box_fc.*                            -> vision.embed.box.*",
        f"{regions}box_layer_norm.*                    -> vision.embed.box_norm.*",
        *layer_rows(f"{source}encoder.layer.*", "text.trunk.blocks.*"),
        *layer_rows(f"{source}encoder.r_layers.*", "vision.trunk.blocks.*"),
        *cross_layer_rows(f"{source}encoder.x_layers.*"),
        f"{source}pooler.dense.*                       -> heads.itm.pool.0.dense.*",
        "cls.seq_relationship.*                        -> heads.itm.out.*",
        *words_rows("cls.predictions.", "heads.mlm"),
        "obj_predict_head.transform.dense.*            -> heads.mrc.dense.*",
        "obj_predict_head.transform.LayerNorm.*        -> heads.mrc.norm.*",
        "obj_predict_head.decoder_dict.obj.*           -> heads.mrc.out.*",
        "obj_predict_head.decoder_dict.attr.*          -> heads.mra.out.*",
        "obj_predict_head.decoder_dict.feat.weight     -> heads.mrfr.weight | transpose",
        "obj_predict_head.decoder_dict.feat.bias       -> heads.mrfr.bias",
        "answer_head.logit_fc.0.*                      -> heads.answer.dense.*",
        "answer_head.logit_fc.2.*                      -> heads.answer.norm.*",
        "answer_head.logit_fc.3.*                      -> heads.answer.out.*",
    ])
