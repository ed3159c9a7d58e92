"""`behest projects` and `behest tiers`: the gateway's settings, changed while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from . import store as stores
from .group import Group
from .store import store_option
from .whom import by_whom

if TYPE_CHECKING:
    from ..gateway.changing import Changes, Shown

_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group(cls=Group)
def projects() -> None:
    """What holds for the gateway's projects: pages, a default tier, budgets.

    A project is named NAME, or TENANT/NAME where two tenants have one of that name. What is set
    here goes before behest.toml, at once in every gateway on the ledger, until it is reset.
    """


@projects.command("list")
@store_option
@_json
def list_projects(store: str | None, as_json: bool) -> None:
    """Each project, what holds for it, and what the file says instead."""
    changes = _changes(store)
    found = [*changes.projects(), changes.defaults()] if changes is not None else []
    _show([one if one.name else one.model_copy(update={"name": "(all)"}) for one in found], as_json)


@projects.command("set")
@store_option
@click.argument("name", callback=stores.not_empty)
@click.option("--origin", "origins", multiple=True, help="A page that may call, e.g. https://*.example.com.")
@click.option("--default-tier", callback=stores.not_empty, help="Of those callers who have none.")
@click.option("--budget", "budgets", multiple=True, help="Of all its calls together, e.g. '$100/month'.")
@click.option("--paused", is_flag=True, help="Let its callers in no more.")
@by_whom
def set_project(
    store: str | None,
    name: str,
    origins: tuple[str, ...],
    default_tier: str | None,
    budgets: tuple[str, ...],
    paused: bool,
    by: str,
    why: str | None,
) -> None:
    """Say all that holds for the project NAME, in place of what did."""
    from ..gateway.settings import ProjectSettings

    said = {
        "origins": list(origins),
        "default_tier": default_tier,
        "budgets": list(budgets),
        "paused": paused,
    }
    checked = _checked(ProjectSettings, said)
    changes_of(store, by, why, ("project", name, said)).set_project(name, checked)
    click.echo(f"The project {name!r} is as said from now on. What behest.toml says of it is passed over.")


@projects.command("reset")
@store_option
@click.argument("name")
@by_whom
def reset_project(store: str | None, name: str, by: str, why: str | None) -> None:
    """Have what behest.toml says of the project NAME hold again."""
    changes_of(store, by, why).reset_project(name)
    click.echo(f"The project {name!r} is as behest.toml says, or as all others are.")


@projects.command("defaults")
@store_option
@click.option("--origin", "origins", multiple=True, help="A page that may call for any project.")
@click.option("--default-tier", callback=stores.not_empty, help="Of callers who have none, by whatever else.")
@click.option("--reset", is_flag=True, help="Have what behest.toml says hold again.")
@by_whom
def defaults(
    store: str | None,
    origins: tuple[str, ...],
    default_tier: str | None,
    reset: bool,
    by: str,
    why: str | None,
) -> None:
    """Say what holds for all projects, in place of what did."""
    from ..gateway.live import Defaults

    if reset:
        changes_of(store, by, why).reset_defaults()
        click.echo("What behest.toml says holds for all projects.")
        return
    if not origins and default_tier is None:
        raise click.UsageError("say --origin or --default-tier, or --reset")
    said = {"origins": list(origins), "default_tier": default_tier}
    checked = _checked(Defaults, said)
    changes_of(store, by, why, ("defaults", "", said)).set_defaults(checked)
    click.echo("That holds for all projects from now on.")


@click.group(cls=Group)
def tiers() -> None:
    """The gateway's tiers: whose callers are held to which budgets.

    What is set here goes before behest.toml, at once in every gateway on the ledger, until it is
    reset.
    """


@tiers.command("list")
@store_option
@_json
def list_tiers(store: str | None, as_json: bool) -> None:
    """Each tier, its budgets, and what the file says instead."""
    from ..gateway.changing import tiers_of_file

    changes = _changes(store)
    _show(changes.tiers() if changes is not None else tiers_of_file(_settings()), as_json)


@tiers.command("set")
@store_option
@click.argument("name", callback=stores.not_empty)
@click.option("--budget", "budgets", multiple=True, required=True, help="e.g. '$5/day per user'; repeatable.")
@click.option("--number", type=click.IntRange(0, 1_000_000), help="By which tokens may name it, too.")
@by_whom
def set_tier(
    store: str | None, name: str, budgets: tuple[str, ...], number: int | None, by: str, why: str | None
) -> None:
    """Say the budgets of the tier NAME, in place of those that it had."""
    from ..gateway.settings import TierSettings

    said = {"budgets": list(budgets), "number": number}
    checked = _checked(TierSettings, said)
    changes = changes_of(store, by, why, ("tier", name, said))
    changes.set_tier(name, checked)
    click.echo(f"The tier {name!r} has these budgets from now on, with what was spent in them.")
    for text, limit in changes.otherwise_limited(name):
        click.echo(
            f"The limit of \"{text}\" was set to {limit}, and that goes before: 'behest budgets reset'."
        )


@tiers.command("reset")
@store_option
@click.argument("name")
@by_whom
def reset_tier(store: str | None, name: str, by: str, why: str | None) -> None:
    """Have the tier NAME as behest.toml has it, or let it go."""
    changes_of(store, by, why).reset_tier(name)
    click.echo(f"The tier {name!r} is as behest.toml has it, or is no more.")


def _settings() -> Any:
    from ..gateway.settings import GatewaySettings

    return GatewaySettings.of(stores.config().gateway)


def _changes(store: str | None) -> Changes | None:
    """What was changed, to look at; None: there is no ledger."""
    from ..gateway.changing import Changes

    ledger = stores.find(store)
    return Changes(ledger, _settings()) if ledger is not None else None


def changes_of(
    store: str | None, by: str, why: str | None, *said: tuple[str, str, Mapping[str, Any]]
) -> Changes:
    """What was changed of the gateway's settings, to be changed.

    Args:
        said: what is to be said: kinds, names and values. It is checked before a ledger is made for it;
            without, there must be one.
    """
    from ..gateway.changing import Changes
    from ..gateway.live import added_budgets, settings_now
    from ..ledger.keys import ChangedSetting
    from ..rules.budgets import Budget

    config, settings = stores.config(), _settings()
    base = [b if isinstance(b, Budget) else Budget.parse(b) for b in config.arguments()["budgets"]]
    if said and stores.find(store) is None:
        alone = [ChangedSetting(*one, 0, None) for one in said]
        settings_now(settings, alone)
        added_budgets(alone)
    ledger = stores.make(store) if said else stores.existing(store, to_write=True)
    return Changes(ledger, settings, base, actor=by, why=why)


def _checked(shape: Callable[..., Any], said: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    from ..rules.errors import ConfigError
    from ..rules.wording import say_problems

    try:
        return shape(**said)
    except ValidationError as error:
        raise ConfigError(say_problems(error, shape, said)) from None  # type: ignore[arg-type]


def _show(found: Sequence[Shown], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([one.model_dump() for one in found], indent=2, ensure_ascii=False))
        return
    if not found:
        click.echo("Nothing is said of any project: 'behest projects set NAME' says it.")
    for one in found:
        click.echo(f"{one.name}  ({one.source})")
        for line in _lines(one.value):
            click.echo(f"  {line}")
        if one.source == "run time" and one.file is not None:
            below = "; ".join(_lines(one.file)) or "nothing"
            click.echo(f"  passed over, of behest.toml or built in: {below}")


def _lines(value: Mapping[str, Any]) -> list[str]:
    said = []
    for name, what in value.items():
        if what not in (None, [], False):
            told = ", ".join(what) if isinstance(what, list) else "yes" if what is True else what
            said.append(f"{name.replace('_', ' ')}: {told}")
    return said
