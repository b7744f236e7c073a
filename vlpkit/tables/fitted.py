"""Tables that depend on the model and on the file: which parts there are, how many blocks, which heads a file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from vlpkit.rows import DROPPED, FRESH, Row, match
from vlpkit.tables.albef import albef
from vlpkit.tables.align import transformers_align
from vlpkit.tables.beit3 import beit3
from vlpkit.tables.bert import bert, bert_merged
from vlpkit.tables.coca import open_clip_coca
from vlpkit.tables.gpt2 import transformers_gpt2
from vlpkit.tables.meter import roberta
from vlpkit.tables.timm import vit


def _depth(ours: Collection[str], part: str) -> int:
    """Blocks of a part's trunk, or of a trunk of a fusion."""
    trunk = part if "." in part else f"{part}.trunk"
    return 1 + max((int(found.stars[0]) for name in ours if (found := match(f"{trunk}.blocks.*.**", name)) and found.stars[0].isdigit()), default=-1)


def albef_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """The lower layers are as many as our text part has, the others the fusion."""
    return albef(lower=_depth(ours, "text"))


def beit3_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """Released files hold the trunk, and with it the head of words, that of contrast, or neither; a recipe asks for some of them."""
    parts = {name.partition(".")[0] for name in ours}
    rows = [row for row in beit3(head="mlm_head.weight" in theirs) if row.source == FRESH or any(match(row.source, key) for key in theirs)]
    rows = [row if row.target == DROPPED or row.target.partition(".")[0] in parts else Row(row.source, DROPPED) for row in rows]
    rows = [row for row in rows if row.source != FRESH or row.target.partition(".")[0] in parts]
    heads = dict.fromkeys(".".join(name.split(".")[:2]) for name in ours if name.startswith("heads."))
    more = [f"{name}.**" for name in heads if name != "heads.mlm"] if "mlm_head.weight" in theirs else []
    more += ["align.**"] if "align" in parts and "vision_head.weight" not in theirs else []
    return [*rows, *(Row(FRESH, name) for name in more)]


def coca_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """How its pools are written, the file tells."""
    return open_clip_coca(split="visual.attn_pool.attn.q_proj_weight" in theirs, cascade="visual.attn_pool_contrastive.query" in theirs)


def bert_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """A BERT as a text part, with the fusion that its upper half is or the decoder that reads as it does, or as one stack over words and regions."""
    source = "bert." if any(key.startswith("bert.") for key in theirs) else ""
    crossed = any(match("text.trunk.blocks.*.cross.**", name) for name in ours)
    upper = not crossed and any(match("fusion.w.blocks.*.self.**", name) for name in ours)
    speaks = crossed and "decoder.w.blocks.0.self.norm.weight" in ours and "decoder.w.norm.weight" not in ours and _depth(ours, "text") == _depth(ours, "decoder.w")
    segments, head = "text.embed.segment.weight" in ours, _words_head(ours, speaks)
    # One stack over words and regions with norms behind the residuals is BERT itself; its pool, where there is one, reads the first word.
    if _depth(ours, "text") == 0 and any(match("fusion.joint.trunk.blocks.*.self.norm.**", name) for name in ours) and "fusion.joint.trunk.norm.weight" not in ours:
        pool = "heads.itm.pool.0" if "heads.itm.pool.0.dense.weight" in ours and any(key.startswith(f"{source}pooler.") for key in theirs) else None
        visual = {"vision.embed.position.weight", "vision.embed.segment.weight"} <= set(ours)
        rows = bert_merged(source=source, head=head, pool=pool, segments=segments, visual=visual)
    else:
        rows = bert(source=source, lower=_depth(ours, "text") if upper else None, segments=segments, head=head, decoder="decoder" if speaks else None)
    if head:   # the other heads, and all of them where the file has none
        headless = not any(key.startswith("cls.predictions.transform.") for key in theirs)
        heads = dict.fromkeys(".".join(name.split(".")[:2]) for name in ours if name.startswith("heads."))
        rows += [Row(FRESH, f"{name}.**") for name in heads if headless or name != head]
        rows = [row for row in rows if row != Row(FRESH, "heads.**")]
    return [*_old_norms(rows), *rows]


def _words_head(ours: Collection[str], speaks: bool) -> str | None:
    """Where BERT's own head of words goes: to masked words, or to a decoder's next ones, which start from it, too (Li et al. 2022)."""
    if any(name.startswith("heads.mlm.") for name in ours):
        return "heads.mlm"
    return "heads.lm" if speaks and "heads.lm.dense.weight" in ours else None


def _old_norms(rows: Iterable[Row]) -> list[Row]:
    """BERT's first files call the weight of a norm gamma and its bias beta."""
    norms = [row for row in rows if row.source.endswith("LayerNorm.*")]
    words = (("gamma", "weight"), ("beta", "bias"))
    return [Row(f"{row.source[:-1]}{old}", f"{row.target[:-1]}{new}" if row.target != DROPPED else DROPPED, row.transform) for row in norms for old, new in words]


def align_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """Its convolutions count blocks through all stages; how many a stage has, our network tells."""
    blocks = {found.stars[:2] for name in ours if (found := match("vision.embed.net.blocks.*.*.**", name))}
    stages = Counter(int(stage) for stage, _ in blocks)
    return transformers_align(stages=[stages[stage] for stage in sorted(stages)], segments="text.embed.segment.weight" in ours)


def gpt2_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """The language model alone, or with its output table."""
    return transformers_gpt2(source="transformer." if any(key.startswith("transformer.") for key in theirs) else "")


def roberta_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """A RoBERTa as a text part whose positions count from 0."""
    return roberta(source="roberta." if any(key.startswith("roberta.") for key in theirs) else "", segments="text.embed.segment.weight" in ours)


def vit_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """Its blocks are those of the image side, or of one stack over patches and words."""
    joint = "fusion.joint.trunk"   # where the image side has no blocks of its own and the shared ones have their norms before, they are a ViT's
    shared = _depth(ours, "vision") == 0 and "vision.embed.cls" in ours and f"{joint}.norm.weight" in ours
    return vit(trunk=joint if shared else "")


def own_for(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """Our own names are our own names."""
    parts = dict.fromkeys(name.partition(".")[0] for name in ours)
    return [Row(f"{part}.**", f"{part}.**") for part in parts]
