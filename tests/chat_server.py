"""A chat server of OpenAI's interface on this machine, which answers what a test tells it to."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers with `text` and, if set, `alternatives`; first fails with each status in `failures`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.text = "The answer is 2."
        self.alternatives: list[tuple[str, float]] | None = None
        self.refuse_logprobs = False
        self.failures: list[int] = []
        self.raw: bytes | None = None
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._send(200, json.dumps({"data": [{"id": "served"}]}).encode())

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.failures:
            return self._send(self.server.failures.pop(0), b"busy")
        if body.get("logprobs") and self.server.refuse_logprobs:
            return self._send(400, b"logprobs are not supported")
        if self.server.raw is not None:
            return self._send(200, self.server.raw)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.server.text}}
        if body.get("logprobs") and self.server.alternatives is not None:
            listed = [{"token": t, "logprob": math.log(p)} for t, p in self.server.alternatives]
            choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        self._send(200, json.dumps({"choices": [choice]}).encode())


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the block ends."""
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
