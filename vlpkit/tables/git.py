"""GIT as transformers names its weights: a CLIP image encoder, a bridge, and BERT layers over image and words."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import attention_rows, embedding_rows, ffn_rows
from vlpkit.tables.clip import hf_block


def transformers_git() -> list[Row]:
    """transformers' GitForCausalLM; the output table is the word table and stands in files under both names, or under one."""
    image, layer, ours = "git.image_encoder.vision_model.", "git.encoder.layer.*", "fusion.joint.trunk.blocks.*"
    return parse([
        f"{image}embeddings.class_embedding            -> vision.embed.cls | squeeze",
        f"{image}embeddings.position_embedding.weight  -> vision.embed.position | squeeze grid",
        f"{image}embeddings.patch_embedding.weight     -> vision.embed.proj.weight",
        f"{image}embeddings.position_ids               -> (dropped)",
        f"{image}pre_layrnorm.*                        -> vision.embed.norm.*",
        *hf_block(image, "vision"),
        f"{image}post_layernorm.*                      -> vision.trunk.norm.*",
        "git.visual_projection.visual_projection.0.*   -> vision.neck.out.*",
        "git.visual_projection.visual_projection.1.*   -> vision.neck.norm.*",
        *embedding_rows("git.", "text.embed", segments=False),
        *attention_rows(layer, ours), *ffn_rows(layer, ours),
        "output.weight                                 -> heads.lm.out.weight",
        "git.img_temperal_embedding.*                  -> (dropped)",   # of the frames of a video, which are not read here
        "output.bias                                   -> heads.lm.out.bias",
    ])
