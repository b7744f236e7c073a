"""Vision transformers as timm names their weights; ALBEF, BLIP and DeiT use the same names."""

from __future__ import annotations

from vlpkit.rows import Row, parse


def vit_rows(source: str, part: str, *, trunk: str = "") -> list[str]:
    """Rows of a ViT whose keys start with `source` (with its dot, or ""), into the part `part`; `trunk`: where its blocks go, if elsewhere."""
    trunk = trunk or f"{part}.trunk"
    block = f"{source}blocks.*"
    ours = f"{trunk}.blocks.*"
    return [
        f"{source}cls_token            -> {part}.embed.cls",
        f"{source}pos_embed            -> {part}.embed.position | grid",
        f"{source}patch_embed.proj.*   -> {part}.embed.proj.*",
        f"{block}.norm1.*              -> {ours}.self.norm.*",
        f"{block}.attn.qkv.*           -> {ours}.self.body.qkv.*",
        f"{block}.attn.proj.*          -> {ours}.self.body.out.*",
        f"{block}.norm2.*              -> {ours}.ffn.norm.*",
        f"{block}.mlp.*.*              -> {ours}.ffn.body.*.*",
        f"{source}norm.*               -> {trunk}.norm.*",
    ]


def vit(part: str = "vision", *, trunk: str = "") -> list[Row]:
    """A timm VisionTransformer (DeiT's file too); its classifier is dropped, everything outside `part` stays fresh.

    With `trunk` the blocks go there, as ViLT starts: one ViT that is to read patches and words; the vector of its side is then fresh, too.
    """
    others = [name for name in ("vision", "text", "fusion", "decoder", "align", "heads") if name != part]
    return parse([*vit_rows("", part, trunk=trunk), "head.** -> (dropped)", *(f"(fresh) -> {name}.**" for name in others), *([f"(fresh) -> {part}.embed.side"] if trunk else [])])
