"""The gateway, and the keys of its callers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..rules.attribution import check_id
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
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="json: an object a line on standard error. Default: BEHEST_LOG_FORMAT, else text.",
)
def serve(
    host: str,
    port: int,
    workers: int,
    store: str | None,
    config: Path | None,
    keyless: bool,
    log_format: str | None,
) -> None:
    """Serve the gateway: an OpenAI-compatible endpoint, for programs in any language.

    Where no provider is configured, the sandbox answers: no key, no network.
    """
    from ..gateway import logs
    from ..gateway.server import serve as run_gateway
    from .tools import check_free

    form = logs.chosen(log_format)
    log_config = logs.begin(form)

    # The port is taken once all else is known to be usable; a mistyped host must not make a ledger before.
    check_free(host, port)
    run_gateway(
        host=host,
        port=port,
        workers=workers,
        keyless=keyless,
        store=stores.url_given(store),
        config=config,
        say=logs.serving if form == "json" else lambda line: click.echo(line, err=True),
        log_config=log_config,
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
@click.option("--prefix", help="How it begins: behest_sk_live_ (default) or bh_live_.")
@click.option("--days", type=float, help="How long it lives. Default: until it is revoked.")
@click.option("--model", "models", multiple=True, help="What it may call alone, e.g. 'gpt-4o*'; repeatable.")
@click.option("--address", "addresses", multiple=True, help="From where alone, e.g. 10.0.0.0/8; repeatable.")
@click.option(
    "--budget", "budgets", multiple=True, help="What it is held to besides, e.g. '$5/day'; repeatable."
)
def create(
    store: str | None,
    tenant: str,
    project: str,
    tier: str | None,
    name: str,
    end_users: bool,
    prefix: str | None,
    days: float | None,
    models: tuple[str, ...],
    addresses: tuple[str, ...],
    budgets: tuple[str, ...],
) -> None:
    """Make a key. It is shown once: the ledger has its hash alone."""
    from ..gateway.changing import Changes
    from ..gateway.keys import PREFIX, KeyStore
    from ..gateway.settings import GatewaySettings

    settings, ledger = GatewaySettings.of(stores.config().gateway), stores.find(store)
    known = (Changes(ledger, settings).settings() if ledger is not None else settings).tier_texts
    if tier is not None and tier not in known:
        raise ConfigError(f"the tier {tier!r} is not known{say_near(tier, known)}; known: {', '.join(known)}")
    check_id(tenant, "the tenant")  # before a ledger is made
    check_id(project, "the project")
    key, text = KeyStore(stores.make(store)).create(
        tenant=tenant,
        project=project,
        tier=tier,
        end_users=end_users,
        name=name,
        prefix=prefix or PREFIX,
        seconds=days * 86_400 if days is not None else None,
        models=models or None,
        addresses=addresses or None,
        budgets=budgets,
    )
    click.echo(f"Key {key.id}, for project {key.project} of {key.tenant}. It is shown this once:", err=True)
    click.echo(text)


@keys.command("create-admin")
@store_option
@click.option("--tenant", default="", help="Whose keys alone it administers. Default: everybody's.")
@click.option("--name", default="", help="For people.")
@click.option("--days", type=float, help="How long it lives. Default: until it is revoked.")
def create_admin(store: str | None, tenant: str, name: str, days: float | None) -> None:
    """Make a key for /admin/v1 of the gateway. It calls no models."""
    from ..gateway.keys import KeyStore

    seconds = days * 86_400 if days is not None else None
    key, text = KeyStore(stores.make(store), actor="cli").create_admin(
        tenant=tenant, name=name, seconds=seconds
    )
    click.echo(f"Admin key {key.id}, for {tenant or 'every tenant'}. It is shown this once:", err=True)
    click.echo(text)


@keys.command("rotate")
@store_option
@click.argument("id")
@click.option("--hours", default=24.0, show_default=True, help="How long the old one works beside it.")
def rotate(store: str | None, id: str, hours: float) -> None:
    """Make a key in place of the key ID, and let that one end.

    The new one may do what the old one may, and its budgets go on.
    """
    from ..gateway.keys import KeyStore, id_in

    old = id_in(id) or id
    key, text = KeyStore(stores.existing(store, to_write=True)).rotate(old, overlap=hours * 3600)
    until = f"works for {hours:g} hours more" if hours else "has ended"
    click.echo(f"Key {key.id} takes the place of {old}, which {until}. It is shown this once:", err=True)
    click.echo(text)


@keys.command("expire")
@store_option
@click.argument("id")
@click.option("--hours", required=True, type=float, help="From now.")
def expire(store: str | None, id: str, hours: float) -> None:
    """Let the key ID end in some hours."""
    from ..gateway.keys import KeyStore, id_in

    key = KeyStore(stores.existing(store, to_write=True)).expire(id_in(id) or id, hours * 3600)
    click.echo(f"Key {key.id} ends in {hours:g} hours.")


@keys.command("add-signing")
@store_option
@click.option("--tenant", required=True, help="Whose users it signs for.")
@click.option("--project", help="The only one that it signs for. Default: any of the tenant's.")
@click.option("--kid", help="What its tokens name it by. Default: a new one.")
@click.option("--name", default="", help="For people.")
@click.argument("pem", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def add_signing(
    store: str | None, tenant: str, project: str | None, kid: str | None, name: str, pem: Path
) -> None:
    """Believe tokens that a tenant signs itself (RS256).

    Of a private key the public half is kept.
    """
    from ..gateway.keys import KeyStore

    keys = KeyStore(stores.make(store))
    key = keys.add_signing(pem.read_bytes(), tenant=tenant, project=project, kid=kid, name=name)
    whose = f"project {key.project} of {key.tenant}" if key.project else key.tenant
    click.echo(f"Tokens for users of {whose} are believed that name this key id (kid):", err=True)
    click.echo(key.kid)


@keys.command("list-signing")
@store_option
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def list_signing(store: str | None, as_json: bool) -> None:
    """All public keys with which tenants' tokens are checked."""
    from ..gateway.keys import KeyStore

    ledger = stores.find(store)
    found = KeyStore(ledger).all_signing() if ledger is not None else []
    if as_json:
        click.echo(json.dumps([vars(key) for key in found], indent=2, ensure_ascii=False))
        return
    for key in found:
        state = "revoked" if key.revoked is not None else "believed"
        click.echo(f"{key.kid}  {key.tenant}/{key.project or '*'}  {state}  {key.name}".rstrip())
    if not found:
        click.echo("No signing keys yet: 'behest keys add-signing --tenant T key.pem' adds one.")


@keys.command("revoke-signing")
@store_option
@click.argument("kid")
def revoke_signing(store: str | None, kid: str) -> None:
    """Believe no more what is signed with the key KID."""
    from ..gateway.keys import KeyStore

    KeyStore(stores.existing(store, to_write=True)).revoke_signing(kid)
    click.echo(f"Signing key {kid} is revoked, and every token that it signed.")


@keys.command("list")
@store_option
@click.option("--tenant", help="Only this tenant's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def list_(store: str | None, tenant: str | None, as_json: bool) -> None:
    """All keys, without the keys."""
    from ..gateway.keys import KeyStore

    ledger = stores.find(store)
    known = KeyStore(ledger).all() if ledger is not None else []
    found = [vars(key) for key in known if tenant in (None, key.tenant)]
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif found:
        from ..reports.look import show
        from .look import key_table

        show(key_table(found))
    else:
        where = "" if ledger is not None else f" ({stores.no_ledger(store)})"
        whose = f" of {tenant}" if tenant else ""
        click.echo(f"No keys{whose} yet{where}: 'behest keys create --tenant T --project P' makes one.")


@keys.command("revoke")
@store_option
@click.argument("id")
def revoke(store: str | None, id: str) -> None:
    """End the key ID, and every token that was minted with it."""
    from ..gateway.keys import KeyStore, id_in

    # Whoever gives the whole key means it, and it is said nowhere again.
    key = KeyStore(stores.existing(store, to_write=True)).revoke(id_in(id) or id)
    click.echo(f"Key {key.id} is revoked: gateways that run refuse it at once.")
