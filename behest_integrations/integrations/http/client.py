"""A client of a subclass of the caller's own class, whose calls of models are metered.

Every request of httpx (0.25 to 0.28) and httpx2 (2.16) passes `send`, before it is signed and after
it is built. A refusal is raised there, to whoever called: an SDK that was given the client may wrap it,
and repeat it. What a metered SDK sends through it is that SDK's own, and is counted there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

from pydantic_core import to_json

from ...calls.exchange import Exchange, unasked
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.outcomes import outcome_of_error, outcome_of_status
from ...engine.ruling import screened
from ...engine.steps import Aside, Steps
from ...prices import provider_for_url
from ...rules.attribution import from_headers
from ...rules.errors import ConfigError
from ...wire import parse_json
from ...wire.wires import Found, find
from ..kit.metered import metered_class
from ..kit.response import watch_response
from ..kit.stainless import is_sending
from ..kit.terms import Terms

_LIBRARIES = ("httpx", "httpx2")


class _Metered:
    _behest: Terms
    _behest_hosts: frozenset[str]
    _asynchronous: bool

    def _begin(self, request: Any) -> _Call | None:
        """The call that a request is; None: none of ours, or counted by an SDK's door."""
        if not self._is_ours(request.url):
            return None
        found = find(request.method, request.url.path)
        if found is None or is_sending():
            return None
        where = _where(request.url)
        return _Call(self._behest, found, where, request, asynchronous=self._asynchronous)

    def _is_ours(self, url: Any) -> bool:
        """Whether it is a host that serves models."""
        named = url.host in self._behest_hosts or url.netloc.decode("latin-1") in self._behest_hosts
        return named or _provider(_where(url)) is not None

    def _is_looked_through(self, request: Any) -> bool:
        """Whether a request that is not billed may take people's words to a provider, and a policy asks."""
        policy = self._behest.engine.policy
        return (
            policy is not None
            and policy.screening
            and request.method.upper() in ("POST", "PUT", "PATCH")
            and self._is_ours(request.url)
            and not is_sending()
        )


class _MeteredSync(_Metered):
    _asynchronous = False

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super().send  # type: ignore[misc]
        call = self._begin(request)
        engine = self._behest.engine
        if call is None:
            if self._is_looked_through(request):
                request.read()
                request = engine.run(_looked_through(engine, request))
            return send(request, stream=stream, **kwargs)
        request.read()
        request = engine.run(call.reserved())
        try:
            response = send(request, stream=stream, **kwargs)
            again = call.again(request, response)
            if again is not None:
                response.read()
                response = send(again, stream=stream, **kwargs)
                call.again(again, response)
        except BaseException as error:
            call.hold.end(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)
        if steps is not None:
            engine.run(steps)
        return response


class _MeteredAsync(_Metered):
    _asynchronous = True

    async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super().send  # type: ignore[misc]
        call = self._begin(request)
        engine = self._behest.engine
        if call is None:
            if self._is_looked_through(request):
                await request.aread()
                request = await engine.arun(_looked_through(engine, request))
            return await send(request, stream=stream, **kwargs)
        await request.aread()
        request = await engine.arun(call.reserved())
        try:
            response = await send(request, stream=stream, **kwargs)
            again = call.again(request, response)
            if again is not None:
                await response.aread()
                response = await send(again, stream=stream, **kwargs)
                call.again(again, response)
        except BaseException as error:
            # A cancelled task may be cancelled again: it must not wait here.
            call.hold.post(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)
        if steps is not None:
            await engine.arun(steps)
        return response


class _Call:
    """One request, and its reply."""

    hold: Hold

    def __init__(self, terms: Terms, found: Found, where: str, request: Any, *, asynchronous: bool) -> None:
        self._terms = terms
        self._found = found
        self._where = where
        self._request = request
        self._asynchronous = asynchronous
        self._exchange: Exchange

    def reserved(self) -> Steps[Any]:
        """Reserve it; the request to send under its hold."""
        request, found = self._request, self._found
        try:
            said = parse_json(request.content)
        except ValueError:
            said = {}
        body: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {}
        told = {"model": unquote(found.model) if found.model else None, "stream": found.stream}
        in_path = {n: value for n, value in told.items() if value is not None and n not in body}
        engine = self._terms.engine
        plan = partial(
            Exchange,
            engine,
            found.operation,
            {**body, **in_path},
            who=from_headers(request.headers),
            provider=self._terms.provider or _provider(self._where),
            where=self._where,
            # What is no JSON (a form with a file) is not read.
            unread=() if isinstance(said, Mapping) and body else ("file",),
        )
        looked_through = engine.policy is not None and engine.policy.screening
        self._exchange = exchange = (yield Aside(plan)) if looked_through else plan()
        self.hold = yield from self._terms.engine.reserving(exchange.plan)
        changed = exchange.reserved(self.hold)
        sent = {name: value for name, value in changed.items() if name not in in_path}
        return request if sent == body else _with_content(request, to_json(sent))

    def again(self, request: Any, response: Any) -> Any:
        """The request to send in the place of one that was refused for what we put in; else None."""
        if not self._exchange.answered(response.status_code):
            return None
        return _with_content(request, unasked(request.content))

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        """The steps that end it; None if its outcome is still to come with the body."""
        exchange, hold = self._exchange, self.hold
        outcome = outcome_of_status(response.status_code)
        if outcome is None:
            if streamed and not response.is_stream_consumed:
                watch_response(response, exchange, hold, asynchronous=self._asynchronous)
                return None
            shown = exchange.read_body(response.content)
            if shown is not response.content:
                response._content = shown
            outcome = exchange.complete()
        return hold.keeper.ending(hold, outcome)


def _looked_through(engine: Engine, request: Any) -> Steps[Any]:
    """The request to send, with its texts looked through.

    Raises:
        PolicyRefused: something in them blocks them.
    """
    try:
        said = parse_json(request.content)
    except ValueError:
        said = None
    body = dict(said) if isinstance(said, Mapping) else {}
    unread = ("file",) if request.content and not isinstance(said, Mapping) else ()
    who = from_headers(request.headers)
    sent = yield Aside(partial(screened, engine, body, who=who, unread=unread))
    return request if sent is body else _with_content(request, to_json(sent))


def _where(url: Any) -> str:
    return f"{url.scheme}://{url.netloc.decode('latin-1')}"


def _with_content(request: Any, content: bytes) -> Any:
    """The request with another body, of the class that its library has."""
    headers = [(n, v) for n, v in request.headers.raw if n.lower() != b"content-length"]
    return type(request)(
        request.method, request.url, headers=headers, content=content, extensions=request.extensions
    )


@lru_cache(maxsize=1024)
def _provider(where: str) -> str | None:
    return provider_for_url(where)


def meter_client(terms: Terms, client: Any, hosts: Iterable[str]) -> Any:
    """See `HTTPDoor.httpx`."""
    base = type(client)
    names = {c.__name__ for c in base.__mro__ if c.__module__.partition(".")[0] in _LIBRARIES}
    if not names & {"Client", "AsyncClient"}:
        raise ConfigError(
            f"meter.httpx() takes a Client or AsyncClient of httpx or httpx2, not {base.__name__}"
        )
    if issubclass(base, _Metered):
        raise ConfigError("this client is metered already")
    if isinstance(hosts, str):
        raise ConfigError(f"hosts is a list of names, not {hosts!r}")
    mixin = _MeteredAsync if "AsyncClient" in names else _MeteredSync
    metered: Any = object.__new__(metered_class(terms, base, mixin))
    metered.__dict__.update(vars(client))
    metered._behest_hosts = frozenset(hosts)
    return metered
