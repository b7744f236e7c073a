"""CoCa as open_clip names its weights."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.clip import open_block, open_image_rows, open_layer


def _pool(source: str, ours: str, *, split: bool) -> list[str]:
    """Rows of learned queries; where they are as wide as what they read, torch's attention keeps its three projections as one."""
    projections = [
        f"{source}.attn.q_proj_weight           -> {ours}.attention.q.weight",
        f"{source}.attn.{{k_proj_weight,v_proj_weight}}  -> {ours}.attention.kv.weight",
    ] if split else [f"{source}.attn.in_proj_weight     -> {ours}.attention.{{q,kv}}.weight"]
    return [
        f"{source}.query                        -> {ours}.query | squeeze",
        f"{source}.ln_q.*                       -> {ours}.norm_query.*",
        f"{source}.ln_k.*                       -> {ours}.norm_memory.*",
        *projections,
        f"{source}.attn.in_proj_bias            -> {ours}.attention.{{q,kv}}.bias",
        f"{source}.attn.out_proj.*              -> {ours}.attention.out.*",
    ]


def open_clip_coca(*, split: bool = True, cascade: bool = False) -> list[Row]:
    """open_clip's CoCa.

    Args:
        split: whether queries and what they read differ in width, and the file has a projection for each.
        cascade: whether a second pool reads the first (vision=vit_cascade); without, the first of its queries stands for the image.
    """
    block, cross, ours = "text_decoder.resblocks.*", "text_decoder.cross_attn.*", "decoder.w.blocks.*"
    if cascade:
        pools = [*_pool("visual.attn_pool", "vision.neck.necks.0", split=split), *_pool("visual.attn_pool_contrastive", "vision.neck.necks.1", split=split)]
    else:
        pools = _pool("visual.attn_pool", "vision.neck", split=split)
    return parse([
        *pools,
        *open_image_rows("visual.", norm="vision.trunk.norm" if cascade else "vision.neck.norm"),
        "visual.proj                      -> align.v.out.weight | transpose",
        "text.token_embedding.weight      -> text.embed.word.weight | words",
        "text.positional_embedding        -> text.embed.position.weight | cut before last",
        "text.cls_emb                     -> text.embed.cls | squeeze",
        *open_block("text.", "text"),
        "text.ln_final.*                  -> text.trunk.norm.*",
        "text.text_projection             -> align.w.out.weight | transpose",
        *open_layer(block, ours),
        f"{cross}.ln_1.*                  -> {ours}.cross.norm.*",
        f"{cross}.ln_1_kv.*               -> {ours}.cross.body.norm_memory.*",
        f"{cross}.attn.in_proj_weight     -> {ours}.cross.body.{{q,kv}}.weight",
        f"{cross}.attn.in_proj_bias       -> {ours}.cross.body.{{q,kv}}.bias",
        f"{cross}.attn.out_proj.*         -> {ours}.cross.body.out.*",
        f"{cross}.ln_2.*                  -> {ours}.ffn2.norm.*",
        f"{cross}.mlp.c_fc.*              -> {ours}.ffn2.body.fc1.*",
        f"{cross}.mlp.c_proj.*            -> {ours}.ffn2.body.fc2.*",
        "text_decoder.ln_final.*          -> decoder.w.norm.*",
        "text_decoder.text_projection     -> heads.lm.out.weight | transpose words",
        "logit_scale                      -> align.log_scale",
    ])
