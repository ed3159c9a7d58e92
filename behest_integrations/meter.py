"""`Meter`: what people hold. Settings in, an engine with its doors out; sessions, limits, spending.

Over 500 lines, most of which say what its settings and methods mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .engine.alert import Alert
from .engine.alerts import Alerts
from .engine.contexts import bind
from .engine.costs import CostScope
from .engine.downgrade import Downgrade
from .engine.engine import OnStoreError, OnUnknown
from .engine.limits import scope_of
from .engine.living import register, revive
from .engine.planning import Planner, as_budget, distinct
from .engine.stages import StageScope
from .integrations import Doors
from .integrations.kit.instrument import instrumented, marked
from .integrations.kit.undo import Undo
from .ledger.base import Durability, Ledger
from .ledger.book import ThresholdEvent
from .ledger.retention import prune
from .ledger.stores import open_store, store_class, store_url
from .ledger.watching import SLOW_SECONDS
from .prices import Price, Pricing, named_hosts
from .rules import attribution as who_module
from .rules.attribution import NOBODY, Attribution, SessionScope, check_id, parse_required
from .rules.balance import Balance
from .rules.budgets import Budget, parse_allowance
from .rules.checks import each_of, not_negative, one_of
from .rules.errors import ConfigError, StoreError
from .rules.units import format_amount
from .wire.hangups import ON_ABANDONED, OnAbandoned

if TYPE_CHECKING:
    from .engine.alerting import AlertSettings
    from .engine.guards import Guarding, Guards
    from .engine.telemetry import Telemetry
    from .integrations.seen import Sighting
    from .policy import Policing, Policy, Rule
    from .reports import Report

log = logging.getLogger("behest")

P = ParamSpec("P")
T = TypeVar("T")


class Meter(Doors):
    """Meters calls and holds them to budgets, over one store.

    Args:
        store: ``sqlite:///FILE``, ``postgresql+psycopg://…``, ``memory://``, or a `Ledger`. Default:
            ``BEHEST_STORE``, else ``sqlite:///behest.db`` in the working folder.
        budgets: texts or `Budget`s; a call must fit in all that apply to it.
        prices: your own prices by model, over the price list's.
        aliases: names of deployments or proxies, and the models that they stand for.
        price_list: the file of a newer price list than the one that is installed; `behest prices --update`
            makes it. It is read once, here.
        allow: what cannot be bounded but may go ahead, with the most that it may cost a
            request: ``{"web_search": "$0.05", "images": "$0.08"}``.
        allow_fields: fields of requests that are not in the table (`wire/FIELDS.md`), and of
            which you know that they do nothing to the bill; by name, or by path with dots.
        timezone: of calendar windows that name none.
        default_output_tokens: the output limit sent, and reserved, where the caller sets none.
        min_output_tokens: output limits are not lowered below this.
        lower_limits: whether output limits may be lowered near the cap at all.
        wait: seconds to wait for calls in flight when they hold what a call needs, first come, first
            served. 0: refuse at once.
        lease: seconds after which a call whose process has died is booked as assumed.
        on_unknown: what to book where the outcome is unknown (a lost connection, a stream
            closed early, a reply without usage): ``assume`` the worst case; ``estimate``
            from what was seen, where anything was; or ``release`` (books nothing: the
            budget can then be passed).
        on_abandoned: what is done with a stream that its reader has left: ``drain`` reads it on in the
            background (at most two minutes) and books the truth, ``close`` hangs up and books as
            `on_unknown` says. ``auto``: ``drain`` where the provider is known to bill all of it
            anyway, else ``close``. For all, or by provider: ``{"openai": "drain"}``.
        on_store_error: ``refuse`` calls while the store is out, or ``allow`` them (the
            budget can then be passed) and write them down later.
        store_timeout: seconds to wait for another process's write.
        store_slow: seconds from which on a transaction of the store is logged as slow, once a minute.
        durability: see `SQLiteLedger`.
        thresholds: percentages of a limit at which `on_threshold` is called, once a bucket.
        on_threshold: called with a `ThresholdEvent`, on a thread of its own; it may be a coroutine
            function. `flush` returns when all have been told.
        alerts: who is told of thresholds, burn rates and the like by webhook and mail: what ``[alerts]``
            of a file says, as a dict; see `engine.alerting`.
        on_alert: called with each `Alert` by one process of all that share the store; may be a
            coroutine function.
        telemetry: whether OpenTelemetry is told of calls and refusals (the `otel` extra): spans and
            histograms, named as in `engine.telemetry`.
        stream_usage: whether streams are asked for their usage (`stream_options`). Without it, they are
            counted where the model is known to show all that it writes, and else booked at the
            worst case.
        service_tier: the tier of your provider's project, if you know it, or of each
            (``{"openai": "default"}``); calls that name none are then bounded by its price and
            not by the dearest tier's.
        session, user, project, tenant: for calls that name none, in whatever thread they are.
        require: what every call must say, or is refused: ``session``, ``user``, ``project``,
            ``tenant``, ``tag:NAME``.
        hosts: that serve models besides those that are known, as ``localhost:8000`` or
            ``models.example.com``: for `httpx`, and for what `instrument` sees.
        strict: whether `instrument` refuses calls of models that nothing has metered, and does not
            only warn of them.
        policy: what may be asked at all, and for whom: a `behest_integrations.policy.Policy`, or what
            ``[policy]`` of a file says, as a dict; see `policy.settings`.
        guards: what ends a session that goes round in circles, or without end: what ``[guards]`` of a file
            says, as a dict: ``{"same_tool_call": 5, "steps": 200, "minutes": 30}``; see `engine.guards`.
        downgrade: by a model's name, the name of a cheaper one that stands in for it where a budget in
            dollars is nearly used up, or where only the cheaper one fits: ``{"gpt-4o": "gpt-4o-mini"}``.
            Names are those that are sent; chains are followed. The entry tells which model was asked for.
        downgrade_at: percent of a budget, spent and held by calls in flight, from which on it does; 100: only
            where the other does not fit.
        leases: whether this process takes slices of budgets that many processes write at once (in
            PostgreSQL; in SQLite, of all budgets in a file that many do), and admits calls from them
            without asking. The limits hold all the same. Of a
            process that is killed, all of its slices is booked as assumed, not its calls one by one;
            and a limit that is lowered reaches it within half a second. See ``.github/LIMITS.md``.
        clock: milliseconds since 1970 (for tests).

    Raises:
        ConfigError: something cannot be used as given.
        StoreError: the store cannot be opened.
    """

    def __init__(
        self,
        store: str | Ledger | None = None,
        *,
        budgets: Iterable[str | Budget] = (),
        prices: Mapping[str, Price | Sequence[Price]] | None = None,
        aliases: Mapping[str, str] | None = None,
        price_list: str | Path | None = None,
        allow: Mapping[str, str | list[str] | tuple[str, ...]] | None = None,
        allow_fields: Iterable[str] = (),
        timezone: str = "UTC",
        default_output_tokens: int = 4096,
        min_output_tokens: int = 16,
        lower_limits: bool = True,
        wait: float = 30.0,
        lease: float = 900.0,
        on_unknown: OnUnknown = "assume",
        on_abandoned: OnAbandoned | Mapping[str, OnAbandoned] = "auto",
        on_store_error: OnStoreError = "refuse",
        store_timeout: float = 5.0,
        store_slow: float = SLOW_SECONDS,
        durability: Durability = "process",
        thresholds: Sequence[int] = (50, 80, 100),
        on_threshold: Callable[[ThresholdEvent], object] | None = None,
        alerts: AlertSettings | Mapping[str, Any] | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        stream_usage: bool = True,
        telemetry: bool = False,
        service_tier: str | Mapping[str, str] | None = None,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        require: str | Iterable[str] = (),
        policy: Policy | Rule | Mapping[str, Any] | Sequence[Any] | None = None,
        hosts: Iterable[str] = (),
        strict: bool = False,
        guards: Guards | Mapping[str, Any] | None = None,
        downgrade: Mapping[str, str] | None = None,
        downgrade_at: int = 80,
        leases: bool = False,
        clock: Callable[[], int] | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        budgets = given["budgets"] = [budgets] if isinstance(budgets, (str, Budget)) else list(budgets)
        if isinstance(allow_fields, str) or not all(isinstance(name, str) for name in allow_fields):
            raise ConfigError(f"allow_fields is a list of names of fields, not {allow_fields!r}")
        given["allow_fields"] = frozenset(allow_fields)
        require = given["require"] = parse_required(require)
        given["hosts"] = named_hosts(hosts)
        one_of(strict, (True, False), "strict")
        self._given: Mapping[str, Any] = given
        pricing = Pricing(prices, aliases, price_list)
        guarding = _guarding(guards)
        planner = Planner(
            owner=self,
            budgets=budgets,
            pricing=pricing,
            allow=allow or {},
            zone=timezone,
            default_output=default_output_tokens,
            min_output=min_output_tokens,
            lower=lower_limits,
            service_tier=service_tier,
            defaults=_defaults(session, user, project, tenant),
            thresholds=thresholds,
            require=require,
            steps=guarding.budget if guarding is not None else None,
        )
        wait = not_negative(wait, "wait")
        lease_ms = int(not_negative(lease, "lease") * 1000)
        unknown = one_of(on_unknown, ("assume", "estimate", "release"), "on_unknown")
        store_error = one_of(on_store_error, ("refuse", "allow"), "on_store_error")
        super().__init__(
            store
            if isinstance(store, Ledger)
            else open_store(store_url(store), timeout=store_timeout, durability=durability),
            planner,
            wait=wait,
            lease_ms=lease_ms,
            on_unknown=unknown,
            on_store_error=store_error,
            alerts=Alerts(on_threshold, _alerting(alerts), on_alert),
            clock=clock,
            allow_fields=given["allow_fields"],
            on_abandoned=each_of(on_abandoned, ON_ABANDONED, "on_abandoned", "auto"),
            stream_usage=one_of(stream_usage, (True, False), "stream_usage"),
            telemetry=_telemetry() if one_of(telemetry, (True, False), "telemetry") else None,
            policy=_policing(policy),
            hosts=given["hosts"],
            guarding=guarding,
            downgrade=_downgrade(downgrade, downgrade_at, pricing),
            leases=one_of(leases, (True, False), "leases"),
        )
        self._ledger.slow_after = not_negative(store_slow, "store_slow")
        self._begin()
        self._alerts.wake()
        register(self)

    @classmethod
    def from_toml(cls, path: str | Path = "behest.toml", **overrides: Any) -> Meter:
        """A meter from a file; keyword arguments win over what the file says.

        Raises:
            ConfigError: the file cannot be read or says something that cannot be used.
        """
        from .config import load

        return cls(**{**load(path).arguments(), **overrides})

    # ── who ────────────────────────────────────────────────────────────────────────────

    def session(
        self,
        session_id: str | None = None,
        *,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> SessionScope:
        """Attribute every call made inside; see `behest_integrations.session`."""
        return who_module.session(session_id, user=user, project=project, tenant=tenant, tags=tags)

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """`function`, run in the sessions and stages of this place wherever it is called.

            with meter.budget("$1", name="sum"):
                pool.map(meter.bind(summarise), documents)

        For threads, pools and callbacks; see `behest_integrations.bind`.
        """
        return bind(function)

    def budget(self, *budgets: str | Budget, name: str) -> StageScope:
        """Cap a block of code, within whatever already applies.

            with meter.budget("$2", name="research"):
                ...

        Stages nest, and reports show them as a tree. Each time that a block is entered
        it has its budget anew; the budgets around it still hold.

        Args:
            name: what reports call the stage; no "/" and no "#".

        Raises:
            ConfigError: a budget or the name cannot be used.
        """
        check_id(name, "a stage's name")
        if "/" in name or "#" in name:
            raise ConfigError(f"a stage's name has no '/' and no '#': {name!r}")
        if not budgets:
            raise ConfigError("a stage needs at least one budget, e.g. meter.budget('$2', name='research')")
        return StageScope(self, distinct(budgets), name)

    def cost(
        self, amount: str, *, name: str, who: Attribution = NOBODY, fallback: Attribution = NOBODY
    ) -> CostScope:
        """Hold what a tool or service costs to the same budgets: `with`, `async with`, decorator.

            @meter.cost("$0.005", name="search")
            def search(query): ...

        It is reserved before the block, and booked after it, however the block ends; but for a
        graph's interrupt, after which the block is run again, and booked then.

        Args:
            amount: USD for each use, as text.
            name: what reports call it, in the place of a model.
            who, fallback: as for `plan`.

        Raises:
            ConfigError: not an amount of USD, or not a name.
        """
        allowance = parse_allowance(amount)
        if set(allowance) != {"usd"}:
            raise ConfigError(f"a cost is an amount in USD such as '$0.005', not {amount!r}")
        return CostScope(self, check_id(name, "a name"), allowance["usd"], who, fallback)

    # ── budgets ────────────────────────────────────────────────────────────────────────

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in force, with the limits that were set since."""
        overrides = self._ledger.submit(lambda rows: dict(rows.overrides()))
        current = []
        for budget in self._planner.budgets:
            amount = overrides.get(budget.shape, budget.amount)
            if amount is not None:
                current.append(replace(budget, amount=amount))
        return tuple(current)

    def add_budget(self, budget: str | Budget) -> Budget:
        """Add a budget to this meter. Calls in flight are not counted in it.

        Raises:
            ConfigError: it does not parse, or counts what another one counts.
        """
        added = as_budget(budget)
        self._planner.budgets = distinct([*self._planner.budgets, added])
        self._begin()
        return added

    def set_limit(
        self,
        budget: str | Budget,
        amount: str | int,
        *,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: str | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> None:
        """Raise or lower a budget, at once and for every process on the same store.

            meter.set_limit("$5/day per user", "$20")                               # for all
            meter.set_limit("$5/day per user", "$20", user="ada", tenant="acme")    # for one

        Below what is already spent it simply admits no more. What was spent stays. What one has of
        its own is kept when the limit of all is changed.

        Args:
            budget: the budget as it was configured, or as `budgets` or a `Balance` shows it.
            amount: as text (``"$10"``, ``"50k tokens"``), or in the budget's unit
                (nano-dollars for ``usd``).
            session, user, project, tenant, tags, model: whose limit alone it is: all that the budget is
                `per`, and the tenant that sessions and users are of. Ids are taken as they are: ``a*``
                is nobody but ``a*``.
            by, why: for the audit: who changes it, and for what reason.

        Raises:
            ConfigError: no such budget, not an amount of its unit, or not one of its scopes.
        """
        changes = self.changes(by, why)
        found = changes.find(budget)
        changes.set(found, amount, scope_of(found, session, user, project, tenant, tags, model))

    def grant(
        self,
        budget: str | Budget,
        amount: str | int,
        *,
        until: datetime | timedelta,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: str | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> None:
        """Let one spend so much over the limit, until a time; then the limit is again what it was.

            meter.grant("$5/day per user", "$3", user="ada", until=timedelta(hours=2), why="month's end")

        Grants add up. What was spent of one stays spent: once it is over, nothing more is admitted
        until the window turns over, or the limit is higher than that.

        Args:
            budget, amount, session, user, project, tenant, tags, model, by, why: as for `set_limit`;
                whom it is for must be said where the budget is per somebody.
            until: a time with a time zone, or how long from now.

        Raises:
            ConfigError: as for `set_limit`; or the time has passed, or has no time zone.
        """
        changes = self.changes(by, why)
        found = changes.find(budget)
        scope = scope_of(found, session, user, project, tenant, tags, model)
        if isinstance(until, timedelta):
            end = self._clock() + until // timedelta(milliseconds=1)
        elif until.tzinfo is None:
            raise ConfigError(f"a time has a time zone: {until!r} has none")
        else:
            end = int(until.timestamp() * 1000)
        changes.grant(found, amount, scope, end)

    def remove_budget(self, budget: str | Budget, *, by: str | None = None, why: str | None = None) -> None:
        """Stop enforcing a budget, at once and for every process on the same store.

        Also for meters that are made later, which say so; until `reset_limit`.
        """
        changes = self.changes(by, why)
        changes.pause(changes.find(budget))

    def reset_limit(
        self,
        budget: str | Budget,
        *,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: str | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> None:
        """Go back to the limit that was configured; of one, if it is named as for `set_limit`."""
        changes = self.changes(by, why)
        found = changes.find(budget)
        changes.reset(found, scope_of(found, session, user, project, tenant, tags, model))

    def _begin(self) -> None:
        """Tell the store which budgets are in force, and hear what others have learnt."""
        steps = self.guarding.budget if self.guarding is not None else None
        listed = [
            (b.shape, str(b), b.zone or self._planner.zone)
            for b in (*self._planner.budgets, *([steps] if steps is not None else ()))
        ]
        try:
            if listed:
                self._say_changed()
                self._ledger.remember_budgets(listed, self._clock())
            self.recall()
            if self.policy is not None and (days := self.policy.policy.audit.keep_days) is not None:
                prune(self._ledger, self._clock(), days)
        except StoreError as error:
            if self._on_store_error == "refuse":
                raise
            log.warning("%s", error)

    def _say_changed(self) -> None:
        """Say where the ledger has it otherwise than this meter's configuration."""
        overrides, known = self._ledger.submit(
            lambda rows: (dict(rows.overrides()), {b.shape: b.text for b in rows.known_budgets()})
        )
        for budget in self._planner.budgets:
            shape = budget.shape
            if shape in overrides and overrides[shape] is None:
                log.warning(
                    'the budget "%s" is configured, and not in force: it was switched off with '
                    "remove_budget. reset_limit brings it back.",
                    budget,
                )
            elif overrides.get(shape, budget.amount) != budget.amount:
                set_to = format_amount(overrides[shape] or 0, budget.unit)
                log.warning(
                    'the budget "%s" has been set to %s with set_limit, and that is in force. reset_limit '
                    "goes back to what is configured.",
                    budget,
                    set_to,
                )
            elif shape in known and known[shape] != str(budget):
                log.warning(
                    'the ledger knows the budget "%s" as "%s", of another configuration: both count the same '
                    "calls, and each process holds its own calls to the amount that it was configured with. "
                    "set_limit sets one for all.",
                    budget,
                    known[shape],
                )

    def spend(
        self,
        session: str | None = None,
        *,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: str = "",
    ) -> list[Balance]:
        """The buckets that a call of these would count in, as they stand.

        Budgets per model are listed only if `model` is given.

        Raises:
            StoreError: the store cannot be read.
        """
        planner = self._planner
        who = planner.who(
            who_module.session(session, user=user, project=project, tenant=tenant, tags=tags).attribution
        )
        budgets = [b for b in planner.applicable(who, model) if model or "model" not in b.per]
        return self.read_balances(budgets, who, model)

    def balances(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
    ) -> list[Balance]:
        """The buckets that are in use now and are for these, as they stand; without any, all of them.

            meter.balances(user="ada", tenant="acme")

        Unlike `spend`, it looks at what is there, and not at what a call would count in: also at budgets
        per session or model of a tenant. Those of stages, and windows that have passed, are not listed.

        Raises:
            StoreError: the store cannot be read.
        """
        from .reports.budgets import balances
        from .reports.shown import Asked

        asked = Asked(session=session, user=user, project=project, tenant=tenant)
        return balances(self._ledger, asked, now_ms=self._clock())

    def report(
        self,
        by: str | Sequence[str] = ("session",),
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
    ) -> Report:
        """What was spent, by `by`: a table in a notebook, and a DataFrame by its `dataframe()`.

        Args:
            by: ``session``, ``user``, ``model``, ``day``, ``tag:NAME``, … : see `reports.report`.
            since, until: when the call was booked; `until` is not included.
            session, user, project, tenant: only theirs.

        Raises:
            ConfigError: an unknown group.
            StoreError: the store cannot be read.
        """
        from .reports import report

        groups = (by,) if isinstance(by, str) else tuple(by)
        zone = self._planner.zone
        return report(
            self._ledger, groups, since=since, until=until, session=session, user=user, project=project,
            tenant=tenant, zone=zone,
        )  # fmt: skip

    # ── doors ──────────────────────────────────────────────────────────────────────────

    def instrument(self, *, strict: bool | None = None) -> Undo:
        """Meter clients of OpenAI and Anthropic, LangChain, LlamaIndex, Pydantic AI and the like, as soon as
        they are imported; and what doors of other packages say.

        Threads and pools take sessions and stages along by themselves meanwhile. Calls of models that an
        HTTP library sends (httpx, aiohttp, requests, urllib3, boto3, `http.client`), and that nothing has
        metered, are warned of once for each line that makes them.

        Args:
            strict: refuse those with `Unmetered`; None: as `Meter(strict=...)` says.

        Returns:
            What ends it: `.remove()`, or `with`.
        """
        from .integrations.published import published
        from .integrations.seen import watched

        doors = [*(c for c in type(self).__mro__ if c is not object), *published()]
        methods = [(module, getattr(self, name)) for name, module in marked(doors).items()]
        strict = self._given["strict"] if strict is None else one_of(strict, (True, False), "strict")
        return instrumented([*methods, *watched(self, strict=strict)])

    @property
    def unmetered(self) -> tuple[Sighting, ...]:
        """Calls of models that were made while `instrument` watched, and that nothing has metered."""
        from .integrations.seen import sightings

        return sightings(self)

    def __getattr__(self, name: str) -> Any:
        # Not found on the class: a door that another package publishes may have it.
        if not name.startswith("_"):
            from .integrations.published import published

            for door in published():
                if hasattr(door, name):
                    return getattr(door, name).__get__(self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ── the end ────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Write what is left and let go of the store. The meter cannot be used afterwards."""
        try:
            self.drains.wait()
            self.drains.give_up()
            self.flush()
        finally:
            self.closed = True
            self._alerts.close()
            if self._leases is not None:
                self._leases.stop()
            self._ledger.close()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """In its own process a pickled meter is itself again; in another one it is made anew
        over the same store, once for all that was pickled with it."""
        store = self._given["store"]
        shared = not isinstance(store, Ledger) and store_class(store_url(store)).shared
        given = {**self._given, "store": store_url(store)} if shared else None
        return revive, (type(self), self.token, given)


def _defaults(session: str | None, user: str | None, project: str | None, tenant: str | None) -> Attribution:
    who = Attribution(session_id=session, user_id=user, project=project, tenant=tenant)
    return NOBODY if who == NOBODY else who


def _telemetry() -> Telemetry:
    from .engine.telemetry import Telemetry

    return Telemetry()


def _alerting(alerts: AlertSettings | Mapping[str, Any] | None) -> AlertSettings | None:
    """Who is told of what; nothing of it is imported where nobody is named."""
    if alerts is None:
        return None
    from .engine.alerting import AlertSettings

    return AlertSettings.of(alerts)


def _guarding(guards: Guards | Mapping[str, Any] | None) -> Guarding | None:
    """What ends sessions that go on without end; nothing of it is imported where nothing does."""
    if guards is None:
        return None
    from .engine.guards import Guarding, Guards

    return Guarding(Guards.of(guards))


def _downgrade(models: Mapping[str, str] | None, at: int, pricing: Pricing) -> Downgrade | None:
    """Which models stand in for others, if any do."""
    return Downgrade(models or {}, at, pricing) if models or at != 80 else None


def _policing(policy: Any) -> Policing | None:
    """The policy in force; nothing of it is imported where there is none."""
    if policy is None:
        return None
    from .policy import Policing, Policy

    return Policing(Policy.of(policy))
