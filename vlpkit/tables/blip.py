"""BLIP's own checkpoints (key `model` of the file) and transformers' BLIP: one text stack as encoder, matcher and captioner."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.albef import NO_QUEUE, QUEUE
from vlpkit.tables.bert import embedding_rows, layer_rows, words_rows
from vlpkit.tables.timm import vit_rows


def _encoder(text: str, m: str, to: str) -> list[str]:
    return [
        *embedding_rows(text, f"{to}text.embed", segments=False),
        *layer_rows(f"{text}encoder.layer.*", f"{to}text.trunk.blocks.*"),
        f"vision_proj{m}.*  -> {to}align.v.out.*",
        f"text_proj{m}.*    -> {to}align.w.out.*",
    ]


def _decoder(text: str = "text.embed") -> list[str]:
    # what encoder and decoder share stands in the file twice and must be equal: it is one tensor here
    return [
        *embedding_rows("text_decoder.bert.", text, segments=False),
        *layer_rows("text_decoder.bert.encoder.layer.*", "decoder.w.blocks.*"),
        *words_rows("text_decoder.cls.predictions.", "heads.lm"),
    ]


def blip(*, whole: bool = False) -> list[Row]:
    """A pre-training checkpoint of BLIP's own code.

    Args:
        whole: also the twins (`teacher.*`) and the queue (`objectives.itc.queue.*`); else both are dropped.
    """
    twins = ["visual_encoder_m.** -> (dropped)", "text_encoder_m.** -> (dropped)", "vision_proj_m.* -> (dropped)", "text_proj_m.* -> (dropped)"]
    momentum = [*vit_rows("visual_encoder_m.", "teacher.vision"), *_encoder("text_encoder_m.", "_m", "teacher."), "(fresh) -> teacher.align.temperature", *QUEUE]
    return parse([
        *vit_rows("visual_encoder.", "vision"), *_encoder("text_encoder.", "", ""), *_decoder(),
        "itm_head.* -> heads.itm.out.*", "temp -> align.temperature", *(momentum if whole else [*twins, *NO_QUEUE]),
    ])


def _hf_vision() -> list[str]:
    block, ours = "vision_model.encoder.layers.*", "vision.trunk.blocks.*"
    return [
        "vision_model.embeddings.class_embedding     -> vision.embed.cls",
        "vision_model.embeddings.position_embedding  -> vision.embed.position | grid",
        "vision_model.embeddings.patch_embedding.*   -> vision.embed.proj.*",
        f"{block}.layer_norm1.*                      -> {ours}.self.norm.*",
        f"{block}.self_attn.qkv.*                    -> {ours}.self.body.qkv.*",
        f"{block}.self_attn.projection.*             -> {ours}.self.body.out.*",
        f"{block}.layer_norm2.*                      -> {ours}.ffn.norm.*",
        f"{block}.mlp.*.*                            -> {ours}.ffn.body.*.*",
        "vision_model.post_layernorm.*               -> vision.trunk.norm.*",
    ]


def transformers_blip_retrieval() -> list[Row]:
    """transformers' BlipForImageTextRetrieval: both encoders, the matcher, no decoder and no temperature."""
    return parse([
        *_hf_vision(), *_encoder("text_encoder.", "", ""), "itm_head.* -> heads.itm.out.*", "text_encoder.pooler.** -> (dropped)",
        "(fresh) -> decoder.**", "(fresh) -> heads.lm.**", "(fresh) -> align.temperature",
    ])


def transformers_blip_captioning() -> list[Row]:
    """transformers' BlipForConditionalGeneration: image encoder and decoder; the matcher's own self-attention stays fresh."""
    return parse([
        *_hf_vision(), *_decoder(), "(fresh) -> text.trunk.blocks.*.self.**", "(fresh) -> align.**", "(fresh) -> heads.itm.**",
    ])
