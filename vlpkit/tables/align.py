"""ALIGN as transformers names its weights; its EfficientNet numbers blocks through all stages, timm's stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, stack_rows

STAGES_B0 = (1, 2, 2, 3, 3, 4, 1)     # blocks of each stage
STAGES_B7 = (4, 7, 7, 10, 10, 13, 4)


def _efficientnet(source: str, net: str, stages: Sequence[int]) -> list[str]:
    rows = [f"{source}embeddings.convolution.weight -> {net}.conv_stem.weight", f"{source}embeddings.batchnorm.* -> {net}.bn1.*"]
    places = [(stage, i) for stage, count in enumerate(stages) for i in range(count)]
    for number, (stage, i) in enumerate(places):
        theirs, ours = f"{source}encoder.blocks.{number}", f"{net}.blocks.{stage}.{i}"
        # only later stages widen their channels before the depthwise convolution, and timm counts norms from the first there is
        widen = stage > 0
        depth, out, project = ("bn2", "bn3", "conv_pwl") if widen else ("bn1", "bn2", "conv_pw")
        rows += [f"{theirs}.expansion.expand_conv.* -> {ours}.conv_pw.*", f"{theirs}.expansion.expand_bn.* -> {ours}.bn1.*"] if widen else []
        rows += [
            f"{theirs}.depthwise_conv.depthwise_conv.*  -> {ours}.conv_dw.*",
            f"{theirs}.depthwise_conv.depthwise_norm.*  -> {ours}.{depth}.*",
            f"{theirs}.squeeze_excite.reduce.*          -> {ours}.se.conv_reduce.*",
            f"{theirs}.squeeze_excite.expand.*          -> {ours}.se.conv_expand.*",
            f"{theirs}.projection.project_conv.*        -> {ours}.{project}.*",
            f"{theirs}.projection.project_bn.*          -> {ours}.{out}.*",
        ]
    return rows


def transformers_align(*, stages: Sequence[int] = STAGES_B7, segments: bool = False) -> list[Row]:
    """transformers' AlignModel (kakaobrain/align-base).

    Args:
        stages: blocks of each stage of its EfficientNet.
        segments: whether our embedding keeps the token types.
    """
    return parse([
        *_efficientnet("vision_model.", "vision.embed.net", stages),
        *embedding_rows("text_model.", "text.embed", segments=segments),
        *stack_rows("text_model.", lower=None),
        "text_model.embeddings.token_type_ids  -> (dropped)",
        "text_model.pooler.**                  -> (dropped)",
        "text_projection.*                     -> align.w.out.*",
        "temperature                           -> align.temperature",
    ])
