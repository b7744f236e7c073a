"""A web server on the loopback that serves a folder as a good one does, and misbehaves where a test has scripted it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Reply = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """GET with ranges, entity tags and lengths."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name, file = unquote(parts.path), self.server.folder / unquote(parts.path).lstrip("/")
        whole = self.headers.get("Range") != "bytes=0-0"
        with self.server.lock:
            self.server.asked[name] += 1
            if whole:
                self.server.fetched[name] += 1
            self.server.seen.append((self.path, dict(self.headers)))
            script = self.server.script[name] if whole else self.server.asking[name]
            reply = script.popleft() if script else self.server.always.get(name, self.server.spoilt.get(name) if whole else None)
        body = file.read_bytes() if file.is_file() else b""
        if reply is not None:
            reply(self, body)
        elif file.is_file():
            self.serve(body)
        else:
            self.answer(404, b"<html>not here</html>", kind="text/html")

    def serve(self, body: bytes) -> None:
        """As it should be."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        span = self.headers.get("Range", "").removeprefix("bytes=")
        if not span or self.headers.get("If-Range", tag) != tag:
            self.answer(200, body, tag=tag)
            return
        first, _, last = span.partition("-")
        part = body[int(first) : int(last or len(body)) + 1]
        self.answer(206, part, tag=tag, span=f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}")

    def answer(self, code: int, body: bytes, *, tag: str = "", span: str = "", kind: str = "application/x-tar", length: int | None = None, **extra: str) -> None:
        """One response; `length` announces another number of bytes than come."""
        self.send_response(code)
        said = {"Content-Length": str(len(body) if length is None else length), "Content-Type": kind, "ETag": tag, "Content-Range": span}
        for word, value in {**said, **{word.replace("_", "-"): value for word, value in extra.items()}}.items():
            if value:
                self.send_header(word, value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    """Serves `folder` at `url` until `close`.

    `script` holds replies to requests for a file, `asking` those to the question for its size, used up one by one; `spoilt` is what every
    request for a file gets, `always` every request and question.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.lock, self.stop = folder, threading.Lock(), threading.Event()
        self.script: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self.asking: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self.always: dict[str, Reply] = {}
        self.spoilt: dict[str, Reply] = {}
        self.asked: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Let stalled replies go, and end."""
        self.stop.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *args: Any) -> None:
        """A client that hangs up is no news."""


def busy(handler: Handler, body: bytes) -> None:
    """503."""
    handler.answer(503, b"later", kind="text/plain")


def asks_for_patience(handler: Handler, body: bytes) -> None:
    """429 with a number of seconds."""
    handler.answer(429, b"slow down", kind="text/plain", Retry_After="7")


def denied(handler: Handler, body: bytes) -> None:
    """403."""
    handler.answer(403, b"no", kind="text/plain")


def page(handler: Handler, body: bytes) -> None:
    """A login page, with a good status."""
    handler.answer(200, b"<!DOCTYPE html><html>log in</html>", kind="text/html")


def cut(at: int) -> Reply:
    """Announces everything and hangs up after some bytes."""
    return lambda handler, body: handler.answer(200, body[:at], tag=f'"{hashlib.sha256(body).hexdigest()[:16]}"', length=len(body))


def stalls(at: int) -> Reply:
    """Announces everything and falls silent after some bytes."""

    def reply(handler: Handler, body: bytes) -> None:
        handler.answer(200, body[:at], length=len(body))
        handler.wfile.flush()
        handler.server.stop.wait(30)

    return reply


def drips(handler: Handler, body: bytes) -> None:
    """A byte now and then, so that no single wait is long."""
    handler.answer(200, b"", length=len(body))
    for at in range(len(body)):
        if handler.server.stop.wait(0.02):
            return
        handler.wfile.write(body[at : at + 1])


def silent(handler: Handler, body: bytes) -> None:
    """No answer at all."""
    handler.server.stop.wait(30)


def flipped(handler: Handler, body: bytes) -> None:
    """All bytes, and one of them wrong."""
    handler.answer(200, body[:600] + bytes([body[600] ^ 1]) + body[601:])


def without_ranges(handler: Handler, body: bytes) -> None:
    """Everything, whatever was asked for."""
    handler.answer(200, body)


def slow(seconds: float) -> Reply:
    """The right answer after a while."""

    def reply(handler: Handler, body: bytes) -> None:
        time.sleep(seconds)
        handler.serve(body)

    return reply


def away(url: str) -> Reply:
    """Sends the client elsewhere."""
    return lambda handler, body: handler.answer(302, b"", kind="text/plain", Location=url)
