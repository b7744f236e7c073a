"""Images of several shapes in one frame: what is real, what is seen, what is refused; and what an alignment of words and patches leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_batch, tiny_model, tiny_streams
from vlpkit.layers.embed import PatchEmbed
from vlpkit.objectives.wpa import inner_words, without_class
from vlpkit.types import ImageInput, Stream, full_mask, is_full


def embed(*, any_shape: bool = True, cls: bool = True) -> PatchEmbed:
    torch.manual_seed(0)
    return PatchEmbed(8, image_size=16, patch=4, cls=cls, any_shape=any_shape)


def pixels(height: int, width: int, *, rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


def corner(high: int, wide: int, *, rows: int, columns: int) -> torch.Tensor:
    """(1, rows * columns) True in the top left."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[:high, :wide] = True
    return mask.flatten()[None]


def test_squares_of_the_expected_size_are_read_as_ever() -> None:
    given = ImageInput(pixels(16, 16))
    any_, one = embed()(given), embed(any_shape=False)(given)
    assert torch.equal(any_.x, one.x)
    assert is_full(any_.mask)
    assert torch.equal(embed()(replace(given, mask=torch.ones(2, 16, dtype=torch.bool))).x, one.x)


@pytest.mark.parametrize("cls", [True, False])
def test_an_image_alone_and_in_a_larger_frame_reads_the_same(cls: bool) -> None:
    small, e = pixels(8, 12, rows=1), embed(cls=cls)
    frame = torch.zeros(1, 3, 20, 16)
    frame[..., :8, :12] = small
    alone, framed = e(ImageInput(small)), e(ImageInput(frame, mask=corner(2, 3, rows=5, columns=4)))
    assert (len(alone), len(framed), int(framed.mask.sum())) == (6 + cls, 20 + cls, 6 + cls)
    assert torch.allclose(framed.x[framed.mask], alone.x[0], atol=1e-6)
    assert torch.equal(framed.at[framed.mask], alone.at[0])  # type: ignore[index]
    assert alone.at[0, -1].tolist() == [1, 2]  # type: ignore[index]


def test_what_lies_around_an_image_changes_nothing_that_vilt_says() -> None:
    made, words = tiny_model("model=vilt")
    made.model.eval()
    batch = tiny_batch(words)
    image = batch.images["clean"]
    assert image.pixels is not None
    patch = made.model.part("vision").embed.patch
    grid = image.pixels.shape[-1] // patch
    mask = corner(grid, 1, rows=grid, columns=grid).expand(len(image), -1)
    other = image.pixels.clone()
    other[..., patch:] = 255 - other[..., patch:]
    states = []
    for given in (ImageInput(image.pixels, mask=mask), ImageInput(other, mask=mask), ImageInput(other)):
        s = tiny_streams(made, replace(batch, images={"clean": given}))
        states.append(s.fused().w.x[batch.texts["clean"].mask])
    assert torch.allclose(states[0], states[1], atol=1e-6)
    assert not torch.allclose(states[1], states[2], atol=1e-4)


def test_a_side_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="10x16 pixels; both sides have to be multiples of the patch, 4"):
        embed()(ImageInput(pixels(16, 10)))


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4x3 patches, but their mask speaks of 16"):
        embed()(ImageInput(pixels(16, 12), mask=torch.ones(2, 16, dtype=torch.bool)))


def test_squares_alone_are_still_what_other_encoders_read() -> None:
    with pytest.raises(ValueError, match="images are 12x16 pixels, this encoder was built for 16x16"):
        embed(any_shape=False)(ImageInput(pixels(16, 12)))


def test_inner_words_are_those_between_the_first_and_the_last() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    assert inner_words(mask).long().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0] * 5, [0] * 5]


def test_a_class_token_is_left_out_where_there_is_one() -> None:
    x = torch.zeros(1, 4, 8)
    mask = torch.tensor([[True, True, True, False]])
    assert without_class(Stream(x, mask, (("v_cls", 1), ("v", 3)))).tolist() == [[False, True, True, False]]
    assert without_class(Stream(x, full_mask(1, 4, "cpu"), (("v", 4),))).all()


@pytest.mark.parametrize("text", [0, 1])
def test_a_caption_without_inner_words_leaves_the_alignment_finite(text: int) -> None:
    made, words = tiny_model("model=vilt")
    batch = tiny_batch(words)
    clean = batch.texts["clean"]
    mask = clean.mask.clone()
    mask[text, 2:] = False
    s = tiny_streams(made, replace(batch, texts={"clean": replace(clean, mask=mask)}))
    loss = made.objectives["wpa"](s).value
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in made.model.parameters() if p.grad is not None)
