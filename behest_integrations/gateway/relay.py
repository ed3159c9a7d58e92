"""One call: admitted, bounded, reserved, sent to a provider, passed back, settled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import sqlalchemy as sa
from pydantic_core import from_json, to_json
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from ..attribution import Attribution
from ..calls import Hold, Outcome
from ..errors import BehestError
from ..exchange import Exchange, Passing
from ..ledger import schema
from ..meter import Meter
from ..usage import Usage
from .bodies import Bodies, Held, parse
from .callers import Caller, Gate
from .metrics import Metrics
from .problems import CODES, Problem, budget_headers, problem_of
from .providers import Routes, Target
from .settings import LimitSettings
from .shapes import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, Request, ResponseRequest

log = logging.getLogger("behest")

REQUESTS: Mapping[str, type[Request]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
    "responses": ResponseRequest,
    "embeddings": EmbeddingRequest,
}
_LARGE = 50_000
"""Bytes from which a body is worked on in a thread: to count the tokens of more than that takes
milliseconds, in which the event loop would serve nobody."""
_FIRST_WAIT = 0.5
"""Seconds, at most, before the second attempt; then twice as long each time, at random."""
_LONGEST_WAIT = 10.0
"""Seconds: a provider that asks for a longer pause is given up, or left for a fallback."""
_MOST_ANSWER = 64 * 1024 * 1024
_MOST_ERROR = 64 * 1024
_DRAIN_SECONDS = 5.0
_EVENTS = "text/event-stream"
_HANDED_BACK = ("openai-processing-ms", "openai-version", "openai-model")
# In the answers of a provider these speak of the gateway's own account, not of its caller's.
_OURS = {401: "refused the gateway's key", 402: "refused the gateway's account", 403: "refused the gateway"}


class _Failed(Exception):
    """An attempt that came to nothing.

    Attributes:
        problem: what the client is told, if it was the last.
        repeat, elsewhere: whether the same again, or another target, may do better.
        after: seconds that the provider asks to wait.
    """

    def __init__(
        self, problem: Problem, *, repeat: bool, elsewhere: bool, after: float | None = None
    ) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.repeat = repeat
        self.elsewhere = elsewhere
        self.after = after


@dataclass
class _Job:
    """A request on its way."""

    operation: str
    body: dict[str, Any]
    who: Attribution
    caller: Caller
    headers: list[tuple[bytes, bytes]]
    large: bool
    held: Held
    receive: Receive
    started: float = field(default_factory=time.perf_counter)
    answered: bool = False
    sending: float | None = None
    """Since when (monotonic) a part of the answer is being sent."""
    budget: dict[str, str] = field(default_factory=dict)
    """The headers that tell which budget binds."""


@dataclass
class _Answer:
    """A provider's answer whose head says success; its hold is still open."""

    response: aiohttp.ClientResponse
    exchange: Exchange
    hold: Hold
    target: Target


class Relay:
    """Takes calls to providers and their answers back."""

    def __init__(
        self, meter: Meter, gate: Gate, routes: Routes, limits: LimitSettings, metrics: Metrics
    ) -> None:
        self.meter = meter
        self.gate = gate
        self.routes = routes
        self.limits = limits
        self.metrics = metrics
        self.bodies = Bodies(limits)
        self.in_flight = 0

    def door(self, operation: str) -> Callable[[Scope, Receive, Send], Any]:
        """The ASGI application of one operation."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(operation, scope, receive, send)

        return serve

    async def _serve(self, operation: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = await self.gate.admit(scope["headers"])
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

    async def _read(self, operation: str, caller: Caller, scope: Scope, receive: Receive, held: Held) -> _Job:
        who = caller.attribution(scope["headers"], scope["state"]["trace"])
        raw = await held.read(Headers(scope=scope), receive)
        model, large = REQUESTS[operation], len(raw) > _LARGE
        if large:
            body, checked = await anyio.to_thread.run_sync(parse, raw, model, self.limits)
        else:
            body, checked = parse(raw, model, self.limits)
        job = _Job(operation, body, who, caller, scope["headers"], large, held, receive)
        if isinstance(checked, ResponseRequest):
            await self._check_stored(job, checked)
        return job

    async def _check_stored(self, job: _Job, request: ResponseRequest) -> None:
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
        before = await anyio.to_thread.run_sync(
            self._usage_of, request.previous_response_id, job.who, job.caller
        )
        if before is None:
            message = "No such response was made with this key or token."
            raise Problem(404, message, param="previous_response_id")
        # It may have been made by another worker: its length bounds what continues it.
        self.meter.remember_context(request.previous_response_id, before)

    def _usage_of(self, response: str, who: Attribution, caller: Caller) -> Usage | None:
        """What the caller's own response `response` took; None if there is none."""
        e = schema.entries
        statement = sa.select(e.c.input_tokens, e.c.output_tokens).where(
            e.c.provider_id == response,
            e.c.reversal == 0,
            e.c.operation == "responses",
            e.c.tenant.is_not_distinct_from(who.tenant),
            e.c.project.is_not_distinct_from(who.project),
        )
        if caller.user is not None:
            statement = statement.where(e.c.user_id == caller.user)
        with self.meter.ledger.reading().connect() as connection:
            row = connection.execute(statement.order_by(e.c.id.desc()).limit(1)).first()
        return Usage(*row) if row is not None else None

    # ── there ──────────────────────────────────────────────────────────────────────────

    async def _relay(self, job: _Job, scope: Scope, receive: Receive, send: Send) -> None:
        targets = self.routes.targets(str(job.body["model"]))
        if not targets:
            message = f"No route for model {job.body['model']!r}; GET /v1/models lists those there are."
            raise Problem(404, message, code="model_not_found", param="model")
        if not job.body.get("stream"):
            await self._back(job, await self._ask(job, targets), scope, receive, send)
            return
        with anyio.CancelScope() as hung_up, _hearing(job, receive, hung_up, self.limits.write_timeout):
            await self._back(job, await self._ask(job, targets), scope, receive, send)
        if hung_up.cancelled_caught:  # its hold has been ended on the way out
            self.metrics.hung_up.inc()

    async def _back(self, job: _Job, answer: _Answer, scope: Scope, receive: Receive, send: Send) -> None:
        # An answer may take minutes: its request is not kept in memory for so long.
        job.body = {}
        answer.exchange.forget()
        job.held.let_go()
        if answer.response.content_type == _EVENTS:
            await self._pass_stream(job, answer, send)
        else:
            response = await self._whole(job, answer)
            with anyio.move_on_after(self.limits.write_timeout) as waited:
                await response(scope, receive, send)
            if waited.cancelled_caught:
                raise SlowClient("the client did not take its answer")

    async def _ask(self, job: _Job, targets: tuple[Target, ...]) -> _Answer:
        """The first answer that is a success: of the first target, or of one that stands in for it.

        Raises:
            Problem: a refusal, or what the last provider said.
        """
        for place, target in enumerate(targets):
            try:
                return await self._attempts(job, target)
            except _Failed as failed:
                if failed.elsewhere and place + 1 < len(targets) and not await _gone(job):
                    continue
                failed.problem.headers.update(job.budget)
                raise failed.problem from failed
            except BehestError as error:
                raise problem_of(error, tier=job.caller.tier) from error
        raise AssertionError("a route has at least one target")

    async def _attempts(self, job: _Job, target: Target) -> _Answer:
        """As many attempts as the provider's settings allow. Most calls need one, and pay for no more."""
        retries = target.provider.settings.retries
        try:
            return await self._attempt(job, target)
        except _Failed as failed:
            if not retries or not _worth_repeating(failed):
                raise
            first = failed
        await asyncio.sleep(_FIRST_WAIT * random.random() if first.after is None else first.after)
        if await _gone(job):
            raise first
        again = AsyncRetrying(
            stop=stop_after_attempt(retries),
            wait=_wait,
            retry=retry_if_exception(_worth_repeating),
            reraise=True,
        )
        return await again(self._attempt, job, target)

    async def _attempt(self, job: _Job, target: Target) -> _Answer:
        """Reserve, and send once.

        Raises:
            _Failed: the provider did not give an answer, or one that is an error; the hold has ended.
            BehestError: the call was refused.
        """
        provider = target.provider

        def plan() -> Exchange:
            return Exchange(
                self.meter,
                job.operation,
                {**job.body, "model": target.model},
                who=job.who,
                provider=provider.prices,
                prefer_max_tokens=provider.prefers_max_tokens,
            )

        exchange = await anyio.to_thread.run_sync(plan) if job.large else plan()
        hold = await self.meter.areserve(exchange.plan)
        sent = False
        try:
            standing = self.meter.standing(hold)
            job.budget = budget_headers(standing)
            body = exchange.reserved(hold)
            content = await anyio.to_thread.run_sync(to_json, body) if job.large else to_json(body)
            sent = True
            response = await provider.post(job.operation, target.model, content, job.who, job.headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            await hold.aend(exchange.failed_to_send(error))
            self.metrics.attempt(provider.name, type(error).__name__)
            raise _Failed(_no_answer(provider.name, error), repeat=True, elsewhere=True) from error
        except BaseException as error:
            # Nothing may be waited for here: the task may be cancelled again.
            hold.post(exchange.failed_to_send(error) if sent else Outcome("cancelled"))
            raise
        self.metrics.attempt(provider.name, str(response.status))
        outcome = exchange.refused_by_provider(response.status)
        if outcome is None:
            return _Answer(response, exchange, hold, target)
        await hold.aend(outcome)
        raise await _refused(provider.name, response, repeated=provider.settings.retries > 0)

    # ── and back ───────────────────────────────────────────────────────────────────────

    def _headers(self, job: _Job, answer: _Answer) -> dict[str, str]:
        theirs = answer.response.headers
        return {
            "Content-Type": theirs.get("content-type", "application/json"),
            **{name: theirs[name] for name in _HANDED_BACK if name in theirs},
            **job.budget,
        }

    async def _whole(self, job: _Job, answer: _Answer) -> Response:
        """An answer in one piece. It is read to its end even if the client has hung up: it is billed,
        and what is known of it is better than the worst that it could have been."""
        response, exchange, hold = answer.response, answer.exchange, answer.hold
        try:
            async with response:
                content = await _read_at_most(response, _MOST_ANSWER)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            await hold.aend(exchange.interrupted(f"the answer broke off: {type(error).__name__}", "broken"))
            raise Problem(502, "The provider's answer broke off.", retry=False, headers=job.budget) from error
        except BaseException:
            hold.post(exchange.interrupted("the gateway was stopped before the end", "cancelled"))
            raise
        exchange.read_body(content)
        await hold.aend(exchange.complete())
        job.answered = True
        self.metrics.answered(job.operation, time.perf_counter() - job.started)
        return Response(content, headers=self._headers(job, answer))

    async def _pass_stream(self, job: _Job, answer: _Answer, send: Send) -> None:
        """An answer in events, each passed on as it comes. It is settled before its end is told."""
        passing, hold = Passing(answer.exchange, events=True), answer.hold
        headers = {**self._headers(job, answer), "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        raw = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers.items()]
        first = True
        try:
            await _send(job, send, {"type": "http.response.start", "status": 200, "headers": raw})
            async for data in answer.response.content.iter_any():
                events = passing.feed(data)
                if passing.reader is not None and passing.reader.done:
                    await _end(hold, passing)
                if events:
                    await _send(job, send, {"type": "http.response.body", "body": events, "more_body": True})
                    if first:
                        self.metrics.first_byte(job.operation, time.perf_counter() - job.started)
                        first = False
            rest = passing.rest()
            await _end(hold, passing)
            job.answered = True
            self.metrics.answered(job.operation, time.perf_counter() - job.started)
            await _send(job, send, {"type": "http.response.body", "body": rest})
        except (aiohttp.ClientError, TimeoutError) as error:
            await _end(hold, passing, f"the stream broke: {type(error).__name__}", "broken")
            broken = to_json(Problem(502, "The provider's stream broke off.").body)
            job.answered = True
            await _send(job, send, {"type": "http.response.body", "body": b"data: " + broken + b"\n\n"})
        except asyncio.CancelledError:
            if passing.drainable and not passing.ended:
                await _drain(answer.response, passing)
            raise
        finally:
            _post(hold, passing, "the client hung up before the end", "closed_early")
            # It goes back to the pool only if it was read to its end.
            answer.response.close()


class SlowClient(Exception):
    """A client that does not take what it is sent: its connection is closed."""


async def _send(job: _Job, send: Send, message: MutableMapping[str, Any]) -> None:
    """Send a part of a stream; `_hearing` sees to it that this does not last."""
    job.sending = time.monotonic()
    await send(message)
    job.sending = None


@contextlib.contextmanager
def _hearing(job: _Job, receive: Receive, hung_up: anyio.CancelScope, patience: float) -> Iterator[None]:
    """Hear the client of a stream hang up, and cancel what is being done for it.

    Args:
        patience: seconds; a client that takes nothing for so long has as good as hung up.
    """

    async def hear() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
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


def _refers(given: object) -> bool:
    """Whether a responses request names items that are stored at the provider."""
    return isinstance(given, list) and any(item.get("type") == "item_reference" for item in given)


# ── how a call ends ────────────────────────────────────────────────────────────────────


async def _end(hold: Hold, passing: Passing, note: str = "", flag: str = "") -> None:
    outcome = passing.outcome(note, flag)
    if outcome is not None:
        await hold.aend(outcome)


def _post(hold: Hold, passing: Passing, note: str, flag: str) -> None:
    """End the hold if it has not ended, without waiting."""
    outcome = passing.outcome(note, flag)
    if outcome is not None:
        hold.post(outcome)


async def _drain(response: aiohttp.ClientResponse, passing: Passing) -> None:
    """All is generated: its usage is worth waiting for."""
    with (
        anyio.move_on_after(_DRAIN_SECONDS, shield=True),
        contextlib.suppress(aiohttp.ClientError, TimeoutError),
    ):
        async for data in response.content.iter_any():
            passing.feed(data)
        passing.rest()


async def _read_at_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > most:
            raise ValueError(f"more than {most} bytes")
        parts.append(data)
    return b"".join(parts)


# ── attempts that fail ─────────────────────────────────────────────────────────────────

_backoff = wait_random_exponential(multiplier=0.5, max=8)


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: as the provider says, else ever more, at random."""
    error = state.outcome.exception() if state.outcome is not None else None
    said = error.after if isinstance(error, _Failed) else None
    return _backoff(state) if said is None else said


def _worth_repeating(error: BaseException) -> bool:
    return isinstance(error, _Failed) and error.repeat and (error.after or 0) <= _LONGEST_WAIT


async def _gone(job: _Job) -> bool:
    """Whether the client has hung up: then nothing more is done for it. (A stream's is heard at once.)"""
    with anyio.CancelScope() as at_once:
        at_once.cancel()
        return bool((await job.receive())["type"] == "http.disconnect")
    return False


def _no_answer(provider: str, error: BaseException) -> Problem:
    details = {"provider": provider, "error": type(error).__name__}
    if isinstance(error, TimeoutError):
        return Problem(
            504, f"The provider {provider!r} did not answer in time.", details=details, retry=False
        )
    return Problem(502, f"The provider {provider!r} cannot be reached.", details=details, retry=False)


async def _refused(provider: str, response: aiohttp.ClientResponse, *, repeated: bool) -> _Failed:
    """What a provider's error is to the client."""
    status = response.status
    try:
        async with response:
            said = from_json(await _read_at_most(response, _MOST_ERROR))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        said = None
    error = said.get("error") if isinstance(said, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    details = {"provider": provider, "status": status}
    after = _seconds(response.headers.get("retry-after"))
    if status == 429:
        message = f"The provider {provider!r} limits its rate: {_text(error, 'message') or 'try again later'}"
        problem = Problem(429, message, details=details, after=after, retry=not repeated or after is not None)
        return _Failed(problem, repeat=True, elsewhere=True, after=after)
    if status == 408 or status >= 500:
        problem = Problem(502, f"The provider {provider!r} failed.", details=details, retry=not repeated)
        return _Failed(problem, repeat=True, elsewhere=True, after=after)
    if status in _OURS or status < 400:
        why = _OURS.get(status, "answered with a redirection")
        problem = Problem(502, f"The provider {provider!r} {why}.", details=details, retry=False)
        return _Failed(problem, repeat=False, elsewhere=True)
    problem = Problem(
        status,
        _text(error, "message") or f"The provider {provider!r} refused the request.",
        code=_text(error, "code"),
        param=_text(error, "param"),
        details=details,
        retry=False,
    )
    return _Failed(problem, repeat=False, elsewhere=False)


def _text(error: Mapping[str, Any], name: str) -> str | None:
    value = error.get(name)
    return value if isinstance(value, str) and value else None


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
