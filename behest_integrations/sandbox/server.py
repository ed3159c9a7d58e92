"""The sandbox's HTTP side: OpenAI's wire, faults on demand, and a thread to run it in. Anthropic's is in
`anthropic`, Gemini's in `gemini`, Mistral's in `mistral`, Cohere's in `cohere`, Converse
in `bedrock`.

Over 500 lines: one provider, whose faults are on its way everywhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from ..rules.errors import ConfigError, MissingExtra
from .bill import Bill
from .model import Answer, embedding, generate, prompt_tokens

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from .anthropic import MODELS as CLAUDES
    from .anthropic import Messages
    from .bedrock import Bedrock
    from .cohere import Cohere
    from .gemini import Gemini
    from .mistral import Mistral
    from .parts import FAULTS, Fault, FaultKind, Job, account_of, header, json_of, sse, text_in
except ImportError:
    raise MissingExtra("The sandbox provider's HTTP server", "sandbox") from None

_MODELS = (
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1-mini",
    "gpt-4",
    "gpt-5-mini",
    "o4-mini",
    "gemini-2.5-flash",
    "claude-sonnet-4-5",
    "text-embedding-3-small",
)
"""What it lists. It answers every model that has a price."""


class _Server(uvicorn.Server):
    """uvicorn's own looks ten times a second whether it is to end, and whether all has ended: a suite of
    tests, which starts and ends a sandbox for each, would wait for that longer than for anything else."""

    async def main_loop(self) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        ticks = 0
        while not await self.on_tick(ticks):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), 0.1)
            ticks += 1

    def end(self) -> None:
        """Have it end, from another thread."""
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._told.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while (self.server_state.connections or self.server_state.tasks) and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()


class Sandbox:
    """An offline provider; use it as `with Sandbox() as sandbox:`.

    Args:
        latency: seconds before an answer begins.
        chunk_delay: seconds between the chunks of a stream.
        output_tokens: how long answers are where the request's limit does not cut them.
        chunk_tokens: tokens in each chunk of a stream.
        abandoned: what is billed for a stream whose client hangs up: ``all`` of it (a
            provider that goes on generating) or ``sent`` (what had been sent by then).
        prices: USD per million tokens by model, (input, output), over the price list's.
        aliases: what else models are called: a name, and the model that it stands for.
        inference_geo: where Claude runs if a request does not say: ``global``, ``us``.
        host, port: where to listen; port 0 takes a free one.

    Raises:
        MissingExtra: the `sandbox` extra is not installed.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        chunk_delay: float = 0.0,
        output_tokens: int = 64,
        chunk_tokens: int = 8,
        abandoned: Literal["all", "sent"] = "all",
        prices: Mapping[str, tuple[str, str]] | None = None,
        aliases: Mapping[str, str] | None = None,
        inference_geo: Literal["global", "us"] = "global",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.latency = latency
        self.chunk_delay = chunk_delay
        self.output_tokens = output_tokens
        self.chunk_tokens = chunk_tokens
        self.abandoned = abandoned
        own = {m: (Decimal(i), Decimal(o)) for m, (i, o) in (prices or {}).items()}
        self.bill = Bill(own, aliases or {})
        self.inference_geo: str = inference_geo
        self.requests = 0
        """Requests received on billable paths, refused or not."""
        self.strangers: set[str] = set()
        """Accounts that are not known here: their calls are refused (401)."""
        self.host, self.port = host, port
        self._faults: list[Fault] = []
        self._seen: set[tuple[str, str]] = set()
        self._kept: dict[str, tuple[float, dict[str, Any], list[tuple[int, str]]]] = {}
        self._ids = itertools.count(1)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/responses", self._responses, methods=["POST"]),
                Route("/v1/responses/{id}", self._response, methods=["GET"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/images/generations", self._images, methods=["POST"]),
                Route("/v1/models", self._models),
                *Messages(self).routes,
                *Gemini(self).routes,
                *Mistral(self).routes,
                *Cohere(self).routes,
                *Bedrock(self).routes,
                Route("/openai/deployments/{deployment}/chat/completions", self._chat, methods=["POST"]),
                Route("/sandbox/bill", self._show_bill),
                Route("/sandbox/faults", self._add_fault, methods=["POST"]),
            ],
            # A field of the wrong shape: to a provider that is the caller's mistake, not its own.
            exception_handlers=dict.fromkeys(
                (AttributeError, TypeError, ValueError, LookupError), _misshapen
            ),
        )

    # ── running ────────────────────────────────────────────────────────────────────────

    @property
    def base_url(self) -> str:
        """What to give to a client as `base_url`; to Anthropic's: `url`."""
        return f"{self.url}/v1"

    @property
    def url(self) -> str:
        """Where it is, less the version of an API."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> Sandbox:
        """Serve from a thread of this process; returns when it accepts connections."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=2
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="behest-sandbox", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Stop serving; streams still open are cut off after two seconds."""
        if self._server is not None and self._thread is not None:
            self._server.end()
            self._thread.join(10)
            self._server = self._thread = None

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def run(self) -> None:
        """Serve in the foreground until interrupted."""
        uvicorn.run(self.app, host=self.host, port=self.port, log_level="warning", lifespan="off")

    # ── faults ─────────────────────────────────────────────────────────────────────────

    def fault(
        self,
        kind: FaultKind,
        *,
        times: int = 1,
        status: int = 500,
        billed: bool | None = None,
        seconds: float = 0.0,
        factor: int = 2,
    ) -> None:
        """Make the next `times` requests go wrong.

        Args:
            kind: ``latency`` (by `seconds`), ``status`` (answer with `status`),
                ``timeout`` (bill, then answer after `seconds`), ``cut`` (break a
                stream half way, billed whole), ``no_usage`` (leave usage out),
                ``over_limit`` (bill and report `factor` times the output), ``filtered`` (bill, and answer
                as Azure does where a filter has stopped the prompt).
            billed: whether a ``status`` is billed all the same; None: 5xx is, 4xx is not.
        """
        if kind not in FAULTS:
            raise ConfigError(f"unknown fault {kind!r}: one of {', '.join(FAULTS)}")
        if billed is None:
            billed = kind in ("timeout", "filtered") or status >= 500
        self._faults.append(Fault(kind, times, status, billed, seconds, factor))

    def next_fault(self) -> Fault | None:
        while self._faults:
            fault = self._faults[0]
            if fault.times > 0:
                fault.times -= 1
                return fault
            self._faults.pop(0)
        return None

    async def _add_fault(self, request: Request) -> Response:
        try:
            self.fault(**await request.json())
        except (TypeError, ValueError) as error:
            return _error(400, str(error))
        return JSONResponse({"faults": len(self._faults)})

    # ── billing ────────────────────────────────────────────────────────────────────────

    async def _show_bill(self, request: Request) -> Response:
        return JSONResponse(self.bill.as_json())

    def _job(
        self, request: Request, operation: str, body: Mapping[str, Any], prompt: Any, messages: int
    ) -> Job:
        model = str(body.get("model") or request.path_params.get("deployment") or "")
        tokens = prompt_tokens(prompt, model) + (3 * messages + 3 if messages else 0)
        cached = 0
        if tokens >= 1024:
            # Like OpenAI's: prompts of 1,024 tokens and more, in steps of 128, by prefix.
            prefix = (model, json.dumps(prompt, default=str)[:4096])
            cached = tokens // 128 * 128 if prefix in self._seen else 0
            self._seen.add(prefix)
        return Job(
            operation,
            model,
            header(request, "x-session-id"),
            header(request, "x-end-user-id") or text_in(body.get("user")),
            tokens,
            cached,
            account=account_of(request),
        )

    def charge(self, job: Job, output: int, reasoning: int = 0, *, abandoned: bool = False) -> None:
        self.bill.charge(
            session_id=job.session_id,
            user_id=job.user_id,
            operation=job.operation,
            model=job.model,
            input_tokens=job.input_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=output,
            reasoning_tokens=reasoning,
            abandoned=abandoned,
            provider=job.provider,
            written_tokens=job.written_tokens,
            written_1h_tokens=job.written_1h_tokens,
            searches=job.searches,
            factor=job.factor,
            account=job.account,
        )

    async def begin(
        self, job: Job, output: int, fault: Fault | None, say: Callable[[int, str], Response] | None = None
    ) -> Response | None:
        """Wait, and fail where a fault says so; None to go on and answer.

        Args:
            say: makes an error; default: in OpenAI's shape.
        """
        say = say or _error
        self.requests += 1
        if job.account in self.strangers:
            return say(401, "incorrect API key provided")
        if not self.bill.knows(job.model, job.provider):
            return say(404, f"the model {job.model!r} does not exist here")
        delay = self.latency + (fault.seconds if fault and fault.kind == "latency" else 0.0)
        if delay:
            await asyncio.sleep(delay)
        if fault is not None and fault.kind in ("status", "timeout", "filtered"):
            if fault.billed:
                self.charge(job, output)
            if fault.kind == "filtered":
                return _error(400, "the response was filtered", "content_filter")
            if fault.kind == "status":
                return say(fault.status, "the sandbox was told to fail")
            await asyncio.sleep(fault.seconds)
            return say(504, "the sandbox was told to be late")
        return None

    # ── the API ────────────────────────────────────────────────────────────────────────

    async def _chat(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or not isinstance(body.get("messages"), list) or not body["messages"]:
            return _error(400, "messages is required")
        messages = body["messages"]
        prompt = [messages, body.get("tools"), body.get("response_format")]
        job = self._job(request, "chat", body, prompt, len(messages))
        limits = [body[k] for k in ("max_completion_tokens", "max_tokens") if body.get(k) is not None]
        last = messages[-1] if isinstance(messages[-1], dict) else {}
        offered = body.get("tools") or ()
        tools = offered if last.get("role") != "tool" and body.get("tool_choice") != "none" else ()
        form = body.get("response_format") or {}
        schema = (form.get("json_schema") or {}).get("schema") if form.get("type") == "json_schema" else None
        answers = [
            generate(
                messages, job.model, natural=self.output_tokens, limit=min(limits) if limits else None,
                tools=tools, schema=schema, choice=i,
            )
            for i in range(body.get("n") or 1)
        ]  # fmt: skip
        fault = self.next_fault()
        factor = fault.factor if fault and fault.kind == "over_limit" else 1
        output = sum(a.tokens for a in answers) * factor
        reasoning = sum(a.reasoning for a in answers)
        failed = await self.begin(job, output, fault)
        if failed is not None:
            return failed
        usage = {
            "prompt_tokens": job.input_tokens,
            "completion_tokens": output,
            "total_tokens": job.input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": job.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        }
        head = {"id": f"chatcmpl-{next(self._ids)}", "created": int(time.time()), "model": job.model}
        if body.get("stream"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            events = self._chat_events(head, answers, usage if asked else None, fault)
            return self.stream(events, job, output, reasoning, fault)
        self.charge(job, output, reasoning)
        reply: dict[str, Any] = {**head, "object": "chat.completion", "service_tier": "default"}
        reply["choices"] = [
            {
                "index": i,
                "message": _message(a, str(head["id"])),
                "finish_reason": _finish(a),
                "logprobs": None,
            }
            for i, a in enumerate(answers)
        ]
        if not (fault and fault.kind == "no_usage"):
            reply["usage"] = usage
        return JSONResponse(reply)

    def _chat_events(
        self, head: dict[str, Any], answers: list[Answer], usage: dict[str, Any] | None, fault: Fault | None
    ) -> list[tuple[int, str]]:
        """A chat stream's events, each with the tokens it brings."""
        base = {**head, "object": "chat.completion.chunk", "service_tier": "default"}
        pending = {"usage": None} if usage is not None else {}
        events: list[tuple[int, str]] = []

        def chunk(index: int, delta: dict[str, Any], finish: str | None, tokens: int) -> None:
            choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
            events.append((tokens, sse({**base, "choices": [choice], **pending})))

        for index, answer in enumerate(answers):
            chunk(index, {"role": "assistant", "content": ""}, None, answer.reasoning)
            if answer.tool is not None:
                call = {
                    "index": 0, "id": f"call_{head['id']}", "type": "function",
                    "function": {"name": answer.tool[0], "arguments": answer.tool[1]},
                }  # fmt: skip
                chunk(index, {"tool_calls": [call]}, None, answer.tokens - answer.reasoning)
            for at in range(0, len(answer.words), self.chunk_tokens):
                piece = answer.words[at : at + self.chunk_tokens]
                chunk(index, {"content": "".join(piece)}, None, len(piece))
            chunk(index, {}, _finish(answer), 0)
        if usage is not None and not (fault and fault.kind == "no_usage"):
            events.append((0, sse({**base, "choices": [], "usage": usage})))
        events.append((0, "data: [DONE]\n\n"))
        return events

    def stream(
        self,
        events: Sequence[tuple[int, str | bytes]],
        job: Job,
        output: int,
        reasoning: int,
        fault: Fault | None,
        media_type: str = "text/event-stream",
    ) -> Response:
        """Events, each with the tokens that it brings; billed by how it ends."""

        async def body() -> AsyncIterator[str | bytes]:
            sent, whole = 0, False
            try:
                for number, (tokens, event) in enumerate(events):
                    if fault and fault.kind == "cut" and number >= len(events) // 2:
                        raise ConnectionResetError("the sandbox was told to cut the stream")
                    sent += tokens
                    if number == len(events) - 1:
                        # Charged before its end is told: who has read it may look at the bill.
                        whole = True
                        self.charge(job, output, reasoning)
                    yield event
                    # Also without a delay: the loop must get to notice a client's hang-up.
                    await asyncio.sleep(self.chunk_delay)
            finally:
                # Also when the client has hung up: what was made has been paid for.
                if not whole:
                    everything = self.abandoned == "all" or (fault is not None and fault.kind == "cut")
                    self.charge(job, output if everything else sent, reasoning, abandoned=True)

        return StreamingResponse(body(), media_type=media_type)

    async def _completions(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or body.get("prompt") is None:
            return _error(400, "prompt is required")
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        job = self._job(request, "completions", body, prompts, 0)
        answers = [
            generate(p, job.model, natural=self.output_tokens, limit=body.get("max_tokens") or 16, choice=i)
            for p in prompts
            for i in range(body.get("n") or 1)
        ]
        output = sum(a.tokens for a in answers)
        fault = self.next_fault()
        failed = await self.begin(job, output, fault)
        if failed is not None:
            return failed
        usage = _plain_usage(job, output)
        head = {
            "id": f"cmpl-{next(self._ids)}",
            "object": "text_completion",
            "created": 0,
            "model": job.model,
        }
        choices = [
            {"index": i, "text": a.text, "finish_reason": _finish(a), "logprobs": None}
            for i, a in enumerate(answers)
        ]
        if body.get("stream"):
            events = [
                (a.tokens, sse({**head, "choices": [c]})) for a, c in zip(answers, choices, strict=False)
            ]
            if (body.get("stream_options") or {}).get("include_usage"):
                events.append((0, sse({**head, "choices": [], "usage": usage})))
            events.append((0, "data: [DONE]\n\n"))
            return self.stream(events, job, output, 0, fault)
        self.charge(job, output)
        return JSONResponse({**head, "choices": choices, "usage": usage})

    async def _responses(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or body.get("input") is None:
            return _error(400, "input is required")
        given = body["input"]
        form = (body.get("text") or {}).get("format") or {}
        prompt = [given, body.get("instructions"), body.get("tools"), form]
        job = self._job(request, "responses", body, prompt, 1 if isinstance(given, str) else len(given))
        previous = self._kept.get(str(body.get("previous_response_id")))
        if previous is not None:
            before = previous[1]["usage"]
            job = Job(**{**job.__dict__, "input_tokens": job.input_tokens + before["total_tokens"]})
        answered = isinstance(given, list) and any(
            isinstance(i, dict) and i.get("type") == "function_call_output" for i in given
        )
        answer = generate(
            given,
            job.model,
            natural=self.output_tokens,
            limit=body.get("max_output_tokens"),
            tools=() if answered else [t for t in body.get("tools") or () if t.get("type") == "function"],
            schema=form.get("schema") if form.get("type") == "json_schema" else None,
        )
        fault = self.next_fault()
        failed = await self.begin(job, answer.tokens, fault)
        if failed is not None:
            return failed
        reply = self._response_object(body, job, answer)
        if fault and fault.kind == "no_usage":
            reply["usage"] = None
        events = self._response_events(reply, answer)
        if body.get("background"):
            # It is made, and billed, whether or not anybody listens.
            self.charge(job, answer.tokens, answer.reasoning)
            self._kept[reply["id"]] = (time.monotonic() + max(self.latency, 0.05), reply, events)
            if body.get("stream"):
                return StreamingResponse(self._told(events), media_type="text/event-stream")
            return JSONResponse({**reply, "status": "queued", "output": [], "usage": None})
        if body.get("stream"):
            return self.stream(events, job, answer.tokens, answer.reasoning, fault)
        self.charge(job, answer.tokens, answer.reasoning)
        self._kept[reply["id"]] = (0.0, reply, events)
        return JSONResponse(reply)

    async def _told(self, events: Sequence[tuple[int, str]]) -> AsyncIterator[str]:
        for _, event in events:
            yield event
            await asyncio.sleep(self.chunk_delay)

    def _response_object(self, body: Mapping[str, Any], job: Job, answer: Answer) -> dict[str, Any]:
        number = next(self._ids)
        if answer.tool is not None:
            output: dict[str, Any] = {
                "type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}",
                "status": "completed", "name": answer.tool[0], "arguments": answer.tool[1],
            }  # fmt: skip
        else:
            content = {"type": "output_text", "text": answer.text, "annotations": []}
            output = {
                "type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed",
                "content": [content],
            }  # fmt: skip
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": int(time.time()),
            "model": job.model,
            "status": "incomplete" if answer.truncated else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if answer.truncated else None,
            "error": None,
            "instructions": body.get("instructions"),
            "metadata": {},
            "output": [output],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
            "service_tier": "default",
            "usage": {
                "input_tokens": job.input_tokens,
                "input_tokens_details": {"cached_tokens": job.cached_tokens},
                "output_tokens": answer.tokens,
                "output_tokens_details": {"reasoning_tokens": answer.reasoning},
                "total_tokens": job.input_tokens + answer.tokens,
            },
        }

    def _response_events(self, reply: dict[str, Any], answer: Answer) -> list[tuple[int, str]]:
        numbers = itertools.count()
        events: list[tuple[int, str]] = []

        def event(kind: str, tokens: int = 0, **fields: Any) -> None:
            data = {"type": kind, "sequence_number": next(numbers), **fields}
            events.append((tokens, f"event: {kind}\n{sse(data)}"))

        item = reply["output"][0]
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        event("response.created", response={**reply, "status": "in_progress", "output": [], "usage": None})
        event(
            "response.output_item.added",
            answer.reasoning,
            output_index=0,
            item={**item, "status": "in_progress"},
        )
        if item["type"] == "message":
            part = item["content"][0]
            event("response.content_part.added", part={**part, "text": ""}, **place)
            for at in range(0, len(answer.words), self.chunk_tokens):
                piece = answer.words[at : at + self.chunk_tokens]
                event("response.output_text.delta", len(piece), delta="".join(piece), logprobs=[], **place)
            event("response.output_text.done", text=answer.text, logprobs=[], **place)
            event("response.content_part.done", part=part, **place)
        event("response.output_item.done", output_index=0, item=item)
        event(f"response.{reply['status']}", response=reply)
        return events

    async def _response(self, request: Request) -> Response:
        found = self._kept.get(request.path_params["id"])
        if found is None:
            return _error(404, "no such response")
        ready, reply, events = found
        if request.query_params.get("stream") == "true":
            # Sequence numbers are places in the list.
            after = int(request.query_params.get("starting_after") or -1)
            return StreamingResponse(self._told(events[after + 1 :]), media_type="text/event-stream")
        if time.monotonic() < ready:
            return JSONResponse({**reply, "status": "in_progress", "output": [], "usage": None})
        return JSONResponse(reply)

    async def _embeddings(self, request: Request) -> Response:
        body = await json_of(request)
        if body is None or body.get("input") is None:
            return _error(400, "input is required")
        given = body["input"]
        single = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int))
        texts = [given] if single else given
        job = self._job(request, "embeddings", body, given, 0)
        fault = self.next_fault()
        failed = await self.begin(job, 0, fault)
        if failed is not None:
            return failed
        self.charge(job, 0)
        vectors = [embedding(t, body.get("dimensions") or 64) for t in texts]
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() if packed else v,
            }
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": job.input_tokens, "total_tokens": job.input_tokens}
        return JSONResponse({"object": "list", "data": data, "model": job.model, "usage": usage})

    async def _images(self, request: Request) -> Response:
        """Not a picture: enough to see whether such calls are let through."""
        self.requests += 1
        return JSONResponse({"created": 0, "data": [{"url": "http://127.0.0.1/none.png"}]})

    async def _models(self, request: Request) -> Response:
        models = [*_MODELS, *self.bill.prices, *self.bill.aliases]
        if "anthropic-version" in request.headers:
            claudes = [
                {"type": "model", "id": m, "display_name": m, "created_at": "2026-01-01T00:00:00Z"}
                for m in CLAUDES
            ]
            ends = {"has_more": False, "first_id": CLAUDES[0], "last_id": CLAUDES[-1]}
            return JSONResponse({"data": claudes, **ends})
        models = [*_MODELS, *self.bill.prices]
        data = [{"id": m, "object": "model", "created": 0, "owned_by": "sandbox"} for m in models]
        return JSONResponse({"object": "list", "data": data})


async def _misshapen(request: Request, error: Exception) -> Response:
    return _error(400, f"a field has the wrong shape ({type(error).__name__})")


def _error(status: int, message: str, code: str | None = None) -> Response:
    kind = (
        "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    )
    body = {"error": {"message": message, "type": kind, "code": code, "param": None}}
    return JSONResponse(body, status_code=status)


def _finish(answer: Answer) -> str:
    return "length" if answer.truncated else "tool_calls" if answer.tool else "stop"


def _message(answer: Answer, id: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.tool is not None:
        function = {"name": answer.tool[0], "arguments": answer.tool[1]}
        message["tool_calls"] = [{"id": f"call_{id}", "type": "function", "function": function}]
    return message


def _plain_usage(job: Job, output: int) -> dict[str, Any]:
    return {
        "prompt_tokens": job.input_tokens,
        "completion_tokens": output,
        "total_tokens": job.input_tokens + output,
    }
