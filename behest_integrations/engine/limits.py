"""What may be changed of budgets while they are in force: at once, for every process on the same ledger.

Each change is one transaction with its record in the audit: who made it, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ..ledger.audit import Decision
from ..ledger.base import Ledger
from ..ledger.book import Claim, Grant, Limits, Rows
from ..ledger.outbox import NOBODY, Message
from ..rules.attribution import Attribution
from ..rules.balance import Shortfall
from ..rules.budgets import Budget, describe_scope, parse_allowance
from ..rules.errors import BudgetSyntaxError, ConfigError
from ..rules.near import say_near
from ..rules.units import format_amount

_PAUSED = "paused "
"""Before the shape of a budget that is paused: under this name its limit is kept meanwhile."""

_FOR_GOOD = 253_370_764_800_000
"""The year 9999, in ms since 1970."""

Work = Callable[[Rows], object]


class BudgetChanges:
    """Changes the limits in a ledger.

    Args:
        known: the budgets that there are.
        clock: milliseconds since 1970.
        by: who makes the changes, for the audit; None: the program.
        why: for the audit, in a few words.
    """

    def __init__(
        self,
        ledger: Ledger,
        known: Iterable[Budget],
        clock: Callable[[], int],
        *,
        by: str | None = None,
        why: str | None = None,
    ) -> None:
        self._ledger = ledger
        self._known = tuple(known)
        self._clock = clock
        self._by = by
        self._why = why

    def find(self, budget: str | Budget) -> Budget:
        """The budget that is meant: by what it counts, whatever its amount; or by its name.

        Raises:
            ConfigError: there is none.
        """
        named = [one for one in self._known if one.name is not None and one.name == budget]
        if named:
            return named[0]
        try:
            wanted = budget if isinstance(budget, Budget) else Budget.parse(budget)
        except BudgetSyntaxError:
            wanted = None
        for candidate in self._known:
            if wanted is not None and candidate.counted == wanted.counted:
                return candidate
        texts = [str(one) for one in self._known]
        listed = ", ".join(f'"{text}"' for text in texts) or "none"
        raise ConfigError(f'no budget "{budget}"{say_near(str(budget), texts)}; configured: {listed}')

    def set(self, budget: Budget, amount: str | int, scope: str | None) -> int:
        """Its limit from now on, in its unit; `scope`: of that one alone.

        Raises:
            ConfigError: not an amount of its unit.
        """
        limit = replace(budget, amount=amount_of(budget, amount)).amount
        self._write(budget, f"set to {format_amount(limit, budget.unit)}", scope, _set(budget, scope, limit))
        return limit

    def raise_by(self, budget: Budget, amount: str | int, scope: str | None) -> int:
        """So much more than its limit is now; the new one.

        Raises:
            ConfigError: not an amount of its unit, or it is not in force.
        """
        more = amount_of(budget, amount)
        found: list[int] = []

        def change(rows: Rows) -> None:
            before = self._in_force(rows, budget, scope)
            found[:] = [replace(budget, amount=before + more).amount]
            _set(budget, scope, found[0])(rows)

        said = f"raised by {format_amount(more, budget.unit)}"
        self._write(budget, said, scope, change)
        return found[0]

    def grant(self, budget: Budget, amount: str | int, scope: str | None, until: int) -> int:
        """So much over its limit for one scope, until a time in ms since 1970; the amount.

        Raises:
            ConfigError: not an amount of its unit; the time has passed; or nobody is named and the
                budget is per somebody.
        """
        more = replace(budget, amount=amount_of(budget, amount)).amount
        if until <= self._clock():
            raise ConfigError("a grant ends in the future")
        if scope is None and budget.per:
            raise ConfigError(f'"{budget}" is per {" and ".join(budget.per)}: say whom the grant is for')
        whose = scope or ""
        said = f"granted {format_amount(more, budget.unit)} {_until(until)}"
        self._write(budget, said, scope, lambda rows: rows.add_grant(Grant(budget.shape, whose, more, until)))
        return more

    def granting(self, refused: Shortfall, amount: str | int, *, once: str) -> Callable[[Rows], bool]:
        """The store operation that lets a call's budget go so much further, if it has not been done.

        Until its window turns over; of a rolling one, for its length; of one without a window, for good.

        Args:
            refused: the bucket that refused the call.
            once: names this grant: under one name it is given once, however often it is asked for.

        Returns:
            What says whether it has been given now.

        Raises:
            ConfigError: not an amount of its unit, or nothing.
        """
        budget, now, (shape, scope) = Budget.parse(refused.budget), self._clock(), refused.key
        more = replace(budget, amount=amount_of(budget, amount)).amount
        if not more:
            raise ConfigError(f"a grant is of more than nothing, not {amount!r}")
        if refused.resets_at is not None:
            until = int(refused.resets_at.timestamp() * 1000)
        else:
            until = now + budget.rolling_ms if budget.rolling is not None else _FOR_GOOD
        said = f"granted {format_amount(more, budget.unit)}" + (f" {_until(until)}" * (until < _FOR_GOOD))
        decision = self._decision(budget, said, scope)

        def work(rows: Rows) -> bool:
            fresh = rows.add_message(Message(once, NOBODY, now, "{}", now, done=now))
            if fresh:
                rows.add_grant(Grant(shape, scope, more, until))
                rows.add_audit(decision)
            return fresh

        return work

    def pause(self, budget: Budget) -> None:
        """Stop enforcing it, until it is resumed. What is spent meanwhile is not counted in it."""

        def change(rows: Rows) -> None:
            limit = rows.overrides().get(budget.shape)
            if limit is not None:
                rows.set_override(_PAUSED + budget.shape, limit)
            rows.set_override(budget.shape, None)

        self._write(budget, "removed", None, change)

    def resume(self, budget: Budget) -> None:
        """Enforce it again, with the limit that it had."""

        def change(rows: Rows) -> None:
            overrides = dict(rows.overrides())
            if budget.shape in overrides and overrides[budget.shape] is None:
                limit = overrides.get(_PAUSED + budget.shape)
                _set(budget, None, limit)(rows)
            rows.drop_override(_PAUSED + budget.shape)

        self._write(budget, "resumed", None, change)

    def reset(self, budget: Budget, scope: str | None) -> None:
        """Go back to the limit that was configured, or that all have."""
        self._write(budget, "reset", scope, _set(budget, scope, None))

    def limit(self, budget: Budget, scope: str | None) -> int | None:
        """The limit that is in force, of all or of one, less what is granted; None: it is paused."""
        return self._ledger.submit(lambda rows: self._limit(rows, budget, scope))

    def now(self) -> int:
        """Milliseconds since 1970."""
        return self._clock()

    @staticmethod
    def _limit(rows: Rows, budget: Budget, scope: str | None) -> int | None:
        claim = Claim(budget.shape, scope or "", 0, budget.unit, budget.amount, str(budget))
        # A grant is no part of it, as it ends by itself.
        return Limits(rows, 2**62).of(claim)

    def _in_force(self, rows: Rows, budget: Budget, scope: str | None) -> int:
        limit = self._limit(rows, budget, scope)
        if limit is None:
            raise ConfigError(f'the budget "{budget}" is paused')
        return limit

    def _decision(self, budget: Budget, what: str, scope: str | None) -> Decision:
        details: dict[str, Any] = {"what": what}
        if scope:
            details["scope"] = describe_scope(budget, scope)
        if self._why is not None:
            details["why"] = self._why
        return Decision(self._clock(), "budget", str(budget), actor=self._by, details=details)

    def _write(self, budget: Budget, what: str, scope: str | None, work: Work) -> None:
        decision = self._decision(budget, what, scope)

        def change(rows: Rows) -> None:
            work(rows)
            rows.add_audit(decision)

        self._ledger.submit(change)


def _until(ms: int) -> str:
    return f"until {(_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec='seconds')}"


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _set(budget: Budget, scope: str | None, limit: int | None) -> Work:
    """None: as it is configured."""
    if scope is not None:
        return lambda rows: rows.set_own_limit(budget.shape, scope, limit)
    if limit is None:
        return lambda rows: rows.drop_override(budget.shape)
    return lambda rows: rows.set_override(budget.shape, limit)


def amount_of(budget: Budget, amount: str | int) -> int:
    """An amount in a budget's unit, from text such as ``"$10"``.

    Raises:
        ConfigError: it is of another unit, or no amount.
    """
    if not isinstance(amount, str):
        return amount
    amounts = parse_allowance(amount)
    if budget.unit not in amounts:
        raise ConfigError(f"{amount!r} is not an amount of {budget.unit}")
    return amounts[budget.unit]


def scope_of(
    budget: Budget,
    session: str | None,
    user: str | None,
    project: str | None,
    tenant: str | None,
    tags: Mapping[str, str] | None,
    model: str | None,
) -> str | None:
    """The key of one scope of a budget; None: of all.

    Raises:
        ConfigError: it names more or less than the budget is per.
    """
    said = {"session": session, "user": user, "project": project, "tenant": tenant, "model": model}
    named = {name for name, value in said.items() if value is not None} | {f"tag:{n}" for n in tags or ()}
    if not named:
        return None
    per = {*budget.per}
    of_tenant = {"tenant"} if per & {"session", "user"} else set()
    if not per <= named or named - per - of_tenant:
        raise ConfigError(
            f'"{budget}" is {"per " + " and ".join(budget.per) if per else "for everybody together"}: name '
            f"{'that' if per else 'nobody'}, not {', '.join(sorted(named))}"
        )
    who = Attribution(session_id=session, user_id=user, project=project, tenant=tenant, tags=tags or {})
    return budget.scope_key(who, model or "")
