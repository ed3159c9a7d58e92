"""`behest dashboard`: the pages over a ledger, served on this machine."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..rules.errors import need
from . import store as stores

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..ledger import Ledger


PORT = 8090


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option("--open/--no-open", "open_", default=True, show_default=True, help="Open the browser.")
@click.option(
    "--token/--no-token", "with_token", default=None, help="Ask for a token. Default: off this machine."
)
@click.option("--timezone", "zone", default=None, help="Of days. Default: behest.toml's, or UTC.")
@stores.store_option
def dashboard(
    host: str, port: int, open_: bool, with_token: bool | None, zone: str | None, store: str | None
) -> None:
    """Show what was spent, and how the budgets stand, in a browser. It writes nothing.

    On this machine's loopback no token is needed. Anywhere else a token is asked for, which is shown
    here, and in the address.
    """
    from ..rules.budgets import check_zone
    from .tools import check_free

    zone = check_zone(zone or stores.config().timezone or "UTC")
    local = is_loopback(host)
    if with_token is False and not local:
        raise click.UsageError(f"without a token the dashboard listens on loopback alone, not on {host!r}")
    ledger = stores.existing(store)
    token = secrets.token_urlsafe(24) if with_token or not local else None
    app = application(ledger, zone, token, _name(stores.url_of(store)))
    check_free(host, port)
    address = address_of(host, port, token)
    click.echo(f"The dashboard is at {address}", err=True)
    if token is not None:
        click.echo("Whoever has this address can look. It ends with this program.", err=True)
    if open_:
        webbrowser.open(address)
    serve(app, host, port)


def application(ledger: Ledger, zone: str, token: str | None, name: str) -> Starlette:
    """The pages over `ledger`.

    Raises:
        MissingExtra: the `dashboard` extra is not installed.
    """
    with need("The dashboard's server", "dashboard"):
        import uvicorn as _uvicorn  # noqa: F401

    from ..dashboard import local_dashboard
    from ..dashboard.look import Books
    from ..rules.errors import ConfigError

    try:
        keys = ledger.keys()
    except ConfigError:  # this store keeps none
        keys = None
    books = Books(
        ledger, zone, name, lambda: datetime.now(timezone.utc), keys.all if keys and keys.all() else None
    )
    return local_dashboard(books, token)


@contextmanager
def in_background(app: Starlette) -> Iterator[str]:
    """Serve on this machine while something else goes on; the address."""
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", PORT))
    except OSError:  # somebody has it: any other will do
        listener.bind(("127.0.0.1", 0))
    # It listens from here on: a browser that is opened at once waits for it.
    listener.listen(64)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="behest-dashboard", daemon=True
    )
    thread.start()
    try:
        yield address_of("127.0.0.1", listener.getsockname()[1], None)
    finally:
        server.should_exit = True
        thread.join(5)


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip


def address_of(host: str, port: int, token: str | None) -> str:
    """Where a browser finds it. What follows # is sent to no server, and is in no log."""
    shown = "localhost" if host in ("127.0.0.1", "::1", "localhost") else f"[{host}]" if ":" in host else host
    if shown in ("0.0.0.0", "[::]"):
        shown = "localhost"
    address = f"http://{shown}:{port}/dashboard"
    return address if token is None else f"{address}/sign-in#token={token}"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(url: str) -> str:
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///")).name
    return url.partition("@")[2] or url.partition("://")[2]
