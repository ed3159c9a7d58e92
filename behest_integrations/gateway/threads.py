"""`/v1/threads`: a caller's sessions, as far as the ledger knows them, and how one is forgotten."""

from __future__ import annotations

import functools
import time
from datetime import datetime, timezone

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..ledger.audit import Decision
from ..meter import Meter
from ..reports.sessions import SessionSums, sessions
from ..rules.errors import ConfigError
from ..rules.units import to_usd
from .accounts import Accounts
from .callers import Caller
from .problems import JSON, Problem
from .shapes import Thread, ThreadMessage

_MOST = 1000
_NOT_KEPT = (
    "Messages are not kept: this gateway stores whom a call was for and what it cost, not what was said."
)


class Threads:
    """The endpoints of sessions. A token is told of its own user's, a key of its project's."""

    def __init__(self, meter: Meter, accounts: Accounts) -> None:
        self._meter = meter
        self._accounts = accounts

    async def all(self, request: Request) -> Response:
        """`GET /v1/threads?user_id&limit`: a list, the latest first."""
        caller = await self._accounts.reader(request, "user_id", "limit")
        user = self._accounts.whose(caller, request.query_params.get("user_id"))
        text = request.query_params.get("limit", "100")
        if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST:
            raise Problem(400, f"limit is a number from 1 to {_MOST}.", param="limit")
        found = await self._sessions(caller, user, None, int(text))
        return JSON([_thread(one).model_dump(mode="json") for one in found])

    async def one(self, request: Request) -> Response:
        """`GET /v1/threads/ID`."""
        _caller, found = await self._found(request)
        return JSON(_thread(found).model_dump(mode="json"))

    async def messages(self, request: Request) -> Response:
        """`GET /v1/threads/ID/messages`: says that there are none, as a message."""
        _caller, found = await self._found(request)
        said = ThreadMessage(
            id="not-kept", thread_id=found.id, content=_NOT_KEPT, created_at=_at(found.first)
        )
        return JSON([said.model_dump(mode="json")])

    async def forget(self, request: Request) -> Response:
        """`DELETE /v1/threads/ID`: the ids of its calls are replaced; what they cost stays."""
        caller, found = await self._found(request)
        forget = functools.partial(
            self._meter.ledger.forget_session,
            found.id,
            tenant=caller.tenant,
            project=caller.project,
            user=None if caller.admin else caller.user,
        )
        try:
            count = await anyio.to_thread.run_sync(forget)
        except ConfigError as error:
            raise Problem(501, str(error), retry=False) from None
        decision = Decision(
            int(time.time() * 1000),
            "admin",
            "session forgotten",
            trace=request.scope["state"]["trace"],
            project=caller.project,
            tenant=caller.tenant,
            actor=caller.key or "token",
            details={"lines": count},
        )
        await self._meter.ledger.asubmit(lambda rows: rows.add_audit(decision))
        return Response(status_code=204)

    async def _found(self, request: Request) -> tuple[Caller, SessionSums]:
        caller = await self._accounts.reader(request)
        id = request.path_params["id"]
        found = await self._sessions(caller, self._accounts.whose(caller, None), id, 1)
        if not found:
            raise Problem(404, "There is no such session of this key or token.", retry=False)
        return caller, found[0]

    async def _sessions(
        self, caller: Caller, user: str | None, id: str | None, most: int
    ) -> list[SessionSums]:
        look = functools.partial(
            sessions,
            self._meter.ledger,
            tenant=caller.tenant,
            project=caller.project,
            user=user,
            id=id,
            most=most,
        )
        return await anyio.to_thread.run_sync(look)


def _thread(one: SessionSums) -> Thread:
    return Thread(
        id=one.id,
        user_id=one.user_id,
        created_at=_at(one.first),
        last_active_at=_at(one.last),
        requests=one.calls,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cost_usd=float(to_usd(one.cost)),
    )


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, timezone.utc)
