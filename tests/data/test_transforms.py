"""The crop is torchvision's, the pixels are Pillow's, and everything random hangs on the generator alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from vlpkit.bench.made import photograph
from vlpkit.data.decode import Refused
from vlpkit.data.randaugment import CHANGES, SIGNED, RandAugment
from vlpkit.data.transforms import EvalTransform, TrainTransform, Transform, canvas, safe_augment
from vlpkit.errors import ConfigError

torch.set_num_threads(1)


def photo(width: int, height: int, *, grain: int = 64, **options: Any) -> bytes:
    """A picture with detail down to a few pixels, as JPEG."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for cells, share in ((4, 70), (16, 30), (grain, 15)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += share / 128 * (np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) - 128)
    file = io.BytesIO()
    Image.fromarray((128 + total).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def full(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload)).convert("RGB")


def apart(image: torch.Tensor, expected: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, int)).mean())


def seen(transform: Transform, payload: bytes, rng: np.random.Generator) -> torch.Tensor:
    """(3, S, S) of one image by itself."""
    row = canvas(1, transform.size, transform.size)
    transform.draw(payload, transform.look(payload, rng), rng, row)
    return row[0]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_squash_equals_pillows_bicubic_square() -> None:
    payload = photo(341, 256)
    image = seen(EvalTransform(image_size=128), payload, rng())
    assert image.shape == (3, 128, 128)
    assert image.dtype == torch.uint8
    assert apart(image, full(payload).resize((128, 128), Image.Resampling.BICUBIC)) < 0.1


def test_crop_equals_short_side_resize_and_centre_crop() -> None:
    payload = photo(341, 256)
    resized = full(payload).resize((170, 128), Image.Resampling.BICUBIC)
    image = seen(EvalTransform(image_size=128, resize="crop"), payload, rng())
    assert image.shape == (3, 128, 128)
    assert apart(image, resized.crop((21, 0, 149, 128))) < 0.1


def test_a_large_photograph_is_evaluated_within_one_grey_level_of_a_full_decode() -> None:
    payload = photo(1600, 1200, grain=200)
    assert apart(seen(EvalTransform(image_size=128), payload, rng()), full(payload).resize((128, 128), Image.Resampling.BICUBIC)) < 1


def test_evaluation_does_not_touch_the_generator() -> None:
    left, right = rng(), rng()
    seen(EvalTransform(image_size=32), photo(64, 64), left)
    assert left.random() == right.random()


@pytest.mark.parametrize("size", [64, 100, 224])
@pytest.mark.parametrize("seed", range(4))
def test_a_training_crop_looks_like_the_full_decode(seed: int, size: int) -> None:
    payload = photo(683, 512, grain=128)
    transform = TrainTransform(image_size=size, scale=(0.2, 1.0))
    left, top, width, height = transform.crop(683, 512, rng(seed))
    expected = full(payload).resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    assert apart(seen(transform, payload, rng(seed)), expected) < 2.5


def by_pillow(transform: TrainTransform, payload: bytes, seed: int) -> Image.Image:
    """The full decode, of which the same crop is resized; its box as whole pixels of the scale at which the transform decodes."""
    image, size = full(payload), transform.size
    left, top, width, height = transform.crop(*image.size, rng(seed))
    f = next((f for f in (8, 4, 2) if min(width, height) >= f * size), 1)
    box = [round(at / f) * f for at in (left, top, left + width, top + height)]
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(box[0], box[1], min(image.width, box[2]), min(image.height, box[3])))


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize(("size", "each", "mean"), [(224, 0.3, 0.1), (64, 6.0, 2.5)], ids=["at full scale", "at half the scale"])
def test_photographs_look_as_pillow_shows_them(scale: tuple[float, float], size: int, each: float, mean: float) -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "flickr900" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    transform = TrainTransform(image_size=size, scale=scale)
    payloads = [path.read_bytes() for path in sorted(folder.iterdir())[::20]]
    found = [apart(seen(transform, payload, rng(seed)), by_pillow(transform, payload, seed)) for seed, payload in enumerate(payloads)]
    assert len(found) == 45
    assert max(found) < each
    assert sum(found) / len(found) < mean


@pytest.mark.parametrize(("width", "height"), [(341, 256), (269, 201), (683, 515), (1367, 1025)])
@pytest.mark.parametrize("size", [40, 64, 224])
def test_made_up_photographs_look_as_pillow_shows_them_whatever_their_sides(width: int, height: int, size: int) -> None:
    payload = photograph(np.random.default_rng(0), width, height)
    transform = TrainTransform(image_size=size, scale=(0.2, 1.0))
    for seed in range(4):
        assert apart(seen(transform, payload, rng(seed)), by_pillow(transform, payload, seed)) < 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_look_as_pillow_shows_them(kind: str) -> None:
    payload = photograph(np.random.default_rng(0), 341, 256, kind=kind)
    transform = TrainTransform(image_size=64, scale=(0.2, 1.0))
    for seed in range(4):
        left, top, width, height = transform.crop(341, 256, rng(seed))
        expected = full(payload).resize((64, 64), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        assert apart(seen(transform, payload, rng(seed)), expected) < 0.3


def test_an_image_is_written_to_its_row_and_nowhere_else() -> None:
    rows = canvas(3, 48, 48)
    rows.fill_(7)
    transform = TrainTransform(image_size=48, scale=(0.2, 1.0), flip=0.5, randaugment=(2, 5))
    for seed in range(6):
        generator, payload = rng(seed), photo(200, 150)
        transform.draw(payload, transform.look(payload, generator), generator, rows[1:2])
        assert torch.equal(rows[1], seen(transform, payload, rng(seed)))
    assert rows[0].eq(7).all()
    assert rows[2].eq(7).all()


def test_small_images_are_enlarged() -> None:
    payload = photo(40, 30)
    assert seen(TrainTransform(image_size=64), payload, rng()).shape == (3, 64, 64)
    assert seen(EvalTransform(image_size=64, resize="crop"), payload, rng()).shape == (3, 64, 64)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    payload = photo(64, 64)
    assert apart(seen(EvalTransform(image_size=64), payload, rng()), full(payload)) == 0
    assert apart(seen(TrainTransform(image_size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0)), payload, rng()), full(payload)) == 0


def test_crops_are_distributed_as_torchvisions() -> None:
    transform, generator = TrainTransform(image_size=8, scale=(0.3, 0.9)), rng()
    ours = np.array([transform.crop(300, 200, generator) for _ in range(4000)], float)
    torch.manual_seed(0)
    blank = torch.empty(3, 200, 300)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.3, 0.9], [3 / 4, 4 / 3]) for _ in range(4000)], float)[:, [1, 0, 3, 2]]
    spread = theirs.std(0)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread / np.sqrt(2000)).all()
    assert (np.abs(ours.std(0) - spread) < 0.1 * spread).all()


def test_a_crop_that_never_fits_falls_back_to_the_centre() -> None:
    transform = TrainTransform(image_size=8, scale=(1.0, 1.0))
    assert transform.crop(1000, 100, rng()) == (433, 0, 133, 100)
    assert transform.crop(100, 1000, rng()) == (0, 433, 100, 133)


@pytest.mark.parametrize("augment", [None, (2, 7)])
def test_the_same_generator_gives_the_same_image_and_another_a_different_one(augment: tuple[int, int] | None) -> None:
    transform = TrainTransform(image_size=48, scale=(0.2, 1.0), flip=0.5, randaugment=augment)
    payload = photo(160, 120)
    assert torch.equal(seen(transform, payload, rng(3)), seen(transform, payload, rng(3)))
    assert not torch.equal(seen(transform, payload, rng(3)), seen(transform, payload, rng(4)))


def test_flip_mirrors_left_and_right() -> None:
    payload = photo(80, 80)
    plain, mirrored = (seen(TrainTransform(image_size=40, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=p), payload, rng()) for p in (0.0, 1.0))
    assert torch.equal(plain.flip(2), mirrored)


def test_an_exif_rotation_holds_in_both_transforms() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = photo(300, 200, exif=exif), photo(300, 200)
    upright = full(plain).transpose(Image.Transpose.ROTATE_270)
    assert apart(seen(EvalTransform(image_size=60), turned, rng()), upright.resize((60, 60), Image.Resampling.BICUBIC)) < 1
    transform = TrainTransform(image_size=60)
    left, top, width, height = transform.crop(200, 300, rng(1))
    expected = upright.resize((60, 60), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    assert apart(seen(transform, turned, rng(1)), expected) < 2.5


def test_a_broken_image_is_refused() -> None:
    for transform in (TrainTransform(image_size=32), EvalTransform(image_size=32)):
        with pytest.raises(Refused) as refused:
            seen(transform, photo(64, 64)[:-200], rng())
        assert refused.value.reason == "truncated_image"


@pytest.mark.parametrize("name", sorted(SIGNED | {"identity"}))
def test_a_geometric_change_of_magnitude_zero_is_no_change(name: str) -> None:
    image = full(photo(64, 64))
    assert np.array_equal(np.asarray(CHANGES[name](image, 0.0)), np.asarray(image))


@pytest.mark.parametrize("name", ["brightness", "sharpness"])
def test_an_enhancement_of_half_magnitude_is_no_change(name: str) -> None:
    image = full(photo(64, 64))
    assert np.abs(np.asarray(CHANGES[name](image, 0.5), int) - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"identity"}))
def test_every_change_changes_and_keeps_the_shape(name: str) -> None:
    image = full(photo(64, 48)).point(lambda v: 40 + v // 2)  # low contrast, so that stretching shows
    changed = CHANGES[name](image, 0.7)
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert not np.array_equal(np.asarray(changed), np.asarray(image))


def test_translation_moves_seven_pixels_at_magnitude_seven_and_fills_with_grey() -> None:
    image = full(photo(64, 48))
    moved = np.asarray(CHANGES["translate_x"](image, 0.7))
    assert np.array_equal(moved[:, :57], np.asarray(image)[:, 7:])
    assert (moved[:, 57:] == 128).all()
    assert np.array_equal(np.asarray(CHANGES["translate_y"](image, -0.7))[7:], np.asarray(image)[:-7])


def test_shear_moves_a_row_in_proportion_to_its_height() -> None:
    column = np.zeros((101, 101, 3), np.uint8)
    column[:, 50] = 255
    sheared = np.asarray(CHANGES["shear_x"](Image.fromarray(column), 1.0))[..., 0].argmax(1)
    assert 28 <= sheared[0] - sheared[100] <= 32


def test_brightness_scales_and_stays_in_range() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 200))
    assert np.asarray(CHANGES["brightness"](grey, 1.0))[0, 0].tolist() == [190, 190, 255]
    assert np.asarray(CHANGES["brightness"](grey, 0.0))[0, 0].tolist() == [10, 10, 20]


def test_contrast_is_stretched_and_histograms_are_flattened() -> None:
    ramp = Image.fromarray(np.tile(np.arange(100, 151, dtype=np.uint8), (51, 1))).convert("RGB")
    assert ramp.getextrema()[0] == (100, 150)
    assert CHANGES["autocontrast"](ramp, 0.0).getextrema()[0] == (0, 255)
    assert CHANGES["equalize"](ramp, 0.0).getextrema()[0] == (0, 255)


def test_each_operation_is_drawn_as_often_and_applied_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: dict[str, int] = dict.fromkeys(CHANGES, 0)

    def counting(name: str) -> Any:
        def change(image: Image.Image, strength: float) -> Image.Image:
            applied[name] += 1
            assert abs(strength) == 0.7
            assert strength > 0 or name in SIGNED
            return image

        return change

    for name in CHANGES:
        monkeypatch.setitem(CHANGES, name, counting(name))
    augment, generator = RandAugment(2, 7), rng()
    for _ in range(4000):
        augment(Image.new("RGB", (4, 4)), generator)
    assert all(abs(times - 400) < 100 for times in applied.values())


def test_augmentation_takes_the_same_share_of_the_generator_whatever_is_drawn() -> None:
    image, after = full(photo(32, 32)), []
    for magnitude in (0, 5, 10):
        generator = rng(1)
        RandAugment(2, magnitude)(image, generator)
        after.append(generator.random())
    assert len(set(after)) == 1


def test_the_data_limits_what_the_recipe_may_do() -> None:
    wishes = {"scale": [0.2, 1.0], "flip": 0.5, "randaugment": [2, 7]}
    assert safe_augment(wishes, {"min_crop": 0.0, "mirror": True, "randaugment": True}) == {
        "scale": (0.2, 1.0), "flip": 0.5, "randaugment": (2, 7)
    }
    assert safe_augment(wishes, {"min_crop": 0.9, "mirror": False, "randaugment": False}) == {
        "scale": (0.9, 1.0), "flip": 0.0, "randaugment": None
    }
    gentle = {"scale": [0.95, 1.0], "flip": 0.0, "randaugment": None}
    assert safe_augment(gentle, {"min_crop": 0.5, "mirror": True, "randaugment": True})["scale"] == (0.95, 1.0)


@pytest.mark.parametrize(
    ("augment", "safe", "message"),
    [
        ({"scale": [0.2, 1.0], "flip": 0.5}, {}, "data.augment has the keys"),
        ({"scale": [0.0, 1.0], "flip": 0.5, "randaugment": None}, {}, "data.augment.scale"),
        ({"scale": [0.5, 0.2], "flip": 0.5, "randaugment": None}, {}, "data.augment.scale"),
        ({"scale": [0.2, 1.0], "flip": 1.5, "randaugment": None}, {}, "data.augment.flip"),
        ({"scale": [0.2, 1.0], "flip": 0.5, "randaugment": [2, 11]}, {}, "data.augment.randaugment"),
        ({"scale": [0.2, 1.0], "flip": 0.5, "randaugment": None}, {"mirrors": True}, "data.safe has the keys"),
        ({"scale": [0.2, 1.0], "flip": 0.5, "randaugment": None}, {"min_crop": 2}, "data.safe.min_crop"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_path(augment: dict[str, Any], safe: dict[str, Any], message: str) -> None:
    whole = safe if "mirrors" in safe else {"min_crop": 0.0, "mirror": True, "randaugment": True} | safe
    with pytest.raises(ConfigError, match=message):
        safe_augment(augment, whole)


def test_an_unknown_resize_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="squash or crop"):
        EvalTransform(image_size=32, resize="squish")  # type: ignore[arg-type]
