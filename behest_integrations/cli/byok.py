"""`behest byok`: tenants' own keys at providers, encrypted in the ledger."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ..rules.attribution import check_id
from ..rules.errors import ConfigError
from ..rules.near import say_near
from . import store as stores
from .group import Group
from .store import store_option
from .whom import by_whom

if TYPE_CHECKING:
    from ..gateway.byok import Masters
    from ..gateway.settings import GatewaySettings

_tenant = click.option("--tenant", required=True, callback=stores.not_empty, help="Whose key it is.")
_provider = click.option(
    "--provider", required=True, callback=stores.not_empty, help="A provider of behest.toml, by its name."
)


@click.group(cls=Group)
def byok() -> None:
    """Tenants' own keys at providers: their calls are made, and paid, with them.

    The master key that encrypts them is in BEHEST_BYOK_KEY, or in the file that [gateway.byok]
    key_file of behest.toml names; 'behest byok new-master FILE' makes one.
    """


@byok.command("set")
@store_option
@_tenant
@_provider
@click.option("--file", type=click.File("r"), help="The file that has the key; - for standard input.")
@click.option("--key", help="The key itself. It stays in the shell's history, and others see it in 'ps'.")
@by_whom
def set_(
    store: str | None,
    tenant: str,
    provider: str,
    file: IO[str] | None,
    key: str | None,
    by: str,
    why: str | None,
) -> None:
    """Make the tenant's calls to the provider with its own key.

    The key is asked for, or read from standard input if that is no terminal. It holds from the
    next call on, in every gateway on the ledger.
    """
    from ..gateway.byok import ProviderKeys, check_key

    if file is not None and key is not None:
        raise click.UsageError("--file and --key each give the key: say one")
    settings = _settings()
    check_id(tenant, "the tenant")
    _check_provider(settings, provider)
    masters = _masters(settings)
    masters.first()  # before the key is asked for, and before a ledger is made
    secret = _secret(file, key, f"The key of {tenant} for {provider}")
    check_key(secret)
    keys = ProviderKeys(stores.make(store), masters, actor=by, why=why)
    made = keys.set(tenant, provider, secret)
    shown = f" (it ends in {made.hint})" if made.hint else ""
    click.echo(f"Calls of {tenant} to {provider} are made with its own key{shown} from now on.")


@byok.command("list")
@store_option
@click.option("--tenant", help="Only this tenant's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def list_(store: str | None, tenant: str | None, as_json: bool) -> None:
    """All of them, without the keys, and whether they can be used here."""
    from ..gateway.byok import ProviderKeys

    ledger = stores.find(store)
    known = ProviderKeys(ledger, _masters(_settings())).listed() if ledger is not None else []
    found = [(key, why) for key, why in known if tenant in (None, key.tenant)]
    if as_json:
        rows = [{**vars(key), "unusable": why} for key, why in found]
        for row in rows:
            del row["sealed"]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif found:
        from rich.table import Table
        from rich.text import Text

        from ..reports.look import show

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("tenant", "provider", "key", "set", "state"):
            table.add_column(name, overflow="fold")
        for key, why in found:
            made = datetime.fromtimestamp(key.created / 1000, timezone.utc)
            state = Text("in use", style="green") if why is None else Text(f"refused: {why}", style="red")
            table.add_row(Text(key.tenant), Text(key.provider), f"…{key.hint}", f"{made:%Y-%m-%d}", state)
        show(table)
    else:
        click.echo("No tenant has a key of its own: 'behest byok set --tenant T --provider P' sets one.")


@byok.command("remove")
@store_option
@_tenant
@_provider
@by_whom
def remove(store: str | None, tenant: str, provider: str, by: str, why: str | None) -> None:
    """Make the tenant's calls to the provider with the gateway's key again."""
    from ..gateway.byok import ProviderKeys

    ledger = stores.existing(store, to_write=True)
    ProviderKeys(ledger, _masters(_settings()), actor=by, why=why).remove(tenant, provider)
    click.echo(f"Calls of {tenant} to {provider} are made, and paid, with the gateway's key from now on.")


@byok.command("new-master")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--rotate", is_flag=True, help="Put a new one before those that are in the file.")
def new_master(file: Path, rotate: bool) -> None:
    """Write a new master key into FILE, which its owner alone may read.

    To change the master key: --rotate, then 'behest byok reseal', then take the old one (the last
    line) out. Gateways read the file by themselves; where the key is in the environment, they are
    started with both, the new one first.
    """
    from ..gateway.byok import new_master as write

    if rotate and not file.exists():
        raise ConfigError(f"there is no file {str(file)!r} to put a new key into")
    write(file, first=rotate)
    if rotate:
        click.echo(f"{file} has a new master key, and the old ones: now 'behest byok reseal'.")
    else:
        line = f"[gateway.byok] key_file = {json.dumps(str(file))}"
        click.echo(f"{file} has a master key. In behest.toml: {line}")
        click.echo("Keep a copy elsewhere: what is encrypted with it cannot be read without it.")


@byok.command("reseal")
@store_option
@by_whom
def reseal(store: str | None, by: str, why: str | None) -> None:
    """Encrypt all keys with the newest master key.

    Exit code 1 if some are encrypted with one that is not here.
    """
    from ..gateway.byok import ProviderKeys

    ledger = stores.existing(store, to_write=True)
    done, left = ProviderKeys(ledger, _masters(_settings()), actor=by, why=why).reseal()
    for key, why in left:
        click.echo(f"The key of {key.tenant} for {key.provider} is left as it is: {why}.", err=True)
    click.echo(f"{done} keys are encrypted with the newest master key now.")
    if left:
        sys.exit(1)
    click.echo("The old master keys are needed no more.")


def _settings() -> GatewaySettings:
    from ..gateway.settings import GatewaySettings

    return GatewaySettings.of(stores.config().gateway)


def _masters(settings: GatewaySettings) -> Masters:
    from ..gateway.byok import Masters

    return Masters(settings.byok)


def _check_provider(settings: GatewaySettings, provider: str) -> None:
    # Where none is configured, the sandbox stands in, and is called that.
    known = list(settings.providers) or ["sandbox"]
    if provider not in known:
        raise ConfigError(
            f"no provider {provider!r} is configured{say_near(provider, known)}; known: {', '.join(known)} "
            "([gateway.providers] of behest.toml)"
        )


def _secret(file: IO[str] | None, key: str | None, what: str) -> str:
    if key is not None:
        return key
    if file is not None:
        return file.read().strip()
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True)).strip()
    return sys.stdin.read().strip()
