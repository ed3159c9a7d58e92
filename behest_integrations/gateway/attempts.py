"""Attempts at a call: reserved, sent, and, where they come to nothing, made again or elsewhere."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import anyio
import anyio.to_thread
from pydantic_core import from_json, to_json
from starlette.types import Receive
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from ..calls.exchange import Exchange, unasked
from ..engine.holds import Hold
from ..engine.outcomes import CANCELLED, outcome_of_status
from ..engine.steps import Steps
from ..meter import Meter
from ..rules.attribution import Attribution
from ..rules.errors import BehestError
from .answers import Answer, BrokenOff, FailedInside, begin, read_at_most
from .bodies import Held
from .byok import PAID_TAG, TENANT, Payers, Unusable
from .callers import Caller
from .leaving import headed
from .metrics import Metrics
from .problems import Problem, budget_headers, problem_of
from .providers import Provider, Target

T = TypeVar("T")

_PAID_BY_TENANT = Attribution(tags={PAID_TAG: TENANT})
_FIRST_WAIT = 0.5
"""Seconds, at most, before the second attempt; then twice as long each time, at random."""
_LONGEST_WAIT = 10.0
"""Seconds: a provider that asks for a longer pause is given up, or left for a fallback."""
_MOST_ERROR = 64 * 1024
_SOON = 0.1
"""Seconds of waiting for a busy budget, after which the client's hanging up is listened for."""
# In the answers of a provider these speak of the gateway's own account, not of its caller's.
_OURS = {401: "refused the gateway's key", 402: "refused the gateway's account", 403: "refused the gateway"}


def _nowhere(_model: str) -> None:
    return None


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
class Job:
    """A request on its way."""

    operation: str
    body: dict[str, Any]
    who: Attribution
    caller: Caller
    headers: list[tuple[bytes, bytes]]
    large: bool
    held: Held
    receive: Receive
    cheaper: Callable[[str], Target | None] = _nowhere
    """Where a model leads that may stand in for the one that is asked for; None: nowhere for this caller."""
    started: float = field(default_factory=time.perf_counter)
    answered: bool = False
    sending: float | None = None
    """Since when (monotonic) a part of the answer is being sent."""
    budget: dict[str, str] = field(default_factory=dict)
    """The headers that tell which budget binds."""
    own: str | None = field(default=None, repr=False)
    """The tenant's own key, where it is what the call is being made with."""


_Led = tuple[Target, "str | None"]
"""Where a call goes, and the tenant's own key if it is made with that."""


def _for_whom(job: Job) -> Attribution:
    return job.who if job.own is None else _PAID_BY_TENANT.over(job.who)


class Attempts:
    """Makes calls at providers, each held to its budgets."""

    def __init__(self, meter: Meter, metrics: Metrics, payers: Payers) -> None:
        self._meter = meter
        self._metrics = metrics
        self._payers = payers

    async def ask(self, job: Job, targets: tuple[Target, ...]) -> Answer:
        """The first answer that is a success: of the first target, or of one that stands in for it.

        Raises:
            Problem: a refusal, or what the last provider said.
        """
        failed: _Failed | None = None
        tenants = False
        for target in targets:
            if failed is not None and await _gone(job):
                break
            try:
                try:
                    job.own = await self._payers.key(job.caller.tenant, target.provider.name)
                except Unusable as error:
                    tenants = True
                    raise _Failed(unusable(target.provider.name), repeat=False, elsewhere=True) from error
                if tenants and job.own is None and not self._payers.ours_instead:
                    continue  # what was for the tenant to pay is not made ours by going wrong
                tenants = tenants or job.own is not None
                return await self._attempts(job, target)
            except _Failed as error:
                failed = failed if failed is not None and isinstance(error.__cause__, Unusable) else error
                if not error.elsewhere:
                    break
            except BehestError as error:
                raise problem_of(error, tier=job.caller.tier) from error
        assert failed is not None, "a route has at least one target"
        failed.problem.headers.update(job.budget)
        raise failed.problem from failed

    async def _attempts(self, job: Job, target: Target) -> Answer:
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

    async def _attempt(self, job: Job, target: Target) -> Answer:
        """Reserve, and send once.

        Raises:
            _Failed: the provider did not give an answer, or one that is an error; the hold has ended.
            BehestError: the call was refused.
        """
        provider, own = target.provider, job.own
        who = _for_whom(job)

        def plan() -> Exchange:
            return self._exchange(job, {**job.body, "model": target.model}, provider)

        policy = self._meter.policy
        aside = job.large or (policy is not None and policy.screening)
        exchange = await anyio.to_thread.run_sync(plan) if aside else plan()
        exchange, hold, (target, own) = await self._reserve(job, exchange, target)
        provider = target.provider
        sent = False
        try:
            standing = self._meter.standing(hold)
            job.budget = budget_headers(standing)
            if exchange.plan.asked_model is not None:
                job.budget["X-Model-Asked"] = quote(str(job.body["model"]), safe=" /:@._-")
            body = exchange.reserved(hold)
            content = await anyio.to_thread.run_sync(to_json, body) if job.large else to_json(body)
            sent, said = True, None
            asking = provider.post(job.operation, target.model, content, who, job.headers, own)
            leaves = body.get("stream") and exchange.reads_on
            response = await (headed(exchange, hold, asking) if leaves else asking)
            if response.status == 400:
                said = await _error_of(response)
            if exchange.answered(response.status, said):
                response.close()
                said = None
                again = unasked(content)
                response = await provider.post(job.operation, target.model, again, who, job.headers, own)
                exchange.answered(response.status)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            await hold.aend(hold.failed(error))
            self._metrics.attempt(provider.name, type(error).__name__)
            if isinstance(error, aiohttp.ClientResponseError):  # it has answered, and may have billed
                raise _Failed(_unreadable(provider.name, error), repeat=False, elsewhere=False) from error
            raise _Failed(_no_answer(provider.name, error), repeat=True, elsewhere=True) from error
        except BaseException as error:
            # Nothing may be waited for here: the task may be cancelled again.
            if hold.read_on is None:
                hold.post(hold.failed(error) if sent else CANCELLED)
            raise
        self._metrics.attempt(provider.name, str(response.status))
        if 200 <= response.status < 300:
            return await _begun(provider.name, response, exchange, hold, own is not None)
        try:
            said = said or await _error_of(response)
        except BaseException as error:
            hold.post(outcome_of_status(response.status) or hold.failed(error))
            raise
        await hold.aend(outcome_of_status(response.status, said, provider.prices) or CANCELLED)
        repeated = provider.settings.retries > 0
        raise _refused(provider.name, response, said, repeated=repeated, own=own is not None)

    def _exchange(self, job: Job, body: Mapping[str, Any], provider: Provider, **more: Any) -> Exchange:
        return Exchange(
            self._meter,
            job.operation,
            body,
            who=_for_whom(job),
            provider=provider.prices,
            where=provider.settings.base_url,
            # Of a tenant's project there nothing is known: it may be of the dearest tier.
            service_tier=provider.settings.service_tier if job.own is None else "auto",
            on_abandoned=provider.settings.on_abandoned,
            ask_usage=provider.settings.stream_usage,
            body_names=False,  # as far as the caller may, it has
            **more,
        )

    async def _reserve(self, job: Job, asked: Exchange, target: Target) -> tuple[Exchange, Hold, _Led]:
        """Hold the call's worst case, or a cheaper model's, wherever its route leads. A busy budget is waited
        for, as long as the client waits.

        Raises:
            Problem: the client has hung up meanwhile.
            BehestError: the call was refused.
        """
        here = (target, job.own)
        downgrade = self._meter.downgrade
        if downgrade is None:
            return asked, await self._reserving(job, self._meter.reserving(asked.plan)), here
        leads: dict[Exchange, _Led] = {asked: here}
        cheaper = {
            name: there
            for name in downgrade.after(asked.plan.model)
            if (there := await self._leads(job, name, target)) is not None
        }

        def instead(model: str) -> Exchange | None:
            if model not in cheaper:
                return None
            other, _own = cheaper[model]
            exchange = self._exchange(job, {"model": other.model}, other.provider, instead=asked)
            leads[exchange] = cheaper[model]
            return exchange

        exchange, hold = await self._reserving(job, asked.reserving(instead))
        return exchange, hold, leads[exchange]

    async def _leads(self, job: Job, model: str, target: Target) -> _Led | None:
        """Where a cheaper model leads, with whose key; None where the caller may not go there, or another
        would have to pay."""
        other = job.cheaper(model)
        if other is None:
            return None
        if other.provider is target.provider:
            return other, job.own
        try:
            own = await self._payers.key(job.caller.tenant, other.provider.name)
        except Unusable:
            return None
        return (other, own) if (own is None) is (job.own is None) else None

    async def _reserving(self, job: Job, steps: Steps[T]) -> T:
        if job.body.get("stream"):  # whose hanging up is heard all the time
            return await self._meter.arun(steps)
        task, listening, hung_up = asyncio.current_task(), [], False
        assert task is not None

        async def hear() -> None:
            nonlocal hung_up
            await hanging_up(job.receive)
            hung_up = True
            task.cancel()

        # Nearly always there is room, and nothing to listen for.
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_SOON, lambda: listening.append(loop.create_task(hear())))
        try:
            return await self._meter.arun(steps)
        except asyncio.CancelledError:
            # From Python 3.11 on, a task knows of each that has cancelled it: others may have, too.
            uncancel = getattr(task, "uncancel", lambda: 0)
            if not hung_up or uncancel():
                raise
            message = "The client hung up before there was room in its budget."
            raise Problem(499, message, retry=False) from None
        finally:
            timer.cancel()
            for one in listening:
                one.cancel()


async def hanging_up(receive: Receive) -> None:
    """Until the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


# ── attempts that fail ─────────────────────────────────────────────────────────────────

_backoff = wait_random_exponential(multiplier=0.5, max=8)


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: as the provider says, else ever more, at random."""
    error = state.outcome.exception() if state.outcome is not None else None
    said = error.after if isinstance(error, _Failed) else None
    return _backoff(state) if said is None else said


def _worth_repeating(error: BaseException) -> bool:
    return isinstance(error, _Failed) and error.repeat and (error.after or 0) <= _LONGEST_WAIT


async def _gone(job: Job) -> bool:
    """Whether the client has hung up: then nothing more is done for it. (A stream's is heard at once.)"""
    with anyio.CancelScope() as at_once:
        at_once.cancel()
        return bool((await job.receive())["type"] == "http.disconnect")
    return False


async def _begun(
    provider: str, response: aiohttp.ClientResponse, exchange: Exchange, hold: Hold, own: bool
) -> Answer:
    """The answer, if it is one. What has been answered is not asked for again, whatever it was.

    Raises:
        _Failed: it is none.
    """
    try:
        return await begin(response, exchange, hold)
    except BrokenOff as broken:
        problem = Problem(502, "The provider's answer broke off.", retry=False)
        raise _Failed(problem, repeat=False, elsewhere=False) from broken
    except FailedInside as failed:
        error, code = failed.error, failed.error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
        details = {"provider": provider, "status": response.status}
        message = _text(error, "message") or f"The provider {provider!r} failed."
        if status in _OURS:
            raise _Failed(_account(provider, status, own), repeat=False, elsewhere=True) from failed
        problem = Problem(status, message, code=_text(error, "code"), details=details, retry=False)
        raise _Failed(problem, repeat=False, elsewhere=True) from failed


def unusable(provider: str) -> Problem:
    """What a tenant's own key is to the client that cannot be used: why is in the log."""
    message = (
        f"The call is made with the tenant's own key for {provider!r}, and that cannot be read here, so "
        "nothing was sent. Whoever runs the gateway finds why in its log, or by 'behest byok list'."
    )
    details = {"provider": provider}
    return Problem(503, message, code="provider_key_unusable", details=details, retry=False)


def _account(provider: str, status: int, own: bool) -> Problem:
    """What a provider has against the account that it was asked under."""
    details = {"provider": provider, "status": status}
    if not own:
        return Problem(502, f"The provider {provider!r} {_OURS[status]}.", details=details, retry=False)
    message = (
        f"The provider {provider!r} refused the tenant's own key ({status}): 'behest byok set' replaces it, "
        "or 'behest byok remove' has the gateway's used."
    )
    return Problem(502, message, code="provider_key_refused", details=details, retry=False)


def _unreadable(provider: str, error: aiohttp.ClientResponseError) -> Problem:
    details = {"provider": provider, "error": type(error).__name__}
    message = f"The provider {provider!r} answered in a way that cannot be read: {error.message[:200]}"
    return Problem(502, message, details=details, retry=False)


def _no_answer(provider: str, error: BaseException) -> Problem:
    details = {"provider": provider, "error": type(error).__name__}
    if isinstance(error, asyncio.TimeoutError):
        return Problem(
            504, f"The provider {provider!r} did not answer in time.", details=details, retry=False
        )
    return Problem(502, f"The provider {provider!r} cannot be reached.", details=details, retry=False)


async def _error_of(response: aiohttp.ClientResponse) -> bytes | None:
    """The body of an error; None if there is none to be had."""
    try:
        async with response:
            return await read_at_most(response, _MOST_ERROR)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
        return None


async def refused(
    provider: str, response: aiohttp.ClientResponse, *, repeated: bool, own: bool = False
) -> _Failed:
    """What a provider's error is to the client.

    Args:
        repeated: whether it was asked again. own: whether with the tenant's own key.
    """
    return _refused(provider, response, await _error_of(response), repeated=repeated, own=own)


def _refused(
    provider: str, response: aiohttp.ClientResponse, content: bytes | None, *, repeated: bool, own: bool
) -> _Failed:
    status = response.status
    try:
        said = from_json(content or b"")
    except ValueError:
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
    if status in _OURS:
        return _Failed(_account(provider, status, own), repeat=False, elsewhere=True)
    if status < 400:
        message = f"The provider {provider!r} answered with a redirection."
        problem = Problem(502, message, details=details, retry=False)
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
