"""A provider that speaks Anthropic's Messages API, and bills what it has served.

https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import uvicorn
from genai_prices import Usage, calc_price
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class AnthropicFake:
    """Answers with as many tokens as the request allows, up to `output_tokens`."""

    def __init__(self, *, output_tokens: int = 490, latency: float = 0.0) -> None:
        self.output_tokens = output_tokens
        self.latency = latency
        self.requests = 0
        self.bill = Decimal(0)
        self.served: list[tuple[int, int]] = []
        self._ids = itertools.count(1)
        self.app = Starlette(routes=[Route("/v1/messages", self._messages, methods=["POST"])])

    def __enter__(self) -> AnthropicFake:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def _charge(self, model: str, input_tokens: int, output: int, cached: int) -> None:
        usage = Usage(input_tokens=input_tokens, output_tokens=output, cache_read_tokens=cached)
        self.bill += calc_price(usage, model, provider_id="anthropic").total_price
        self.served.append((input_tokens, output))

    async def _messages(self, request: Request) -> Response:
        import asyncio

        self.requests += 1
        body = await request.json()
        await asyncio.sleep(self.latency)
        output = min(self.output_tokens, body["max_tokens"])
        text = " ".join(["word"] * output)
        # Real ones do not count the cached part as input.
        cached = 20
        fresh = len(json.dumps(body["messages"])) // 4
        self._charge(body["model"], fresh + cached, output, cached)
        usage = {
            "input_tokens": fresh,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": output,
        }
        message: dict[str, Any] = {
            "id": f"msg_{next(self._ids)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        if not body.get("stream"):
            return JSONResponse(message)
        return StreamingResponse(self._events(message, text), media_type="text/event-stream")

    @staticmethod
    async def _events(message: dict[str, Any], text: str) -> AsyncIterator[str]:
        usage = message["usage"]
        start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]
        for place in range(0, len(text), 200):
            delta = {"type": "text_delta", "text": text[place : place + 200]}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        stop = {"stop_reason": "end_turn", "stop_sequence": None}
        events += [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop, "usage": usage},
            {"type": "message_stop"},
        ]
        for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
