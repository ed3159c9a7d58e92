"""Websockets of the OpenAI client are counted, or refused, before they connect; all that the SDK has.

Where one of these fails after a new version of the SDK: its connection managers have moved, and
`integrations/openai/websockets.py` says what it relies on.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai.resources
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai._resource import AsyncAPIResource, SyncAPIResource
from support import entries

from behest_integrations import BudgetExceeded, Meter, Unbounded

websockets_server = pytest.importorskip("websockets.sync.server")
from websockets.exceptions import WebSocketException  # noqa: E402


def _modules() -> list[Any]:
    found = pkgutil.walk_packages(openai.resources.__path__, "openai.resources.")
    return [importlib.import_module(m.name) for m in found]


def _classes(what: Any) -> dict[str, type]:
    found = {
        f"{module.__name__.removeprefix('openai.resources.')}.{name}": value
        for module in _modules()
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and what(value)
    }
    return dict(sorted(found.items()))


MANAGERS = _classes(lambda c: c.__name__.endswith("ConnectionManager"))
CONNECTING = _classes(lambda c: issubclass(c, (SyncAPIResource, AsyncAPIResource)) and hasattr(c, "connect"))


class Server:
    """Takes any websocket, and closes it as a provider does that restarts."""

    def __init__(self) -> None:
        self.connected = 0
        self.code = 1000
        self._server = websockets_server.serve(self._handle, "127.0.0.1", 0, process_request=self._count)
        self.url = f"127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _count(self, connection: Any, request: Any) -> None:
        self.connected += 1  # before the client knows that it is connected

    def _handle(self, connection: Any) -> None:
        connection.close(self.code)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


def _client(resource: type, meter: Meter, server: Server, *, azure: bool) -> Any:
    asynchronous = issubclass(resource, AsyncAPIResource)
    options = {"api_key": "none", "websocket_base_url": f"ws://{server.url}/v1"}
    if not azure:
        kind: Any = AsyncOpenAI if asynchronous else OpenAI
        return meter.openai(kind(base_url=f"http://{server.url}/v1", **options))
    kind = AsyncAzureOpenAI if asynchronous else AzureOpenAI
    return meter.openai(
        kind(azure_endpoint=f"http://{server.url}", api_version="2025-04-01-preview", **options)
    )


def _connect(resource: type, client: Any, **options: Any) -> Any:
    """What opens the websocket, not opened."""
    connect = resource(client).connect  # type: ignore[attr-defined]
    needed = {
        name: "gpt-realtime"
        for name, parameter in inspect.signature(connect).parameters.items()
        if name == "model"
        or (parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD)
    }
    return connect(**needed, **options)


@contextmanager
def _none_of_ours() -> Iterator[None]:
    try:
        yield
    except (OSError, WebSocketException):
        pass


def _open(manager: Any) -> None:
    """Open and close it; a failure to connect is none of ours."""
    with _none_of_ours():
        if hasattr(manager, "__aenter__"):
            asyncio.run(_aopen(manager))
        else:
            with manager:
                pass


async def _aopen(manager: Any) -> None:
    async with manager:
        pass


def test_every_manager_has_a_resource_that_is_tried_here() -> None:
    assert len(MANAGERS) == len(CONNECTING) >= 4, (list(MANAGERS), list(CONNECTING))


@pytest.mark.parametrize("azure", [False, True], ids=["openai", "azure"])
@pytest.mark.parametrize("name", CONNECTING)
def test_each_is_counted_once_and_refused_before_it_connects(name: str, azure: bool, server: Server) -> None:
    resource = CONNECTING[name]
    with Meter("memory://", budgets=["2 calls per session"]) as meter:
        metered = _client(resource, meter, server, azure=azure)
        for times in (1, 2):
            _open(_connect(resource, metered))
            assert [e.operation for e in entries(meter)] == ["realtime"] * times, f"{name} has moved"
        connected = server.connected
        assert connected == 2 or azure
        with pytest.raises(BudgetExceeded):
            _open(_connect(resource, metered))
        assert server.connected == connected
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(Unbounded, match="realtime"):
            _open(_connect(resource, _client(resource, meter, server, azure=azure)))
        assert server.connected == connected
        assert entries(meter) == []


@pytest.mark.parametrize("azure", [False, True], ids=["openai", "azure"])
def test_reading_a_clients_headers_books_nothing(azure: bool, server: Server) -> None:
    for budget in ("1 calls", "$1"):
        with Meter("memory://", budgets=[budget]) as meter:
            for resource in (SyncAPIResource, AsyncAPIResource):
                metered = _client(resource, meter, server, azure=azure)
                plain = type(metered).__mro__[2].auth_headers.fget(metered)  # type: ignore[attr-defined]
                for _ in range(3):
                    assert metered.auth_headers == plain
                    assert dict(metered.default_headers)
                    assert metered.copy(timeout=3).auth_headers == plain
            assert entries(meter) == []


def test_connecting_again_is_counted_too(server: Server) -> None:
    server.code = 1012  # the service restarts: the SDK connects again
    with Meter("memory://", budgets=["3 calls"]) as meter:
        metered = _client(SyncAPIResource, meter, server, azure=False)
        manager = metered.realtime.connect(
            model="gpt-realtime", on_reconnecting=lambda event: None, initial_delay=0.01, max_delay=0.01
        )
        with pytest.raises(Exception, match="1012"), manager as connection:
            for _ in connection:
                pass
        assert server.connected == 3
        assert len(entries(meter)) == 3
