"""The sandbox's Gemini side: `generateContent`, streamed and not, tools, thoughts, embeddings.

As the Gemini API has it, and Vertex. https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .anthropic import Provider
from .model import Answer, embedding, generate, prompt_tokens
from .parts import Job, header, json_of, text_in

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FIELDS = frozenset(
    {"model", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings",
     "cachedContent", "labels", "serviceTier", "store"}
)  # fmt: skip
_THOUGHTS = 32
_MODELS = ("v1beta", "v1", "v1alpha")
_VERTEX = ("v1beta1", "v1")


def error(status: int, message: str) -> Response:
    """An error in Google's shape: https://google.aip.dev/193"""
    kind = _STATUS.get(status) or ("INTERNAL" if status >= 500 else "FAILED_PRECONDITION")
    return JSONResponse({"error": {"code": status, "message": message, "status": kind}}, status_code=status)


class Gemini:
    """Answers Gemini's requests."""

    def __init__(self, sandbox: Provider) -> None:
        self._sandbox = sandbox
        self._ids = itertools.count(1)
        verbs = {
            "generateContent": self._whole,
            "streamGenerateContent": self._streamed,
            "countTokens": self._count,
            "embedContent": self._embed,
            "batchEmbedContents": self._embed,
        }
        places = [f"/{version}/models" for version in _MODELS]
        places += [
            f"/{version}/projects/{{project}}/locations/{{region}}/publishers/google/models"
            for version in _VERTEX
        ]
        self.routes = [
            Route(f"{place}/{{model}}:{verb}", answer, methods=["POST"])
            for place in places
            for verb, answer in verbs.items()
        ]

    async def _whole(self, request: Request) -> Response:
        return await self._answer(request, stream=False)

    async def _streamed(self, request: Request) -> Response:
        return await self._answer(request, stream=True)

    async def _answer(self, request: Request, *, stream: bool) -> Response:
        sandbox = self._sandbox
        body = await json_of(request)
        if body is None or not body.get("contents"):
            return error(400, "contents is not specified")
        unknown = sorted(body.keys() - _FIELDS)
        if unknown:
            return error(400, f'Invalid JSON payload received. Unknown name "{unknown[0]}"')
        model = request.path_params["model"]
        config = body.get("generationConfig") or {}
        limit = config.get("maxOutputTokens")
        if limit is not None and limit < 1:
            return error(400, "max_output_tokens must be positive")
        budget = (config.get("thinkingConfig") or {}).get("thinkingBudget")
        wants = 0 if model.startswith(("gemini-1", "gemini-2.0")) or budget == 0 else _THOUGHTS
        thought = wants if limit is None else max(0, min(wants, limit - 1))
        many = config.get("candidateCount") or 1
        answers = [
            self._generate(body, model, None if limit is None else limit - thought, choice)
            for choice in range(many)
        ]
        job = self._job(request, body, model)
        fault = sandbox.next_fault()
        output = sum(answer.tokens for answer in answers) + thought * many
        output *= fault.factor if fault and fault.kind == "over_limit" else 1
        failed = await sandbox.begin(job, output, fault, error)
        if failed is not None:
            return failed
        silent = fault is not None and fault.kind == "no_usage"
        whole = {**self._head(model), **({} if silent else _usage(job, output, thought * many))}
        if not stream:
            sandbox.charge(job, output, thought * many)
            return JSONResponse({"candidates": [_candidate(a, i) for i, a in enumerate(answers)], **whole})
        chunks = list(self._chunks(answers, thought, job, whole, silent))
        if request.query_params.get("alt") == "sse":
            events: list[tuple[int, str | bytes]] = [
                (tokens, f"data: {json.dumps(chunk)}\r\n\r\n") for tokens, chunk in chunks
            ]
            return sandbox.stream(events, job, output, thought * many, fault)
        parts: list[tuple[int, str | bytes]] = [
            (tokens, f"{',' if at else '['}{json.dumps(chunk)}\r\n")
            for at, (tokens, chunk) in enumerate(chunks)
        ]
        return sandbox.stream([*parts, (0, "]")], job, output, thought * many, fault, "application/json")

    def _job(self, request: Request, body: Mapping[str, Any], model: str, operation: str = "") -> Job:
        read = [body.get("systemInstruction"), body.get("contents"), body.get("tools")]
        form = (body.get("generationConfig") or {}).get("responseSchema")
        tier = text_in(body.get("serviceTier"))
        factor = {"flex": Decimal("0.5"), "priority": Decimal("1.8")}.get(tier or "", Decimal(1))
        return Job(
            operation or "generateContent",
            model,
            header(request, "x-session-id"),
            header(request, "x-end-user-id") or text_in((body.get("labels") or {}).get("user")),
            prompt_tokens([*read, form], model) + 2 * len(body.get("contents") or ()) + 1,
            0,
            provider="google",
            factor=factor,
        )

    def _generate(self, body: Mapping[str, Any], model: str, limit: int | None, choice: int) -> Answer:
        contents = body["contents"]
        last = contents[-1].get("parts") or [] if isinstance(contents, list) else []
        answered = any("functionResponse" in part for part in last)
        declared = [d for tool in body.get("tools") or () for d in tool.get("functionDeclarations") or ()]
        config = body.get("generationConfig") or {}
        return generate(
            contents,
            model,
            natural=self._sandbox.output_tokens,
            limit=limit,
            tools=[
                {
                    "name": d["name"],
                    "parameters": _lower(d.get("parameters") or d.get("parametersJsonSchema")),
                }
                for d in ([] if answered else declared)
            ],
            schema=_lower(config.get("responseSchema") or config.get("responseJsonSchema")) or None,
            choice=choice,
        )

    def _head(self, model: str) -> dict[str, Any]:
        return {"modelVersion": model, "responseId": f"gemini_{next(self._ids)}"}

    def _chunks(
        self, answers: Sequence[Answer], thought: int, job: Job, whole: dict[str, Any], silent: bool
    ) -> Any:
        """A stream's chunks, each with the tokens that it brings; usage so far on each."""
        size, so_far = self._sandbox.chunk_tokens, 0
        head = {name: whole[name] for name in ("modelVersion", "responseId")}
        for index, answer in enumerate(answers):
            words = answer.words
            pieces = [words[at : at + size] for at in range(0, len(words), size)] or [[]]
            for number, piece in enumerate(pieces):
                tokens = (len(piece) or answer.tokens) + (0 if number else thought)
                so_far += tokens
                part = Answer(list(piece), answer.tool, truncated=answer.truncated)
                candidate = _candidate(part, index, ends=number == len(pieces) - 1)
                ends = index == len(answers) - 1 and number == len(pieces) - 1
                told = {} if silent else _usage(job, so_far, thought * (index + 1))
                yield tokens, {"candidates": [candidate], **head, **(whole if ends else told)}

    async def _count(self, request: Request) -> Response:
        body = await json_of(request) or {}
        inner = body.get("generateContentRequest") or body
        return JSONResponse(
            {"totalTokens": self._job(request, inner, request.path_params["model"]).input_tokens}
        )

    async def _embed(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or not (body.get("content") or body.get("requests")):
            return error(400, "content is not specified")
        asked = body.get("requests") or [body]
        texts = [_text(one.get("content")) for one in asked]
        model = request.path_params["model"]
        job = self._job(request, {"contents": texts}, model, "embedContent")
        fault = self._sandbox.next_fault()
        failed = await self._sandbox.begin(job, 0, fault, error)
        if failed is not None:
            return failed
        self._sandbox.charge(job, 0)
        vectors = [
            {"values": embedding(text, one.get("outputDimensionality") or 64)}
            for text, one in zip(texts, asked, strict=True)
        ]
        said = {"embeddings": vectors} if "requests" in body else {"embedding": vectors[0]}
        usage = {"promptTokenCount": job.input_tokens, "totalTokenCount": job.input_tokens}
        return JSONResponse({**said, "usageMetadata": usage})


def _usage(job: Job, output: int, thought: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "promptTokenCount": job.input_tokens,
        "candidatesTokenCount": output - thought,
        "totalTokenCount": job.input_tokens + output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": job.input_tokens}],
    }
    if thought:
        told["thoughtsTokenCount"] = thought
    return {"usageMetadata": told}


def _candidate(answer: Answer, index: int, *, ends: bool = True) -> dict[str, Any]:
    part: dict[str, Any] = {"text": answer.text}
    if answer.tool is not None:
        part = {"functionCall": {"name": answer.tool[0], "args": json.loads(answer.tool[1])}}
    made: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": index}
    return {**made, "finishReason": "MAX_TOKENS" if answer.truncated else "STOP"} if ends else made


def _lower(schema: Any) -> Any:
    """A schema whose types are in capitals, as Google's are, as JSON Schema has them."""
    if isinstance(schema, Mapping):
        return {
            name: value.lower() if name == "type" and isinstance(value, str) else _lower(value)
            for name, value in schema.items()
        }
    return [_lower(one) for one in schema] if isinstance(schema, list) else schema or {}


def _text(content: Any) -> str:
    parts = content.get("parts") if isinstance(content, Mapping) else None
    return " ".join(str(part.get("text", "")) for part in parts or ())
