"""Runs img2dataset with what it lacks: an end for each download however slowly it trickles, a limit of bytes, http and https alone.
Executed by the Python of img2dataset's own environment, and again by each process it starts: standard library and img2dataset only."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib import request, response

BLOCK = 1 << 16


class Bounds(request.BaseHandler):
    """Reads the body of a good answer within `seconds` and `bytes`; the socket's own timeout bounds a single wait only."""

    handler_order = 900  # before the processor that turns other answers into errors or redirections, so that no body is read twice

    def __init__(self, seconds: float, limit: int) -> None:
        self.seconds, self.limit = seconds, limit

    def http_response(self, asked: request.Request, answer: Any) -> Any:
        """The answer with its body in memory. Raises TimeoutError, ValueError, http.client.IncompleteRead."""
        if not 200 <= answer.status < 300:
            return answer
        end = time.monotonic() + self.seconds
        body = bytearray()
        with answer:
            while block := answer.read1(BLOCK):
                body += block
                if len(body) > self.limit:
                    raise ValueError(f"too many bytes, at most {self.limit}")
                if time.monotonic() > end:
                    raise TimeoutError("timed out")
            if answer.length:
                raise http.client.IncompleteRead(bytes(body), answer.length)
        read: Any = response.addinfourl(io.BytesIO(bytes(body)), answer.headers, asked.full_url, answer.status)
        read.msg = answer.msg  # the next processor asks for it
        return read

    https_response = http_response


def install(settings: dict[str, Any]) -> None:
    """What `urllib.request.urlopen` uses from now on in this process."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
        Bounds(settings["seconds"], settings["bytes"]),
    ):
        opener.add_handler(handler)
    request.install_opener(opener)


def follow() -> None:
    """Ends this process and its children when the pipe to whoever started it closes, for whatever reason that happens."""
    while os.read(0, BLOCK):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ in ("__main__", "__mp_main__"):  # the second is its name in the processes it starts
    SETTINGS = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    install(SETTINGS)
if __name__ == "__main__":
    threading.Thread(target=follow, daemon=True).start()
    from img2dataset import download  # type: ignore[import-not-found,unused-ignore]

    download(**SETTINGS["download"])
