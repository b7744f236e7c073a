"""A trained CLIP, SigLIP, CoCa or BLIP as other libraries know it: their keys by our tables read backwards, their settings, a tokenizer
and how images are prepared, in the folders that they read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from vlpkit.account import plan
from vlpkit.data.tokenize import Template, Words
from vlpkit.errors import WeightsError
from vlpkit.folder import CARD, new_folder, preprocessing, save, write_json
from vlpkit.model import VLModel
from vlpkit.outside import (
    open_clip_coca_config,
    open_clip_config,
    transformers_blip_config,
    transformers_clip_config,
)
from vlpkit.outside_siglip import open_clip_siglip_config, transformers_siglip_config
from vlpkit.rows import Row
from vlpkit.tables.blip import transformers_blip_captioning, transformers_blip_retrieval
from vlpkit.tables.clip import open_clip, transformers_clip
from vlpkit.tables.coca import open_clip_coca
from vlpkit.tables.siglip import open_clip_siglip, transformers_siglip
from vlpkit.weights import canonical, everything, outward, revert

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
    Form("", "open_clip's SigLIP", ("align.log_scale", "align.bias", "vision.neck.query"), lambda model: open_clip_siglip(), open_clip_siglip_config),
    Form("", "open_clip's CLIP", ("align.log_scale", "vision.embed.norm.weight"), lambda model: open_clip(), open_clip_config),
)  # fmt: skip


def outside_tensors(model: VLModel, table: list[Row]) -> dict[str, Tensor]:
    """Our weights under the keys of a table, complete on both sides but for what the table lists as fresh.

    Raises:
        WeightsError: a tensor of ours has no place outside.
    """
    held = everything(model)
    shapes = {name: tensor.shape for name, tensor in held.items()}
    report = plan(outward(shapes, table), table, canonical(held))
    return {key: tensor.detach() for key, tensor in revert(held, report).items()}


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
        notes = _write_tokenizer(folder, words, cleans=bool(settings["text_cfg"]["tokenizer_kwargs"]))
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


def _write_tokenizer(folder: Path, words: Words, *, cleans: bool = False) -> list[str]:
    """tokenizer.json that puts the template around a text, and its settings. Returns what it cannot do; `cleans`: its library cleans captions itself."""
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
    return notes + ([] if cleans or words.clean == "none" else [f"captions were cleaned as {words.clean} does (vlpkit.data.tokenize.clean_words) before they were cut into words"])
