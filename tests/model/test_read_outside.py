"""Outside weights in: a file of another library becomes a folder of ours that gives its numbers, and goes back under its names bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.builders import CONF
from tests.parity.beside import CLOSE, IMAGE, LENGTH, SPECIAL, VOCAB, apart, batch, shake
from tests.parity.test_coca import theirs as their_coca
from tests.parity.test_siglip import their_open_clip as their_open_siglip
from tests.parity.test_siglip import their_transformers as their_siglip
from tests.vocabulary import numbered_words
from vlpkit.conversion import convert
from vlpkit.errors import WeightsError
from vlpkit.restore import restore
from vlpkit.start import start
from vlpkit.weights import everything, revert

torch.set_num_threads(1)
SIZES = ["size.dim=48", "size.heads=4", "size.depth=2", "size.narrow.dim=32", "size.narrow.heads=2", f"size.image={IMAGE}", "size.patch=8",
         "size.vocab=null", f"size.words={LENGTH}", "size.queries.all=6", "size.queries.rest=5"]  # fmt: skip
COCA = ["model=coca", *SIZES, f"size.positions={LENGTH + 1}"]
Points = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """A model of another library, the words of a command line that it is for, and its points of pictures (R, 3, H, W) and ids (B, N)."""

    theirs: Callable[[], nn.Module]
    ours: list[str]
    points: Callable[[nn.Module, Tensor, Tensor], Points]


def coca_points(model: nn.Module, pixels: Tensor, ids: Tensor) -> Points:
    found: dict[str, Tensor] = model(pixels, ids)
    return found["image_features"].view(len(pixels), -1), found["text_features"]


def siglip_points(model: nn.Module, pixels: Tensor, ids: Tensor) -> Points:
    found = model(input_ids=ids, pixel_values=pixels)
    return found.image_embeds, found.text_embeds


CASES = {
    "open_clip_coca": Case(lambda: their_coca(correct=False), [*COCA, "model.text.embed.cls=last_shifted"], coca_points),
    "open_clip_coca, cascade": Case(
        lambda: their_coca(pool="cascade", width=32), [*COCA, "vision=vit_cascade", "size.dim=32", "size.heads=2"], coca_points
    ),
    "transformers_siglip": Case(their_siglip, ["model=siglip", *SIZES], siglip_points),
    "open_clip_siglip": Case(their_open_siglip, ["model=siglip", *SIZES], lambda model, pixels, ids: model(pixels, ids)[:2]),
}  # fmt: skip


def files(folder: Path, case: Case) -> tuple[nn.Module, Path, list[str]]:
    """Their model with random weights, its file, and the words behind `convert.py FILE OUT`."""
    theirs = case.theirs().eval()
    shake(theirs)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in theirs.state_dict().items()}, folder / "theirs.safetensors")
    numbered_words(VOCAB, SPECIAL, length=LENGTH).save(folder / "words")
    return theirs, folder / "theirs.safetensors", [*case.ours, f"model.text.words.name={folder / 'words'}"]


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_gives_the_points_that_it_gave(name: str, tmp_path: Path) -> None:
    theirs, file, words = files(tmp_path, CASES[name])
    told = convert(file, tmp_path / "out", overrides=words, conf=CONF)
    assert told[0] == f"weights: {file} ({name.partition(',')[0]})"
    assert told[1].endswith("0 dropped, 0 fresh")
    model, given = restore(tmp_path / "out").model, batch()
    images, texts = given.images["clean"], given.texts["clean"]
    with torch.no_grad():
        v, w = CASES[name].points(theirs, model.part("vision").embed.normalise(images.pixels), texts.ids)
        assert apart(model.encode_image(images), v / v.norm(dim=-1, keepdim=True)) < CLOSE
        assert apart(model.encode_text(texts), w / w.norm(dim=-1, keepdim=True)) < CLOSE
    scale, bias = model.part("align").temper()
    assert scale.item() == pytest.approx(theirs.logit_scale.exp().item())
    assert bias.item() == pytest.approx(0.0 if theirs.logit_bias is None else theirs.logit_bias.item())


@pytest.mark.parametrize("name", CASES)
def test_weights_that_came_in_go_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    theirs, file, words = files(tmp_path, CASES[name])
    convert(file, tmp_path / "out", overrides=words, conf=CONF)
    found = restore(tmp_path / "out")
    kept = {key: tensor.clone() for key, tensor in everything(found.model).items()}
    (taken,) = start(found.model, str(file), words=found.words)   # the same weights again, for the account of every key
    assert all(torch.equal(kept[key], tensor) for key, tensor in everything(found.model).items())
    back, wanted = revert(kept, taken.report), theirs.state_dict()
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], wanted[key]) for key in wanted)


def test_a_shorter_table_of_positions_keeps_the_row_of_the_class_token(tmp_path: Path) -> None:
    theirs, file, words = files(tmp_path, CASES["open_clip_coca"])
    told = convert(file, tmp_path / "out", overrides=[*words, "size.positions=9", "size.words=8"], conf=CONF)
    assert told[-2] == "  resized: text.embed.position.weight from (13, 32) to (9, 32)"
    table = restore(tmp_path / "out").model.part("text").embed.position.weight
    assert torch.equal(table, torch.cat([theirs.text.positional_embedding[:8], theirs.text.positional_embedding[-1:]]))
    with pytest.raises(WeightsError, match=r"the file knows positions of 13 tokens, this model has 20; a table can be cut, not grown: size\.positions=13"):
        convert(file, tmp_path / "longer", overrides=[*words, "size.positions=20"], conf=CONF)


def test_a_part_that_is_asked_for_alone_is_filled_and_the_text_with_the_decoder_that_continues_it(tmp_path: Path) -> None:
    theirs, file, words = files(tmp_path, CASES["open_clip_coca"])
    convert(file, tmp_path / "out", overrides=words, conf=CONF)
    made = restore(tmp_path / "out")
    before = made.model.part("text").embed.word.weight.clone()
    with torch.no_grad():
        for p in made.model.parameters():
            p.zero_()
    start(made.model, {"vision": str(file)}, words=made.words)
    assert torch.equal(made.model.part("vision").neck.query[0], theirs.visual.attn_pool.query)
    assert not made.model.part("text").embed.word.weight.any()
    start(made.model, {"text": str(file)}, words=made.words)
    assert torch.equal(made.model.part("text").embed.word.weight, before)
    assert torch.equal(made.model.head("lm").out.weight, theirs.text_decoder.text_projection.T)
    assert not made.model.part("align").v.out.weight.any()
