"""One call: admitted, bounded, reserved, sent to a provider, passed back, settled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..calls.passing import Passing
from ..meter import Meter
from ..rules.errors import ConfigError
from ..wire.fields import models_besides
from .answers import LARGE, Answer, drain, end, post
from .attempts import Attempts, Job, hanging_up
from .bodies import Bodies, Held, parse
from .byok import Payers
from .callers import Caller, Gate
from .leaving import Rest
from .metrics import Metrics
from .patience import OutOfTime, timeout
from .problems import CODES, Problem
from .providers import Routes, Target
from .settings import LimitSettings
from .shapes import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    MessagesRequest,
    Request,
    ResponseRequest,
)

log = logging.getLogger("behest")

REQUESTS: Mapping[str, type[Request]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
    "responses": ResponseRequest,
    "embeddings": EmbeddingRequest,
    "messages": MessagesRequest,
}
_DRAIN_SECONDS = 5.0
_TAIL_SECONDS = 1.0
_HANDED_BACK = ("openai-processing-ms", "openai-version", "openai-model")


class Relay:
    """Takes calls to providers and their answers back."""

    api = "openai"
    """What providers must speak to be asked."""

    def __init__(
        self,
        meter: Meter,
        gate: Gate,
        routes: Routes,
        limits: LimitSettings,
        metrics: Metrics,
        payers: Payers,
    ) -> None:
        self.meter = meter
        self.gate = gate
        self.routes = routes
        self.limits = limits
        self.metrics = metrics
        self.bodies = Bodies(limits)
        self.payers = payers
        self.attempts = Attempts(meter, metrics, payers)
        self.in_flight = 0

    async def serve(self, operation: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        try:
            caller = await self.gate.admit(scope)
            caller.require("inference")
            with self._slot(), self.bodies.reading() as held:
                job = await self._read(operation, caller, scope, receive, held)
                await self._relay(job, scope, receive, send)
        except Problem as problem:
            # A provider's own codes are its own affair, and without number.
            self.metrics.refused(problem.code if problem.code in CODES else "provider")
            await problem.response()(scope, receive, send)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if self.in_flight >= self.limits.max_in_flight:
            raise Problem(503, "Too many calls are in flight.", after=1, retry=True)
        self.in_flight += 1
        self.metrics.in_flight.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.dec()

    async def _read(self, operation: str, caller: Caller, scope: Scope, receive: Receive, held: Held) -> Job:
        who = caller.attribution(scope["headers"], scope["state"]["trace"])
        raw = await held.read(Headers(scope=scope), receive)
        model, large = REQUESTS[operation], len(raw) > LARGE
        if large:
            body, checked = await anyio.to_thread.run_sync(parse, raw, model, self.limits)
        else:
            body, checked = parse(raw, model, self.limits)
        if caller.models is not None:
            for name in (checked.model, *_others(operation, body)):
                caller.may_call(name)
        who = who.over(caller.named(body))
        job = Job(operation, body, who, caller, scope["headers"], large, held, receive)
        job.cheaper = partial(self._cheaper, caller)
        if isinstance(checked, ResponseRequest):
            await self._check_stored(job, checked)
        return job

    async def _check_stored(self, job: Job, request: ResponseRequest) -> None:
        """What is stored at the provider is under the gateway's key: whose it is, is ours to say."""
        if job.body.get("background"):
            raise Problem(
                400, "Background responses cannot be followed through the gateway.", param="background"
            )
        if job.body.get("conversation") is not None or _refers(request.input):
            message = "Conversations and items stored at the provider are not reached through the gateway."
            raise Problem(400, message, param="conversation")
        if request.previous_response_id is None:
            return
        who, user = job.who, job.caller.user
        of = partial(self.meter.ledger.usage_of_response, tenant=who.tenant, project=who.project, user=user)
        before = await anyio.to_thread.run_sync(of, request.previous_response_id)
        if before is None:
            message = "No such response was made with this key or token."
            raise Problem(404, message, param="previous_response_id")
        # It may have been made by another worker: its length bounds what continues it.
        self.meter.planner.remember_context(request.previous_response_id, before)

    def _targets(self, job: Job) -> tuple[Target, ...]:
        """Where a call may go, in order.

        Raises:
            Problem: 404, nowhere.
        """
        model = str(job.body["model"])
        there = self.routes.targets(model)
        if not there:
            message = f"No route for model {model!r}; GET /v1/models lists those there are."
            raise Problem(404, message, code="model_not_found", param="model")
        speaking = tuple(target for target in there if target.provider.settings.speaks(self.api))
        if not speaking:
            message = (
                f"No provider for model {model!r} speaks this API, and nothing is translated. Whoever runs "
                f'the gateway says which do in behest.toml: apis = ["{self.api}"], of a provider.'
            )
            raise Problem(404, message, code="model_not_found", param="model", retry=False)
        return speaking

    def _cheaper(self, caller: Caller, model: str) -> Target | None:
        """Where a model leads that may stand in for the one that is asked for."""
        there = self.routes.targets(model) if caller.may(model) else ()
        return next((target for target in there if target.provider.settings.speaks(self.api)), None)

    def _broken(self, job: Job, problem: Problem) -> bytes:
        """The event that tells a client of a stream that it broke off."""
        return b"data: " + to_json(problem.body) + b"\n\n"

    # ── there ──────────────────────────────────────────────────────────────────────────

    async def _relay(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        targets = self._targets(job)
        if not job.body.get("stream"):
            await self._back(job, await self.attempts.ask(job, targets), scope, receive, send)
            return
        with anyio.CancelScope() as hung_up, _hearing(job, receive, hung_up, self.limits.write_timeout):
            await self._back(job, await self.attempts.ask(job, targets), scope, receive, send)
        if hung_up.cancelled_caught:  # its hold has been ended on the way out
            self.metrics.hung_up.inc()

    async def _back(self, job: Job, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        # An answer may take minutes: its request is not kept in memory for so long.
        job.body = {}
        answer.exchange.forget()
        job.held.let_go()
        if answer.passing is not None:
            await self._pass_stream(job, answer, answer.passing, send)
            return
        job.answered = True
        self.metrics.answered(job.operation, time.perf_counter() - job.started)
        try:
            async with timeout(self.limits.write_timeout):
                await Response(answer.content, headers=self._headers(job, answer))(scope, receive, send)
        except OutOfTime:
            raise SlowClient("the client did not take its answer") from None

    # ── and back ───────────────────────────────────────────────────────────────────────

    def _headers(self, job: Job, answer: Answer) -> dict[str, str]:
        theirs = answer.response.headers
        return {
            "Content-Type": theirs.get("content-type", "application/json"),
            **{name: theirs[name] for name in _HANDED_BACK if name in theirs},
            **job.budget,
        }

    async def _pass_stream(self, job: Job, answer: Answer, passing: Passing, send: Send) -> None:
        """An answer in events, each passed on as it comes. It is settled before its end is told."""
        hold, events = answer.hold, answer.content
        headers = {**self._headers(job, answer), "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        raw = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers.items()]
        first = True
        try:
            await _send(job, send, {"type": "http.response.start", "status": 200, "headers": raw})
            while True:
                done = passing.reader is not None and passing.reader.done
                if done:
                    await end(hold, passing)
                if events:
                    await _send(job, send, {"type": "http.response.body", "body": events, "more_body": True})
                    if first:
                        self.metrics.first_byte(job.operation, time.perf_counter() - job.started)
                        first = False
                if done:
                    # The last event has been told: nobody waits for a provider that does not hang up.
                    if not answer.response.content.at_eof():
                        await drain(answer.response, passing, _TAIL_SECONDS)
                    break
                data = await answer.response.content.readany()
                if not data:
                    break
                events = passing.feed(data)
            rest = passing.rest()
            reply = answer.exchange.reply
            if not (reply.ended or answer.exchange.generated or reply.error):
                rest += self._broken(job, Problem(502, "The provider's stream ended before its answer did."))
            await end(hold, passing)
            job.answered = True
            self.metrics.answered(job.operation, time.perf_counter() - job.started)
            await _send(job, send, {"type": "http.response.body", "body": rest})
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            await end(hold, passing, f"the stream broke: {type(error).__name__}", "broken")
            job.answered = True
            broken = self._broken(job, Problem(502, "The provider's stream broke off."))
            await _send(job, send, {"type": "http.response.body", "body": broken})
        except asyncio.CancelledError:
            if passing.drainable and not passing.ended:
                await drain(answer.response, passing, _DRAIN_SECONDS)
            Rest(answer.exchange, hold, answer.response, passing).taken()
            raise
        finally:
            if not passing.left:
                post(hold, passing, "the client hung up before the end", "closed_early")
                # It goes back to the pool only if it was read to its end.
                answer.response.close()


class SlowClient(Exception):
    """A client that does not take what it is sent: its connection is closed."""


async def _send(job: Job, send: Send, message: MutableMapping[str, Any]) -> None:
    """Send a part of a stream; `_hearing` sees to it that this does not last."""
    job.sending = time.monotonic()
    await send(message)
    job.sending = None


@contextlib.contextmanager
def _hearing(job: Job, receive: Receive, hung_up: anyio.CancelScope, patience: float) -> Iterator[None]:
    """Hear the client of a stream hang up, and cancel what is being done for it.

    Args:
        patience: seconds; a client that takes nothing for so long has as good as hung up.
    """

    async def hear() -> None:
        await hanging_up(receive)
        if not job.answered:  # servers say the same of a response that is complete
            hung_up.cancel()

    async def look() -> None:
        # One timer for the whole stream: one for each of its parts would cost more than to send it.
        while job.sending is None or time.monotonic() - job.sending < patience:
            await asyncio.sleep(patience / 4)
        hung_up.cancel()

    tasks = [asyncio.ensure_future(hear()), asyncio.ensure_future(look())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _others(operation: str, body: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that may answer besides, by the fields of those who route again.

    Raises:
        Problem: they cannot be told.
    """
    try:
        named = models_besides(operation, body)
    except ConfigError as error:
        raise Problem(400, str(error)) from None
    if named is None:
        message = "This key is for some models alone, and it is not known which others the request names."
        raise Problem(403, message, code="model_not_allowed", retry=False)
    return named


def _refers(given: object) -> bool:
    """Whether a responses request names items that are stored at the provider."""
    return isinstance(given, list) and any(item.get("type") == "item_reference" for item in given)
