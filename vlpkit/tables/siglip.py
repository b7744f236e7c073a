"""SigLIP as transformers names its weights, and as open_clip does, whose image tower is timm's."""

from __future__ import annotations

from vlpkit.weights import Row, parse


def _hf_block(source: str, part: str) -> list[str]:
    block, ours = f"{source}encoder.layers.*", f"{part}.trunk.blocks.*"
    return [
        f"{block}.layer_norm1.*                       -> {ours}.self.norm.*",
        f"{block}.self_attn.{{q_proj,k_proj,v_proj}}.*  -> {ours}.self.body.qkv.*",
        f"{block}.self_attn.out_proj.*                -> {ours}.self.body.out.*",
        f"{block}.layer_norm2.*                       -> {ours}.ffn.norm.*",
        f"{block}.mlp.*.*                             -> {ours}.ffn.body.*.*",
    ]


def transformers_siglip() -> list[Row]:
    """transformers' SiglipModel."""
    head = "vision_model.head"
    return parse([
        "vision_model.embeddings.patch_embedding.*           -> vision.embed.proj.*",
        "vision_model.embeddings.position_embedding.weight   -> vision.embed.position | squeeze",
        *_hf_block("vision_model.", "vision"),
        "vision_model.post_layernorm.*                       -> vision.trunk.norm.*",
        f"{head}.probe                                       -> vision.neck.query",
        f"{head}.attention.in_proj_weight                    -> vision.neck.attention.{{q,kv}}.weight",
        f"{head}.attention.in_proj_bias                      -> vision.neck.attention.{{q,kv}}.bias",
        f"{head}.attention.out_proj.*                        -> vision.neck.attention.out.*",
        f"{head}.layernorm.*                                 -> vision.neck.ffn.norm.*",
        f"{head}.mlp.*.*                                     -> vision.neck.ffn.body.*.*",
        "text_model.embeddings.token_embedding.weight        -> text.embed.word.weight",
        "text_model.embeddings.position_embedding.weight     -> text.embed.position.weight",
        *_hf_block("text_model.", "text"),
        "text_model.final_layer_norm.*                       -> text.trunk.norm.*",
        "text_model.head.*                                   -> align.w.out.*",
        "logit_scale                                         -> align.log_scale | squeeze",
        "logit_bias                                          -> align.bias | squeeze",
        "text_model.embeddings.position_ids                  -> (dropped)",
        "vision_model.embeddings.position_ids                -> (dropped)",
    ])


def open_clip_siglip() -> list[Row]:
    """open_clip's SigLIP: timm's image tower under `visual.trunk.`, its own text tower under `text.`."""
    trunk, pool, block, theirs = "visual.trunk", "visual.trunk.attn_pool", "visual.trunk.blocks.*", "text.transformer.resblocks.*"
    v, w = "vision.trunk.blocks.*", "text.trunk.blocks.*"
    return parse([
        f"{trunk}.patch_embed.proj.*    -> vision.embed.proj.*",
        f"{trunk}.pos_embed             -> vision.embed.position",
        f"{block}.norm1.*               -> {v}.self.norm.*",
        f"{block}.attn.qkv.*            -> {v}.self.body.qkv.*",
        f"{block}.attn.proj.*           -> {v}.self.body.out.*",
        f"{block}.norm2.*               -> {v}.ffn.norm.*",
        f"{block}.mlp.*.*               -> {v}.ffn.body.*.*",
        f"{trunk}.norm.*                -> vision.trunk.norm.*",
        f"{pool}.latent                 -> vision.neck.query",
        f"{pool}.q.*                    -> vision.neck.attention.q.*",
        f"{pool}.kv.*                   -> vision.neck.attention.kv.*",
        f"{pool}.proj.*                 -> vision.neck.attention.out.*",
        f"{pool}.norm.*                 -> vision.neck.ffn.norm.*",
        f"{pool}.mlp.*.*                -> vision.neck.ffn.body.*.*",
        "text.token_embedding.weight    -> text.embed.word.weight",
        "text.positional_embedding      -> text.embed.position.weight",
        f"{theirs}.ln_1.*               -> {w}.self.norm.*",
        f"{theirs}.attn.in_proj_weight  -> {w}.self.body.qkv.weight",
        f"{theirs}.attn.in_proj_bias    -> {w}.self.body.qkv.bias",
        f"{theirs}.attn.out_proj.*      -> {w}.self.body.out.*",
        f"{theirs}.ln_2.*               -> {w}.ffn.norm.*",
        f"{theirs}.mlp.c_fc.*           -> {w}.ffn.body.fc1.*",
        f"{theirs}.mlp.c_proj.*         -> {w}.ffn.body.fc2.*",
        "text.ln_final.*                -> text.trunk.norm.*",
        "text.text_projection.*         -> align.w.out.*",
        "logit_scale                    -> align.log_scale | squeeze",
        "logit_bias                     -> align.bias | squeeze",
    ])
