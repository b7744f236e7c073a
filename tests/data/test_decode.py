"""Every image that Pillow or the fast decoder would mishandle, and every caption that is not one, has its own outcome."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from vlpkit.data import decode as decoding
from vlpkit.data.decode import Limits, Refused, clean_caption, decode, jpeg_layout, read_caption, read_header
from vlpkit.data.scratch import Scratch


def picture(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth coloured picture, so that lossy formats keep it within a grey level or two."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind != "PNG" else {}) | options)
    return file.getvalue()


def pixels(payload: bytes, **size: int) -> np.ndarray[Any, Any]:
    return decode(payload, read_header(payload), **size)


def refusal(payload: bytes | None, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        decode(payload or b"", read_header(payload, **options))
    return refused.value.reason


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_size(width: int, height: int, *, extra: bytes = b"") -> bytes:
    rows = zlib.compressobj()
    body = b"".join(rows.compress(bytes(width + 1)) for _ in range(min(height, 2000))) + rows.flush()
    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", start) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def test_a_jpeg_at_full_size_has_pillows_pixels() -> None:
    payload = encoded(picture())
    assert read_header(payload).quick
    assert np.array_equal(pixels(payload), np.asarray(Image.open(io.BytesIO(payload))))


@pytest.mark.parametrize(("least", "expected"), [(256, (512, 768)), (255, (512, 768)), (257, (1024, 1536)), (128, (256, 384)), (100, (256, 384)), (9, (128, 192)), (0, (1024, 1536))])
def test_the_smallest_power_of_two_scale_that_covers_the_request_is_decoded(least: int, expected: tuple[int, int]) -> None:
    payload = encoded(picture(1536, 1024))
    assert pixels(payload, width=2 * least, height=2 * least).shape[:2] == expected


def test_an_odd_size_is_scaled_to_no_less_than_requested() -> None:
    assert pixels(encoded(picture(601, 403)), width=300, height=200).shape == (202, 301, 3)
    assert pixels(encoded(picture(601, 403)), width=300, height=202).shape == (403, 601, 3)


def test_images_of_every_size_and_scale_fit_the_memory_that_is_lent_for_them() -> None:
    before, scratch = decoding.slow_path.copy(), Scratch()
    for width, height in ((97, 64), (601, 403), (64, 333), (8, 8), (801, 799)):
        payload = encoded(picture(width, height))
        for least in (0, 8, 11, 40, 100, 200):
            size = {"width": least, "height": least} if min(width, height) >= least else {}
            found = decode(payload, read_header(payload), scratch=scratch, **size)
            assert np.shares_memory(found, scratch.lend(1))
            assert np.array_equal(found, pixels(payload, **size))
    assert decoding.slow_path == before  # memory that is too small would send the image to the slow decoder


def test_what_is_held_for_decoding_is_bounded() -> None:
    scratch = Scratch(limit=1000)
    small = scratch.lend(600)
    assert np.shares_memory(small, scratch.lend(900))
    assert not np.shares_memory(scratch.lend(5000), scratch.lend(1000))
    assert len(scratch.lend(1000)) == 1000
    assert len(pickle.dumps(scratch)) < 500  # nothing of it travels to another process


def test_grey_becomes_three_equal_channels_on_the_fast_path() -> None:
    payload = encoded(picture().convert("L"))
    assert read_header(payload).quick
    assert np.array_equal(pixels(payload), np.asarray(Image.open(io.BytesIO(payload)).convert("RGB")))


def test_cmyk_is_converted_at_the_requested_scale() -> None:
    payload = encoded(picture(640, 480).convert("CMYK"))
    assert not read_header(payload).quick
    assert pixels(payload, width=160, height=120).shape == (120, 160, 3)
    assert np.abs(pixels(payload).astype(int) - np.asarray(picture(640, 480))).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_rotation_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = encoded(picture(640, 480), exif=exif)
    assert jpeg_layout(payload)[0] == orientation
    header = read_header(payload)
    turned = orientation >= 5
    assert (header.width, header.height) == ((480, 640) if turned else (640, 480))
    upright = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # Pillow's transpose methods
    expected = picture(640, 480) if upright is None else picture(640, 480).transpose(Image.Transpose(upright))
    assert np.abs(pixels(payload).astype(int) - np.asarray(expected)).mean() < 2
    assert pixels(payload, width=100, height=100).shape[:2] == ((160, 120) if turned else (120, 160))


def test_the_rotation_is_found_behind_other_segments_and_in_either_byte_order() -> None:
    for order in ("<", ">"):
        tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0) + bytes(4)
        body = b"Exif\0\0" + tiff
        plain = encoded(picture())
        filler = b"\xff\xe5" + struct.pack(">H", 60002) + bytes(60000)
        payload = plain[:2] + filler + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
        assert jpeg_layout(payload) == (6, True)
        assert Image.open(io.BytesIO(payload)).getexif()[0x0112] == 6


def test_what_a_decoder_passes_over_once_is_told_from_what_it_may_pass_over_often() -> None:
    for options, single in (({}, True), ({"subsampling": 0}, True), ({"progressive": True}, False)):
        assert jpeg_layout(encoded(picture(), **options)) == (1, single), options
    assert jpeg_layout(encoded(picture().convert("L"))) == (1, True)
    assert jpeg_layout(encoded(picture())[:200]) == (1, False)  # cut before its scan
    # the first scan holds one of three components: others must follow, and may follow again and again
    apart = bytearray(encoded(picture()))
    apart[apart.index(b"\xff\xda") + 4] = 1
    assert jpeg_layout(bytes(apart)) == (1, False)


def test_more_scans_behind_the_only_one_are_never_decoded() -> None:
    payload = encoded(picture(640, 480))
    scan = payload[payload.index(b"\xff\xda") : -2]
    often = payload[:-2] + scan * 800 + payload[-2:]
    header = read_header(often)
    started = time.process_time()
    try:
        shown = decode(often, header)
    except Refused as refused:
        assert refused.reason == "broken_image"
    else:
        assert np.array_equal(shown, pixels(payload))
    assert time.process_time() - started < 0.5  # all 800 take seconds


def test_palette_and_transparency_are_composited_on_white() -> None:
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert pixels(encoded(clear, "PNG")).min() == 255
    half = Image.new("LA", (32, 32), (0, 128))
    assert abs(int(pixels(encoded(half, "PNG")).mean()) - 127) <= 1
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixels(encoded(palette, "PNG"))[0, 0].tolist() == [0, 0, 255]
    assert pixels(encoded(palette, "PNG", transparency=1)).min() == 255
    keyed = Image.new("RGB", (32, 32), (10, 20, 30))
    assert pixels(encoded(keyed, "PNG", transparency=(10, 20, 30))).min() == 255


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    found = pixels(encoded(ramp, "PNG"))
    assert found.shape == (64, 64, 3)
    assert 126 < found.mean() < 129
    assert (found.min(), found.max()) == (0, 255)


def test_one_bit_images_are_black_and_white() -> None:
    assert sorted(np.unique(pixels(encoded(picture().convert("1"), "PNG")))) == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    found = pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert found[0, 0, 0] > 240 > 15 > found[0, 0, 2]


def test_webp_is_decoded() -> None:
    assert np.abs(pixels(encoded(picture(), "WEBP")).astype(int) - np.asarray(picture())).mean() < 4


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "missing_image"),
        (b"", "empty_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b"just words", "not_an_image"),
        (encoded(picture(), "GIF"), "unsupported_format"),
        (encoded(picture(), "BMP"), "unsupported_format"),
        (encoded(picture(), "TIFF"), "unsupported_format"),
        (b"\xff\xd8\xff\xe0", "broken_image"),
        (encoded(picture())[:-100], "truncated_image"),
        (encoded(picture())[:300], "truncated_image"),
        (encoded(picture(), "PNG")[:-2000], "truncated_image"),
        (encoded(picture(), "WEBP")[:-200], "truncated_image"),
        (png_of_size(20000, 20000), "too_many_pixels"),
        (png_of_size(10000, 10000), "too_many_pixels"),
        (png_of_size(25000, 100), "too_many_pixels"),
        (png_of_size(1, 5000), "too_small"),
        (png_of_size(20, 2000), "extreme_aspect"),
        (png_of_size(64, 64, extra=png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))), "broken_image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_image_is_refused_with_its_reason(payload: bytes | None, reason: str) -> None:
    assert refusal(payload) == reason


def test_bombs_are_refused_without_the_memory_they_ask_for(tmp_path: Path) -> None:
    bombs = [png_of_size(20000, 20000), png_of_size(10000, 10000), png_of_size(7000, 20001)]
    for number, bomb in enumerate(bombs):
        (tmp_path / f"{number}.png").write_bytes(bomb)
    program = (
        "import resource, sys; from pathlib import Path; from vlpkit.data.decode import Refused, read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: read_header(path.read_bytes())\n"
        "    except Refused as refused: print(refused.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    *reasons, kilobytes = run.stdout.split()
    assert reasons == ["too_many_pixels"] * 3
    assert int(kilobytes) < 50_000


def test_too_many_bytes_are_refused_before_they_are_parsed() -> None:
    assert refusal(b"x" * 101, limits=Limits(bytes=100)) == "too_many_bytes"


def test_limits_hold_on_the_fast_path_too() -> None:
    payload = encoded(picture(96, 64))
    assert refusal(payload, limits=Limits(pixels=96 * 64 - 1)) == "too_many_pixels"
    assert refusal(payload, limits=Limits(small=65)) == "too_small"
    assert refusal(payload, limits=Limits(aspect=1.4)) == "extreme_aspect"


def test_a_truncated_image_is_refused_even_where_another_library_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert refusal(encoded(picture())[:-100]) == "truncated_image"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_what_only_the_strict_decoder_minds_is_decoded_slowly_and_counted() -> None:
    payload = encoded(picture())
    padded = payload[:-2] + b"\0\0\0" + payload[-2:]  # stray bytes before the end marker
    before = decoding.slow_path["strict"]
    assert np.array_equal(pixels(padded), pixels(payload))
    assert decoding.slow_path["strict"] == before + 1


def test_damaged_images_end_in_pixels_or_a_refusal() -> None:
    chance = random.Random(0)
    samples = [encoded(picture(), "JPEG"), encoded(picture(), "JPEG", progressive=True), encoded(picture(), "PNG"), encoded(picture(), "WEBP")]
    exif = Image.Exif()
    exif[0x0112] = 6
    samples.append(encoded(picture(), "JPEG", exif=exif))
    outcomes = set()
    for number in range(600):
        payload = bytearray(samples[number % len(samples)])
        for _ in range(chance.randint(1, 8)):
            payload[chance.randrange(min(len(payload), 600))] = chance.randrange(256)
        try:
            found = pixels(bytes(payload), width=16, height=16)
            assert found.dtype == np.uint8
            assert found.shape[2] == 3
            outcomes.add("pixels")
        except Refused as refused:
            outcomes.add(refused.reason)
    assert {"pixels", "broken_image"} <= outcomes


def test_a_refusal_crosses_processes_with_its_reason() -> None:
    again = pickle.loads(pickle.dumps(Refused("bad_utf8", "byte 3")))
    assert (again.reason, again.detail, str(again)) == ("bad_utf8", "byte 3", "bad_utf8: byte 3")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a dog", "a dog"),
        ("  a\tdog \r\n runs ", "a dog runs"),
        ("\ufeffa dog", "a dog"),
        ("a\0 d\x07og\x7f", "a dog"),
        ("a\u2028dog\u00a0runs\u3000fast\u0085", "a dog runs fast"),
        ("zero\u200bwidth", "zerowidth"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("x" * 5000, "x" * 2000),
    ],
)
def test_captions_are_cleaned(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


def test_captions_of_the_record_win_over_caption_and_text() -> None:
    record = json.dumps({"captions": ["one ", " ", "two"], "caption": "three", "hard": [["a", "b"]]}).encode()
    captions, fields = read_caption(b"four", record)
    assert captions == ["one", "two"]
    assert fields["hard"] == [["a", "b"]]
    assert read_caption(b"four", b'{"caption": "three"}')[0] == ["three"]
    assert read_caption(b"\xef\xbb\xbffour", b'{"caption": null}') == (["four"], {"caption": None})
    assert read_caption(b"four", b'{"caption": "  "}')[0] == ["four"]
    assert read_caption(b"four", None) == (["four"], {})


@pytest.mark.parametrize(
    ("txt", "record", "reason"),
    [
        (None, None, "missing_caption"),
        (None, b'{"url": "x"}', "missing_caption"),
        (b"", None, "empty_caption"),
        (b" \n\t\xe2\x80\xa8", None, "empty_caption"),
        (b"", b'{"captions": []}', "empty_caption"),
        ("caf\u00e9".encode("latin-1"), None, "bad_utf8"),
        ("a dog".encode("utf-16"), None, "bad_utf8"),
        (b"fine", b"{not json", "bad_record"),
        (b"fine", b"[1]", "bad_record"),
        (b"fine", b'{"captions": [3]}', "bad_record"),
        (b"fine", b'{"caption": 3}', "bad_record"),
        (b"fine", b"[" * 100_000, "bad_record"),
        (b"fine", b'{"caption": "\xff"}', "bad_utf8"),
        (b"fine", b'"' + b"x" * (5 << 20) + b'"', "bad_record"),
    ],
)
def test_a_bad_caption_is_refused_with_its_reason(txt: bytes | None, record: bytes | None, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        read_caption(txt, record)
    assert refused.value.reason == reason
