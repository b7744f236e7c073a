"""The files of weights that are known: how each is recognised by its keys, which recipe it was made for, and the table that reads it.
A new layout is one row of LAYOUTS."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vlpkit.account import Asked
from vlpkit.errors import WeightsError, did_you_mean
from vlpkit.rows import FRESH, Row, match
from vlpkit.tables.blip import blip, transformers_blip_captioning, transformers_blip_retrieval
from vlpkit.tables.clip import open_clip, transformers_clip
from vlpkit.tables.fitted import (
    albef_for,
    align_for,
    beit3_for,
    bert_for,
    coca_for,
    gpt2_for,
    own_for,
    roberta_for,
    vit_for,
)
from vlpkit.tables.git import transformers_git
from vlpkit.tables.lxmert import lxmert
from vlpkit.tables.meter import meter
from vlpkit.tables.siglip import open_clip_siglip, transformers_siglip
from vlpkit.tables.uniter import uniter
from vlpkit.tables.vilt import transformers_vilt, vilt
from vlpkit.tables.visualbert import transformers_visualbert
from vlpkit.tables.vlmo import vlmo

_SHOWN = 6
_TYPES = "embeddings.token_type_embeddings.weight"


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
        untyped: whether the table of token types has a single row, which alone tells a RoBERTa from a BERT; None: either.
    """

    name: str
    about: str
    marks: tuple[str, ...]
    table: Callable[[Collection[str], Collection[str]], list[Row]]
    never: tuple[str, ...] = ()
    brings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untyped: bool | None = None

    def recognises(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a file with these tensors is of this layout."""
        marked = all(any(match(mark, key) for key in tensors) for mark in self.marks) and not any(match(mark, key) for mark in self.never for key in tensors)
        return marked and self.untyped in (None, _TYPES in tensors and len(tensors[_TYPES]) == 1)

    def asked(self, address: str | None) -> Asked | None:
        """What a file is to fill that is named for an address of ours; None: the whole model."""
        return None if address is None else Asked((address,), tuple(self.brings.get(address, ())))

    def rows(self, ours: Collection[str], theirs: Collection[str], address: str | None = None) -> list[Row]:
        """The table for one model and one file.

        Args:
            ours: addresses of the model.
            theirs: keys of the file.
            address: the one that the file is named for; then a neck that no row leads to is the recipe's own, and fresh.
        """
        rows = self.table(ours, theirs)
        necks = dict.fromkeys(name.partition(".")[0] for name in ours if name.split(".")[1] == "neck") if address is not None else ()
        return [*rows, *(Row(FRESH, f"{part}.neck.**") for part in necks if not any(row.target.startswith(f"{part}.neck.") for row in rows))]


# Runs and folders of vlpkit itself are known by what stands beside their weights, not by their keys.
OWN = Layout("vlpkit", "runs and folders of vlpkit", (), own_for)

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
        "transformers_align", "transformers' AlignModel, for model=align", ("vision_model.embeddings.convolution.weight", "text_model.embeddings.word_embeddings.weight"),
        align_for,
    ),
    Layout(
        "transformers_git", "transformers' GitForCausalLM, for model=git", ("git.image_encoder.vision_model.embeddings.class_embedding", "git.encoder.layer.*.attention.self.query.weight"),
        lambda ours, theirs: transformers_git(), brings={"text": ("fusion", "heads")},
    ),
    Layout(
        "open_clip_coca", "CoCa of open_clip, for model=coca (released weights: model.text.embed.cls=last_shifted)",
        ("visual.attn_pool.query", "text.cls_emb", "text_decoder.cross_attn.*.attn.in_proj_weight"), coca_for, brings={"text": ("decoder", "heads")},
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
        "albef", "ALBEF's pre-training checkpoints, for model=albef", ("visual_encoder.cls_token", "text_encoder.bert.embeddings.word_embeddings.weight"), albef_for,
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
        "beit3", "BEiT-3's released weights, for model=beit3", ("beit3.encoder.layers.*.self_attn.q_proj.A.weight", "beit3.text_embed.weight"), beit3_for,
    ),
    Layout(
        "timm_vit", "a vision transformer of timm or DeiT, for the vision part of any recipe with vision=vit", ("cls_token", "pos_embed", "blocks.*.attn.qkv.weight"),
        vit_for, brings={"vision": ("fusion",)},
    ),
    Layout(
        "bert", "transformers' BertModel, for the text part of any recipe with text=bert, and for one stack over words and regions", ("embeddings.word_embeddings.weight", "encoder.layer.*.attention.self.query.weight"), bert_for,
        brings={"text": ("fusion", "decoder", "heads")}, untyped=False,
    ),
    Layout(
        "bert_words", "transformers' BertForPreTraining and BertForMaskedLM, for the text part of any recipe with text=bert",
        ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.*.attention.self.query.weight"), bert_for, never=("bert.encoder.visn_fc.**",),
        brings={"text": ("fusion", "decoder", "heads")},
    ),
    Layout(
        "roberta", "transformers' RobertaModel, for the text part of any recipe with text=roberta_trunk",
        ("embeddings.word_embeddings.weight", "encoder.layer.*.attention.self.query.weight"), roberta_for, untyped=True,
    ),
    Layout(
        "roberta_words", "transformers' RobertaForMaskedLM, for the text part of any recipe with text=roberta_trunk",
        ("roberta.embeddings.word_embeddings.weight", "roberta.encoder.layer.*.attention.self.query.weight"), roberta_for,
    ),
    Layout(
        "gpt2", "transformers' GPT2Model, for text and decoder of model=flamingo", ("wte.weight", "h.*.attn.c_attn.weight"), gpt2_for, brings={"text": ("decoder", "heads")},
    ),
    Layout(
        "gpt2_words", "transformers' GPT2LMHeadModel, for text and decoder of model=flamingo", ("transformer.wte.weight", "transformer.h.*.attn.c_attn.weight"), gpt2_for,
        brings={"text": ("decoder", "heads")},
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


def recognise(tensors: Mapping[str, Tensor], *, place: str) -> Layout:
    """The layout of a file with these tensors.

    Raises:
        WeightsError: no layout is like this, or several are.
    """
    found = [layout for layout in LAYOUTS if layout.recognises(tensors)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(f"{place}: its keys are those of {' and of '.join(layout.name for layout in found)}. Convert it first and say which: python scripts/convert.py {place} OUT --layout {found[0].name}")
    groups = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in tensors))
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    raise WeightsError(f"{place}: its {len(tensors)} keys are those of no known layout; they start with {', '.join(groups[:_SHOWN])}{more}\n{known()}")
