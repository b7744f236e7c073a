"""A trained CLIP, SigLIP, CoCa or BLIP as other libraries know it: their keys by our tables read backwards, their settings read off the model itself.
What their class cannot express is refused, so that a folder that was written gives the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from vlpkit.align import Align
from vlpkit.data.tokenize import Template, Words
from vlpkit.encoders.encoder import Encoder
from vlpkit.errors import WeightsError
from vlpkit.folder import CARD, new_folder, preprocessing, save, write_json
from vlpkit.layers.attention import Attention
from vlpkit.layers.block import Activation, FeedForward
from vlpkit.layers.embed import PatchEmbed, WordEmbed
from vlpkit.layers.heads import WordsHead
from vlpkit.layers.neck import Queries
from vlpkit.layers.trunk import Trunk
from vlpkit.model import VLModel
from vlpkit.tables.blip import transformers_blip_captioning, transformers_blip_retrieval
from vlpkit.tables.clip import open_clip, transformers_clip
from vlpkit.tables.coca import open_clip_coca
from vlpkit.tables.siglip import transformers_siglip
from vlpkit.weights import Row, canonical, everything, outward, plan, revert

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


def _tower(model: VLModel, part: str, *, neck: type[Queries] | None = None) -> Tower:
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


def _insist(**found: tuple[Any, Any]) -> None:
    """Each fact beside the only one that the outside class can have. Raises WeightsError with all that differ."""
    wrong = [f"  {name.replace('__', '.')} is {ours}, there it is {theirs}" for name, (ours, theirs) in found.items() if ours != theirs]
    if wrong:
        raise WeightsError("the model is none that the outside class can be\n" + "\n".join(wrong) + "\n  Write our folder instead: --to folder")


def outside_tensors(model: VLModel, table: list[Row]) -> dict[str, Tensor]:
    """Our weights under the keys of a table, complete on both sides but for what the table lists as fresh.

    Raises:
        WeightsError: a tensor of ours has no place outside.
    """
    held = everything(model)
    shapes = {name: tensor.shape for name, tensor in held.items()}
    report = plan(outward(shapes, table), table, canonical(held))
    return {key: tensor.detach() for key, tensor in revert(held, report).items()}


def _special(words: Words, name: str) -> int:
    if name not in words.special:
        raise WeightsError(f"the tokenizer has no {name}, which the outside model needs")
    return words.special[name]


# -- CLIP --------------------------------------------------------------------------------------------------------------


def _clip(model: VLModel, words: Words) -> tuple[Tower, Tower]:
    align, vision, text = model.part("align"), _tower(model, "vision"), _tower(model, "text")
    assert isinstance(align, Align)
    template = Template.read(words.template, words.special)
    _insist(
        align__reads=(align.reads, {"v": "vision.encode", "w": "text.encode"}), align__v__pool=(align.v.pool, "first"), align__w__pool=(align.w.pool, "last"),
        align__learn=(align.learn, "log"), vision__trunk__block=(vision.kinds, ("self", "ffn")), text__trunk__block=(text.kinds, ("self", "ffn")),
        vision__trunk__place=(vision.place, "pre"), text__trunk__place=(text.place, "pre"), text__embed__order=("causal" if model.part("text").embed.causal else None, "causal"),
        **{"the last token of a text": (template.after[-1:] or ("its last word",), ("sep",))},
    )  # fmt: skip
    return vision, text


def transformers_clip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """config.json of transformers' CLIPModel."""
    vision, text = _clip(model, words)
    embed, space, end = model.part("vision").embed, model.part("align").dim, _special(words, "sep")
    _insist(**{"the id of [sep]": (end, end if end != 2 else "any but 2, which CLIPModel takes for a broken file")})
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": space, "logit_scale_init_value": 2.6592,
        "vision_config": {"model_type": "clip_vision_model", **_sizes(vision), "image_size": embed.image_size, "patch_size": embed.patch, "projection_dim": space},
        "text_config": {
            "model_type": "clip_text_model", **_sizes(text), "vocab_size": words.size, "max_position_embeddings": model.part("text").embed.length, "projection_dim": space,
            "bos_token_id": _special(words, "cls"), "eos_token_id": end, "pad_token_id": words.pad,
        },
    }  # fmt: skip


def _sizes(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.dim, "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "intermediate_size": tower.hidden,
        "hidden_act": _ACTIVATIONS[tower.activation], "layer_norm_eps": tower.eps, "attention_dropout": 0.0,
    }  # fmt: skip


def open_clip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """The `model_cfg` of open_clip."""
    vision, text = _clip(model, words)
    _insist(
        text__trunk__activation=(text.activation, vision.activation),
        vision__trunk__activation=(vision.activation, vision.activation if vision.activation in _QUICK else "gelu or quick_gelu"),
    )
    embed, end = model.part("vision").embed, _special(words, "sep")
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


# -- SigLIP ------------------------------------------------------------------------------------------------------------


def transformers_siglip_config(model: VLModel, words: Words) -> dict[str, Any]:
    """config.json of transformers' SiglipModel."""
    align, neck, embed, tower = model.part("align"), model.part("vision").neck, model.part("vision").embed, model.part("text").embed
    vision, text = _tower(model, "vision", neck=Queries), _tower(model, "text")
    if not isinstance(neck, Queries) or neck.ffn is None or not isinstance(tower, WordEmbed):
        raise WeightsError("transformers' SiglipModel has a probe with a feed-forward layer that reads the patches, and words in its text tower. Write our folder: --to folder")
    ffn = neck.ffn.body
    assert isinstance(ffn, FeedForward)
    _insist(
        align__reads=(align.reads, {"v": "vision.encode:v_cls", "w": "text.encode"}), align__w__pool=(align.w.pool, "last"), align__learn=(align.learn, "log"),
        align__v__out=(align.v.out is not None, False), align__w__bias=(align.w.out is not None and align.w.out.bias is not None, True), align__bias=(align.bias is not None, True),
        vision__neck__parts=(neck.parts, (("v_cls", 1),)), vision__neck__norms=(neck.norm_query is not None, False), vision__neck__closing=(neck.norm is not None, False),
        vision__neck__heads=(neck.attention.heads, vision.heads), vision__neck__activation=(ffn.activation, vision.activation),
        vision__neck__ratio=(ffn.fc1.out_features, vision.hidden),
        vision__embed__cls=(embed.cls is not None, False), vision__embed__bias=(embed.proj.bias is not None, True), vision__embed__norm=(embed.norm is not None, False),
        vision__trunk__block=(vision.kinds, ("self", "ffn")), text__trunk__block=(text.kinds, ("self", "ffn")),
        vision__trunk__place=(vision.place, "pre"), text__trunk__place=(text.place, "pre"),
        text__embed__padding=("masked" if tower.pad is None else "read", "read"), text__embed__norm=(tower.norm is not None, False),
    )  # fmt: skip
    return {
        "architectures": ["SiglipModel"], "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **_sizes(vision), "image_size": embed.image_size, "patch_size": embed.patch},
        "text_config": {
            "model_type": "siglip_text_model", **_sizes(text), "vocab_size": words.size, "max_position_embeddings": tower.length, "projection_size": align.dim,
            "bos_token_id": words.special.get("cls", _special(words, "sep")), "eos_token_id": _special(words, "sep"), "pad_token_id": words.pad,
        },
    }  # fmt: skip


# -- CoCa --------------------------------------------------------------------------------------------------------------


def open_clip_coca_config(model: VLModel, words: Words) -> dict[str, Any]:
    """The `model_cfg` of open_clip's CoCa. What its text tower reads is what released weights were trained with: the mask of the class token
    shifted by one place."""
    align, neck, embed, tower, trunk = model.part("align"), model.part("vision").neck, model.part("vision").embed, model.part("text").embed, model.part("decoder").w
    vision, text, decoder, head = _tower(model, "vision", neck=Queries), _tower(model, "text"), _stack(trunk, trunk, "decoder"), model.head("lm")
    if not isinstance(neck, Queries) or not isinstance(tower, WordEmbed) or not isinstance(head, WordsHead):
        raise WeightsError("open_clip's CoCa reads the patches with one set of queries, and has words in its text tower. Write our folder: --to folder")
    widths = {text.dim, decoder.dim, neck.dim, align.dim}
    _insist(
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
    vision, text, align = _tower(model, "vision"), _tower(model, "text"), model.part("align")
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
    _insist(**facts)
    end = _special(words, "sep")
    return {
        "architectures": [architecture], "model_type": "blip", "projection_dim": align.dim, "image_text_hidden_size": align.dim, "tie_word_embeddings": True,
        "vision_config": {"model_type": "blip_vision_model", **_sizes(vision), "image_size": embed.image_size, "patch_size": embed.patch},
        "text_config": {
            "model_type": "blip_text_model", **_sizes(text), "encoder_hidden_size": vision.dim, "projection_dim": align.dim, "vocab_size": words.size,
            "max_position_embeddings": model.part("text").embed.length, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "bos_token_id": words.special.get("dec", _special(words, "cls")), "eos_token_id": end, "sep_token_id": end, "pad_token_id": words.pad,
        },
    }  # fmt: skip


# -- folders -----------------------------------------------------------------------------------------------------------

Configure = Callable[[VLModel, Words], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """One class of another library.

    Args:
        folder: beneath the one asked for; "" for that itself.
        about: what it is, for the user.
        needs: addresses that a model of this kind has.
        table: of a model of this kind, whose keys the file has.
        configure: makes the settings of the class.
    """

    folder: str
    about: str
    needs: tuple[str, ...]
    table: Callable[[VLModel], list[Row]]
    configure: Configure


TRANSFORMERS = (
    Form("", "CLIPModel", ("align.log_scale", "vision.embed.norm.weight"), lambda model: transformers_clip(), transformers_clip_config),
    Form("", "SiglipModel", ("align.log_scale", "align.bias", "vision.neck.query"), lambda model: transformers_siglip(), transformers_siglip_config),
    Form(
        "retrieval", "BlipForImageTextRetrieval", ("text.trunk.blocks.0.cross.body.q.weight", "heads.itm.out.weight"), lambda model: transformers_blip_retrieval(),
        lambda model, words: transformers_blip_config(model, words, "BlipForImageTextRetrieval"),
    ),
    Form(
        "captioning", "BlipForConditionalGeneration", ("text.trunk.blocks.0.cross.body.q.weight", "decoder.w.blocks.0.cross.body.q.weight", "heads.lm.out.weight"),
        lambda model: transformers_blip_captioning(), lambda model, words: transformers_blip_config(model, words, "BlipForConditionalGeneration"),
    ),
)  # fmt: skip
OPEN_CLIP = (   # the first that fits: a CoCa has all that a CLIP has
    Form(
        "", "open_clip's CoCa", ("align.log_scale", "text.embed.cls", "decoder.w.blocks.0.cross.body.q.weight", "heads.lm.out.weight"),
        lambda model: open_clip_coca(split=model.part("vision").trunk.dim != model.part("vision").neck.dim), open_clip_coca_config,
    ),
    Form("", "open_clip's CLIP", ("align.log_scale", "vision.embed.norm.weight"), lambda model: open_clip(), open_clip_config),
)  # fmt: skip


def to_transformers(out: Path, *, model: VLModel, words: Words, config: Mapping[str, Any], card: str) -> list[str]:
    """Folders that `from_pretrained` reads, with tokenizer and image processor; BLIP gives one for retrieval and one for captioning.

    Returns:
        what was written, and what a user must know, one a line.

    Raises:
        WeightsError: no class of transformers is like this model.
    """
    image, forms = preprocessing(model, config), _forms(model, TRANSFORMERS, "transformers'")
    ready = [(form, form.configure(model, words), outside_tensors(model, form.table(model))) for form in forms]
    lines: list[str] = []
    with new_folder(out) as top:
        for form, settings, tensors in ready:
            folder = top / form.folder
            folder.mkdir(exist_ok=True)
            save(tensors, folder / "model.safetensors", "format", "pt")
            write_json(folder / "config.json", settings)
            write_json(folder / "preprocessor_config.json", _image_processor(image, settings["model_type"]))
            notes = [*_write_tokenizer(folder, words), *_notes(form)]
            (folder / CARD).write_text("\n".join([card.rstrip("\n"), "", *notes]).rstrip("\n") + "\n", encoding="utf-8")
            lines += [f"{out / form.folder}: {form.about}, {len(tensors)} tensors", *(f"  {note}" for note in notes)]
    return lines


def to_open_clip(out: Path, *, model: VLModel, words: Words, config: Mapping[str, Any], card: str) -> list[str]:
    """A folder that open_clip reads as `local-dir:FOLDER`: open_clip_config.json, open_clip_model.safetensors and the tokenizer.

    Returns, Raises:
        as `to_transformers`.
    """
    image, form = preprocessing(model, config), _forms(model, OPEN_CLIP, "open_clip's")[0]
    settings, tensors = form.configure(model, words), outside_tensors(model, form.table(model))
    prepared = {
        "size": image["image_size"], "mean": image["mean"], "std": image["std"], "interpolation": image["interpolation"],
        "resize_mode": {"crop": "shortest", "squash": "squash"}[image["resize"]],
    }  # fmt: skip
    with new_folder(out) as folder:
        save(tensors, folder / "open_clip_model.safetensors", "format", "pt")
        write_json(folder / "open_clip_config.json", {"model_cfg": settings, "preprocess_cfg": prepared})
        notes = _write_tokenizer(folder, words)
        (folder / CARD).write_text("\n".join([card.rstrip("\n"), "", *notes]).rstrip("\n") + "\n", encoding="utf-8")
    return [f"{out}: {form.about}, {len(tensors)} tensors; open_clip.create_model_and_transforms('local-dir:{out}')", *(f"  {note}" for note in notes)]


def _forms(model: VLModel, forms: tuple[Form, ...], whose: str) -> list[Form]:
    held = everything(model)
    found = [form for form in forms if all(name in held for name in form.needs)]
    if not found:
        raise WeightsError(f"{model.name!r} is none of {whose} classes that can be written (there are: {', '.join(form.about for form in forms)}). Write our folder: --to folder")
    return found


def _notes(form: Form) -> list[str]:
    return {
        "retrieval": ["matching was trained with [ENC] as the first token of the text: put its id in the place of the first one"],
        "SiglipModel": ["padding is read as words: fill every text up to the full length (padding='max_length'), and give no attention mask"],
    }.get(form.folder or form.about, [])


def _image_processor(image: Mapping[str, Any], kind: str) -> dict[str, Any]:
    side = {"height": image["image_size"], "width": image["image_size"]}
    crop = image["resize"] == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if crop or kind == "clip" else "BlipImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": image["image_size"]} if crop else side, "do_center_crop": crop, **({"crop_size": side} if crop else {}),
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": image["mean"], "image_std": image["std"],
    }  # fmt: skip


def _write_tokenizer(folder: Path, words: Words) -> list[str]:
    """tokenizer.json that puts the template around a text, and its settings. Returns what it cannot do."""
    template = Template.read(words.template, words.special)
    copy = Tokenizer.from_str(words.tokenizer.to_str())
    token = {name: copy.id_to_token(number) for name, number in words.special.items()}
    pieces = [*(token[name] for name in template.before), "$A", *(token[name] for name in template.after)]
    copy.post_processor = TemplateProcessing(single=pieces, special_tokens=[(token[name], words.special[name]) for name in {*template.before, *template.after}])
    copy.save(str(folder / "tokenizer.json"))
    roles = {"cls": ("cls_token", "bos_token"), "sep": ("sep_token", "eos_token"), "pad": ("pad_token",), "unk": ("unk_token",), "mask": ("mask_token",)}
    settings = {word: token[name] for name, taken in roles.items() if name in token for word in taken}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": words.length, "padding_side": "right", "truncation_side": "right",
        "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"], **settings,
    })
    notes = [] if template.text == "{caption}" else [f"texts were trained as {json.dumps(template.text)}: write these words around a caption"]
    return notes + ([] if words.clean == "none" else [f"captions were cleaned as {words.clean} does (vlpkit.data.tokenize.clean_words) before they were cut into words"])
