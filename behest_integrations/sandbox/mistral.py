"""The sandbox's Mistral side: chat, completions in the middle, embeddings, under `/mistral`.

As OpenAI's, but for what differs on its wire: a stream tells its usage in its last chunk without being asked,
and a field that it does not know is refused. https://docs.mistral.ai/api
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .anthropic import Provider
from .model import Answer, embedding, generate
from .parts import Fault, Job, job_of, json_of, sse

_SHARED = frozenset(
    {"model", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed", "metadata", "min_tokens",
     "prompt_cache_key"}
)  # fmt: skip
_CHAT = _SHARED | frozenset(
    {"messages", "response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty",
     "repetition_penalty", "top_k", "logprobs", "top_logprobs", "prompt_logprobs", "top_prompt_logprobs", "n",
     "prediction", "parallel_tool_calls", "reasoning_effort", "prompt_mode", "guardrails", "service_tier",
     "safe_prompt"}
)  # fmt: skip
_FIM = _SHARED | frozenset({"prompt", "suffix"})
_EMBEDDINGS = frozenset({"model", "input", "metadata", "output_dimension", "output_dtype", "encoding_format"})


def error(status: int, message: str) -> Response:
    """An error in Mistral's shape."""
    kind = (
        "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    )
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": str(status)}
    return JSONResponse(body, status_code=status)


class Mistral:
    """Answers Mistral's requests."""

    def __init__(self, sandbox: Provider) -> None:
        self._sandbox = sandbox
        self._ids = itertools.count(1)
        self.routes = [
            Route("/mistral/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/mistral/v1/fim/completions", self._fim, methods=["POST"]),
            Route("/mistral/v1/embeddings", self._embed, methods=["POST"]),
        ]

    async def _chat(self, request: Request) -> Response:
        body = await json_of(request)
        refused = _refused(body, _CHAT, "messages")
        if body is None or refused is not None:
            return refused or error(400, "no JSON")
        messages = body["messages"]
        prompt = [messages, body.get("tools"), body.get("response_format")]
        beside = 3 * len(messages) + 3 + (40 if body.get("safe_prompt") or body.get("prompt_mode") else 0)
        last = messages[-1] if isinstance(messages[-1], dict) else {}
        answers = [
            generate(
                messages,
                str(body["model"]),
                natural=self._sandbox.output_tokens,
                limit=body.get("max_tokens"),
                tools=(body.get("tools") or ()) if last.get("role") != "tool" else (),
                choice=choice,
            )
            for choice in range(body.get("n") or 1)
        ]
        return await self._answer(request, body, "chat", prompt, beside, answers)

    async def _fim(self, request: Request) -> Response:
        body = await json_of(request)
        refused = _refused(body, _FIM, "prompt")
        if body is None or refused is not None:
            return refused or error(400, "no JSON")
        prompt = [body["prompt"], body.get("suffix")]
        answer = generate(
            prompt, str(body["model"]), natural=self._sandbox.output_tokens, limit=body.get("max_tokens")
        )
        return await self._answer(request, body, "completions", prompt, 3, [answer])

    async def _answer(
        self,
        request: Request,
        body: Mapping[str, Any],
        operation: str,
        prompt: Any,
        beside: int,
        answers: list[Answer],
    ) -> Response:
        sandbox = self._sandbox
        job = job_of(request, body, operation, prompt, beside, "mistral")
        fault = sandbox.next_fault()
        output = sum(answer.tokens for answer in answers)
        output *= fault.factor if fault and fault.kind == "over_limit" else 1
        failed = await sandbox.begin(job, output, fault, error)
        if failed is not None:
            return failed
        head = {"id": f"mistral{next(self._ids)}", "model": job.model, "created": 0}
        usage = {} if fault and fault.kind == "no_usage" else {"usage": _usage(job, output)}
        if body.get("stream"):
            events = self._events(head, answers, usage, sandbox.chunk_tokens)
            return sandbox.stream(events, job, output, 0, fault)
        sandbox.charge(job, output)
        choices = [
            {"index": i, "message": _said(answer, answer.text), "finish_reason": _finish(answer)}
            for i, answer in enumerate(answers)
        ]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, **usage})

    def _events(
        self, head: dict[str, Any], answers: list[Answer], usage: dict[str, Any], size: int
    ) -> list[tuple[int, str | bytes]]:
        """A stream's events, each with the tokens that it brings; the usage is in the last chunk."""
        base = {**head, "object": "chat.completion.chunk"}
        events: list[tuple[int, str | bytes]] = []
        for index, answer in enumerate(answers):
            words = answer.words
            for at in range(0, len(words), size):
                delta = {"role": "assistant", "content": "".join(words[at : at + size])}
                choice = {"index": index, "delta": delta, "finish_reason": None}
                events.append((len(words[at : at + size]), sse({**base, "choices": [choice]})))
            delta = _said(answer, "")
            choice = {"index": index, "delta": delta, "finish_reason": _finish(answer)}
            told = usage if index == len(answers) - 1 else {}
            tokens = answer.tokens if answer.tool is not None else 0
            events.append((tokens, sse({**base, "choices": [choice], **told})))
        return [*events, (0, "data: [DONE]\n\n")]

    async def _embed(self, request: Request) -> Response:
        body = await json_of(request)
        refused = _refused(body, _EMBEDDINGS, "input")
        if body is None or refused is not None:
            return refused or error(400, "no JSON")
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        job = job_of(request, body, "embeddings", texts, 0, "mistral")
        fault: Fault | None = self._sandbox.next_fault()
        failed = await self._sandbox.begin(job, 0, fault, error)
        if failed is not None:
            return failed
        self._sandbox.charge(job, 0)
        vectors = [embedding(text, body.get("output_dimension") or 64) for text in texts]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        return JSONResponse(
            {"id": "e", "object": "list", "model": job.model, "data": data, "usage": _usage(job, 0)}
        )


def _refused(body: Mapping[str, Any] | None, known: frozenset[str], needed: str) -> Response | None:
    if body is None or not body.get("model") or not body.get(needed):
        return error(422, f"model and {needed} are required")
    unknown = sorted(body.keys() - known)
    return error(422, f"{unknown[0]}: Extra inputs are not permitted") if unknown else None


def _usage(job: Job, output: int) -> dict[str, Any]:
    return {
        "prompt_tokens": job.input_tokens,
        "completion_tokens": output,
        "total_tokens": job.input_tokens + output,
        "prompt_audio_seconds": None,
        "num_cached_tokens": 0,
    }


def _said(answer: Answer, text: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": text}
    if answer.tool is not None:
        function = {"name": answer.tool[0], "arguments": answer.tool[1]}
        said["tool_calls"] = [{"id": "call12345", "type": "function", "index": 0, "function": function}]
    return said


def _finish(answer: Answer) -> str:
    return "length" if answer.truncated else "tool_calls" if answer.tool else "stop"
