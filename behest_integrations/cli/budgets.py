"""`behest budgets`: what is left of each, and what may be changed of them while they are in force."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from ..rules.errors import ConfigError
from . import store as stores
from .group import Group
from .shown import shows, whose
from .whom import by_whom

if TYPE_CHECKING:
    from ..engine.limits import BudgetChanges
    from ..ledger import Ledger
    from ..reports import Asked, Shown
    from ..rules.budgets import Budget


def _unless_a_command_follows(show: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(show)
    def shown(*args: Any, **options: Any) -> None:
        if click.get_current_context().invoked_subcommand is None:
            show(*args, **options)

    return shown


@click.group(cls=Group, invoke_without_command=True)
@_unless_a_command_follows
@shows
@whose
@click.option("--all", "everything", is_flag=True, help="Windows that have passed and runs of stages, too.")
@click.option(
    "--check",
    is_flag=False,
    flag_value=80,
    type=click.IntRange(1, 1000),
    metavar="[PERCENT]",
    help="Those alone that have reached so much of their limit (80, if not said); exit code 1 if there are "
    "any.",
)
@click.option("--forecast", is_flag=True, help="When each runs out, if it is spent on as it was lately.")
def budgets(ledger: Ledger, asked: Asked, everything: bool, check: int | None, forecast: bool) -> Shown:
    """Each bucket: spent, held, left, and when it resets.

    BUDGET in the commands below is the budget's text, whatever its amount, such as "$5/day per
    user", or its name. A change holds at once, for every process on the ledger; 'behest audit
    --kind budget' tells who made it, and why.
    """
    from ..reports.budgets import show_budgets

    return show_budgets(ledger, asked, everything=everything, check=check, forecast=forecast)


# ── changes ────────────────────────────────────────────────────────────────────────────


def _changes(command: Callable[..., str]) -> Callable[..., None]:
    """Give a command `changes` and the `budget` that is meant; what it returns is said."""

    @functools.wraps(command)
    def changed(store: str | None, budget: str, by: str, why: str | None, **options: Any) -> None:
        from ..engine.limits import BudgetChanges

        ledger = stores.existing(store, to_write=True)
        changes = BudgetChanges(ledger, _known(ledger), _now, by=by, why=why)
        click.echo(command(changes=changes, budget=changes.find(budget), **options))

    return click.argument("budget")(stores.store_option(by_whom(changed)))


def _scoped(command: Callable[..., str]) -> Callable[..., str]:
    """Give a command the `scope` that is meant; None: of all."""

    @functools.wraps(command)
    def scoped(budget: Budget, tags: tuple[str, ...], **options: Any) -> str:
        from ..engine.limits import scope_of

        session, user, project, tenant, model = (options.pop(name) for name in _PARTS)
        scope = scope_of(budget, session, user, project, tenant, dict(map(_tag, tags)), model)
        return command(budget=budget, scope=scope, **options)

    said = "The tag's alone, where it is per tag."
    scoped = click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help=said)(scoped)
    for name in reversed(_PARTS):
        said = f"The {name}'s alone, where it is per {name}."
        scoped = click.option(f"--{name}", callback=stores.not_empty, help=said)(scoped)
    return scoped


_PARTS = ("session", "user", "project", "tenant", "model")


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--tag")
    return name, value


@budgets.command("set")
@_changes
@_scoped
@click.argument("amount")
def set_(changes: BudgetChanges, budget: Budget, scope: str | None, amount: str) -> str:
    """Set the limit of BUDGET to AMOUNT, of all or of one."""
    changes.set(budget, amount, scope)
    return f"{_name(budget, scope)}: the limit is {amount}."


@budgets.command("raise")
@_changes
@_scoped
@click.argument("amount")
def raise_(changes: BudgetChanges, budget: Budget, scope: str | None, amount: str) -> str:
    """Raise the limit of BUDGET by AMOUNT, of all or of one."""
    from ..rules.units import format_amount

    limit = changes.raise_by(budget, amount, scope)
    return f"{_name(budget, scope)}: the limit is {format_amount(limit, budget.unit)}."


@budgets.command("grant")
@_changes
@_scoped
@click.argument("amount")
@click.option("--for", "length", metavar="TIME", help="How long, such as 30m, 2h, 7d.")
@click.option("--until", metavar="DATE", help="Until when, such as 2026-01-31 or 2026-01-31T12:00 (UTC).")
def grant(
    changes: BudgetChanges,
    budget: Budget,
    scope: str | None,
    amount: str,
    length: str | None,
    until: str | None,
) -> str:
    """Let one spend AMOUNT over the limit of BUDGET, for a time."""
    end = _end(length, until)
    changes.grant(budget, amount, scope, int(end.timestamp() * 1000))
    return f"{_name(budget, scope)}: {amount} more until {end:%Y-%m-%d %H:%M} UTC."


@budgets.command("pause")
@_changes
def pause(changes: BudgetChanges, budget: Budget) -> str:
    """Do not enforce BUDGET until it is resumed."""
    changes.pause(budget)
    return f"{_name(budget, None)} is paused: nothing is held to it, and nothing counts in it."


@budgets.command("resume")
@_changes
def resume(changes: BudgetChanges, budget: Budget) -> str:
    """Enforce BUDGET again, with the limit that it had."""
    changes.resume(budget)
    return f"{_name(budget, None)} is in force."


@budgets.command("reset")
@_changes
@_scoped
def reset(changes: BudgetChanges, budget: Budget, scope: str | None) -> str:
    """Go back to the configured limit of BUDGET; of one: to that of all."""
    changes.reset(budget, scope)
    return f"{_name(budget, scope)}: the limit is the configured one."


@budgets.command("add")
@stores.store_option
@by_whom
@click.argument("budget")
def add(store: str | None, budget: str, by: str, why: str | None) -> None:
    """Hold all calls of the gateway to BUDGET besides.

    It holds from the next request on, in every gateway on the ledger, until it is removed.
    """
    from .settings import changes_of

    said = ("budget", budget, {"budget": budget})
    added = changes_of(store, by, why, said).add_budget(budget)
    click.echo(f'All calls of the gateway are held to "{added}" from now on.')


@budgets.command("remove")
@stores.store_option
@by_whom
@click.argument("budget")
def remove(store: str | None, budget: str, by: str, why: str | None) -> None:
    """Take BUDGET out, which was added while the gateway ran."""
    from .settings import changes_of

    removed = changes_of(store, by, why).remove_budget(budget)
    click.echo(f'Nobody is held to "{removed}" any more. What was spent stays in the books.')


def _name(budget: Budget, scope: str | None) -> str:
    from ..rules.budgets import describe_scope

    whose = describe_scope(budget, scope or "")
    return f'"{budget}"' + (f" of {whose}" if whose else "")


def _known(ledger: Ledger) -> list[Budget]:
    """The budgets that were in force when a meter was last made on this ledger."""
    from ..rules.budgets import Budget

    return [Budget.parse(known.text) for known in ledger.submit(lambda rows: list(rows.known_budgets()))]


def _end(length: str | None, until: str | None) -> datetime:
    if (length is None) == (until is None):
        raise click.UsageError("a grant ends: say --for 2h, or --until 2026-01-31")
    now = datetime.now(timezone.utc)
    if length is not None:
        match = re.fullmatch(r"(\d{1,6})([mhdw])", length)
        if match is None or not int(match[1]):
            raise click.BadParameter(f"{length!r} is not a time such as 30m, 2h, 7d", param_hint="--for")
        return now + timedelta(minutes=int(match[1]) * {"m": 1, "h": 60, "d": 1440, "w": 10080}[match[2]])
    try:
        end = datetime.fromisoformat(until or "")
    except ValueError:
        raise click.BadParameter(
            f"{until!r} is not a date such as 2026-01-31", param_hint="--until"
        ) from None
    end = end if end.tzinfo else end.replace(tzinfo=timezone.utc)
    if end <= now:
        raise ConfigError(f"{until} has passed: a grant ends in the future")
    return end


def _now() -> int:
    return int(time.time() * 1000)
