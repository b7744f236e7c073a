"""Weights out and in again: our folder, transformers and open_clip, each loaded by its own library with the numbers that ours gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPModel,
    SiglipModel,
)

from tests.builders import CAPTIONS, CONF, NARROW, tiny_batch
from tests.evals.runs import Model, saved, world
from tests.parity.beside import CLOSE, apart, shake
from vlpkit.checkpoint import SafeCheckpointIO, load_checkpoint
from vlpkit.conversion import convert, main
from vlpkit.data.tokenize import Words
from vlpkit.errors import ConfigError, WeightsError
from vlpkit.restore import restore
from vlpkit.streams import Streams
from vlpkit.weights import everything

torch.set_num_threads(1)
SMALL = [word for word in NARROW if not word.startswith("size.words")] + ["size.words=24", "size.vocab=null"]


@pytest.fixture(scope="module", params=["clip", "blip"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, made_run(tmp_path_factory.mktemp("run"), f"model={request.param}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("clip"), "model=clip")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("blip"), "model=blip")


def made_run(folder: Path, *overrides: str) -> Path:
    """A run folder with a checkpoint, every weight away from what neutral values would hide."""
    model, _ = saved(folder / "run", world(folder), *overrides)
    assert isinstance(model, Model)
    path = folder / "run" / "checkpoints" / "step_00000007.ckpt"
    checkpoint = load_checkpoint(path)
    shake(model.assembly.model)
    checkpoint["state_dict"] |= {f"model.{name}": tensor.detach() for name, tensor in model.assembly.model.state_dict().items()}
    checkpoint["vlpkit"]["config"]["data"]["eval_resize"] = "crop" if "model=clip" in overrides else "squash"
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return folder / "run"


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def same(a: Any, b: Any) -> bool:
    """Whether two models hold the same bits under the same names."""
    ours, theirs = everything(a), everything(b)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# -- our folder --------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_run_bit_for_bit_and_each_shared_tensor_once(run: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = run
    convert(folder, tmp_path / "out", conf=CONF)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.txt", "config.yaml", "model.safetensors", "preprocessing.json", "tokenizer"]
    before, after = restore(folder), restore(tmp_path / "out")
    assert same(before.model, after.model)
    assert (after.step, after.samples_seen, after.words.fingerprint) == (7, 56, before.words.fingerprint)
    written = tensors(tmp_path / "out" / "model.safetensors")
    assert len(written) == len({id(tensor) for tensor in everything(before.model).values()})
    assert ("heads.lm.out.weight" in written, "text.embed.word.weight" in written) == (False, True)
    wanted = {"clip": "crop", "blip": "squash"}[name]
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["resize"] == wanted
    assert not any(module.training for module in after.model.modules())


def test_a_folder_is_converted_to_the_same_folder_again(clip: Path, tmp_path: Path) -> None:
    convert(clip, tmp_path / "a", conf=CONF)
    convert(tmp_path / "a", tmp_path / "b", conf=CONF)
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_nothing_is_overwritten_and_nothing_left_behind(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match=r"out: is there already and not empty\. Choose another name, or remove it first\."):
        convert(clip, tmp_path / "out", conf=CONF)
    with pytest.raises(WeightsError):
        convert(made_run(tmp_path, "model=albef"), tmp_path / "albef", to="transformers", conf=CONF)
    assert not [path for path in tmp_path.iterdir() if "albef" in path.name]


def test_a_run_knows_its_model(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(clip), str(tmp_path / "out"), "model=blip"], conf=CONF) == 2
    assert capsys.readouterr().err == f"{clip}: is our own and knows its model; leave out model=blip\n"


# -- transformers ------------------------------------------------------------------------------------------------------


def test_transformers_loads_a_clip_with_every_key_and_the_same_points(clip: Path, tmp_path: Path) -> None:
    convert(clip, tmp_path / "out", to="transformers", conf=CONF)
    theirs, told = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[word] for word in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = restore(clip)
    batch = tiny_batch(found.words)
    text, pixels = batch.texts["clean"], found.model.part("vision").embed.normalise(batch.images["clean"].pixels)
    with torch.no_grad():
        answer = theirs.eval()(input_ids=text.ids, attention_mask=text.mask.long(), pixel_values=pixels)
        z = Streams(found.model, batch).aligned()
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    assert apart(z.scale * z.w @ z.v.T, answer.logits_per_text) < CLOSE


def test_transformers_loads_a_blip_with_every_key_and_the_same_numbers(blip: Path, tmp_path: Path) -> None:
    convert(blip, tmp_path / "out", to="transformers", conf=CONF)
    found = restore(blip)
    batch = tiny_batch(found.words)
    text, pixels = batch.texts["clean"], found.model.part("vision").embed.normalise(batch.images["clean"].pixels)
    s = Streams(found.model, batch, draws=found.assembly.draws, seed=(0,))
    matcher, told = BlipForImageTextRetrieval.from_pretrained(tmp_path / "out" / "retrieval", output_loading_info=True)
    assert not any(told[word] for word in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    speaker, told = BlipForConditionalGeneration.from_pretrained(tmp_path / "out" / "captioning", output_loading_info=True)
    assert not any(told[word] for word in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        z, spoken = s.aligned(), s.text("caption.text")
        apiece = matcher.eval()(input_ids=text.ids, pixel_values=pixels, attention_mask=text.mask.long(), use_itm_head=False)
        matched = matcher(input_ids=text.ids, pixel_values=pixels, attention_mask=text.mask.long())
        seen = speaker.eval().vision_model(pixel_values=pixels).last_hidden_state
        words = speaker.text_decoder(input_ids=spoken.ids, attention_mask=spoken.mask.long(), encoder_hidden_states=seen, is_decoder=True).logits
        ours = s.head("lm", s.fused("clean", "caption.text", by="decoder").w.x)
        assert apart(z.v @ z.w.T, apiece.itm_score) < CLOSE
        assert apart(s.head("itm", s.fused("clean", "clean").w), matched.itm_score) < CLOSE
        assert apart(ours[spoken.mask], words[spoken.mask]) < CLOSE
    assert speaker.config.text_config.bos_token_id == found.words.special["dec"]


def test_transformers_loads_a_siglip_with_every_key_and_the_same_points_and_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = made_run(tmp_path, "model=siglip")
    told = convert(folder, tmp_path / "out", to="transformers", conf=CONF)
    assert [line for line in told if "padding is read as words" in line]
    theirs, account = SiglipModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(account[word] for word in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = restore(folder)
    batch = tiny_batch(found.words)
    text, pixels = batch.texts["clean"], found.model.part("vision").embed.normalise(batch.images["clean"].pixels)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")([caption.lower() for caption in found.words.decode(text.ids)], padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(ids[:, : text.ids.shape[1]], text.ids)
    with torch.no_grad():
        answer = theirs.eval()(input_ids=ids, pixel_values=pixels)
        z = Streams(found.model, batch).aligned()
    assert apart(z.v, answer.image_embeds) < CLOSE
    assert apart(z.w, answer.text_embeds) < CLOSE
    assert apart(z.scale * z.w @ z.v.T + z.bias, answer.logits_per_text) < CLOSE
    back = convert(tmp_path / "out", tmp_path / "back", overrides=["model=siglip", *SMALL], conf=CONF)
    assert same(found.model, restore(tmp_path / "back").model)
    assert back[0] == f"weights: {tmp_path / 'out'} (transformers_siglip)"


def test_a_siglip_that_transformers_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = made_run(tmp_path, "model=siglip", "+model.vision.neck.closing=true", "model.align.w.pool=first")
    with pytest.raises(WeightsError) as refused:
        convert(folder, tmp_path / "out", to="transformers", conf=CONF)
    assert str(refused.value) == (
        "the model is none that the outside class can be\n  align.w.pool is first, there it is last\n  vision.neck.closing is True, there it is False\n"
        "  Write our folder instead: --to folder"
    )


@pytest.mark.parametrize("folder", ["clip", "blip"])
def test_their_tokenizer_and_image_processor_prepare_as_ours(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(folder)
    convert(source, tmp_path / "out", to="transformers", conf=CONF)
    place = tmp_path / "out" / ("" if folder == "clip" else "retrieval")
    words, tokenizer = restore(source).words, AutoTokenizer.from_pretrained(place)
    captions = [caption.lower() for caption in CAPTIONS] + ["red " * 40]
    ours, theirs = words.encode(captions), tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(ours.ids, theirs["input_ids"])
    assert torch.equal(ours.mask, theirs["attention_mask"].bool())
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared = AutoImageProcessor.from_pretrained(place)(picture, return_tensors="pt")["pixel_values"]
    assert apart(prepared[0], restore(source).model.part("vision").embed.normalise(picture[None])[0]) < CLOSE


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_a_clip_that_went_out_comes_back_bit_for_bit(clip: Path, tmp_path: Path, to: str) -> None:
    convert(clip, tmp_path / "out", to=to, conf=CONF)
    told = convert(tmp_path / "out", tmp_path / "back", overrides=["model=clip", *SMALL], conf=CONF)
    assert same(restore(clip).model, restore(tmp_path / "back").model)
    assert told[0] == f"weights: {tmp_path / 'out'} ({'transformers_clip' if to == 'transformers' else 'open_clip'})"
    assert "0 dropped, 0 fresh" in told[1]


def test_a_blip_that_went_out_comes_back_bit_for_bit_but_for_what_the_class_lacks(blip: Path, tmp_path: Path) -> None:
    convert(blip, tmp_path / "out", to="transformers", conf=CONF)
    convert(tmp_path / "out" / "retrieval", tmp_path / "back", overrides=["model=blip", *SMALL], conf=CONF)
    ours, back = everything(restore(blip).model), everything(restore(tmp_path / "back").model)
    differ = {name.partition(".")[0] for name in ours if not torch.equal(ours[name], back[name])}
    assert differ <= {"decoder", "heads", "align"}
    assert not [name for name in ours if not torch.equal(ours[name], back[name]) and name.startswith(("align.v", "align.w", "heads.itm"))]


# -- open_clip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", ["1.0e-5", "1.0e-6"])
def test_open_clip_loads_a_clip_with_the_same_points(tmp_path: Path, eps: str) -> None:
    norms = [] if eps == "1.0e-5" else [f"model.vision.trunk.eps={eps}", f"+model.vision.embed.eps={eps}", f"model.text.trunk.eps={eps}"]
    folder = made_run(tmp_path, "model=clip", *norms)
    convert(folder, tmp_path / "out", to="open_clip", conf=CONF)
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    found = restore(folder)
    assert {name: tensor for name, tensor in theirs.state_dict().items() if name != "attn_mask"}.keys() == tensors(tmp_path / "out" / "open_clip_model.safetensors").keys()
    batch = tiny_batch(found.words)
    ids = torch.full((len(batch), found.model.part("text").embed.length), found.words.pad)
    ids[:, : batch.texts["clean"].ids.shape[1]] = batch.texts["clean"].ids
    with torch.no_grad():
        v, w, scale = theirs.eval()(found.model.part("vision").embed.normalise(batch.images["clean"].pixels), ids)
        z = Streams(found.model, batch).aligned()
    assert apart(z.v, v) < CLOSE
    assert apart(z.w, w) < CLOSE
    assert apart(z.scale, scale) < CLOSE
    assert "Resize" in str(prepare)


def coca_like_open_clip() -> list[str]:
    return ["model=coca", "model.text.embed.cls=last_shifted"]


@pytest.mark.parametrize("dim", [32, 48])
def test_open_clip_loads_a_coca_with_the_same_points_and_words_and_it_comes_back_bit_for_bit(tmp_path: Path, dim: int) -> None:
    """Where queries are as wide as the patches, its file has one projection in the place of three."""
    folder = made_run(tmp_path, *coca_like_open_clip(), f"size.dim={dim}")
    told = convert(folder, tmp_path / "out", to="open_clip", conf=CONF)
    assert "open_clip's CoCa" in told[0]
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    found = restore(folder)
    batch = tiny_batch(found.words)
    text = batch.texts["clean"]
    ids = torch.full((len(batch), found.model.part("text").embed.length - 1), found.words.pad)
    ids[:, : text.ids.shape[1]] = text.ids
    s = Streams(found.model, batch)
    with torch.no_grad():
        answer = theirs.eval()(found.model.part("vision").embed.normalise(batch.images["clean"].pixels), ids)
        z, logits = s.aligned(), s.head("lm", s.fused(by="decoder").w.x)
    assert apart(z.v, answer["image_features"]) < CLOSE
    assert apart(z.w, answer["text_features"]) < CLOSE
    assert apart(logits[:, : text.ids.shape[1]][text.mask], answer["logits"][:, : text.ids.shape[1]][text.mask]) < CLOSE
    assert apart(z.scale, answer["logit_scale"]) < CLOSE
    back = convert(tmp_path / "out", tmp_path / "back", overrides=[*coca_like_open_clip(), *SMALL, f"size.dim={dim}"], conf=CONF)
    assert same(found.model, restore(tmp_path / "back").model)
    assert back[0] == f"weights: {tmp_path / 'out'} (open_clip_coca)"


@pytest.mark.parametrize(("override", "said"), [
    ("model.text.embed.cls=last", "text.embed.cls is last, there it is last_shifted"),
    ("model.decoder.w.block=[self,cross,ffn]", "decoder.w.block is ('self', 'cross', 'ffn'), there it is ('self', 'ffn', 'cross', 'ffn')"),
    ("model.decoder.w.memory_norm=false", "decoder.w.memory_norm is False, there it is True"),
    ("objectives.lm.bias=true", "heads.lm.bias is True, there it is False"),
    ("vision=vit_cascade", "vision: is no stack of our own blocks over patches or words"),
])  # fmt: skip
def test_a_coca_that_open_clip_cannot_be_is_refused(tmp_path: Path, override: str, said: str) -> None:
    folder = made_run(tmp_path, *coca_like_open_clip(), override)
    with pytest.raises(WeightsError) as refused:
        convert(folder, tmp_path / "out", to="open_clip", conf=CONF)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


# -- what cannot go out ------------------------------------------------------------------------------------------------


def test_a_model_that_no_class_is_like_is_refused(tmp_path: Path) -> None:
    folder = made_run(tmp_path, "model=clip", "model.align.w.pool=mean")
    with pytest.raises(WeightsError) as refused:
        convert(folder, tmp_path / "out", to="transformers", conf=CONF)
    assert str(refused.value) == (
        "the model is none that the outside class can be\n  align.w.pool is mean, there it is last\n  Write our folder instead: --to folder"
    )


def test_outside_weights_need_a_model_and_a_tokenizer(clip: Path, tmp_path: Path) -> None:
    convert(clip, tmp_path / "out", to="transformers", conf=CONF)
    file = tmp_path / "out" / "model.safetensors"
    with pytest.raises(ConfigError, match=r"which model are these weights for\? Write it behind, as for train\.py: model=clip size=base"):
        convert(file, tmp_path / "back", conf=CONF)
    with pytest.raises(ConfigError, match=r"model\.text\.words\.size: 300 would train a tokenizer on captions, and there are none here"):
        convert(file, tmp_path / "back", overrides=["model=clip", *NARROW, "size.vocab=300"], conf=CONF)
    words = [*SMALL, f"model.text.words.name={tmp_path / 'out'}"]
    convert(file, tmp_path / "back", overrides=["model=clip", *words], conf=CONF)
    assert isinstance(restore(tmp_path / "back").words, Words)
