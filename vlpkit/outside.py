"""What a class of another library is told of a trained model: its settings, read off the model itself. What the class cannot express is
refused, so that a folder that was written gives the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlpkit.align import Align
from vlpkit.data.tokenize import Template, Words
from vlpkit.encoders.encoder import Encoder
from vlpkit.errors import WeightsError
from vlpkit.layers.attention import Attention
from vlpkit.layers.block import Activation, FeedForward
from vlpkit.layers.embed import PatchEmbed, WordEmbed
from vlpkit.layers.heads import WordsHead
from vlpkit.layers.neck import Queries
from vlpkit.layers.trunk import Trunk
from vlpkit.model import VLModel

_ACTIVATIONS: Mapping[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}
_QUICK: Mapping[str, bool] = {"quick_gelu": True, "gelu": False}   # the activations that open_clip's switch knows
OPEN_CLIP_EPS = 1e-5   # what open_clip's norms have unless told otherwise


@dataclass(frozen=True)
class Tower:
    """What a stack of blocks is, in the words that both libraries ask for.

    Args:
        dim: D, the width.
        depth: blocks.
        heads: of attention.
        hidden: width of the feed-forward layers.
        activation: of them.
        eps: of every norm, the one beside the embedding included.
        place: pre or post.
        kinds: sublayers of a block.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    activation: Activation
    eps: float
    place: str
    kinds: tuple[str, ...]


def tower_of(model: VLModel, part: str, *, neck: type[Queries] | None = None) -> Tower:
    """What the blocks of an encoder are. Raises WeightsError where it has none over patches or words, or ends in another neck."""
    encoder = model.part(part)
    trunk = encoder.trunk if isinstance(encoder, Encoder) else None
    strange = trunk is not None and encoder.neck is not None and (neck is None or not isinstance(encoder.neck, neck))
    if not isinstance(trunk, Trunk) or not isinstance(encoder.embed, PatchEmbed | WordEmbed) or strange or not trunk.depth:
        raise WeightsError(f"{part}: is no stack of our own blocks over patches or words, and no other library's class is like it. Write our folder: --to folder")
    return _stack(trunk, encoder, part)


def _stack(trunk: Trunk, owner: nn.Module, part: str) -> Tower:
    """What a trunk is, with every norm of its owner."""
    block: Any = trunk.blocks[0]
    norms = {module.eps for module in owner.modules() if isinstance(module, nn.LayerNorm)}
    if len(norms) > 1:
        raise WeightsError(f"{part}: its norms have eps {' and '.join(f'{eps:g}' for eps in sorted(norms))}, and there is one setting for all outside. Write our folder: --to folder")
    body, ffn = block.get_submodule("self").body, block.get_submodule("ffn").body
    assert isinstance(body, Attention) and isinstance(ffn, FeedForward)
    kinds = tuple(kind for _, kind in block.kinds)
    return Tower(trunk.dim, trunk.depth, body.heads, ffn.fc1.out_features, ffn.activation, norms.pop(), trunk.place, kinds)


def insist(**found: tuple[Any, Any]) -> None:
    """Each fact beside the only one that the outside class can have. Raises WeightsError with all that differ."""
    wrong = [f"  {name.replace('__', '.')} is {ours}, there it is {theirs}" for name, (ours, theirs) in found.items() if ours != theirs]
    if wrong:
        raise WeightsError("the model is none that the outside class can be\n" + "\n".join(wrong) + "\n  Write our folder instead: --to folder")


def special_id(words: Words, name: str) -> int:
    """The id of a special token. Raises WeightsError where there is none."""
    if name not in words.special:
        raise WeightsError(f"the tokenizer has no {name}, which the outside model needs")
    return words.special[name]


# -- CLIP --------------------------------------------------------------------------------------------------------------


def _clip(model: VLModel, words: Words) -> tuple[Tower, Tower]:
    align, vision, text = model.part("align"), tower_of(model, "vision"), tower_of(model, "text")
    assert isinstance(align, Align)
    template = Template.read(words.template, words.special)
    insist(
        align__reads=(align.reads, {"v": "vision.encode", "w": "text.encode"}), align__v__pool=(align.v.pool, "first"), align__w__pool=(align.w.pool, "last"),
        align__learn=(align.learn, "log"), vision__trunk__block=(vision.kinds, ("self", "ffn")), text__trunk__block=(text.kinds, ("self", "ffn")),
        vision__trunk__place=(vision.place, "pre"), text__trunk__place=(text.place, "pre"), text__embed__order=("causal" if model.part("text").embed.causal else None, "causal"),
        **{"the last token of a text": (template.after[-1:] or ("its last word",), ("sep",))},
    )  # fmt: skip
    return vision, text


def transformers_clip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """config.json of transformers' CLIPModel."""
    vision, text = _clip(model, words)
    embed, space, end = model.part("vision").embed, model.part("align").dim, special_id(words, "sep")
    insist(**{"the id of [sep]": (end, end if end != 2 else "any but 2, which CLIPModel takes for a broken file")})
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": space, "logit_scale_init_value": 2.6592,
        "vision_config": {"model_type": "clip_vision_model", **sizes_of(vision), "image_size": embed.image_size, "patch_size": embed.patch, "projection_dim": space},
        "text_config": {
            "model_type": "clip_text_model", **sizes_of(text), "vocab_size": words.size, "max_position_embeddings": model.part("text").embed.length, "projection_dim": space,
            "bos_token_id": special_id(words, "cls"), "eos_token_id": end, "pad_token_id": words.pad,
        },
    }  # fmt: skip


def sizes_of(tower: Tower) -> dict[str, Any]:
    """A tower in the words of transformers."""
    return {
        "hidden_size": tower.dim, "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "intermediate_size": tower.hidden,
        "hidden_act": _ACTIVATIONS[tower.activation], "layer_norm_eps": tower.eps, "attention_dropout": 0.0,
    }  # fmt: skip


def open_clip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """The `model_cfg` of open_clip."""
    vision, text = _clip(model, words)
    insist(
        text__trunk__activation=(text.activation, vision.activation),
        vision__trunk__activation=(vision.activation, vision.activation if vision.activation in _QUICK else "gelu or quick_gelu"),
    )
    embed, end = model.part("vision").embed, special_id(words, "sep")
    last = {} if end == words.size - 1 else {"pool_type": "eos", "eos_id": end}   # else it takes the highest id for the end of a text
    norms = [{} if tower.eps == OPEN_CLIP_EPS else {"norm_kwargs": {"eps": tower.eps}} for tower in (vision, text)]
    return {
        "embed_dim": model.part("align").dim, "quick_gelu": _QUICK[vision.activation],
        "vision_cfg": {
            "image_size": embed.image_size, "patch_size": embed.patch, "layers": vision.depth, "width": vision.dim, "head_width": vision.dim // vision.heads,
            "mlp_ratio": vision.hidden / vision.dim, **norms[0],
        },
        "text_cfg": {
            "context_length": model.part("text").embed.length, "vocab_size": words.size, "width": text.dim, "heads": text.heads, "layers": text.depth,
            "mlp_ratio": text.hidden / text.dim, "pad_id": words.pad, "hf_tokenizer_name": "local", "tokenizer_kwargs": {}, **last, **norms[1],
        },
    }  # fmt: skip


# -- CoCa --------------------------------------------------------------------------------------------------------------


def open_clip_coca_config(model: VLModel, words: Words) -> dict[str, Any]:
    """The `model_cfg` of open_clip's CoCa. What its text tower reads is what released weights were trained with: the mask of the class token
    shifted by one place."""
    align, neck, embed, tower, trunk = model.part("align"), model.part("vision").neck, model.part("vision").embed, model.part("text").embed, model.part("decoder").w
    vision, text, decoder, head = tower_of(model, "vision", neck=Queries), tower_of(model, "text"), _stack(trunk, trunk, "decoder"), model.head("lm")
    if not isinstance(neck, Queries) or not isinstance(tower, WordEmbed) or not isinstance(head, WordsHead):
        raise WeightsError("open_clip's CoCa reads the patches with one set of queries, and has words in its text tower. Write our folder: --to folder")
    widths = {text.dim, decoder.dim, neck.dim, align.dim}
    insist(
        align__reads=(align.reads, {"v": "vision.encode:v_cls", "w": "text.encode:w_cls"}), align__learn=(align.learn, "log"),
        decoder__reads=(model.part("decoder").reads, {"v": "vision.encode:v", "w": f"text.{text.depth}:w"}),
        vision__neck__parts=(tuple(name for name, _ in neck.parts), ("v_cls", "v")), vision__neck__keep=(neck.keep, False),
        vision__neck__ffn=(neck.ffn is not None, False), vision__neck__norms=(neck.norm_query is not None, True), vision__neck__closing=(neck.norm is not None, True),
        vision__trunk__closing=(model.part("vision").trunk.norm is not None, False), vision__trunk__block=(vision.kinds, ("self", "ffn")),
        text__trunk__block=(text.kinds, ("self", "ffn")), decoder__w__block=(decoder.kinds, ("self", "ffn", "cross", "ffn")),
        decoder__w__memory_norm=(trunk.blocks[0].cross.body.norm_memory is not None, True),
        text__embed__order=("causal" if tower.causal else None, "causal"), text__embed__cls=("last_shifted" if tower.shifted else "last", "last_shifted"),
        text__trunk__activation=(text.activation, vision.activation), decoder__w__activation=(decoder.activation, vision.activation),
        vision__trunk__activation=(vision.activation, vision.activation if vision.activation in _QUICK else "gelu or quick_gelu"),
        heads__lm__transform=(head.dense is not None, False), heads__lm__bias=(head.out.bias is not None, False),
        **{"the width of text, decoder, queries and shared space": (sorted(widths), [text.dim])},
        **{f"eps of {name}": (tower.eps, OPEN_CLIP_EPS) for name, tower in (("vision", vision), ("text", text), ("decoder", decoder))},
    )  # fmt: skip
    length = tower.length - 1
    sizes = {"context_length": length, "vocab_size": words.size, "mlp_ratio": text.hidden / text.dim}
    return {
        "embed_dim": align.dim, "quick_gelu": _QUICK[vision.activation], "custom_text": True, "pad_id": words.pad,
        "vision_cfg": {
            "image_size": embed.image_size, "patch_size": embed.patch, "layers": vision.depth, "width": vision.dim, "head_width": vision.dim // vision.heads,
            "mlp_ratio": vision.hidden / vision.dim, "attentional_pool": True, "attn_pooler_queries": neck.query.shape[1], "attn_pooler_heads": neck.attention.heads,
            "output_tokens": True,
        },
        "text_cfg": {
            **sizes, "width": text.dim, "heads": text.heads, "layers": text.depth, "embed_cls": True, "output_tokens": True, "pad_id": words.pad,
            "hf_tokenizer_name": "local", "tokenizer_kwargs": {},
        },
        "multimodal_cfg": {**sizes, "mlp_ratio": decoder.hidden / decoder.dim, "width": decoder.dim, "heads": decoder.heads, "layers": decoder.depth},
    }  # fmt: skip


# -- BLIP --------------------------------------------------------------------------------------------------------------


def transformers_blip_config(model: VLModel, words: Words, architecture: str) -> dict[str, Any]:
    """config.json of transformers' BLIP for retrieval or captioning."""
    vision, text, align = tower_of(model, "vision"), tower_of(model, "text"), model.part("align")
    embed = model.part("vision").embed
    facts: dict[str, tuple[Any, Any]] = {
        "vision__trunk__place": (vision.place, "pre"), "text__trunk__place": (text.place, "post"), "vision__trunk__block": (vision.kinds, ("self", "ffn")),
        "text__trunk__block": (text.kinds, ("self", "cross", "ffn")), "align__v__pool": (align.v.pool, "first"), "align__w__pool": (align.w.pool, "first"),
        "align__reads": (align.reads, {"v": "vision.encode", "w": "text.encode"}),
    }  # fmt: skip
    if architecture == "BlipForConditionalGeneration":
        head, body = model.head("lm"), model.part("decoder").w
        assert isinstance(head, WordsHead)
        if head.norm is None:
            raise WeightsError("model.heads.lm: transformers' BLIP has a dense layer and a norm before its output table, this head has none")
        facts |= {"heads__lm__activation": (head.activation, text.activation), "heads__lm__norm__eps": (head.norm.eps, text.eps), "decoder__w__depth": (body.depth, text.depth)}
    insist(**facts)
    end = special_id(words, "sep")
    return {
        "architectures": [architecture], "model_type": "blip", "projection_dim": align.dim, "image_text_hidden_size": align.dim, "tie_word_embeddings": True,
        "vision_config": {"model_type": "blip_vision_model", **sizes_of(vision), "image_size": embed.image_size, "patch_size": embed.patch},
        "text_config": {
            "model_type": "blip_text_model", **sizes_of(text), "encoder_hidden_size": vision.dim, "projection_dim": align.dim, "vocab_size": words.size,
            "max_position_embeddings": model.part("text").embed.length, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "bos_token_id": words.special.get("dec", special_id(words, "cls")), "eos_token_id": end, "sep_token_id": end, "pad_token_id": words.pad,
        },
    }  # fmt: skip
