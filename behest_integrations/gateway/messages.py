"""`POST /v1/messages`: Anthropic's own API, to providers that speak it. Nothing is translated.

Errors are in Anthropic's shape, so that its SDKs raise what they would; the numbers of a refusal are
in `error.details`. https://platform.claude.com/docs/en/api/errors
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiohttp
import anyio
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..engine.ruling import screened
from ..rules.attribution import Attribution
from ..rules.errors import PolicyRefused
from ..wire.anthropic import MESSAGES
from .answers import read_at_most
from .attempts import Job, refused, unusable
from .byok import Unusable
from .callers import Caller
from .problems import CODES, JSON, Problem, problem_of
from .providers import COUNT_TOKENS
from .relay import Relay

_KINDS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_MOST_COUNT = 64 * 1024
# Claude Code says which session a call is of in what it says of its user (seen of 2.1.197, and of earlier
# ones, which wrote it otherwise).
_SESSION_IN_USER = re.compile(r'(?:_session_|"session_id":\s*")([0-9a-f-]{36})')


def in_shape(problem: Problem, trace: str) -> dict[str, Any]:
    """A problem as Anthropic tells one."""
    said = problem.body["error"]
    kind = _KINDS.get(problem.status) or ("api_error" if problem.status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": said["message"], "code": said["code"], "details": said["details"]}
    return {"type": "error", "error": error, "request_id": trace}


class MessagesRelay(Relay):
    """Takes Anthropic's calls to providers and their answers back."""

    api = "anthropic"

    def __init__(self, beside: Relay) -> None:
        super().__init__(
            beside.meter, beside.gate, beside.routes, beside.limits, beside.metrics, beside.payers
        )
        # What is in flight, and the bodies that are held, are counted with the others'.
        self.bodies, self._slot = beside.bodies, beside._slot  # type: ignore[method-assign]

    async def serve(self, operation: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application.

        Args:
            operation: ``messages``, or ``count_tokens``, which is free.
        """
        trace = scope["state"]["trace"]
        try:
            caller = await self.gate.admit(scope)
            caller.require("inference")
            with self._slot(), self.bodies.reading() as held:
                job = await self._read(MESSAGES, caller, scope, receive, held)
                _check_stored(job.body)
                if operation == COUNT_TOKENS:
                    await self._count(job, scope, receive, send)
                else:
                    await self._relay(job, scope, receive, send)
        except Problem as problem:
            self.metrics.refused(problem.code if problem.code in CODES else "provider")
            headers = {**problem.headers, "request-id": trace}
            response = JSON(in_shape(problem, trace), status_code=problem.status, headers=headers)
            await response(scope, receive, send)

    async def _read(self, operation: str, caller: Caller, scope: Scope, receive: Receive, held: Any) -> Job:
        job = await super()._read(operation, caller, scope, receive, held)
        if job.who.session_id is None and caller.any_session:
            session = _session_said(job.body)
            if session is not None:
                job.who = job.who.over(Attribution(session_id=session))
        return job

    def _broken(self, job: Job, problem: Problem) -> bytes:
        trace = job.who.tags.get("trace", "")
        return b"event: error\ndata: " + to_json(in_shape(problem, trace)) + b"\n\n"

    async def _count(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a provider count the tokens of a request, which is free."""
        (target, *_) = self._targets(job)
        body: Mapping[str, Any] = {**job.body, "model": target.model}
        if self.meter.policy is not None and self.meter.policy.screening:
            # It is free, and takes people's words to the provider all the same.
            try:
                body = await anyio.to_thread.run_sync(partial(screened, self.meter, body, who=job.who))
            except PolicyRefused as error:
                raise problem_of(error) from error
        content = to_json(body)
        try:
            own = await self.payers.key(job.caller.tenant, target.provider.name)
            answer = await target.provider.post(
                COUNT_TOKENS, target.model, content, job.who, job.headers, own
            )
            if answer.status != 200:
                failed = await refused(target.provider.name, answer, repeated=False, own=own is not None)
                raise failed.problem
            async with answer:
                counted = await read_at_most(answer, _MOST_COUNT)
        except Unusable as error:
            raise unusable(target.provider.name) from error
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            message = f"The provider {target.provider.name!r} did not answer."
            raise Problem(502, message, retry=True) from error
        with anyio.move_on_after(self.limits.write_timeout):
            await Response(counted, media_type="application/json")(scope, receive, send)


def _session_said(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    found = _SESSION_IN_USER.search(user) if isinstance(user, str) else None
    return found[1] if found else None


def _check_stored(body: Mapping[str, Any]) -> None:
    """What is stored at the provider is under the gateway's key, for all its tenants: it is not reached.

    Raises:
        Problem: 400.
    """
    for name in ("thread", "container"):
        if body.get(name) is not None:
            message = f"What the provider stores ({name!r}) is not reached through the gateway."
            raise Problem(400, message, param=name, retry=False)
    if any(_has_file(message.get("content")) for message in body["messages"]):
        message = "Files stored at the provider are not reached through the gateway: send what is in them."
        raise Problem(400, message, param="messages", retry=False)


def _has_file(content: object) -> bool:
    if not isinstance(content, list):
        return False
    for block in content:
        if isinstance(block, Mapping):
            source = block.get("source")
            if block.get("type") == "container_upload" or block.get("file_id") is not None:
                return True
            if isinstance(source, Mapping) and (
                source.get("type") == "file" or _has_file(source.get("content"))
            ):
                return True
            if _has_file(block.get("content")):
                return True
    return False
