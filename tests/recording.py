"""A provider that writes down what it is sent, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MESSAGE = {"role": "assistant", "content": "yes"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@dataclass
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    close_after: int | None = None
    """Bytes of the body after which the connection is dropped."""


def completion(received: Received) -> Answer:
    """A short chat completion of the model that was asked for."""
    reply = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": received.json.get("model"),
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}], "usage": USAGE,
    }  # fmt: skip
    return Answer(body=json.dumps(reply).encode())


def failing(status: int, message: str = "no", **headers: str) -> Callable[[Received], Answer]:
    body = json.dumps(
        {"error": {"message": message, "type": "some_error", "code": "some_code", "param": "p"}}
    )
    head = (("Content-Type", "application/json"), *headers.items())
    return lambda _received: Answer(status, body.encode(), head)


class Recorder:
    """Use it as `with Recorder() as provider:`. `answer` may be changed at any time."""

    def __init__(self, answer: Callable[[Received], Answer] = completion) -> None:
        self.answer = answer
        self.received: list[Received] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                received = Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                recorder.received.append(received)
                answer = recorder.answer(received)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: answer.close_after])
                if answer.close_after is not None:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
