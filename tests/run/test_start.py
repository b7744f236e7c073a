"""Starting from outside weights: files are read without executing anything, recognised by their keys, fitted, and accounted for."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel, BlipForConditionalGeneration, BlipForImageTextRetrieval

from tests.builders import CONF
from tests.golden.recorded import recording
from tests.model.test_convert import made_run
from tests.parity.beside import IMAGE, LENGTH, SPECIAL, VOCAB, ours
from tests.parity.test_bert_vit import BERT
from tests.parity.test_blip import config as blip_config
from tests.parity.test_clip import their_open_clip, their_transformers
from tests.parity.test_coca import theirs as their_coca
from tests.parity.test_siglip import their_open_clip as their_open_siglip
from tests.parity.test_siglip import their_transformers as their_siglip
from tests.recipes.runs import NARROW
from tests.test_readme import run as train
from tests.vocabulary import numbered_words
from vlpkit.checkpoint import load_checkpoint
from vlpkit.conversion import convert as convert_files
from vlpkit.errors import WeightsError
from vlpkit.layouts import known, named, recognise
from vlpkit.restore import restore
from vlpkit.rows import parse
from vlpkit.source import read
from vlpkit.start import Taken, loaded, start
from vlpkit.weights import convert

WORDS = numbered_words(VOCAB, SPECIAL, length=LENGTH)


def written(path: Path, model: nn.Module) -> Path:
    """The weights of another library's model as safetensors."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def timm_vit(image: int = IMAGE) -> VisionTransformer:
    return VisionTransformer(img_size=image, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=5)


# -- reading -----------------------------------------------------------------------------------------------------------


class Payload:
    """Would write a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zip", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_pickle_that_would_run_code_is_refused_and_never_run(tmp_path: Path, suffix: str, how: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    content = {"model": {"w": torch.zeros(1)}, "args": Payload(mark)}
    if how == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError) as refused:
        read(path)
    assert not mark.exists()
    if how == "zip":
        assert str(refused.value).startswith(f"{path}: holds more than tensors and plain types, and reading that could run code, so it was not read.\n  ")
        assert "Take the safetensors of the same model, or, if you trust the file, save its tensors alone:\n  python -c " in str(refused.value)


def test_a_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(WeightsError) as refused:
        read(path)
    assert str(refused.value) == (
        f"{path}: is a TorchScript archive, which holds a program, and none is executed here.\n"
        "  Take the safetensors of the same model, or, if you trust the file, turn it into one:\n"
        f"  python -c \"import torch; from safetensors.torch import save_file; save_file(dict(torch.jit.load('{path}', map_location='cpu').state_dict()), 'weights.safetensors')\""
    )


def test_what_trainers_put_around_weights_is_peeled_off_and_said(tmp_path: Path) -> None:
    inner = {"module.a.weight": torch.ones(2), "module.b": torch.zeros(1)}
    torch.save({"epoch": 3, "state_dict": {"model": inner, "step": 1}, "optimizer": {}}, tmp_path / "x.pth")
    source = read(tmp_path / "x.pth")
    assert sorted(source.tensors) == ["a.weight", "b"]
    assert source.peeled == ("read the entry 'state_dict', not epoch, optimizer", "read the entry 'model', not step", "every key stood behind 'module.'")


def test_shards_are_joined_and_no_index_leads_out_of_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert sorted(read(tmp_path).tensors) == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(WeightsError, match=r"names '\.\./one\.safetensors', which is no file beside it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.onnx", b"", r"\.onnx is no format that is read"), ("x.safetensors", b"abc", "is no safetensors file, or not all of it"),
        ("x.pt", b"abc", "x.pt: "), ("x", b"", "a name without an ending is no format"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read(tmp_path / name)


# -- layouts -----------------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "open_clip": lambda: their_open_clip().state_dict(), "transformers_clip": lambda: their_transformers().state_dict(),
    "albef": lambda: recording("albef_a").group("param/"), "blip": lambda: recording("blip_a").group("param/"),
    "transformers_blip": lambda: BlipForImageTextRetrieval(blip_config()).state_dict(),
    "transformers_blip_captioning": lambda: BlipForConditionalGeneration(blip_config()).state_dict(), "timm_vit": lambda: timm_vit().state_dict(),
    "bert": lambda: BertModel(BertConfig(**BERT)).state_dict(), "bert_words": lambda: BertForMaskedLM(BertConfig(**BERT)).state_dict(),
    "open_clip_coca": lambda: their_coca().state_dict(), "open_clip_siglip": lambda: their_open_siglip().state_dict(),
    "transformers_siglip": lambda: their_siglip().state_dict(), "vilt": lambda: recording("vilt_a").group("param/"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_recognised_by_its_keys_alone(name: str) -> None:
    tensors = MODELS[name]()
    assert recognise(tensors, place="x").name == name
    assert named(name).recognises(dict(reversed(tensors.items())))


def test_a_file_of_no_layout_or_of_two_is_refused() -> None:
    with pytest.raises(WeightsError) as refused:
        recognise(dict.fromkeys(["stem.0.weight", "stem.0.bias", "head.fc.weight"], torch.zeros(1)), place="x.pt")
    assert str(refused.value) == f"x.pt: its 3 keys are those of no known layout; they start with stem.0, head.fc\n{known()}"
    both = {**timm_vit().state_dict(), **BertModel(BertConfig(**BERT)).state_dict()}
    with pytest.raises(WeightsError) as refused:
        recognise(both, place="x.pt")
    assert str(refused.value) == "x.pt: its keys are those of timm_vit and of bert. Convert it first and say which: python scripts/convert.py x.pt OUT --layout timm_vit"
    with pytest.raises(WeightsError, match=r"--layout: there is no 'open_clp'\. Did you mean 'open_clip'\?\n  known layouts:"):
        named("open_clp")


# -- fitting -----------------------------------------------------------------------------------------------------------


def table(new: int, old: int, dim: int = 3) -> tuple[Tensor, Tensor, str]:
    """A position table with a class row, brought to another grid."""
    source = torch.randn(1, 1 + old * old, dim, generator=torch.Generator().manual_seed(0))
    made, report = convert({"p": source}, parse(["p -> q | grid"]), {"q": torch.zeros(1, 1 + new * new, dim)})
    return source, made["q"], "".join(report.resized)


def test_positions_of_another_grid_are_interpolated_and_the_class_row_stays() -> None:
    source, made, said = table(6, 4)
    square = source[0, 1:].view(4, 4, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(square, size=(6, 6), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(36, 3)
    assert torch.equal(made[0, 0], source[0, 0])
    assert torch.equal(made[0, 1:], expected)
    assert said == "q from (1, 17, 3) to (1, 37, 3)"
    source, made, said = table(4, 4)
    assert torch.equal(made, source)
    assert said == ""


def test_rows_stay_rows_and_columns_columns() -> None:
    down = torch.arange(4.0).repeat_interleave(4)   # grows from row to row, the same along each
    made, _ = convert({"p": down.view(16, 1)}, parse(["p -> q | squeeze grid"]), {"q": torch.zeros(1, 64, 1)})
    grid = made["q"].view(8, 8)
    assert torch.allclose(grid, grid[:, :1].expand(8, 8), atol=1e-6)
    assert bool((grid[1:, 0] > grid[:-1, 0]).all())


def test_a_longer_text_table_is_cut() -> None:
    source = torch.randn(9, 2)
    made, report = convert({"p": source}, parse(["p -> q | cut"]), {"q": torch.zeros(5, 2)})
    assert torch.equal(made["q"], source[:5])
    assert report.resized == ("q from (9, 2) to (5, 2)",)


def test_a_shorter_text_table_and_another_vocabulary_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.safetensors", their_open_clip())
    made = ours("model=clip", f"size.positions={LENGTH + 4}")
    with pytest.raises(WeightsError) as refused:
        start(made.model, str(path), words=WORDS)
    head = f"weights: {path} (open_clip: CLIP of open_clip and OpenAI, for model=clip) does not fit model=clip.\nthe weights do not fit\n"
    assert str(refused.value) == head + (
        "  positional_embedding is (12, 32), text.embed.position.weight is (16, 32): the file knows positions of 12 tokens, this model has 16; "
        "a table can be cut, not grown: size.positions=12"
    )
    other = open_clip.CLIP(
        32, vision_cfg={"layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "image_size": IMAGE},
        text_cfg={"context_length": LENGTH, "vocab_size": VOCAB + 7, "width": 32, "heads": 2, "layers": 2}, quick_gelu=True,
    )  # fmt: skip
    written(path, other)
    with pytest.raises(WeightsError) as refused:
        start(ours("model=clip").model, str(path), words=WORDS)
    assert str(refused.value) == head + (
        "  token_embedding.weight is (67, 32), text.embed.word.weight is (60, 32): the file's vocabulary has 67 words, the tokenizer 60; "
        "take the tokenizer of the weights: size.vocab=null model.text.words.name=FOLDER"
    )
    with torch.device("meta"):
        start(ours("model=clip").model, str(path), words=WORDS, rehearsal=True)   # the tokenizer is not known yet


def parts(tmp_path: Path, model: nn.Module) -> tuple[list[Taken], VisionTransformer, BertForMaskedLM]:
    """An ALBEF from a ViT and a BERT, as it was published."""
    vit, bert = timm_vit(), BertForMaskedLM(BertConfig(**{**BERT, "num_hidden_layers": 4}))
    files = {"vision": str(written(tmp_path / "vit.safetensors", vit)), "text": str(written(tmp_path / "bert.safetensors", bert))}
    return start(model, files, words=WORDS), vit, bert  # type: ignore[arg-type]


def test_one_vit_that_reads_patches_and_words_starts_from_a_vit_of_images(tmp_path: Path) -> None:
    """ViLT's start: blocks, patches and places are the file's; words, types and heads keep their random start."""
    made, vit = ours("model=vilt", "size.depth=2"), timm_vit()
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    (taken,) = start(made.model, {"vision": str(written(tmp_path / "vit.safetensors", vit))}, words=WORDS)
    trunk, embed = made.model.part("fusion").joint.trunk, made.model.part("vision").embed
    for i, block in enumerate(vit.blocks):
        assert torch.equal(trunk.blocks[i].self.body.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(trunk.blocks[i].ffn.body.fc2.bias, block.mlp.fc2.bias)
    assert torch.equal(trunk.norm.weight, vit.norm.weight)
    assert torch.equal(embed.position, vit.pos_embed)
    assert torch.equal(embed.proj.weight, vit.patch_embed.proj.weight)
    fresh = {name for name in before if name.startswith(("text.", "heads.")) or name == "vision.embed.side"}
    assert set(taken.report.fresh) == fresh
    after = dict(made.model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in fresh)
    assert set(taken.report.dropped) == {"head.weight", "head.bias"}


def test_parts_start_from_files_of_their_own(tmp_path: Path) -> None:
    made = ours("model=albef")
    align, cross = made.model.part("align").v.out.weight.clone(), made.model.part("fusion").w.blocks[0].cross.body.q.weight.clone()
    (first, second), vit, bert = parts(tmp_path, made.model)
    assert torch.equal(made.model.part("vision").embed.position, vit.pos_embed)
    assert torch.equal(made.model.part("text").trunk.blocks[1].ffn.body.fc1.weight, bert.bert.encoder.layer[1].intermediate.dense.weight)
    assert torch.equal(made.model.part("fusion").w.blocks[1].ffn.body.fc1.weight, bert.bert.encoder.layer[3].intermediate.dense.weight)
    assert torch.equal(made.model.head("mlm").dense.weight, bert.cls.predictions.transform.dense.weight)
    assert made.model.head("mlm").out.weight is made.model.part("text").embed.word.weight
    assert torch.equal(made.model.part("align").v.out.weight, align)
    assert torch.equal(made.model.part("fusion").w.blocks[0].cross.body.q.weight, cross)
    assert set(first.report.dropped) == {"head.weight", "head.bias"}
    assert str(second).startswith(f"weights: text from {tmp_path / 'bert.safetensors'} (bert_words)\n")
    assert "  fresh: vision.embed.cls" in second.full()


def test_the_image_tower_of_a_clip_serves_another_recipe(tmp_path: Path) -> None:
    made, clip = ours("model=albef", "vision=vit_clip"), their_open_clip()
    (taken,) = start(made.model, {"vision": str(written(tmp_path / "clip.safetensors", clip))}, words=WORDS)
    assert torch.equal(made.model.part("vision").embed.proj.weight, clip.visual.conv1.weight)
    assert {"token_embedding.weight", "visual.proj", "logit_scale"} <= set(taken.report.dropped)
    assert not [name for name in taken.report.fresh if name.startswith("vision.")]


def test_two_files_for_one_tensor_are_refused(tmp_path: Path) -> None:
    bert = str(written(tmp_path / "bert.safetensors", BertForMaskedLM(BertConfig(**{**BERT, "num_hidden_layers": 4}))))
    other = str(written(tmp_path / "other.safetensors", BertForMaskedLM(BertConfig(**{**BERT, "num_hidden_layers": 4}))))
    with pytest.raises(WeightsError, match=r"weights: \S+bert\.safetensors and \S+other\.safetensors both fill fusion\.w\.\S+\. Name each part once\."):
        start(ours("model=albef").model, {"text": bert, "fusion": other}, words=WORDS)


def test_the_first_names_of_norms_are_understood(tmp_path: Path) -> None:
    bert = BertModel(BertConfig(**BERT))
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone() for name, tensor in bert.state_dict().items()}
    torch.save(old, tmp_path / "pytorch_model.bin")
    made = ours("model=clip", "text=bert", "align=first")
    with torch.no_grad():
        made.model.part("text").embed.norm.weight.zero_()
    start(made.model, {"text": str(tmp_path)}, words=WORDS)
    assert torch.equal(made.model.part("text").embed.norm.weight, bert.embeddings.LayerNorm.weight)


# -- train.py ----------------------------------------------------------------------------------------------------------

SMALL = [word for word in NARROW if not word.startswith(("size.vocab", "evals"))] + ["evals=[]", "total=2_steps", "optim.lr=1e-30", "size.vocab=null", "size.queue=24"]


def unmoved(recipe: str, source: Path, words: Path, place: Path, cache: Path) -> dict[str, Tensor]:
    """The state of a run of two steps, at a rate that moves nothing."""
    code, said = train([f"model={recipe}", f"run_dir={place}", f"weights={source}", f"model.text.words.name={words}", f"paths.cache={cache}", *SMALL], place.parent / "log")
    assert code == 0, said
    state: dict[str, Tensor] = load_checkpoint(place / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def test_a_run_starts_from_a_transformers_folder(tmp_path: Path) -> None:
    source = made_run(tmp_path / "made", "model=clip")
    convert_files(source, tmp_path / "out", to="transformers", conf=CONF)
    state = unmoved("clip", tmp_path / "out", tmp_path / "out", tmp_path / "run", tmp_path / "cache")
    expected = restore(source).model.state_dict()
    assert {name for name, tensor in expected.items() if not torch.equal(state[f"model.{name}"], tensor)} == set()
    account = (tmp_path / "run" / "weights.txt").read_text()
    assert account.startswith(f"weights: {tmp_path / 'out'} (transformers_clip)\n")
    assert "  logit_scale -> align.log_scale\n" in account
    assert f"starts from: {tmp_path / 'out'} (transformers_clip)" in (tmp_path / "run" / "card.txt").read_text()


def test_a_teacher_is_copied_after_the_weights(tmp_path: Path) -> None:
    source = made_run(tmp_path / "made", "model=blip")
    convert_files(source, tmp_path / "out", conf=CONF)
    state = unmoved("blip", tmp_path / "out", tmp_path / "out" / "tokenizer", tmp_path / "run", tmp_path / "cache")
    expected = restore(source).model.state_dict()
    assert {name for name, tensor in expected.items() if not torch.equal(state[f"model.{name}"], tensor)} == set()
    twins = [name for name in state if name.startswith("teacher.model.vision")]
    assert twins
    for name in twins:
        torch.testing.assert_close(state[name], state[name.removeprefix("teacher.")])


def test_weights_that_cannot_be_are_refused_before_data_are_touched(tmp_path: Path) -> None:
    file = written(tmp_path / "vit.safetensors", timm_vit())
    told = {
        f"weights={tmp_path}/nothing": f"weights: there is no {tmp_path}/nothing (accepted: a run folder, a folder of weights, or a .safetensors, .pt, .pth, .bin or .ckpt file)\n",
        f"weights={{visoin: {file}}}": "weights.visoin: 'albef' has no such part (it has: vision, text, fusion, align, heads). Did you mean 'vision'?\n",
        f"weights={{heads.itn: {file}}}": "weights.heads.itn: 'heads.itn' matches nothing: heads has no 'itn' (it has: itm, mlm). Did you mean 'itm'?\n",
        f"weights={{vision.trunk.blocks.0-9: {file}, vision.nek: {file}}}": "weights.vision.nek: 'vision.nek' matches nothing: vision has no 'nek' (it has: embed, trunk, neck). Did you mean 'neck'?\n",
        f"weights={{vision: {file}}}": (
            f"weights.vision: {file} (timm_vit: a vision transformer of timm or DeiT, for the vision part of any recipe with vision=vit) does not fit model=albef.\n"
            "the weights do not fit\n"
        ),
    }
    for words, message in told.items():
        code, said = train(["model=albef", f"run_dir={tmp_path / 'run'}", words, f"paths.cache={tmp_path / 'cache'}", *NARROW], tmp_path / "log")
        assert code == 2
        assert said == message or (message.endswith("the weights do not fit\n") and message in said)
        assert not (tmp_path / "cache").exists()


def test_a_group_of_the_optimiser_that_matches_nothing_is_refused_before_data_are_touched(tmp_path: Path) -> None:
    code, said = train(["model=clip", f"run_dir={tmp_path / 'run'}", "optim.groups=[{match: vision.trunk.blocks.9, lr_scale: 5.0}]", f"paths.cache={tmp_path / 'cache'}", *NARROW], tmp_path / "log")
    assert (code, said) == (2, "optim.groups[0].match: 'vision.trunk.blocks.9' matches no trainable parameter that an earlier group left\n")
    assert not (tmp_path / "cache").exists()


def test_a_network_that_a_library_built_with_its_weights_is_loaded_too() -> None:
    model = ours("model=clip").model
    assert loaded([], model, {"model": {"vision": {"embed": {"pretrained": False}}, "text": {"embed": {"pretrained": "folder"}}, "ties": []}}) == [
        name for name, _ in model.named_parameters() if name.startswith("text.embed.")
    ]


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    source = made_run(tmp_path / "made", "model=clip")
    words = numbered_words(restore(source).words.size, SPECIAL, length=LENGTH)
    model = restore(source).model
    with pytest.raises(WeightsError, match=r"was trained with another tokenizer \(\d+ words, this one has \d+\), so its word table would mean other words\.\n  Take that tokenizer"):
        start(model, str(source), words=words)
    (taken,) = start(model, {"vision": str(source)}, words=words)
    assert taken.layout.name == "vlpkit"
