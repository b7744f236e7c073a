"""`weights={ADDRESS: FILE}`: a part, a head or some layers of a file go where they belong, and nothing else of ours or of the file is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden.recorded import build, recording, words_of
from tests.parity.beside import LENGTH, SPECIAL, VOCAB, ours, shake
from tests.parity.test_clip import their_open_clip
from tests.parity.test_siglip import their_transformers as their_siglip
from tests.vocabulary import numbered_words
from vlpkit.account import Asked, plan
from vlpkit.errors import WeightsError
from vlpkit.folder import write
from vlpkit.model import VLModel
from vlpkit.rows import parse
from vlpkit.start import start
from vlpkit.weights import everything

WORDS = numbered_words(VOCAB, SPECIAL, length=LENGTH)
ALBEF = recording("albef_a")


def albef_file(folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in ALBEF.group("param/").items()}, folder / "albef.safetensors")
    return folder / "albef.safetensors"


def albef(*further: str) -> VLModel:
    """At the recorded sizes, with random weights of its own."""
    model = build("albef", ALBEF, *further)[0].model
    shake(model)
    return model


def moved(model: VLModel, before: dict[str, Tensor]) -> set[str]:
    """Parts and heads of which something is no more what it was."""
    changed = [name for name, tensor in everything(model).items() if not torch.equal(tensor, before[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("heads") else 1]) for name in changed}


def kept(model: VLModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in everything(model).items()}


def own_folder(folder: Path, model: VLModel) -> Path:
    """One of our folders; its configuration is not read here."""
    config = {"model": {"vision": {"embed": {"image_size": 32}}}, "data": {"eval_resize": "squash"}}
    write(folder, model=model, words=words_of(ALBEF.sizes), config=config, card="")
    return folder


@pytest.mark.parametrize(("address", "expected"), [
    ("heads.itm", {"heads.itm"}), ("align", {"align"}), ("align.v", {"align"}), ("vision", {"vision"}), ("heads", {"heads.itm", "heads.mlm"}), ("fusion.w.blocks.0", {"fusion"}),
    ("heads.{itm,mlm}", {"heads.itm", "heads.mlm"}), ("text", {"text", "fusion", "heads.itm", "heads.mlm"}),
])  # fmt: skip
def test_an_address_fills_what_it_covers_and_what_it_brings(address: str, expected: set[str], tmp_path: Path) -> None:
    model, path = albef(), albef_file(tmp_path)
    before = kept(model)
    taken, = start(model, {address: str(path)}, words=words_of(ALBEF.sizes))
    assert moved(model, before) == expected
    assert taken.address == address
    names = {name for name, _ in model.named_parameters()}
    assert names == ({*taken.filled} | {*taken.report.fresh}) & names
    assert not {*taken.filled} & {*taken.report.fresh}
    used = [key for piece in taken.report.pieces for key in piece.sources]
    assert sorted({*used, *taken.report.dropped}) == sorted(ALBEF.group("param/"))


def test_a_shared_table_comes_with_the_first_of_its_addresses(tmp_path: Path) -> None:
    """The output table of masked words is that of the text part, so naming heads leaves it alone."""
    model, path = albef(), albef_file(tmp_path)
    words = model.part("text").embed.word.weight.detach().clone()
    start(model, {"heads": str(path)}, words=words_of(ALBEF.sizes))
    assert torch.equal(model.head("mlm").out.weight, words)
    assert torch.equal(model.head("mlm").out.bias, ALBEF["param/text_encoder.cls.predictions.bias"])


def test_fine_tuning_without_masked_words_starts_from_a_file_that_has_their_head(tmp_path: Path) -> None:
    model, path = albef("objective=[itc_momentum,itm_hard]"), albef_file(tmp_path)
    before = kept(model)
    _, text, _ = start(model, {part: str(path) for part in ("vision", "text", "align")}, words=words_of(ALBEF.sizes))
    assert moved(model, before) == {"vision", "text", "fusion", "align", "heads.itm"}
    assert {"text_encoder.cls.predictions.transform.dense.weight", "itm_head.weight"} & {*text.report.dropped} == {"text_encoder.cls.predictions.transform.dense.weight"}
    with pytest.raises(WeightsError) as refused:
        start(model, str(path), words=words_of(ALBEF.sizes))
    assert "text_encoder.cls.predictions.transform.LayerNorm.weight -> heads.mlm.norm.weight" in str(refused.value)
    assert str(refused.value).endswith(f"\n  Name what it shall fill, by address: 'weights={{vision: {path}, heads.itm: {path}}}'")


def test_a_head_goes_from_one_of_our_runs_into_another_recipe(tmp_path: Path) -> None:
    first, second = albef(), albef("objective=[itc_momentum,mlm]")
    with torch.no_grad():
        first.head("mlm").dense.weight.fill_(3.0)
        first.part("align").v.out.weight.fill_(2.0)
    folder = own_folder(tmp_path / "first", first)
    before = kept(second)
    start(second, {"heads.mlm": str(folder), "align": str(folder)}, words=words_of(ALBEF.sizes))
    assert moved(second, before) == {"heads.mlm", "align"}
    assert bool((second.head("mlm").dense.weight == 3.0).all())
    with pytest.raises(WeightsError, match=r"a row leads to what is not here: heads\.itm\.out\.bias"):
        start(second, {"heads": str(folder)}, words=words_of(ALBEF.sizes))


def test_some_layers_of_a_deeper_file_are_asked_for_by_number(tmp_path: Path) -> None:
    """METER reads CLIP's image tower without its last block."""
    clip, model = their_open_clip(), ours("model=meter", "model.vision.trunk.depth=1").model
    path = tmp_path / "clip.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in clip.state_dict().items()}, path)
    with pytest.raises(WeightsError, match=r"visual\.transformer\.resblocks\.1\.ln_1\.weight -> vision\.trunk\.blocks\.1\.self\.norm\.weight"):
        start(model, {"vision": str(path)}, words=WORDS)
    taken = start(model, {address: str(path) for address in ("vision.embed", "vision.trunk.blocks.0", "vision.trunk.norm")}, words=WORDS)
    assert torch.equal(model.part("vision").trunk.blocks[0].ffn.body.fc1.weight, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
    filled = {name for one in taken for name in one.filled}
    assert {name for name in everything(model) if name.startswith("vision.")} - filled == {name for name in everything(model) if name.startswith("vision.neck.")}


@pytest.mark.parametrize(("recipe", "address", "said"), [
    ("albef", "heads.itn", "weights.heads.itn: 'heads.itn' matches nothing: heads has no 'itn' (it has: itm, mlm)"),
    ("albef", "vision.trunk.blocks.7", "weights.vision.trunk.blocks.7: 'vision.trunk.blocks.7' matches nothing: vision.trunk.blocks has no '7'"),
    ("albef", "vision..trunk", "weights.vision..trunk: 'vision..trunk' is no address"),
    ("blip", "fusion", "weights.fusion: nothing there has weights of its own; what is there is shared with text.trunk.blocks.0.self."),
])  # fmt: skip
def test_an_address_that_covers_nothing_is_refused(recipe: str, address: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        start(ours(f"model={recipe}").model, {address: str(albef_file(tmp_path))}, words=WORDS)
    assert str(refused.value).startswith(said)


def test_half_of_what_is_one_tensor_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "siglip.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in their_siglip().state_dict().items()}, path)
    model = ours("model=siglip", f"size.words={LENGTH}").model
    with pytest.raises(WeightsError, match=r"in_proj_weight holds vision\.neck\.attention\.q\.weight and vision\.neck\.attention\.kv\.weight, so name all of them"):
        start(model, {"vision.neck.attention.q": str(path)}, words=WORDS)


def test_what_is_brought_comes_whole_or_not_at_all() -> None:
    """A part that both sides have must fit; one that either side lacks is dropped, or fresh."""
    table = parse(["a.* -> text.*", "b.* -> fusion.*", "c.* -> heads.mlm.*"])
    asked = Asked(("text",), ("fusion", "heads"))
    names = {name: name for name in ("text.w", "fusion.w", "fusion.x", "heads.itm.w")}
    shapes = {key: torch.Size([1]) for key in ("a.w", "b.w", "b.x", "c.w")}
    report = plan(shapes, table, names, asked=asked)
    assert (report.dropped, report.fresh) == (("c.w",), ("heads.itm.w",))
    with pytest.raises(WeightsError, match=r"nothing fills fusion\.x"):
        plan({key: shape for key, shape in shapes.items() if key != "b.x"}, table, names, asked=asked)
    with pytest.raises(WeightsError, match=r"a row leads to what is not here: b\.x -> fusion\.x"):
        plan(shapes, table, {name: name for name in names if name != "fusion.x"}, asked=asked)
