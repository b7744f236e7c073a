"""Samples and shards damaged in every way that the engine must notice: bombs, ruins, and members that lie.
Each builder gives plain bytes, so that tests, the fuzzer and the soak run put the same things to the same code."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

from PIL import Image
from shards import Members, jpeg, pair, tar_bytes


def picture(kind: str, *, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> bytes:
    """A flat image in any format and mode."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, extra: bytes = b"") -> bytes:
    """A PNG of one bit a pixel, all of whose rows are there: 20000 x 20000 pixels in 48 KB."""
    rows, line = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    body = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    start = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def comments(many: int, size: int) -> bytes:
    """A small PNG whose comments unpack to `many` times `size` bytes."""
    packed = zlib.compress(bytes(size), 9)
    return png(64, 64, extra=b"".join(chunk(b"zTXt", b"c%d\0\0" % number + packed) for number in range(many)))


def claiming(width: int, height: int) -> bytes:
    """A JPEG of 24 x 20 pixels whose header says otherwise."""
    payload = bytearray(jpeg(1))
    at = payload.index(b"\xff\xc0")
    payload[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(payload)


def canvas(width: int, height: int) -> bytes:
    """An animated WebP of two small frames on a canvas that is said to be large."""
    stream = io.BytesIO()
    frames = [Image.new("RGBA", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    payload = bytearray(stream.getvalue())
    payload[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(payload)


def many_scans(scans: int) -> bytes:
    """A progressive JPEG of 4000 x 4000 pixels that is passed over so many times more: 31 bytes and some 20 ms each."""
    stream = io.BytesIO()
    Image.new("L", (4000, 4000), 128).save(stream, "JPEG", progressive=True, quality=50)
    payload = stream.getvalue()
    return payload[:-2] + payload[payload.rindex(b"\xff\xda") : -2] * scans + payload[-2:]


# What is refused before a pixel is decoded, and why.
BOMBS: Mapping[str, tuple[bytes, str]] = {
    "20000 x 20000 in 48 KB": (png(20000, 20000), "too_many_pixels"),
    "10000 x 10000 in 12 KB": (png(10000, 10000), "too_many_pixels"),
    "a comment of 5 MB": (comments(1, 5_000_000), "broken_image"),
    "60 comments of 1 MB": (comments(60, 1_000_000), "broken_image"),
    "a profile of 50 MB": (png(64, 64, extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))), "broken_image"),
    "1 x 5000": (png(1, 5000), "too_small"),
    "10 x 20000": (png(10, 20000), "extreme_aspect"),
    "a JPEG that claims 65500 x 65500": (claiming(65500, 65500), "too_many_pixels"),
    "a WebP that claims 16000 x 16000": (canvas(16000, 16000), "too_many_pixels"),
    "a JPEG of 5000 scans": (many_scans(5000), "too_many_scans"),
}

# One sample each, by the reason for which it is refused.
ODD: Mapping[str, Members] = {
    "truncated_image": pair(0, image=jpeg(3)[: len(jpeg(3)) // 2]),
    "not_an_image": pair(0, image=b"<html><body>403 Forbidden</body></html>"),
    "empty_image": [("000000.jpg", b""), ("000000.txt", b"nothing to see")],
    "broken_image": pair(0, image=comments(60, 1_000_000)),
    "unsupported_format": pair(0, image=picture("GIF")),
    "too_many_pixels": pair(0, image=png(10000, 10000)),
    "too_small": pair(0, image=png(4, 64)),
    "extreme_aspect": pair(0, image=png(8, 2000)),
    "too_many_scans": pair(0, image=many_scans(1000)),
    "missing_image": pair(0, image=None),
    "missing_caption": pair(0, text=None),
    "empty_caption": pair(0, text=b" \n\xe2\x80\xa8"),
    "bad_utf8": pair(0, text="Stra\u00dfe".encode("latin-1")),
    "bad_record": [("000000.jpg", jpeg(0)), ("000000.json", b"{broken")],
}

# Captions that need washing and lose no sample.
WASHED: Mapping[str, tuple[bytes, str]] = {
    "byte-order mark": (b"\xef\xbb\xbfa dog", "a dog"),
    "NUL and bell": (b"a\0 d\x07og", "a dog"),
    "white space": ("  a\tdog \r\n\u3000".encode(), "a dog"),
    "a megabyte": (b"a dog " * 175_000, ("a dog " * 400)[:2000].rstrip()),
}


def named(number: int, members: Members) -> Members:
    """The members of a sample under the key of another number."""
    return [(f"{number:06d}.{name.partition('.')[2]}", payload) for name, payload in members]


def shard_damage(whole: bytes, at: int) -> dict[str, tuple[bytes, str]]:
    """A tar damaged in the ways in which readers of tars are known to lose samples without a word, each with its reason.

    Args:
        whole: a tar with an end marker.
        at: byte at which the header of some image in it starts.
    """
    end = len(whole.rstrip(b"\0"))
    caption = whole.index(b".txt", at) // 512 * 512
    return {
        "cut inside an image": (whole[: at + 512 + 100], "truncated"),
        "cut at a header": (whole[:caption], "truncated"),
        "cut inside a header": (whole[: caption + 200], "truncated"),
        "garbage in a header": (whole[:at] + b"\xa7" * 512 + whole[at + 512 :], "bad_header"),
        "0 bytes": (b"", "empty_file"),
        "a web page": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "html_page"),
        "an empty tar": (tar_bytes([]), "empty_tar"),
        "no end marker": (whole[: -(-end // 512) * 512], "no end marker"),
    }

