"""SigLIP as transformers and as open_clip are told of it; open_clip takes its image tower from timm, by name, so only the sizes that
timm has a name for can go there."""

from __future__ import annotations

from typing import Any

import torch

from vlpkit.data.tokenize import Words
from vlpkit.errors import WeightsError
from vlpkit.layers.block import FeedForward
from vlpkit.layers.embed import WordEmbed
from vlpkit.layers.neck import Queries
from vlpkit.model import VLModel
from vlpkit.outside import Tower, insist, sizes_of, special_id, tower_of
from vlpkit.tables.siglip import open_clip_siglip
from vlpkit.weights import everything, outward

TIMM_EPS = 1e-6   # of every norm of timm's image towers
_TRUNK = "visual.trunk."


def _siglip(model: VLModel, words: Words) -> tuple[Tower, Tower]:
    """Both towers, when they are what either library calls SigLIP: a probe reads the patches, every word reads the padding."""
    align, neck, embed, tower = model.part("align"), model.part("vision").neck, model.part("vision").embed, model.part("text").embed
    vision, text = tower_of(model, "vision", neck=Queries), tower_of(model, "text")
    if not isinstance(neck, Queries) or neck.ffn is None or not isinstance(tower, WordEmbed):
        raise WeightsError("SigLIP has a probe with a feed-forward layer that reads the patches, and words in its text tower. Write our folder: --to folder")
    ffn = neck.ffn.body
    assert isinstance(ffn, FeedForward)
    insist(
        align__reads=(align.reads, {"v": "vision.encode:v_cls", "w": "text.encode"}), align__w__pool=(align.w.pool, "last"), align__learn=(align.learn, "log"),
        align__v__out=(align.v.out is not None, False), align__w__bias=(align.w.out is not None and align.w.out.bias is not None, True), align__bias=(align.bias is not None, True),
        vision__neck__parts=(neck.parts, (("v_cls", 1),)), vision__neck__norms=(neck.norm_query is not None, False), vision__neck__closing=(neck.norm is not None, False),
        vision__neck__heads=(neck.attention.heads, vision.heads), vision__neck__activation=(ffn.activation, vision.activation),
        vision__neck__ratio=(ffn.fc1.out_features, vision.hidden),
        vision__embed__cls=(embed.cls is not None, False), vision__embed__bias=(embed.proj.bias is not None, True), vision__embed__norm=(embed.norm is not None, False),
        vision__trunk__block=(vision.kinds, ("self", "ffn")), text__trunk__block=(text.kinds, ("self", "ffn")),
        vision__trunk__place=(vision.place, "pre"), text__trunk__place=(text.place, "pre"),
        text__embed__padding=("masked" if tower.pad is None else "read", "read"), text__words__length=(words.length, tower.length), text__embed__norm=(tower.norm is not None, False),
    )  # fmt: skip
    return vision, text


def transformers_siglip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """config.json of transformers' SiglipModel."""
    vision, text = _siglip(model, words)
    align, embed, tower = model.part("align"), model.part("vision").embed, model.part("text").embed
    return {
        "architectures": ["SiglipModel"], "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **sizes_of(vision), "image_size": embed.image_size, "patch_size": embed.patch},
        "text_config": {
            "model_type": "siglip_text_model", **sizes_of(text), "vocab_size": words.size, "max_position_embeddings": tower.length, "projection_size": align.dim,
            "bos_token_id": words.special.get("cls", special_id(words, "sep")), "eos_token_id": special_id(words, "sep"), "pad_token_id": words.pad,
        },
    }  # fmt: skip


def open_clip_siglip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """The `model_cfg` of open_clip's SigLIP, whose image tower is one of timm's, by name."""
    vision, text = _siglip(model, words)
    align, embed = model.part("align"), model.part("vision").embed
    insist(
        vision__trunk__activation=(vision.activation, "gelu_tanh"), vision__trunk__eps=(vision.eps, TIMM_EPS),
        text__trunk__activation=(text.activation, text.activation if text.activation in ("gelu", "gelu_tanh") else "gelu or gelu_tanh"),
    )
    return {
        "embed_dim": align.dim, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": embed.image_size, "timm_model_name": _timm_name(model, vision), "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": words.length, "vocab_size": words.size, "width": text.dim, "heads": text.heads, "layers": text.depth, "mlp_ratio": text.hidden / text.dim,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "pad_id": words.pad, "norm_kwargs": {"eps": text.eps},
            **({"act_kwargs": {"approximate": "tanh"}} if text.activation == "gelu_tanh" else {}),
            "hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "canonicalize"} if words.clean == "siglip" else {},
        },
    }  # fmt: skip


def _timm_name(model: VLModel, vision: Tower) -> str:
    """The network of timm that has the shapes of our image tower: open_clip builds it by that name. Raises WeightsError when there is none."""
    import timm

    embed = model.part("vision").embed
    names = timm.list_models(f"vit_*_patch{embed.patch}_siglip_{embed.image_size}")
    wanted = outward({name: tensor.shape for name, tensor in everything(model).items()}, open_clip_siglip())
    ours = {key: shape for key, shape in wanted.items() if key.startswith(_TRUNK)}
    for name in names:
        with torch.device("meta"):
            theirs = timm.create_model(name, pretrained=False, num_classes=0, global_pool="map")
        if {f"{_TRUNK}{key}": tensor.shape for key, tensor in theirs.state_dict().items()} == ours and theirs.blocks[0].attn.num_heads == vision.heads:
            return str(name)
    there = ", ".join(timm.list_models("vit_*siglip*", exclude_filters="*gap*"))
    raise WeightsError(
        f"open_clip builds SigLIP's image tower by the name of a network of timm, and none has {vision.depth} blocks of {vision.dim}, {vision.heads} heads, patches of {embed.patch} "
        f"and images of {embed.image_size} pixels (there are: {there}).\n  Write transformers' SiglipModel instead: --to transformers; or our folder: --to folder"
    )
