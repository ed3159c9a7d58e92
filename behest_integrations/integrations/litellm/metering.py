"""All that LiteLLM is asked, metered where each of its attempts is made."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any

import litellm

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...engine.layers import seen
from ...engine.steps import in_loop
from ...rules.errors import ConfigError
from ..kit import stainless
from ..kit.beneath import metering
from ..kit.call import Call
from ..kit.clients import metered_clients
from ..kit.generation import Generation
from ..kit.metered import plain
from ..kit.undo import Undo
from .internals import (
    ATTEMPTS,
    AWAITED,
    CLIENTS,
    COUNTED,
    PUBLIC,
    ROUTERS,
    UNDECORATED,
    cell_of,
    is_mocked,
    provider_of,
    swapped,
    tells_usage,
)
from .refusing import arrived, sending_off
from .streams import awatch, watch
from .translate import (
    COMPATIBLE,
    attribution_of,
    fold,
    hear,
    limited,
    price_provider,
    renamed,
    request_as_wire,
)

_ASYNC = {"completion": "acompletion", "embedding": "aembedding", "responses": "aresponses"}
"""The flag by which the awaited function calls the blocking one."""


class _Attempt:
    """One attempt, before it is made: its call, and the keywords to make it with."""

    def __init__(self, engine: Engine, name: str, asked: dict[str, Any]) -> None:
        model = str(asked.get("model") or "")
        self.name, self.asked = name, asked
        provider, url, plain = provider_of(model, asked)
        self._prefix = model.removesuffix(plain) if model.endswith(plain) else ""
        said, own = attribution_of(asked)
        self.user = said.user_id
        prices = price_provider(provider, url)
        generation = Generation(
            engine,
            request_as_wire(
                name, {**asked, "model": plain if prices is not None or provider in COMPATIBLE else model}
            ),
            operation="embeddings" if name == "embedding" else "chat",
            who=said,
            fallback=own,
            provider=prices,
            can_limit=name != "embedding",
            where=url,
            model_field=None if _names_another(asked) else "model",
        )
        self.call = Call(generation, self)
        self.streams = bool(asked.get("stream")) and name != "embedding"
        options = asked.get("stream_options")
        self.asks_usage = (
            self.streams
            and name == "completion"
            and engine.stream_usage
            and not (isinstance(options, dict) and "include_usage" in options)
            and tells_usage(model, provider)
        )

    def changes(self, hold: Any) -> dict[str, Any]:
        """The keywords that are other than the caller's."""
        changed = renamed(self.asked, self.user)
        cheaper = self.call.generation.stand_in
        if cheaper is not None:
            changed["model"] = f"{self._prefix}{cheaper}"
        limit = hold.output_limit
        if limit is not None and limit != self.call.generation.bound.output_limit:
            changed |= limited(self.name, self.asked, limit)
        if self.asks_usage:
            changed["stream_options"] = {**(self.asked.get("stream_options") or {}), "include_usage": True}
        return changed


def _names_another(asked: dict[str, Any]) -> bool:
    """Whether a model is put over the one that is asked for."""
    extra = asked.get("extra_body")
    return isinstance(extra, dict) and "model" in extra


def _metered(engine: Engine, name: str, own: Any) -> Any:
    """What is called for each attempt of a blocking function."""
    signature = inspect.signature(own)
    flag = _ASYNC[name]

    @functools.wraps(own)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        asked = _arguments(signature, args, kwargs)
        if is_mocked(name, asked):
            return own(*args, **kwargs)
        if asked.get(flag) is True:
            return _amade(engine, name, own, args, kwargs, asked)
        with sending_off():
            made = _Attempt(engine, name, asked)

            def send(hold: Any) -> Any:
                return own(**{**asked, **made.changes(hold)})

            if not made.streams:
                return made.call.made(send, hear)
            return watch(made.call.opened(send), made.call, fold, hide_usage=made.asks_usage)

    return attempt


async def _amade(
    engine: Engine, name: str, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any], asked: dict[str, Any]
) -> Any:
    with sending_off():
        made = _Attempt(engine, name, asked)

        async def send(hold: Any) -> Any:
            # It prepares its request in a thread, as LiteLLM would have had it do.
            context = contextvars.copy_context()
            call = partial(context.run, own, **{**asked, **made.changes(hold)})
            result = await asyncio.get_running_loop().run_in_executor(None, call)
            return await result if inspect.isawaitable(result) else result

        if not made.streams:
            return await made.call.amade(send, hear)
        stream = await made.call.aopened(send)
        return await awatch(stream, made.call, fold, hide_usage=made.asks_usage)


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    return {**dict(zip(signature.parameters, args, strict=False)), **kwargs}


_counted_here: ContextVar[bool] = ContextVar("behest_litellm_counted", default=False)
"""Whether what is asked has been counted already, and is not to be once more by the client beneath."""


@contextmanager
def _counting() -> Iterator[None]:
    token = _counted_here.set(True)
    try:
        yield
    finally:
        _counted_here.reset(token)


def _counted(engine: Engine, operation: str, own: Any) -> Any:
    """What is billed in other ways is a call that needs a price of its own."""
    signature = inspect.signature(own)

    def planned(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exchange:
        asked = _arguments(signature, args, kwargs)
        said, mine = attribution_of(asked)
        model = str(asked.get("model") or "")
        provider = price_provider(*provider_of(model, asked)[:2]) if model else None
        return Exchange(engine, operation, {"model": model}, who=said, fallback=mine, provider=provider)

    if inspect.iscoroutinefunction(own):

        @functools.wraps(own)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with sending_off():
                exchange = planned(args, kwargs)
                hold = await engine.areserve(exchange.plan)
                try:
                    with seen(), _counting():
                        return await own(*args, **kwargs)
                finally:
                    hold.post(exchange.complete())

        return awaited

    @functools.wraps(own)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        with sending_off():
            exchange = planned(args, kwargs)
            hold = engine.run(engine.reserving(exchange.plan, wait=not in_loop()))
            try:
                with seen(), _counting():
                    return own(*args, **kwargs)
            finally:
                hold.post(exchange.complete())

    return blocking


def _client(engine: Engine, own: Any) -> Any:
    """What LiteLLM gets its clients of OpenAI's SDK from: each attempt of theirs is metered."""

    @functools.wraps(own)
    def method(*args: Any, **kwargs: Any) -> Any:
        client = own(*args, **kwargs)
        if _counted_here.get():
            return plain(client) if isinstance(client, stainless.Metered) else client
        return metered_clients(engine, {"client": client}, None).get("client", client)

    return method


# ── for the whole process ──────────────────────────────────────────────────────────────

_lock = threading.Lock()
_metering: Engine | None = None
_times = 0
_undoing: list[Callable[[], None]] = []


def meter_litellm(engine: Engine) -> Undo:
    """See `LiteLLMDoor.litellm`."""
    global _metering, _times
    with _lock:
        if _metering is not None and _metering is not engine:
            raise ConfigError("another meter has LiteLLM: end its metering first")
        _metering = engine
        _times += 1
        if _times == 1:
            _put(engine)
            metering("litellm", engine)

    def undo() -> None:
        global _metering, _times
        with _lock:
            _times -= 1
            if not _times:
                _metering = None
                metering("litellm", None)
                while _undoing:
                    _undoing.pop()()

    return Undo(undo)


def _put(engine: Engine) -> None:
    def fill(module: str, name: str, make: Callable[[Any], Any]) -> None:
        cell = cell_of(module, name)
        if cell is None:
            return
        before = cell.cell_contents
        cell.cell_contents = ours = make(before)

        def empty() -> None:
            if cell.cell_contents is ours:
                cell.cell_contents = before

        _undoing.append(empty)

    for name, module in ATTEMPTS.items():
        fill(module, name, partial(_metered, engine, name))
    for name, module, operation in COUNTED:
        fill(module, name, partial(_counted, engine, operation))
    for name, module in AWAITED.items():
        fill(module, name, arrived)
    for module, name in UNDECORATED:
        with suppress(ImportError):
            keeper = import_module(module)
            if hasattr(keeper, name):
                _undoing.append(swapped(keeper, name, partial(_counted, engine, "messages.create")))
                break
    for name in PUBLIC:
        _undoing.append(swapped(litellm, name, arrived))
    for module, owner, names in ROUTERS:
        with suppress(ImportError):
            router = getattr(import_module(module), owner)
            _undoing.extend(swapped(router, name, arrived) for name in names)
    for module, owner, name in CLIENTS:
        _undoing.append(swapped(getattr(import_module(module), owner), name, partial(_client, engine)))
