"""The sandbox's Bedrock side: Converse, whole and streamed in AWS's frames, with tools and a cache.

What is asked of a Claude by `invoke` is in `anthropic`.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .anthropic import Provider
from .model import Answer, generate, prompt_tokens
from .parts import Job, account_of, frame, header, json_of

_FIELDS = frozenset(
    {"messages", "system", "inferenceConfig", "toolConfig", "guardrailConfig", "additionalModelRequestFields",
     "promptVariables", "additionalModelResponseFieldPaths", "requestMetadata", "performanceConfig",
     "serviceTier", "outputConfig", "projectIdentifier"}
)  # fmt: skip
_ERRORS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def error(status: int, message: str) -> Response:
    """An error as AWS's REST APIs say it."""
    kind = _ERRORS.get(status) or ("InternalServerException" if status >= 500 else "ValidationException")
    headers = {"x-amzn-errortype": kind}
    return JSONResponse({"message": message}, status_code=status, headers=headers)


class Bedrock:
    """Answers Converse."""

    def __init__(self, sandbox: Provider) -> None:
        self._sandbox = sandbox
        self._cached: set[str] = set()
        self.routes = [
            Route("/model/{model:path}/converse", self._whole, methods=["POST"]),
            Route("/model/{model:path}/converse-stream", self._streamed, methods=["POST"]),
        ]

    async def _whole(self, request: Request) -> Response:
        return await self._answer(request, stream=False)

    async def _streamed(self, request: Request) -> Response:
        return await self._answer(request, stream=True)

    async def _answer(self, request: Request, *, stream: bool) -> Response:
        sandbox = self._sandbox
        body = await json_of(request)
        if body is None or not body.get("messages"):
            return error(400, "The provided request is not valid: messages")
        unknown = sorted(body.keys() - _FIELDS)
        if unknown:
            return error(400, f"#/{unknown[0]}: extraneous key [{unknown[0]}] is not permitted")
        limit = (body.get("inferenceConfig") or {}).get("maxTokens")
        if limit is not None and limit < 1:
            return error(400, "inferenceConfig.maxTokens: Value must be greater than or equal to 1")
        messages = body["messages"]
        job = self._job(request, body)
        last = messages[-1].get("content") or [{}]
        tools = [
            {**tool["toolSpec"], "parameters": (tool["toolSpec"].get("inputSchema") or {}).get("json") or {}}
            for tool in (body.get("toolConfig") or {}).get("tools") or ()
            if "toolSpec" in tool and not any("toolResult" in block for block in last)
        ]
        answer = generate(messages, job.model, natural=sandbox.output_tokens, limit=limit, tools=tools)
        fault = sandbox.next_fault()
        output = answer.tokens * (fault.factor if fault and fault.kind == "over_limit" else 1)
        failed = await sandbox.begin(job, output, fault, error)
        if failed is not None:
            return failed
        usage = {} if fault and fault.kind == "no_usage" else {"usage": _usage(job, output)}
        if stream:
            events = _events(answer, usage, sandbox.chunk_tokens)
            return sandbox.stream(events, job, output, 0, fault, "application/vnd.amazon.eventstream")
        sandbox.charge(job, output)
        content: dict[str, Any] = {"text": answer.text}
        if answer.tool is not None:
            name, arguments = answer.tool
            content = {"toolUse": {"toolUseId": "t1", "name": name, "input": json.loads(arguments)}}
        message = {"role": "assistant", "content": [content]}
        said = {"output": {"message": message}, "stopReason": _reason(answer), "metrics": {"latencyMs": 1}}
        return JSONResponse({**said, **usage})

    def _job(self, request: Request, body: Mapping[str, Any]) -> Job:
        model = request.path_params["model"]
        parts = [body.get("system"), (body.get("toolConfig") or {}).get("tools"), body["messages"]]
        total = prompt_tokens(parts, model) + 3 * len(body["messages"])
        read = written = 0
        if "cachePoint" in json.dumps(parts):
            # All of it, at the first time written to the cache, and read from it after that.
            key = hashlib.sha256(json.dumps([model, parts], sort_keys=True).encode()).hexdigest()
            read, written = (total, 0) if key in self._cached else (0, total)
            self._cached.add(key)
        return Job(
            "converse",
            model,
            header(request, "x-session-id"),
            header(request, "x-end-user-id"),
            total,
            read,
            provider="aws",
            written_tokens=written,
            account=account_of(request),
        )


def _events(answer: Answer, usage: dict[str, Any], size: int) -> list[tuple[int, str | bytes]]:
    """A stream's events, each with the tokens that it brings."""
    place = {"contentBlockIndex": 0}
    events: list[tuple[int, str | bytes]] = [(0, frame("messageStart", {"role": "assistant"}))]
    if answer.tool is not None:
        name, arguments = answer.tool
        start = {"toolUse": {"toolUseId": "t1", "name": name}}
        events.append((0, frame("contentBlockStart", {**place, "start": start})))
        delta: dict[str, Any] = {"toolUse": {"input": arguments}}
        events.append((answer.tokens, frame("contentBlockDelta", {**place, "delta": delta})))
    for at in range(0, len(answer.words), size):
        piece = answer.words[at : at + size]
        delta = {"text": "".join(piece)}
        events.append((len(piece), frame("contentBlockDelta", {**place, "delta": delta})))
    events.append((0, frame("contentBlockStop", place)))
    events.append((0, frame("messageStop", {"stopReason": _reason(answer)})))
    return [*events, (0, frame("metadata", {**usage, "metrics": {"latencyMs": 1}}))]


def _usage(job: Job, output: int) -> dict[str, int]:
    """What is read from the cache, and written to it, is beside the input."""
    beside = job.cached_tokens + job.written_tokens
    told = {
        "inputTokens": job.input_tokens - beside,
        "outputTokens": output,
        "totalTokens": job.input_tokens + output,
    }
    if beside:
        told |= {"cacheReadInputTokens": job.cached_tokens, "cacheWriteInputTokens": job.written_tokens}
    return told


def _reason(answer: Answer) -> str:
    return "max_tokens" if answer.truncated else "tool_use" if answer.tool else "end_turn"
