"""The sandbox's Anthropic side: `/v1/messages`, streamed and not, with its tools, thoughts and cache.

Also as Vertex and Bedrock have it, with the model in the path.
https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .bill import Bill
from .model import Answer, generate, prompt_tokens
from .parts import Fault, Job, account_of, frame, header, json_of, text_in

MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-6", "claude-opus-5-5")
_FIELDS = frozenset(
    {"model", "messages", "max_tokens", "system", "tools", "tool_choice", "stream", "temperature", "top_p",
     "top_k", "stop_sequences", "metadata", "thinking", "service_tier", "speed", "inference_geo",
     "output_config", "cache_control", "container", "context_management", "mcp_servers", "betas",
     "diagnostics", "thread", "user_profile_id", "workspace_id", "anthropic_version", "anthropic_beta"}
)  # fmt: skip
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_TOOL_PROMPT = 346
_SEARCHED = 400  # tokens of what a search of the web has found
_NO_GEO = ("claude-3*", "claude-*-4-5*", "claude-sonnet-4-2*", "claude-opus-4-1*")


def error(status: int, message: str) -> Response:
    """An error in Anthropic's shape: https://platform.claude.com/docs/en/api/errors"""
    kind = _KINDS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sandbox"}
    return JSONResponse(body, status_code=status)


class Provider(Protocol):
    """What it needs of the sandbox."""

    bill: Bill
    output_tokens: int
    chunk_tokens: int
    inference_geo: str
    requests: int
    strangers: set[str]

    def next_fault(self) -> Fault | None: ...
    def charge(self, job: Job, output: int, reasoning: int = 0) -> None: ...
    async def begin(self, job: Job, output: int, fault: Fault | None, say: Any) -> Response | None: ...
    def stream(
        self,
        events: Sequence[tuple[int, str | bytes]],
        job: Job,
        output: int,
        reasoning: int,
        fault: Fault | None,
        media_type: str = ...,
    ) -> Response: ...


class Messages:
    """Answers Anthropic's requests."""

    def __init__(self, sandbox: Provider) -> None:
        self._sandbox = sandbox
        self._ids = itertools.count(1)
        self._cached: set[str] = set()
        self._threads: dict[str, list[Any]] = {}
        vertex = "/projects/{project}/locations/{region}/publishers/anthropic/models"
        self.routes = [
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
            Route("/v1/messages/batches", self._batches, methods=["POST"]),
            Route(vertex + "/{model}:rawPredict", self._messages, methods=["POST"]),
            Route(vertex + "/{model}:streamRawPredict", self._messages, methods=["POST"]),
            Route("/model/{model}/invoke", self._messages, methods=["POST"]),
            Route("/model/{model}/invoke-with-response-stream", self._frames, methods=["POST"]),
        ]

    async def _messages(self, request: Request) -> Response:
        return await self._answer(request, framed=False)

    async def _frames(self, request: Request) -> Response:
        return await self._answer(request, framed=True)

    async def _answer(self, request: Request, *, framed: bool) -> Response:
        sandbox = self._sandbox
        body = await json_of(request)
        wrong = _wrong(request, body)
        if wrong is not None:
            return error(400, wrong)
        assert body is not None
        model = str(request.path_params.get("model") or body["model"])
        thread = body.get("thread") or {}
        if thread.get("type") == "continue":
            before = self._threads.get(str(thread.get("previous_message_id")))
            if before is None:
                return error(404, "thread: no such message")
            body = {**body, "messages": [*before, *body["messages"]]}
        thinking = body.get("thinking") or {}
        limit = body["max_tokens"]
        thought = 64 if thinking.get("type") in ("enabled", "adaptive") else 0
        thought = max(0, min(thought, limit - 1, int(thinking.get("budget_tokens") or thought)))
        job = self._job(request, body, model)
        answer = self._generate(body, model, limit - thought)
        fault = sandbox.next_fault()
        output = (answer.tokens + thought) * (fault.factor if fault and fault.kind == "over_limit" else 1)
        failed = await sandbox.begin(job, output, fault, error)
        if failed is not None:
            return failed
        message = self._message(body, model, answer, thought)
        if thread:
            said = {"role": "assistant", "content": message["content"]}
            self._threads[message["id"]] = [*body["messages"], said]
        usage = self._usage(body, job, output, thought, model)
        silent = fault is not None and fault.kind == "no_usage"
        if body.get("stream") or framed:
            events = self._events(message, answer, thought, {} if silent else usage)
            if framed:
                frames = [(tokens, _frame(event)) for tokens, event in events]
                kind = "application/vnd.amazon.eventstream"
                return sandbox.stream(frames, job, output, thought, fault, kind)
            told = [(tokens, f"event: {e['type']}\ndata: {json.dumps(e)}\n\n") for tokens, e in events]
            return sandbox.stream(told, job, output, thought, fault)
        sandbox.charge(job, output, thought)
        return JSONResponse(message if silent else {**message, "usage": usage})

    def _job(self, request: Request, body: Mapping[str, Any], model: str) -> Job:
        """What it will bill for the prompt: what was read from its cache, and what written to it."""
        pieces: list[tuple[Any, str | None]] = [(t, _ttl(t)) for t in body.get("tools") or ()]
        pieces += [(b, _ttl(b)) for b in _blocks(body.get("system"))]
        for message in body["messages"]:
            pieces += [(b, _ttl(b)) for b in _blocks(message.get("content"))]
        if body.get("cache_control") and pieces:
            pieces[-1] = (pieces[-1][0], _ttl(body))
        total = 3 * len(body["messages"]) + 3 + (_TOOL_PROMPT if body.get("tools") else 0)
        digest = hashlib.sha256(model.encode())
        read = written = hour = 0
        marks: list[tuple[int, str, str]] = []
        for piece, ttl in pieces:
            total += prompt_tokens(_plain(piece), model)
            digest.update(json.dumps(_plain(piece), sort_keys=True, default=str).encode())
            if ttl is not None and total >= 1024:
                marks.append((total, digest.hexdigest(), ttl))
        for tokens, name, ttl in marks:
            if name in self._cached:
                read, written, hour = tokens, 0, 0
            else:
                new = tokens - read - written
                written += new
                hour += new if ttl == "1h" else 0
                self._cached.add(name)
        searches = _searches(body)
        speed = body.get("speed") == "fast"
        factor = (6 if fnmatchcase(model, "*opus-4-[67]*") else 2) if speed else 1
        us = self._geo(body, model) == "us"
        return Job(
            "messages",
            model,
            header(request, "x-session-id"),
            header(request, "x-end-user-id") or text_in((body.get("metadata") or {}).get("user_id")),
            total + _SEARCHED * searches,
            read,
            provider="aws" if "anthropic." in model else "google" if "@" in model else "anthropic",
            written_tokens=written,
            written_1h_tokens=hour,
            searches=searches,
            factor=Decimal(factor) * (Decimal("1.1") if us else 1),
            account=account_of(request),
        )

    def _geo(self, body: Mapping[str, Any], model: str) -> str:
        if any(fnmatchcase(model, pattern) for pattern in _NO_GEO):
            return "not_available"
        return body.get("inference_geo") or self._sandbox.inference_geo

    def _generate(self, body: Mapping[str, Any], model: str, limit: int) -> Answer:
        if body["max_tokens"] == 0:
            return Answer(truncated=True)
        last = _blocks(body["messages"][-1].get("content"))
        answered = any(isinstance(b, Mapping) and b.get("type") == "tool_result" for b in last)
        choice = (body.get("tool_choice") or {}).get("type")
        tools = [] if answered or choice == "none" else [t for t in body.get("tools") or () if _is_own(t)]
        form = (body.get("output_config") or {}).get("format") or {}
        return generate(
            body["messages"],
            model,
            natural=self._sandbox.output_tokens,
            limit=limit,
            tools=[{"name": t.get("name"), "parameters": t.get("input_schema")} for t in tools],
            schema=form.get("schema") if form.get("type") == "json_schema" else None,
        )

    def _message(self, body: Mapping[str, Any], model: str, answer: Answer, thought: int) -> dict[str, Any]:
        number = next(self._ids)
        content: list[dict[str, Any]] = []
        if thought:
            content.append({"type": "thinking", "thinking": "so be it", "signature": "c2lnbmVk" * thought})
        for search in range(_searches(body)):
            id = f"srvtoolu_{number}_{search}"
            asked = {"type": "server_tool_use", "id": id, "name": "web_search", "input": {"query": "budgets"}}
            found = {"type": "web_search_tool_result", "tool_use_id": id, "content": []}
            content += [asked, found]
        if answer.tool is not None:
            name, arguments = answer.tool
            content.append(
                {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": json.loads(arguments)}
            )
        elif answer.words:
            content.append({"type": "text", "text": answer.text, "citations": None})
        reason = "max_tokens" if answer.truncated else "tool_use" if answer.tool else "end_turn"
        return {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
        }

    def _usage(
        self, body: Mapping[str, Any], job: Job, output: int, thought: int, model: str
    ) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "input_tokens": job.input_tokens - job.cached_tokens - job.written_tokens,
            "cache_creation_input_tokens": job.written_tokens,
            "cache_read_input_tokens": job.cached_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": job.written_tokens - job.written_1h_tokens,
                "ephemeral_1h_input_tokens": job.written_1h_tokens,
            },
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": thought},
            "server_tool_use": None,
        }
        if job.searches:
            usage["server_tool_use"] = {"web_search_requests": job.searches, "web_fetch_requests": 0}
        if job.provider == "anthropic":
            usage |= {"service_tier": "standard", "inference_geo": self._geo(body, model)}
            if "speed" in body:
                usage["speed"] = body["speed"]
        return usage

    def _events(
        self, message: dict[str, Any], answer: Answer, thought: int, usage: dict[str, Any]
    ) -> list[tuple[int, dict[str, Any]]]:
        """A stream's events, each with the tokens that it brings."""
        begun = {**message, "content": [], "stop_reason": None}
        if usage:
            begun["usage"] = {
                **usage,
                "output_tokens": min(1, usage["output_tokens"]),
                "output_tokens_details": None,
            }
        events: list[tuple[int, dict[str, Any]]] = [
            (0, {"type": "message_start", "message": begun}),
            (0, {"type": "ping"}),
        ]

        def delta(index: int, tokens: int, **said: Any) -> None:
            events.append((tokens, {"type": "content_block_delta", "index": index, "delta": said}))

        for index, block in enumerate(message["content"]):
            kind = block["type"]
            start = {
                "type": "content_block_start",
                "index": index,
                "content_block": {**block, **_EMPTY.get(kind, {})},
            }
            events.append((0, start))
            if kind == "thinking":
                delta(index, thought, type="thinking_delta", thinking=block["thinking"])
                delta(index, 0, type="signature_delta", signature=block["signature"])
            elif kind == "tool_use":
                delta(index, answer.tokens, type="input_json_delta", partial_json=json.dumps(block["input"]))
            elif kind == "text":
                for at in range(0, len(answer.words), self._sandbox.chunk_tokens):
                    piece = answer.words[at : at + self._sandbox.chunk_tokens]
                    delta(index, len(piece), type="text_delta", text="".join(piece))
            events.append((0, {"type": "content_block_stop", "index": index}))
        # Totals: what the lifetimes of writes were is told at the beginning alone.
        totals = {n: usage[n] for n in usage if n not in _AT_THE_BEGINNING}
        end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        events.append((0, {"type": "message_delta", "delta": end, **({"usage": totals} if usage else {})}))
        events.append((0, {"type": "message_stop"}))
        return events

    async def _count(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or not body.get("model") or not body.get("messages"):
            return error(400, "messages: Field required")
        job = self._job(request, body, str(body["model"]))
        if job.account in self._sandbox.strangers:
            return error(401, "invalid x-api-key")
        return JSONResponse({"input_tokens": job.input_tokens})

    async def _batches(self, request: Request) -> Response:
        """It is never run: enough to see whether such calls are let through."""
        self._sandbox.requests += 1
        return JSONResponse(
            {"id": "msgbatch_1", "type": "message_batch", "processing_status": "in_progress",
             "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
             "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-02T00:00:00Z", "ended_at": None,
             "archived_at": None, "cancel_initiated_at": None, "results_url": None}
        )  # fmt: skip


_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}
_AT_THE_BEGINNING = frozenset({"cache_creation", "service_tier", "inference_geo", "speed"})


def _wrong(request: Request, body: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a request, as the real one says it; None: nothing."""
    in_path = "model" in request.path_params
    if not in_path and "anthropic-version" not in request.headers:
        return "anthropic-version: header is required"
    if body is None:
        return "The request body is not valid JSON"
    for name in ("messages", "max_tokens") if in_path else ("model", "messages", "max_tokens"):
        if body.get(name) is None:
            return f"{name}: Field required"
    unknown = sorted(set(body) - _FIELDS)
    if unknown:
        return f"{unknown[0]}: Extra inputs are not permitted"
    if not isinstance(body["messages"], list) or not body["messages"]:
        return "messages: at least one message is required"
    limit = body["max_tokens"]
    if type(limit) is not int or limit < 0:
        return "max_tokens: Input should be greater than or equal to 0"
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or budget < 1024:
            return "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
        if budget >= limit:
            return "`max_tokens` must be greater than `thinking.budget_tokens`"
    return None


def _blocks(content: Any) -> list[Any]:
    if content is None:
        return []
    return content if isinstance(content, list) else [content]


def _ttl(block: Any) -> str | None:
    control = block.get("cache_control") if isinstance(block, Mapping) else None
    return str(control.get("ttl") or "5m") if control else None


def _plain(block: Any) -> Any:
    return {n: v for n, v in block.items() if n != "cache_control"} if isinstance(block, Mapping) else block


def _is_own(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") in (None, "custom")


def _searches(body: Mapping[str, Any]) -> int:
    return sum(str(t.get("type", "")).startswith("web_search_") for t in body.get("tools") or ())


def _frame(event: Mapping[str, Any]) -> bytes:
    """An event as Bedrock streams it."""
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()})
