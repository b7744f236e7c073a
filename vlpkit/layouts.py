"""The files of weights that are known: how each is recognised by its keys, which recipe it was made for, and the table that reads it.
A new layout is one row of LAYOUTS."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vlpkit.errors import WeightsError, did_you_mean
from vlpkit.tables.albef import albef
from vlpkit.tables.beit3 import beit3
from vlpkit.tables.bert import bert, bert_merged
from vlpkit.tables.blip import blip, transformers_blip_captioning, transformers_blip_retrieval
from vlpkit.tables.clip import open_clip, transformers_clip
from vlpkit.tables.coca import open_clip_coca
from vlpkit.tables.lxmert import lxmert
from vlpkit.tables.meter import meter
from vlpkit.tables.siglip import open_clip_siglip, transformers_siglip
from vlpkit.tables.timm import vit
from vlpkit.tables.uniter import uniter
from vlpkit.tables.vilt import transformers_vilt, vilt
from vlpkit.tables.visualbert import transformers_visualbert
from vlpkit.tables.vlmo import vlmo
from vlpkit.weights import DROPPED, FRESH, Row, match

_SHOWN = 6


@dataclass(frozen=True)
class Layout:
    """One family of files.

    Args:
        name: what `--layout` calls it.
        about: whose files these are, and the recipe that takes them whole.
        marks: patterns of keys; a file is of this layout when each matches a key of it.
        table: rows, from our addresses and the keys of the file.
        never: patterns of which none may match.
        brings: parts that come along when a file is asked for one part: the upper half of a BERT is the fusion of an ALBEF.
    """

    name: str
    about: str
    marks: tuple[str, ...]
    table: Callable[[Collection[str], Collection[str]], list[Row]]
    never: tuple[str, ...] = ()
    brings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def recognises(self, keys: Iterable[str]) -> bool:
        """Whether a file with these keys is of this layout."""
        keys = list(keys)
        return all(any(match(mark, key) for key in keys) for mark in self.marks) and not any(match(mark, key) for mark in self.never for key in keys)

    def rows(self, ours: Collection[str], theirs: Collection[str], part: str | None = None) -> list[Row]:
        """The table for one model and one file.

        Args:
            ours: addresses of the model.
            theirs: keys of the file.
            part: fill this part of ours, with what the layout brings along, and drop the rest of the file; None: the whole model.
        """
        rows = self.table(ours, theirs)
        return rows if part is None else _only(rows, (part, *self.brings.get(part, ())), ours)


def _only(rows: Iterable[Row], parts: Collection[str], ours: Collection[str]) -> list[Row]:
    kept = [row if row.target == DROPPED or row.target.partition(".")[0] in parts else Row(row.source, DROPPED) for row in rows if row.source != FRESH]
    fresh = [row for row in rows if row.source == FRESH and row.target.partition(".")[0] in parts]
    others = dict.fromkeys(name.partition(".")[0] for name in ours)
    return [*kept, Row("**", DROPPED), *fresh, *(Row(FRESH, f"{name}.**") for name in others if name not in parts)]


def _depth(ours: Collection[str], part: str) -> int:
    """Blocks of a part's trunk."""
    return 1 + max((int(found.stars[0]) for name in ours if (found := match(f"{part}.trunk.blocks.*.**", name)) and found.stars[0].isdigit()), default=-1)


def _albef(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    return albef(lower=_depth(ours, "text"))


def _beit3(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    """Released files hold the trunk, and with it the head of words, that of contrast, or neither; a recipe asks for some of them."""
    parts = {name.partition(".")[0] for name in ours}
    rows = [row for row in beit3(head="mlm_head.weight" in theirs) if row.source == FRESH or any(match(row.source, key) for key in theirs)]
    rows = [row if row.target == DROPPED or row.target.partition(".")[0] in parts else Row(row.source, DROPPED) for row in rows]
    rows = [row for row in rows if row.source != FRESH or row.target.partition(".")[0] in parts]
    heads = dict.fromkeys(".".join(name.split(".")[:2]) for name in ours if name.startswith("heads."))
    more = [f"{name}.**" for name in heads if name != "heads.mlm"] if "mlm_head.weight" in theirs else []
    more += ["align.**"] if "align" in parts and "vision_head.weight" not in theirs else []
    return [*rows, *(Row(FRESH, name) for name in more)]


def _coca(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    return open_clip_coca(split="visual.attn_pool.attn.q_proj_weight" in theirs, cascade="visual.attn_pool_contrastive.query" in theirs)


def _bert(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    source = "bert." if any(key.startswith("bert.") for key in theirs) else ""
    upper = any(match("fusion.w.blocks.*.self.**", name) for name in ours) and not any(match("text.trunk.blocks.*.cross.**", name) for name in ours)
    segments, head = "text.embed.segment.weight" in ours, "heads.mlm" if any(name.startswith("heads.mlm.") for name in ours) else None
    # One stack over words and regions with norms behind the residuals is BERT itself; its pool, where there is one, reads the first word.
    if _depth(ours, "text") == 0 and any(match("fusion.joint.trunk.blocks.*.self.norm.**", name) for name in ours) and "fusion.joint.trunk.norm.weight" not in ours:
        pool = "heads.itm.pool.0" if "heads.itm.pool.0.dense.weight" in ours and any(key.startswith(f"{source}pooler.") for key in theirs) else None
        visual = {"vision.embed.position.weight", "vision.embed.segment.weight"} <= set(ours)
        rows = bert_merged(source=source, head=head, pool=pool, segments=segments, visual=visual)
    else:
        rows = bert(source=source, lower=_depth(ours, "text") if upper else None, segments=segments, head=head)
    if any(name.startswith("heads.mlm.") for name in ours):   # the other heads, and all of them where the file has none
        headless = not any(key.startswith("cls.predictions.transform.") for key in theirs)
        heads = dict.fromkeys(".".join(name.split(".")[:2]) for name in ours if name.startswith("heads."))
        rows += [Row(FRESH, f"{name}.**") for name in heads if headless or name != "heads.mlm"]
        rows = [row for row in rows if row != Row(FRESH, "heads.**")]
    return [*_old_norms(rows), *rows]


def _old_norms(rows: Iterable[Row]) -> list[Row]:
    """BERT's first files call the weight of a norm gamma and its bias beta."""
    norms = [row for row in rows if row.source.endswith("LayerNorm.*")]
    words = (("gamma", "weight"), ("beta", "bias"))
    return [Row(f"{row.source[:-1]}{old}", f"{row.target[:-1]}{new}" if row.target != DROPPED else DROPPED) for row in norms for old, new in words]


def _vit(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    joint = "fusion.joint.trunk"   # where the image side has no blocks of its own and the shared ones have their norms before, they are a ViT's
    shared = _depth(ours, "vision") == 0 and "vision.embed.cls" in ours and f"{joint}.norm.weight" in ours
    return vit(trunk=joint if shared else "")


def _own(ours: Collection[str], theirs: Collection[str]) -> list[Row]:
    parts = dict.fromkeys(name.partition(".")[0] for name in ours)
    return [Row(f"{part}.**", f"{part}.**") for part in parts]


# Runs and folders of vlpkit itself are known by what stands beside their weights, not by their keys.
OWN = Layout("vlpkit", "runs and folders of vlpkit", (), _own)

LAYOUTS = (
    Layout(
        "open_clip", "CLIP of open_clip and OpenAI, for model=clip", ("visual.class_embedding", "token_embedding.weight", "transformer.resblocks.*.attn.in_proj_weight"),
        lambda ours, theirs: open_clip(),
    ),
    Layout(
        "transformers_clip", "transformers' CLIPModel, for model=clip", ("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"),
        lambda ours, theirs: transformers_clip(),
    ),
    Layout(
        "open_clip_coca", "CoCa of open_clip, for model=coca (released weights: model.text.embed.cls=last_shifted)",
        ("visual.attn_pool.query", "text.cls_emb", "text_decoder.cross_attn.*.attn.in_proj_weight"), _coca, brings={"text": ("decoder", "heads")},
    ),
    Layout(
        "open_clip_siglip", "SigLIP of open_clip, for model=siglip", ("visual.trunk.attn_pool.latent", "text.token_embedding.weight", "logit_bias"),
        lambda ours, theirs: open_clip_siglip(),
    ),
    Layout(
        "transformers_siglip", "transformers' SiglipModel, for model=siglip", ("vision_model.head.probe", "text_model.embeddings.token_embedding.weight"),
        lambda ours, theirs: transformers_siglip(),
    ),
    Layout(
        "albef", "ALBEF's pre-training checkpoints, for model=albef", ("visual_encoder.cls_token", "text_encoder.bert.embeddings.word_embeddings.weight"), _albef,
        brings={"text": ("fusion", "heads")},
    ),
    Layout(
        "blip", "BLIP's pre-training checkpoints, for model=blip",
        ("visual_encoder.cls_token", "text_encoder.embeddings.word_embeddings.weight", "text_decoder.bert.embeddings.word_embeddings.weight"),
        lambda ours, theirs: blip(), brings={"text": ("decoder", "heads")},
    ),
    Layout(
        "transformers_blip", "transformers' BlipForImageTextRetrieval, for model=blip",
        ("vision_model.embeddings.class_embedding", "text_encoder.embeddings.word_embeddings.weight", "itm_head.weight"), lambda ours, theirs: transformers_blip_retrieval(),
    ),
    Layout(
        "transformers_blip_captioning", "transformers' BlipForConditionalGeneration, for model=blip",
        ("vision_model.embeddings.class_embedding", "text_decoder.bert.embeddings.word_embeddings.weight"), lambda ours, theirs: transformers_blip_captioning(),
        never=("text_encoder.**",), brings={"text": ("decoder", "heads")},
    ),
    Layout(
        "uniter", "UNITER's pre-training checkpoints, for model=uniter", ("uniter.embeddings.word_embeddings.weight", "uniter.img_embeddings.img_linear.weight"),
        lambda ours, theirs: uniter(),
    ),
    Layout(
        "transformers_visualbert", "transformers' VisualBertForPreTraining, for model=visualbert", ("visual_bert.embeddings.visual_projection.weight",),
        lambda ours, theirs: transformers_visualbert(),
    ),
    Layout(
        "lxmert", "LXMERT's pre-training checkpoints, for model=lxmert", ("bert.encoder.visn_fc.visn_fc.weight", "answer_head.logit_fc.3.weight"), lambda ours, theirs: lxmert(),
    ),
    Layout(
        "transformers_lxmert", "transformers' LxmertForPreTraining, for model=lxmert", ("lxmert.encoder.visn_fc.visn_fc.weight", "cls.seq_relationship.weight"),
        lambda ours, theirs: lxmert("lxmert."),
    ),
    Layout(
        "vilt", "ViLT's pre-training checkpoints, for model=vilt", ("transformer.pos_embed", "text_embeddings.word_embeddings.weight", "mlm_score.decoder.weight"),
        lambda ours, theirs: vilt(),
    ),
    Layout(
        "transformers_vilt", "transformers' ViltForMaskedLM, for model=vilt", ("vilt.embeddings.text_embeddings.word_embeddings.weight", "mlm_score.decoder.weight"),
        lambda ours, theirs: transformers_vilt(),
    ),
    Layout(
        "meter", "METER's checkpoints with CLIP and RoBERTa, for model=meter", ("vit_model.visual.class_embedding", "cross_modal_image_layers.*.**", "itm_score.fc.weight"),
        lambda ours, theirs: meter(),
    ),
    Layout(
        "vlmo", "VLMo's pre-training checkpoints, for model=vlmo", ("transformer.blocks.*.mlp_imag.**", "text_embeddings.word_embeddings.weight", "itc_vl_image_proj.fc.weight"),
        lambda ours, theirs: vlmo(),
    ),
    Layout(
        "beit3", "BEiT-3's released weights, for model=beit3", ("beit3.encoder.layers.*.self_attn.q_proj.A.weight", "beit3.text_embed.weight"), _beit3,
    ),
    Layout(
        "timm_vit", "a vision transformer of timm or DeiT, for the vision part of any recipe with vision=vit", ("cls_token", "pos_embed", "blocks.*.attn.qkv.weight"),
        _vit, brings={"vision": ("fusion",)},
    ),
    Layout(
        "bert", "transformers' BertModel, for the text part of any recipe with text=bert, and for one stack over words and regions", ("embeddings.word_embeddings.weight", "encoder.layer.*.attention.self.query.weight"), _bert,
        brings={"text": ("fusion", "heads")},
    ),
    Layout(
        "bert_words", "transformers' BertForPreTraining and BertForMaskedLM, for the text part of any recipe with text=bert",
        ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.*.attention.self.query.weight"), _bert, never=("bert.encoder.visn_fc.**",),
        brings={"text": ("fusion", "heads")},
    ),
)  # fmt: skip


def named(name: str) -> Layout:
    """The layout called `name`. Raises WeightsError with those there are."""
    found = next((layout for layout in LAYOUTS if layout.name == name), None)
    if found is None:
        names = [layout.name for layout in LAYOUTS]
        raise WeightsError(f"--layout: there is no {name!r}. {did_you_mean(name, names)}".rstrip() + f"\n{known()}")
    return found


def known() -> str:
    """Every layout with what it is, one a line."""
    wide = max(len(layout.name) for layout in LAYOUTS)
    return "\n".join(["  known layouts:", *(f"    {layout.name:<{wide}}  {layout.about}" for layout in LAYOUTS)])


def recognise(keys: Collection[str], *, place: str) -> Layout:
    """The layout of a file with these keys.

    Raises:
        WeightsError: no layout is like this, or several are.
    """
    found = [layout for layout in LAYOUTS if layout.recognises(keys)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(f"{place}: its keys are those of {' and of '.join(layout.name for layout in found)}. Convert it first and say which: python scripts/convert.py {place} OUT --layout {found[0].name}")
    groups = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in keys))
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    raise WeightsError(f"{place}: its {len(keys)} keys are those of no known layout; they start with {', '.join(groups[:_SHOWN])}{more}\n{known()}")
