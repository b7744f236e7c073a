"""CLIP as open_clip and OpenAI name its weights, and as transformers does."""

from __future__ import annotations

from vlpkit.rows import Row, parse


def open_block(source: str, part: str) -> list[str]:
    """Rows of the layers of a tower, as OpenAI named them and open_clip does."""
    return open_layer(f"{source}transformer.resblocks.*", f"{part}.trunk.blocks.*")


def open_layer(block: str, ours: str) -> list[str]:
    """Rows of self-attention and feed-forward of one layer."""
    return [
        f"{block}.ln_1.*               -> {ours}.self.norm.*",
        f"{block}.attn.in_proj_weight  -> {ours}.self.body.qkv.weight",
        f"{block}.attn.in_proj_bias    -> {ours}.self.body.qkv.bias",
        f"{block}.attn.out_proj.*      -> {ours}.self.body.out.*",
        f"{block}.ln_2.*               -> {ours}.ffn.norm.*",
        f"{block}.mlp.c_fc.*           -> {ours}.ffn.body.fc1.*",
        f"{block}.mlp.c_proj.*         -> {ours}.ffn.body.fc2.*",
    ]


def open_image_rows(source: str, *, norm: str = "vision.trunk.norm") -> list[str]:
    """Rows of the image tower but for its projection, as OpenAI named them and open_clip does; `norm` is ours of `ln_post`."""
    return [
        f"{source}class_embedding       -> vision.embed.cls | squeeze",
        f"{source}positional_embedding  -> vision.embed.position | squeeze grid",
        f"{source}conv1.weight          -> vision.embed.proj.weight",
        f"{source}ln_pre.*              -> vision.embed.norm.*",
        *open_block(source, "vision"),
        f"{source}ln_post.*             -> {norm}.*",
    ]


def open_clip() -> list[Row]:
    """open_clip's CLIP with its text tower at the top level, and OpenAI's files, which carry three sizes beside the weights."""
    return parse([
        *open_image_rows("visual."),
        "visual.proj                  -> align.v.out.weight | transpose",
        "token_embedding.weight       -> text.embed.word.weight | words",
        "positional_embedding         -> text.embed.position.weight | cut",
        *open_block("", "text"),
        "ln_final.*                   -> text.trunk.norm.*",
        "text_projection              -> align.w.out.weight | transpose",
        "logit_scale                  -> align.log_scale",
        "attn_mask                    -> (dropped)",
        "input_resolution             -> (dropped)",
        "context_length               -> (dropped)",
        "vocab_size                   -> (dropped)",
    ])


def hf_block(source: str, part: str) -> list[str]:
    """Rows of the layers of a tower, as transformers names CLIP's and SigLIP's."""
    block, ours = f"{source}encoder.layers.*", f"{part}.trunk.blocks.*"
    return [
        f"{block}.layer_norm1.*                       -> {ours}.self.norm.*",
        f"{block}.self_attn.{{q_proj,k_proj,v_proj}}.*  -> {ours}.self.body.qkv.*",
        f"{block}.self_attn.out_proj.*                -> {ours}.self.body.out.*",
        f"{block}.layer_norm2.*                       -> {ours}.ffn.norm.*",
        f"{block}.mlp.*.*                             -> {ours}.ffn.body.*.*",
    ]


def transformers_clip() -> list[Row]:
    """transformers' CLIPModel."""
    return parse([
        "vision_model.embeddings.class_embedding            -> vision.embed.cls | squeeze",
        "vision_model.embeddings.position_embedding.weight  -> vision.embed.position | squeeze grid",
        "vision_model.embeddings.patch_embedding.weight     -> vision.embed.proj.weight",
        "vision_model.pre_layrnorm.*                        -> vision.embed.norm.*",
        *hf_block("vision_model.", "vision"),
        "vision_model.post_layernorm.*                      -> vision.trunk.norm.*",
        "visual_projection.weight                           -> align.v.out.weight",
        "text_model.embeddings.token_embedding.weight       -> text.embed.word.weight | words",
        "text_model.embeddings.position_embedding.weight    -> text.embed.position.weight | cut",
        *hf_block("text_model.", "text"),
        "text_model.final_layer_norm.*                      -> text.trunk.norm.*",
        "text_projection.weight                             -> align.w.out.weight",
        "logit_scale                                        -> align.log_scale",
        "text_model.embeddings.position_ids                 -> (dropped)",
        "vision_model.embeddings.position_ids               -> (dropped)",
    ])
