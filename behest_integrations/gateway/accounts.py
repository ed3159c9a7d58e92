"""What a caller may ask besides models' answers: its spending, the models, a token for a user."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import aiohttp
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..meter import Meter
from ..reports import Line, Report, report
from ..rules.attribution import Attribution
from ..rules.errors import ConfigError, UnknownPrice
from ..rules.units import to_usd
from .bodies import Bodies, parse
from .byok import PAID_TAG, TENANT
from .callers import Caller, Gate
from .problems import JSON, Problem, budget_headers
from .providers import Provider, Routes
from .settings import GatewaySettings
from .shapes import (
    BillingSums,
    BillingUsage,
    MintedToken,
    MintRequest,
    Model,
    ModelCost,
    ModelList,
    TimeWindow,
    Usage,
    UsagePeriod,
    UsageSums,
)
from .tokens import Claims, Tokens

log = logging.getLogger("behest")

_LIST_SECONDS = 60.0
_LONGEST_WINDOW = timedelta(days=400)
_GRANULARITIES = ("hour", "day", "month")


class Accounts:
    """The endpoints that call no model."""

    def __init__(
        self,
        meter: Meter,
        gate: Gate,
        routes: Routes,
        tokens: Tokens,
        settings: GatewaySettings,
        bodies: Bodies,
    ) -> None:
        self._meter = meter
        self._gate = gate
        self._routes = routes
        self._tokens = tokens
        self._settings = settings
        self._bodies = bodies
        self._listed: tuple[float, list[Model]] = (0.0, [])
        self._listing = asyncio.Lock()

    # ── spending ───────────────────────────────────────────────────────────────────────

    async def usage(self, request: Request) -> Response:
        """`GET /v1/usage?from&to&user_id&granularity`."""
        caller = await self.reader(request, "from", "to", "user_id", "granularity")
        start, end = _window(request)
        granularity = request.query_params.get("granularity", "day")
        if granularity not in _GRANULARITIES:
            raise Problem(400, f"granularity is one of {', '.join(_GRANULARITIES)}.", param="granularity")
        user = self.whose(caller, request.query_params.get("user_id"))
        found = await self._report(caller, user, start, end, granularity)
        usage = Usage(
            project_id=caller.project,
            user_id=user,
            window=TimeWindow(**{"from": start, "to": end}),
            granularity=granularity,  # type: ignore[arg-type]
            total=UsageSums(**_sums(found.total)),
            data=[
                UsagePeriod(period=str(line.key[0]), **_sums(line))
                for line in found.lines
                if line.calls or line.cost
            ],
        )
        return JSON(usage.model_dump(mode="json", by_alias=True), headers=await self._budget(caller, user))

    async def billing(self, request: Request) -> Response:
        """`GET /v1/billing/usage?from&to`."""
        caller = await self.reader(request, "from", "to")
        start, end = _window(request)
        user = self.whose(caller, None)
        found = await self._report(caller, user, start, end, "model", f"tag:{PAID_TAG}")
        billing = BillingUsage(
            project_id=caller.project,
            window=TimeWindow(**{"from": start, "to": end}),
            platform=_billed(line for line in found.lines if line.key[1] != TENANT),
            byok=_billed(line for line in found.lines if line.key[1] == TENANT),
        )
        return JSON(billing.model_dump(mode="json", by_alias=True), headers=await self._budget(caller, user))

    async def reader(self, request: Request, *known: str) -> Caller:
        """The caller of an endpoint that tells what was spent, and has these parameters."""
        caller = await self._gate.admit(request.scope)
        caller.require("usage")
        given = [name for name, _value in request.query_params.multi_items()]
        for name in given:
            # A misspelt filter is no filter: it would tell more than was asked.
            if name not in known or given.count(name) > 1:
                message = f"The parameters are {', '.join(known)}, each once."
                raise Problem(400, message, param=name)
        return caller

    def whose(self, caller: Caller, asked: str | None) -> str | None:
        """Whose spending is told: anybody's of the project, or the token's own user's."""
        if caller.admin:
            return asked
        if asked is not None and asked != caller.user:
            message = (
                "A token tells what its own user has spent. Of other users an API key tells, or a token that "
                "was minted with the role 'admin'."
            )
            raise Problem(403, message, param="user_id")
        return caller.user

    async def _report(
        self, caller: Caller, user: str | None, start: datetime, end: datetime, *by: str
    ) -> Report:
        make = functools.partial(
            report,
            self._meter.ledger,
            by,
            since=start,
            until=end,
            user=user,
            project=caller.project,
            tenant=caller.tenant,
        )
        return await anyio.to_thread.run_sync(make)

    async def _budget(self, caller: Caller, user: str | None) -> dict[str, str]:
        """The headers that tell which budget of the caller binds."""
        who = Attribution(
            session_id=caller.session,
            user_id=user,
            project=caller.project,
            tenant=caller.tenant,
            tags=caller.tags,
        )
        balances = await self._meter.ledger.asubmit(self._meter.balances_of(who))
        return budget_headers(min(balances, key=lambda b: (b.soft, b.left / max(1, b.limit)), default=None))

    # ── models ─────────────────────────────────────────────────────────────────────────

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: what routes name, and what their providers list."""
        caller = await self._gate.admit(request.scope)
        listed = ModelList(data=await self._models())
        return JSON(listed.model_dump(mode="json"), headers=await self._budget(caller, caller.user))

    async def _models(self) -> list[Model]:
        async with self._listing:
            until, listed = self._listed
            if time.monotonic() < until:
                return listed
            found = {
                name: Model(id=name, owned_by=self._routes.targets(name)[0].provider.name)
                for name in self._routes.named()
            }
            providers = list(self._routes.providers.values())
            for provider, models in zip(providers, await asyncio.gather(*map(_ask, providers)), strict=True):
                for model in models:
                    targets = self._routes.targets(model["id"])
                    if targets and targets[0].provider is provider:
                        made = model.get("created")
                        found.setdefault(
                            model["id"],
                            Model(
                                id=model["id"],
                                created=made if isinstance(made, int) else 0,
                                owned_by=str(model.get("owned_by") or provider.name),
                            ),
                        )
            self._listed = (time.monotonic() + _LIST_SECONDS, list(found.values()))
            return self._listed[1]

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/ID`: one of those, or one that a route takes and that has a price."""
        caller = await self._gate.admit(request.scope)
        id = request.path_params["id"]
        found = next((model for model in await self._models() if model.id == id), None)
        targets = self._routes.targets(id)
        if found is None and targets and self._priced(id, targets[0].provider):
            found = Model(id=id, owned_by=targets[0].provider.name)
        if found is None:
            message = f"No model {id!r}; GET /v1/models lists those there are."
            raise Problem(404, message, code="model_not_found", param="model", retry=False)
        return JSON(found.model_dump(mode="json"), headers=await self._budget(caller, caller.user))

    def _priced(self, model: str, provider: Provider) -> bool:
        try:
            self._meter.planner.pricing.find(model, provider.prices)
        except UnknownPrice:
            return False
        return True

    # ── tokens ─────────────────────────────────────────────────────────────────────────

    async def mint(self, request: Request) -> Response:
        """`POST /v1/auth/mint`: a token with which one user can call."""
        caller = await self._gate.admit(request.scope)
        if not caller.may_mint or caller.tenant is None or caller.project is None:
            raise Problem(403, "Tokens are minted with an API key that may speak for end users.")
        with self._bodies.reading() as held:
            raw = await held.read(request.headers, request.receive)
            _body, asked = parse(raw, MintRequest, self._settings.limits)
        longest = self._settings.tokens.max_ttl
        if asked.ttl > longest:
            raise Problem(400, f"ttl is at most {longest} seconds.", param="ttl")
        try:
            named = self._gate.settings.tier_named(asked.tier)
        except ConfigError as error:
            raise Problem(400, str(error), param="tier") from None
        if caller.tier is not None and named not in (None, caller.tier):
            raise Problem(403, f"This key mints tokens of the tier {caller.tier!r} alone.", param="tier")
        try:
            claims = Claims(
                tenant=caller.tenant,
                project=caller.project,
                user=Attribution(user_id=asked.user_id).user_id or "",
                session=Attribution(session_id=asked.session_id or uuid.uuid4().hex).session_id,
                role=asked.role,
                # As it was asked for: Behest's clients name tiers by number, and read the token.
                # That of all who have none may be another tomorrow.
                tier=asked.tier if asked.tier is not None or not caller.own_tier else caller.tier,
                key=caller.key,
            )
            token, expires = self._tokens.mint(claims, asked.ttl)
        except ConfigError as error:
            raise Problem(400, str(error)) from None
        minted = MintedToken(
            access_token=token,
            jwt=token,
            token=token,
            project_id=claims.project,
            session_id=claims.session or "",
            ttl=asked.ttl,
            expires_in=asked.ttl,
            expires_at=datetime.fromtimestamp(expires, timezone.utc),
        )
        return JSON(minted.model_dump(mode="json"), headers={"Cache-Control": "no-store"})

    async def published(self, request: Request) -> Response:
        """`GET /.well-known/jwks.json`: the keys with which others can check our tokens."""
        headers = {"Cache-Control": "public, max-age=300"}
        return JSON({"keys": self._tokens.published()}, headers=headers)


async def _ask(provider: Provider) -> list[Mapping[str, Any]]:
    try:
        return await provider.models()
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        log.warning("the provider %r does not list its models: %s", provider.name, type(error).__name__)
        return []


def _billed(lines: Iterable[Line]) -> BillingSums:
    """Lines by model, and their sum."""
    total, models = Line(()), dict[str, Line]()
    for line in lines:
        total.add(line)
        models.setdefault(str(line.key[0]), Line(())).add(line)
    sums = _sums(total)
    return BillingSums(
        **{n: sums[n] for n in ("requests", "input_tokens", "output_tokens", "cost_usd")},
        by_model=[
            ModelCost(model=model, requests=line.calls, cost_usd=float(to_usd(line.cost)))
            for model, line in models.items()
            if line.calls or line.cost
        ],
    )


def _sums(line: Line) -> dict[str, Any]:
    return {
        "requests": line.calls,
        "input_tokens": line.input_tokens,
        "output_tokens": line.output_tokens,
        "cost_usd": float(to_usd(line.cost)),
        "estimated_usd": float(to_usd(line.estimated)),
        "assumed_usd": float(to_usd(line.assumed)),
    }


def _window(request: Request) -> tuple[datetime, datetime]:
    """`from` and `to`: by default, this month (UTC) until now."""
    now = datetime.now(timezone.utc)
    end = _moment(request, "to") or now
    start = _moment(request, "from") or min(now, end).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    if start > end:
        raise Problem(400, "from is after to.", param="from")
    if end - start > _LONGEST_WINDOW:
        raise Problem(400, f"from and to are at most {_LONGEST_WINDOW.days} days apart.", param="from")
    return start, end


def _moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        # A "+" of a time zone that was not encoded has become a blank.
        at = datetime.fromisoformat(text.strip().replace(" ", "+").replace("Z", "+00:00"))
        at = at.astimezone(timezone.utc) if at.tzinfo else at.replace(tzinfo=timezone.utc)
        if not 1970 <= at.year < 9000:
            raise ValueError
    except (ValueError, OverflowError):
        message = f"{name} is a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z."
        raise Problem(400, message, param=name) from None
    return at
