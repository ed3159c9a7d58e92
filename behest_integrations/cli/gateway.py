"""The gateway, and the keys of its callers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..rules.errors import ConfigError
from ..rules.near import say_near
from . import store as stores
from .group import Group
from .store import store_option


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes.")
@store_option
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: behest.toml in this folder, if there is one.",
)
@click.option("--keyless", is_flag=True, help="Let anybody on this machine call, without a key.")
def serve(host: str, port: int, workers: int, store: str | None, config: Path | None, keyless: bool) -> None:
    """Serve the gateway: an OpenAI-compatible endpoint, for programs in any language.

    Where no provider is configured, the sandbox answers: no key, no network.
    """
    from ..gateway.server import serve as run_gateway

    run_gateway(
        host=host,
        port=port,
        workers=workers,
        keyless=keyless,
        store=stores.url_given(store),
        config=config,
        say=lambda line: click.echo(line, err=True),
    )


@click.group(cls=Group)
def keys() -> None:
    """The gateway's API keys."""


@keys.command("create")
@store_option
@click.option("--tenant", required=True, help="Whose it is.")
@click.option("--project", required=True, help="For which of their projects.")
@click.option("--tier", help="free, pro, max, or one of behest.toml: whose budgets hold it as well.")
@click.option("--name", default="", help="For people.")
@click.option(
    "--end-users/--no-end-users",
    default=True,
    show_default=True,
    help="Whether it may speak for any end user (X-End-User-Id, and tokens for them).",
)
def create(
    store: str | None, tenant: str, project: str, tier: str | None, name: str, end_users: bool
) -> None:
    """Make a key. It is shown once: the ledger has its hash alone."""
    from ..gateway.keys import KeyStore
    from ..gateway.settings import GatewaySettings

    known = GatewaySettings.of(stores.config().gateway).tier_texts
    if tier is not None and tier not in known:
        raise ConfigError(f"the tier {tier!r} is not known{say_near(tier, known)}; known: {', '.join(known)}")
    made = KeyStore(stores.make(store))
    key, text = made.create(tenant=tenant, project=project, tier=tier, end_users=end_users, name=name)
    click.echo(f"Key {key.id}, for project {key.project} of {key.tenant}. It is shown this once:", err=True)
    click.echo(text)


@keys.command("list")
@store_option
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def list_(store: str | None, as_json: bool) -> None:
    """All keys, without the keys."""
    from ..gateway.keys import KeyStore

    ledger = stores.find(store)
    found = [vars(key) for key in KeyStore(ledger).all()] if ledger is not None else []
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif found:
        from ..reports.look import show
        from .look import key_table

        show(key_table(found))
    else:
        where = "" if ledger is not None else f" ({stores.no_ledger(store)})"
        click.echo(f"No keys yet{where}: 'behest keys create --tenant T --project P' makes one.")


@keys.command("revoke")
@store_option
@click.argument("id")
def revoke(store: str | None, id: str) -> None:
    """End the key ID, and every token that was minted with it."""
    from ..gateway.keys import KeyStore, id_in

    # Whoever gives the whole key means it, and it is said nowhere again.
    key = KeyStore(stores.existing(store)).revoke(id_in(id) or id)
    click.echo(f"Key {key.id} is revoked. Gateways that run refuse it within 5 seconds.")
