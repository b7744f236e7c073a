"""An exported folder in the hands of its own library: a picture file and captions in, as a user would give them, and our numbers out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BlipForImageTextRetrieval,
)

from tests.builders import CLOCK, CONF, composed
from tests.data.test_transforms import seen
from tests.model.test_convert import SMALL, coca_like_open_clip, made_run, same
from tests.parity.beside import CLOSE, apart
from tests.vocabulary import numbered_words
from vlpkit.assemble import assemble
from vlpkit.conversion import convert
from vlpkit.data.transforms import EvalTransform
from vlpkit.errors import WeightsError
from vlpkit.generate import greedy
from vlpkit.outside_siglip import open_clip_siglip_config
from vlpkit.restore import Restored, restore
from vlpkit.streams import Streams
from vlpkit.types import Batch, ImageInput

CAPTIONS = ["a large red circle above a small blue square", "two green triangles"]
FILE = 2e-3   # of the largest value: Pillow, which open_clip resizes with, and torch round a picture to whole levels of 255 in their own ways


def pictures() -> list[Image.Image]:
    """Two pictures that are no squares, smooth enough to be made smaller."""
    y, x = np.mgrid[0:90, 0:130] / 90.0
    first = np.stack([np.sin(3 * x + c) * np.cos(2 * y - c) for c in range(3)], -1)
    return [Image.fromarray(((image + 1) * 127).astype(np.uint8)) for image in (first, first.transpose(1, 0, 2)[::-1])]


def ours_of(found: Restored) -> Batch:
    """The same picture files and captions as our evaluation reads them."""
    prepare = EvalTransform(image_size=found.model.part("vision").embed.image_size, resize=found.config["data"]["eval_resize"])
    files = []
    for picture in pictures():
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append(seen(prepare, file.getvalue(), np.random.default_rng(0)))
    return Batch({"clean": ImageInput(torch.stack(files))}, {"clean": found.words.encode(CAPTIONS)}, {}, torch.arange(2))


@pytest.mark.parametrize("recipe", ["clip", "siglip"])
def test_transformers_needs_the_folder_alone_for_pictures_and_captions(recipe: str, tmp_path: Path) -> None:
    convert(made_run(tmp_path, f"model={recipe}"), tmp_path / "out", to="transformers", conf=CONF)
    theirs, prepare = AutoModel.from_pretrained(tmp_path / "out").eval(), AutoProcessor.from_pretrained(tmp_path / "out")
    words = {"clip": {"padding": True}, "siglip": {"padding": "max_length", "return_attention_mask": False}}[recipe]
    given = prepare(text=CAPTIONS, images=pictures(), return_tensors="pt", **words)
    found = restore(tmp_path / "run")
    with torch.no_grad():
        z, answer = Streams(found.model, ours_of(found)).aligned(), theirs(**given)
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    assert apart(z.scale * z.w @ z.v.T + z.bias, answer.logits_per_text) < CLOSE


def test_transformers_matches_and_captions_with_the_folders_of_a_blip(tmp_path: Path) -> None:
    convert(made_run(tmp_path, "model=blip"), tmp_path / "out", to="transformers", conf=CONF)
    found = restore(tmp_path / "run")
    words, batch = found.words, ours_of(found)
    prepare = AutoProcessor.from_pretrained(tmp_path / "out" / "retrieval")
    matcher = BlipForImageTextRetrieval.from_pretrained(tmp_path / "out" / "retrieval").eval()
    given = prepare(text=CAPTIONS, images=pictures(), padding=True, return_tensors="pt")
    s = Streams(found.model, batch, draws=found.assembly.draws, seed=(0,))
    with torch.no_grad():
        z, alike = s.aligned(), matcher(**given, use_itm_head=False).itm_score
        given["input_ids"][:, 0] = words.special["enc"]   # as card.txt says
        matched, ours = matcher(**given).itm_score, s.head("itm", s.fused("clean", "match.text").w)
    assert apart(z.v @ z.w.T, alike) < CLOSE
    assert apart(ours, matched) < CLOSE
    speaker, prepare = (kind.from_pretrained(tmp_path / "out" / "captioning") for kind in (AutoModelForImageTextToText, AutoProcessor))
    said = speaker.eval().generate(**prepare(images=pictures(), return_tensors="pt"), max_new_tokens=6, num_beams=1, do_sample=False)
    mine = greedy(found.model, batch.images["clean"], start=words.special["dec"], stop=words.stop, pad=words.pad, length=6).ids
    assert torch.equal(said, mine)
    assert prepare.batch_decode(said, skip_special_tokens=True) == words.decode(mine)


@register_model
def vit_tiny_patch8_siglip_32(pretrained: bool = False, **words: Any) -> VisionTransformer:
    """timm has no SigLIP this small, and open_clip builds its image tower by a name of timm's."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "act_layer": "gelu_tanh"}
    made: VisionTransformer = build_model_with_cfg(VisionTransformer, "vit_tiny_patch8_siglip_32", pretrained, **shape, **words)
    return made


OPEN_CLIP = {"clip": ["model=clip"], "siglip": ["model=siglip", "size.patch=8"], "coca": coca_like_open_clip()}


@pytest.mark.parametrize("recipe", OPEN_CLIP)
def test_open_clip_needs_the_folder_alone_for_pictures_and_captions(recipe: str, tmp_path: Path) -> None:
    said = convert(made_run(tmp_path, *OPEN_CLIP[recipe]), tmp_path / "out", to="open_clip", conf=CONF)
    assert not [line for line in said if "cleaned" in line]
    place = f"local-dir:{tmp_path / 'out'}"
    theirs, _, prepare = open_clip.create_model_and_transforms(place)
    found = restore(tmp_path / "run")
    ids = open_clip.get_tokenizer(place)(CAPTIONS if recipe != "siglip" else [f"{caption.capitalize()}!" for caption in CAPTIONS])   # it cleans as ours does
    with torch.no_grad():
        z, pixels = Streams(found.model, ours_of(found)).aligned(), torch.stack([prepare(picture) for picture in pictures()])
        v, w = theirs.eval().encode_image(pixels, normalize=True), theirs.encode_text(ids, normalize=True)
    assert apart(z.v, v) < FILE
    assert apart(z.w, w) < CLOSE
    assert apart(z.scale, theirs.logit_scale.exp()) < CLOSE
    assert float(z.bias) == (0.0 if theirs.logit_bias is None else pytest.approx(float(theirs.logit_bias)))
    settings = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    kind = {"clip": open_clip.CLIP, "siglip": open_clip.CustomTextCLIP, "coca": open_clip.CoCa}[recipe]
    blank = kind(**{key: value for key, value in settings.items() if key != "custom_text"})
    told = open_clip.load_checkpoint(blank, str(tmp_path / "out" / "open_clip_model.safetensors"), strict=True)   # the file alone, as a checkpoint
    assert (told.missing_keys, told.unexpected_keys) == ([], [])


def test_a_siglip_that_went_to_open_clip_comes_back_bit_for_bit(tmp_path: Path) -> None:
    convert(made_run(tmp_path, *OPEN_CLIP["siglip"]), tmp_path / "out", to="open_clip", conf=CONF)
    told = convert(tmp_path / "out", tmp_path / "back", overrides=[*OPEN_CLIP["siglip"], *SMALL], conf=CONF)
    assert told[0] == f"weights: {tmp_path / 'out'} (open_clip_siglip)"
    assert same(restore(tmp_path / "run").model, restore(tmp_path / "back").model)


def test_a_siglip_of_a_size_that_timm_has_no_name_for_is_refused(tmp_path: Path) -> None:
    folder = made_run(tmp_path, "model=siglip", "size.patch=8", "model.vision.trunk.depth=3")
    with pytest.raises(WeightsError) as refused:
        convert(folder, tmp_path / "out", to="open_clip", conf=CONF)
    assert "none has 3 blocks of 32, 2 heads, patches of 8 and images of 32 pixels (there are: vit_base_patch16_siglip_224," in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "name"), [(["size=base"], "vit_base_patch16_siglip_224"), (["size=base", "size.image=384"], "vit_base_patch16_siglip_384")])
def test_at_the_size_of_the_paper_its_image_tower_is_that_of_timm(size: list[str], name: str) -> None:
    settings = composed("model=siglip", *size)
    words = numbered_words(32000, {"pad": 1, "cls": 2, "sep": 1, "unk": 2}, length=64)
    with torch.device("meta"):
        made = assemble(settings, words=words, clock=CLOCK)
    told = open_clip_siglip_config(made.model, words)
    assert told["vision_cfg"]["timm_model_name"] == name
    released = open_clip.get_model_config(f"ViT-B-16-SigLIP{'' if name.endswith('224') else '-384'}")
    ours, theirs = told["text_cfg"], released["text_cfg"]
    assert {key: ours[key] for key in theirs if not key.startswith(("hf_", "tokenizer"))} == {key: theirs[key] for key in theirs if not key.startswith(("hf_", "tokenizer"))}
