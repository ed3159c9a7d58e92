"""What helps before a call is made: what it costs, and a provider to try it on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from ..rules.near import near, say_near
from . import store as stores

if TYPE_CHECKING:
    from ..prices import ModelPricing, Pricing


@click.command()
@click.argument("model")
@click.option("--provider", help="A price list's provider id, e.g. openai, azure, google.")
def prices(model: str, provider: str | None) -> None:
    """What MODEL costs, in USD per million tokens, and where that is from."""
    from ..prices import Pricing
    from ..reports.look import show
    from .look import price_facts, price_table

    if not model.strip():
        raise click.UsageError("name a model, such as gpt-4o")
    arguments = stores.config().arguments()
    learnt = [*_learnt(model)]
    try:
        found = _find(Pricing(arguments["prices"], arguments.get("aliases")), model, provider)
    except click.ClickException as error:
        raise click.ClickException("\n".join([error.message, *learnt])) from None
    for fact in price_facts(found):
        click.echo(fact)
    click.echo()
    show(price_table(found))
    for fact in learnt:
        click.echo(fact)


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

    if provider is not None and provider not in (known := providers()):
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
    sold = providers_of(model)
    if sold:
        lines.append(f"It has one at {', '.join(sold)}: give --provider.")
    # A router's name for a model has its provider's name before it.
    tail = model.rpartition("/")[2]
    listed = models_of(provider)
    found = dict.fromkeys((tail, *near(tail, listed), *near(model, listed)))
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
