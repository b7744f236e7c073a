"""A web of small images on this machine, as ill-mannered as the real one: what an address answers stands in its path."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

PAGE = b"<html><body>this image has moved</body></html>"


@functools.lru_cache(maxsize=2048)
def picture(number: int, size: tuple[int, int] = (48, 36), *, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """An image whose colours tell its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, kind, quality=90, exif=exif)
    return stream.getvalue()


class _Answers(BaseHTTPRequestHandler):
    """Paths are /KIND/NUMBER.jpg."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        _, kind, name = self.path.split("/")
        number = int(name.partition(".")[0])
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        whole = picture(number)
        if kind == "missing":
            self.send_error(404)
        elif kind == "failing":
            self.send_error(503)
        elif kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/arrived/{number}.jpg")
            self.end_headers()
        elif kind == "silent":
            self.server.over.wait(30)  # type: ignore[attr-defined]
        elif kind == "trickle":
            self.give(whole, pieces=1)
        elif kind == "cutoff":
            self.give(whole[: len(whole) // 2], length=len(whole))
        elif kind == "forbidden":
            self.give(whole, robots="noai")
        else:
            self.give(
                {
                    "good": whole,
                    "arrived": whole,
                    "large": picture(number, (200, 100)),
                    "turned": picture(number, orientation=6),
                    "png": picture(number, kind="PNG"),
                    "webp": picture(number, kind="WEBP"),
                    "gif": picture(number, kind="GIF"),
                    "page": PAGE,
                    "empty": b"",
                    "truncated": whole[: len(whole) // 2],
                    "tiny": picture(number, (4, 4)),
                    "ribbon": picture(number, (400, 10)),
                }[kind]
            )

    def give(self, body: bytes, *, length: int | None = None, pieces: int = 0, robots: str = "") -> None:
        """Sends `body`, claiming `length`; with `pieces` so many bytes every third of a second."""
        try:
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body) if length is None else length))
            if robots:
                self.send_header("X-Robots-Tag", robots)
            self.end_headers()
            for start in range(0, len(body), pieces or len(body)) if body else ():
                self.wfile.write(body[start : start + (pieces or len(body))])
                if pieces and self.server.over.wait(1 / 3):  # type: ignore[attr-defined]
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other side had enough

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # with the usual five a burst of connections waits for seconds


@contextmanager
def web() -> Iterator[tuple[str, list[str]]]:
    """The address of the server and the paths asked for so far."""
    server = _Server(("127.0.0.1", 0), _Answers)
    server.asked, server.over = [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
