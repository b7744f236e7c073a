"""BEiT-3's released weights: every module twice, A for images and B for words; positions counted from 2."""

from __future__ import annotations

from vlpkit.rows import Row, parse

_SIDES = {"A": "v", "B": "w"}


def beit3(*, head: bool = False) -> list[Row]:
    """A released checkpoint, with the two heads of image-text contrast.

    Args:
        head: whether the file holds the head of masked words (`mlm_head`), and not only the trunk.
    """
    theirs, ours = "beit3.encoder.layers.*", "vision.trunk.blocks.*"
    rows = [
        row for a, side in _SIDES.items()
        for row in (
            f"{theirs}.self_attn.{{q_proj,k_proj,v_proj}}.{a}.weight -> {ours}.self.body.qkv.{side}.weight",
            f"{theirs}.self_attn.{{q_proj,k_proj,v_proj}}.{a}.bias   -> {ours}.self.body.qkv.{side}.bias",
            f"{theirs}.self_attn.out_proj.{a}.*         -> {ours}.self.body.out.{side}.*",
            f"{theirs}.self_attn.inner_attn_ln.{a}.*    -> {ours}.self.body.inner.{side}.*",
            f"{theirs}.self_attn_layer_norm.{a}.*       -> {ours}.self.norm.{side}.*",
            f"{theirs}.ffn.{a}.fc1.*                    -> {ours}.ffn.body.{side}.fc1.*",
            f"{theirs}.ffn.{a}.fc2.*                    -> {ours}.ffn.body.{side}.fc2.*",
            f"{theirs}.ffn.{a}.ffn_layernorm.*          -> {ours}.ffn.body.{side}.inner.*",
            f"{theirs}.final_layer_norm.{a}.*           -> {ours}.ffn.norm.{side}.*",
            f"beit3.encoder.layer_norm.{a}.*            -> vision.trunk.norm.{side}.*",
        )
    ]
    return parse([
        "beit3.text_embed.weight                 -> text.embed.word.weight | words",
        "beit3.vision_embed.mask_token           -> vision.embed.hole | squeeze",
        "beit3.vision_embed.cls_token            -> vision.embed.cls",
        "beit3.vision_embed.proj.*               -> vision.embed.proj.*",
        "beit3.encoder.embed_positions.A.weight  -> vision.embed.position | from 2, squeeze",
        "beit3.encoder.embed_positions.B.weight  -> text.embed.position.weight | from 2",
        *rows,
        "vision_head.weight                      -> align.v.out.weight",
        "language_head.weight                    -> align.w.out.weight",
        "logit_scale                             -> align.log_scale",
        *(["mlm_head.* -> heads.mlm.out.*", "(fresh) -> heads.mlm.{dense,norm}.*"] if head else ["(fresh) -> heads.**"]),
        "(fresh) -> codebook.**",
    ])
