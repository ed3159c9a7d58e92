"""What helps before a call is made: what it costs, and a provider to try it on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from ..rules.near import near, say_near
from . import store as stores

if TYPE_CHECKING:
    from ..prices import ModelPricing, Pricing
    from ..prices.lists import PriceList


@click.command()
@click.argument("model", required=False)
@click.option("--provider", help="A price list's provider id, e.g. openai, azure, google.")
@click.option(
    "--update",
    "source",
    metavar="FILE|URL",
    callback=stores.not_empty,
    help="Put a newer price list in the place of the one in use, if it is one.",
)
@click.option("--force", is_flag=True, help="With --update: also where prices or models vanish.")
def prices(model: str | None, provider: str | None, source: str | None, force: bool) -> None:
    """What MODEL costs, in USD per million tokens; without one, which price list is in use.

    A newer list is fetched only when --update says so, into the file that price_list of behest.toml names
    (prices.json, where it names none). genai-prices publishes its list at
    https://raw.githubusercontent.com/pydantic/genai-prices/refs/heads/main/prices/new_data/v2/data.json
    """
    from ..reports.look import show
    from .look import price_facts, price_table

    if source is not None:
        if model is not None or provider is not None:
            raise click.UsageError("--update replaces the whole list: name no model with it")
        _update(source, force=force)
        return
    if force:
        raise click.UsageError("--force goes with --update")
    pricing = stores.config().pricing()
    if model is None:
        if provider is not None:
            raise click.UsageError("name a model, such as gpt-4o")
        click.echo(_describe(pricing.listed))
        return
    if not model.strip():
        raise click.UsageError("name a model, such as gpt-4o")
    learnt = [*_learnt(model)]
    try:
        found = _find(pricing, model, provider)
    except click.ClickException as error:
        raise click.ClickException("\n".join([error.message, *learnt])) from None
    for fact in price_facts(found):
        click.echo(fact)
    if not found.own:
        click.echo(f"{'price list:':<16} {_describe(pricing.listed)}")
    click.echo()
    show(price_table(found))
    for fact in learnt:
        click.echo(fact)


_MOST_NAMED = 8


def _describe(listed: PriceList) -> str:
    """A price list in a line: where it is from, how old it is, where it is kept."""
    said = [listed.source, f"{listed.models:,} models"]
    if listed.at is not None:
        days = (datetime.now(timezone.utc) - listed.at).days
        said.append(f"fetched {listed.at:%Y-%m-%d}, {f'{days} days ago' if days != 1 else 'a day ago'}")
    if listed.path is not None:
        said.append(f"kept in {listed.path}")
    return "; ".join(said)


def _update(source: str, *, force: bool) -> None:
    """Put a newer list in the place of the one in use, once it has been read and compared."""
    from ..prices.changes import changes
    from ..prices.lists import brought, fetch, keep, parse_list, read_list
    from ..rules.errors import ConfigError

    configured = stores.config().price_list
    path = configured or "prices.json"
    try:
        before = read_list(path)
    except ConfigError:  # there is none yet, or it is none
        before = brought()
    data = fetch(source)
    after = parse_list(data, f"what {source!r} has", path)
    found = changes(before, after)
    doubts = [*found.doubts()]
    if doubts and not force:
        raise click.ClickException(
            f"{source} is not used: {'; '.join(doubts)}. Nothing was changed. Look at it, and say --force "
            "if it is right."
        )
    keep(path, data, source)
    _note(source, path, after.digest, str(found))
    click.echo(f"{path}: {found}.")
    for what, models in (("dearer", found.dearer), ("cheaper", found.cheaper)):
        names = [f"{name} ({provider})" for provider, name in models[:_MOST_NAMED]]
        if names:
            click.echo(f"  {what}: {', '.join(names)}{', …' if len(models) > _MOST_NAMED else ''}")
    if configured is None:
        click.echo(f'It is used once behest.toml says: price_list = "{path}", or Meter(price_list="{path}").')
    else:
        click.echo("Programs and gateways that run have the old one until they are started again.")


def _note(source: str, path: str, digest: str, what: str) -> None:
    """Note in the audit of the ledger here, if there is one, that prices have changed."""
    from ..engine.engine import now_ms
    from ..ledger.audit import Decision
    from ..rules.errors import BehestError

    try:
        ledger = stores.find(None, to_write=True)
    except BehestError as error:
        click.echo(f"It is not in the ledger's audit: {error}", err=True)
        return
    if ledger is not None:
        details = {"what": "price list", "source": source, "file": path, "sha256": digest, "changes": what}
        decision = Decision(
            now_ms(), "admin", "price list", actor=f"cli:{stores.user_name()}", details=details
        )
        ledger.submit(lambda rows: rows.add_audit(decision))


def _learnt(model: str) -> Iterator[str]:
    """What the ledger here, if there is one, has learnt of `model` from its bills."""
    from .look import lesson_facts

    ledger = stores.find(None)
    if ledger is not None:
        with closing(ledger):
            for (server, name), values in sorted(ledger.submit(lambda rows: dict(rows.lessons())).items()):
                if name == model:
                    yield from lesson_facts(server, values)


def _find(pricing: Pricing, model: str, provider: str | None) -> ModelPricing:
    from ..prices.names import models_of, providers, providers_of
    from ..rules.errors import UnknownPrice

    listed = pricing.listed
    if provider is not None and provider not in (known := providers(listed)):
        raise click.UsageError(f"no provider {provider!r} in the price list{say_near(provider, known)}")

    def priced(name: str) -> bool:
        try:
            return bool(pricing.find(name, provider))
        except UnknownPrice:
            return False

    if priced(model):
        return pricing.find(model, provider)
    at = f" at {provider}" if provider else ""
    lines = [f"No price is known for the model {model!r}{at}."]
    sold = providers_of(model, listed)
    if sold:
        lines.append(f"It has one at {', '.join(sold)}: give --provider.")
    # A router's name for a model has its provider's name before it.
    tail = model.rpartition("/")[2]
    names = models_of(provider, listed)
    found = dict.fromkeys((tail, *near(tail, names), *near(model, names)))
    close = [name for name in found if name != model and priced(name)]
    if close:
        lines.append(f"Names that are near: {', '.join(close[:3])}.")
    if sold and not close:
        raise click.ClickException("\n".join(lines))
    name = json.dumps(model, ensure_ascii=False)
    lines += [
        "If you know its price, write it in behest.toml, in USD per million tokens, as text:",
        f'\n    [prices.{name}]\n    input = "0.15"\n    output = "0.60"\n',
        "or name the model that it stands for:",
        f'\n    [aliases]\n    {name} = "{close[0] if close else "gpt-4o"}"',
    ]
    raise click.ClickException("\n".join(lines))


def _finite(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if value != value:  # "nan" is within every range
        raise click.BadParameter("it is a number of seconds")
    return value


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8089, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--latency",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 3600),
    callback=_finite,
    help="Seconds before each answer.",
)
def sandbox(host: str, port: int, latency: float) -> None:
    """Serve the offline provider until interrupted."""
    from ..sandbox import Sandbox

    provider = Sandbox(host=host, port=port, latency=latency)
    check_free(host, port)
    click.echo(f"The sandbox answers at http://{host}:{port}/v1 (any key); its bill is at /sandbox/bill")
    provider.run()


def check_free(host: str, port: int) -> None:
    """Find out whether a port can be listened on before anything is said to answer there.

    Raises:
        click.ClickException: it cannot, and why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {error.strerror or error}. "
            "Choose another with --host or --port."
        ) from None
