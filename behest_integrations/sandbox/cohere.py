"""The sandbox's Cohere side: chat, embeddings and ranking of version 2, under `/cohere`.

What is billed is less than what is counted: its own tokens are not. A field that it does not know is refused.
https://docs.cohere.com/reference/chat
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .anthropic import Provider
from .model import Answer, embedding, generate, prompt_tokens
from .parts import Job, job_of, json_of

_CHAT = frozenset(
    {"model", "messages", "tools", "strict_tools", "documents", "citation_options", "response_format",
     "safety_mode", "max_tokens", "stop_sequences", "temperature", "seed", "frequency_penalty",
     "presence_penalty", "k", "p", "logprobs", "tool_choice", "thinking", "priority", "stream"}
)  # fmt: skip
_EMBED = frozenset(
    {"model", "texts", "images", "input_type", "inputs", "max_tokens", "output_dimension", "embedding_types",
     "truncate", "priority"}
)  # fmt: skip
_OWN = 60
"""Tokens that it adds to a prompt by itself, and does not bill."""


def error(status: int, message: str) -> Response:
    """An error in Cohere's shape."""
    return JSONResponse({"id": "sandbox", "message": message}, status_code=status)


class Cohere:
    """Answers Cohere's requests."""

    def __init__(self, sandbox: Provider) -> None:
        self._sandbox = sandbox
        self._ids = itertools.count(1)
        self.routes = [
            Route("/cohere/v2/chat", self._chat, methods=["POST"]),
            Route("/cohere/v2/embed", self._embed, methods=["POST"]),
            Route("/cohere/v2/rerank", self._rerank, methods=["POST"]),
            Route("/cohere/v1/tokenize", self._tokenize, methods=["POST"]),
        ]

    async def _chat(self, request: Request) -> Response:
        sandbox = self._sandbox
        body = await json_of(request)
        if body is None or not body.get("messages") or not body.get("model"):
            return error(400, "model and messages are required")
        unknown = sorted(body.keys() - _CHAT)
        if unknown:
            return error(400, f"unknown field: parameter '{unknown[0]}' is not a valid field")
        messages = body["messages"]
        prompt = [messages, body.get("tools"), body.get("documents"), body.get("response_format")]
        job = job_of(request, body, "chat_v2", prompt, 3 * len(messages), "cohere")
        answer = generate(
            messages,
            job.model,
            natural=sandbox.output_tokens,
            limit=body.get("max_tokens"),
            tools=(body.get("tools") or ()) if messages[-1].get("role") != "tool" else (),
        )
        fault = sandbox.next_fault()
        output = answer.tokens * (fault.factor if fault and fault.kind == "over_limit" else 1)
        failed = await sandbox.begin(job, output, fault, error)
        if failed is not None:
            return failed
        usage = {} if fault and fault.kind == "no_usage" else {"usage": _usage(job, output)}
        id = f"cohere-{next(self._ids)}"
        if body.get("stream"):
            events = self._events(id, answer, usage, sandbox.chunk_tokens)
            return sandbox.stream(events, job, output, 0, fault)
        sandbox.charge(job, output)
        message: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        if answer.tool is not None:
            message = {"role": "assistant", "tool_plan": "I will look.", "tool_calls": [_call(answer)]}
        return JSONResponse({"id": id, "finish_reason": _finish(answer), "message": message, **usage})

    def _events(
        self, id: str, answer: Answer, usage: dict[str, Any], size: int
    ) -> list[tuple[int, str | bytes]]:
        """A stream's events, each with the tokens that it brings."""
        events: list[tuple[int, str | bytes]] = []

        def event(kind: str, tokens: int = 0, **fields: Any) -> None:
            events.append((tokens, f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"))

        empty: dict[str, Any] = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}
        event("message-start", id=id, delta={"message": {**empty, "citations": []}})
        if answer.tool is not None:
            event("tool-plan-delta", 1, delta={"message": {"tool_plan": "I will look."}})
            call = {**_call(answer), "function": {"name": answer.tool[0], "arguments": ""}}
            event("tool-call-start", index=0, delta={"message": {"tool_calls": call}})
            said = {"tool_calls": {"function": {"arguments": answer.tool[1]}}}
            event("tool-call-delta", answer.tokens - 1, index=0, delta={"message": said})
            event("tool-call-end", index=0)
        else:
            first = {"content": {"type": "text", "text": ""}}
            event("content-start", index=0, delta={"message": first})
            for at in range(0, len(answer.words), size):
                piece = answer.words[at : at + size]
                text = {"content": {"text": "".join(piece)}}
                event("content-delta", len(piece), index=0, delta={"message": text})
            event("content-end", index=0)
        event("message-end", id=id, delta={"finish_reason": _finish(answer), **usage})
        return events

    async def _embed(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or not (body.get("texts") or body.get("inputs")) or body.keys() - _EMBED:
            return error(400, "invalid request: texts or inputs are required, and no other fields are taken")
        asked = body.get("texts") or [
            " ".join(str(part.get("text", "")) for part in one["content"]) for one in body["inputs"]
        ]
        job = job_of(request, body, "embed_v2", asked, 0, "cohere")
        fault = self._sandbox.next_fault()
        failed = await self._sandbox.begin(job, 0, fault, error)
        if failed is not None:
            return failed
        self._sandbox.charge(job, 0)
        vectors = [embedding(text, body.get("output_dimension") or 64) for text in asked]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": float(job.input_tokens)}}
        return JSONResponse(
            {
                "id": "e",
                "response_type": "embeddings_by_type",
                "embeddings": {"float": vectors},
                "texts": asked,
                "meta": meta,
            }
        )

    async def _rerank(self, request: Request) -> Response:
        """Enough to see whether it is let through: what it costs is in no price list."""
        self._sandbox.requests += 1
        body = await json_of(request) or {}
        results = [{"index": i, "relevance_score": 0.5} for i in range(len(body.get("documents") or ()))]
        return JSONResponse({"id": "r", "results": results, "meta": {"billed_units": {"search_units": 1}}})

    async def _tokenize(self, request: Request) -> Response:
        text = str((await json_of(request) or {}).get("text"))
        return JSONResponse({"tokens": list(range(prompt_tokens(text, ""))), "token_strings": []})


def _usage(job: Job, output: int) -> dict[str, Any]:
    counted = {"input_tokens": float(job.input_tokens + _OWN), "output_tokens": float(output + 2)}
    billed = {"input_tokens": float(job.input_tokens), "output_tokens": float(output)}
    return {"billed_units": billed, "tokens": counted, "cached_tokens": 0.0}


def _call(answer: Answer) -> dict[str, Any]:
    assert answer.tool is not None
    name, arguments = answer.tool
    return {"id": f"{name}_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish(answer: Answer) -> str:
    return "MAX_TOKENS" if answer.truncated else "TOOL_CALL" if answer.tool else "COMPLETE"
