"""SigLIP as transformers names its weights, and as open_clip does, whose image tower is timm's."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.clip import hf_block, open_block
from vlpkit.tables.timm import vit_rows


def transformers_siglip() -> list[Row]:
    """transformers' SiglipModel."""
    head = "vision_model.head"
    return parse([
        "vision_model.embeddings.patch_embedding.*           -> vision.embed.proj.*",
        "vision_model.embeddings.position_embedding.weight   -> vision.embed.position | squeeze grid",
        *hf_block("vision_model.", "vision"),
        "vision_model.post_layernorm.*                       -> vision.trunk.norm.*",
        f"{head}.probe                                       -> vision.neck.query",
        f"{head}.attention.in_proj_weight                    -> vision.neck.attention.{{q,kv}}.weight",
        f"{head}.attention.in_proj_bias                      -> vision.neck.attention.{{q,kv}}.bias",
        f"{head}.attention.out_proj.*                        -> vision.neck.attention.out.*",
        f"{head}.layernorm.*                                 -> vision.neck.ffn.norm.*",
        f"{head}.mlp.*.*                                     -> vision.neck.ffn.body.*.*",
        "text_model.embeddings.token_embedding.weight        -> text.embed.word.weight | words",
        "text_model.embeddings.position_embedding.weight     -> text.embed.position.weight",
        *hf_block("text_model.", "text"),
        "text_model.final_layer_norm.*                       -> text.trunk.norm.*",
        "text_model.head.*                                   -> align.w.out.*",
        "logit_scale                                         -> align.log_scale | one",
        "logit_bias                                          -> align.bias | one",
        "text_model.embeddings.position_ids                  -> (dropped)",
        "vision_model.embeddings.position_ids                -> (dropped)",
    ])


def open_clip_siglip() -> list[Row]:
    """open_clip's SigLIP: timm's image tower under `visual.trunk.`, its own text tower under `text.`."""
    pool = "visual.trunk.attn_pool"
    return parse([
        *vit_rows("visual.trunk.", "vision"),
        f"{pool}.latent                 -> vision.neck.query",
        f"{pool}.q.*                    -> vision.neck.attention.q.*",
        f"{pool}.kv.*                   -> vision.neck.attention.kv.*",
        f"{pool}.proj.*                 -> vision.neck.attention.out.*",
        f"{pool}.norm.*                 -> vision.neck.ffn.norm.*",
        f"{pool}.mlp.*.*                -> vision.neck.ffn.body.*.*",
        "text.token_embedding.weight    -> text.embed.word.weight | words",
        "text.positional_embedding      -> text.embed.position.weight",
        *open_block("text.", "text"),
        "text.ln_final.*                -> text.trunk.norm.*",
        "text.text_projection.*         -> align.w.out.*",
        "logit_scale                    -> align.log_scale | squeeze",
        "logit_bias                     -> align.bias | squeeze",
    ])
