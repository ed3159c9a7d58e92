"""HTTP clients of `httpx` and `httpx2`, metered: for who calls an API by hand, and for SDKs that send by one.

A client of a subclass of the caller's own class, whose calls of models are metered.

Every request of httpx (0.25 to 0.28) and httpx2 (2.16) passes `send`, before it is signed and after
it is built. A refusal is raised there, to whoever called: an SDK that was given the client may wrap it,
and repeat it. What a metered SDK sends through it is that SDK's own, and is counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

from pydantic_core import to_json

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...engine.layers import seen
from ...engine.ruling import looks_through, screened
from ...engine.steps import Aside, Steps
from ...prices import ModelHost, model_host, named_hosts
from ...prices.hosts import NAMED
from ...rules.attribution import SESSION_HEADER, USER_HEADER, Attribution, from_headers
from ...rules.errors import ConfigError
from ...wire import parse_json
from ...wire.wires import Found, find
from .metered import metered_class
from .stainless import Call, asend_reserved, is_sending, send_reserved, with_content
from .terms import Terms

_LIBRARIES = ("httpx", "httpx2")
_NONE: Mapping[str, str] = {}


class _Metered:
    _behest: Terms
    _behest_hosts: frozenset[str] | None
    """Hosts that serve models beside those that are known; None: whatever it calls."""
    _behest_headers: Mapping[str, str]
    """What it sends with every request, in lower case."""
    _asynchronous: bool

    def _begin(self, request: Any) -> HTTPCall | None:
        """The call that a request is; None: none of ours, or counted by an SDK's door."""
        served = self._served(request.url)
        if served is None:
            return None
        provider = self._behest.provider or served.provider
        found = find(request.method, request.url.path, provider)
        if found is None or is_sending():
            return None
        call = HTTPCall(self._behest, found, asynchronous=self._asynchronous)
        call.where, call.provider = _where(request.url), provider
        own: Any = self
        call.fallback, call.who = _who(request.headers, own.headers, self._behest_headers)
        return call

    def _served(self, url: Any) -> ModelHost | None:
        """The host, if it serves models."""
        served = _served(f"{_where(url)}{url.path}", self._behest_hosts or frozenset())
        return NAMED if served is None and self._behest_hosts is None else served

    def _is_looked_through(self, request: Any) -> bool:
        """Whether a request that is not billed may take people's words to a provider, and a policy asks."""
        return (
            looks_through(self._behest.engine, request.method)
            and self._served(request.url) is not None
            and not is_sending()
        )


class _MeteredSync(_Metered):
    _asynchronous = False

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super().send  # type: ignore[misc]
        call = self._begin(request)
        engine = self._behest.engine
        if call is None and self._is_looked_through(request):
            request.read()
            request = engine.run(_looked_through(engine, request))
        elif call is not None:
            request.read()
            request = engine.run(call.prepared(request))
        with seen():
            if call is None:
                return send(request, stream=stream, **kwargs)
            return send_reserved(engine, call, send, request, stream=stream, **kwargs)


class _MeteredAsync(_Metered):
    _asynchronous = True

    async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super().send  # type: ignore[misc]
        call = self._begin(request)
        engine = self._behest.engine
        if call is None and self._is_looked_through(request):
            await request.aread()
            request = await engine.arun(_looked_through(engine, request))
        elif call is not None:
            await request.aread()
            request = await engine.arun(call.prepared(request))
        with seen():
            if call is None:
                return await send(request, stream=stream, **kwargs)
            return await asend_reserved(engine, call, send, request, stream=stream, **kwargs)


class HTTPCall(Call):
    """One request, and its reply.

    Attributes:
        where, provider, who, fallback: see `Exchange`.
    """

    where: str
    provider: str | None
    who: Attribution
    fallback: Attribution

    @staticmethod
    def content_of(request: Any) -> bytes:
        """A request's body."""
        content: bytes = request.content
        return content

    with_content = staticmethod(with_content)
    """A request like one with another body."""

    def __init__(self, terms: Terms, found: Found, *, asynchronous: bool) -> None:
        super().__init__(terms, found.operation, None, asynchronous=asynchronous)
        self._found = found

    def prepared(self, request: Any) -> Steps[Any]:
        """Reserve it; the request to send under its hold."""
        found = self._found
        try:
            said = parse_json(self.content_of(request))
        except ValueError:
            said = {}
        body: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {}
        told = {"model": unquote(found.model) if found.model else None, "stream": found.stream}
        # What the path says is what counts, whatever the body says beside it.
        in_path = {n: value for n, value in told.items() if value is not None}
        engine = self.terms.engine
        options: dict[str, Any] = {
            "who": self.who,
            "fallback": self.fallback,
            "provider": self.provider,
            "where": self.where,
            # What is no JSON (a form with a file) is not read.
            "unread": () if isinstance(said, Mapping) and body else ("file",),
        }
        plan = partial(Exchange, engine, found.operation, {**body, **in_path}, **options)
        looked_through = engine.policy is not None and engine.policy.screening
        asked: Exchange = (yield Aside(plan)) if looked_through else plan()

        def instead(model: str) -> Exchange | None:
            if found.model is not None:  # it is in the path, which is not ours to write
                return None
            return Exchange(engine, found.operation, {"model": model}, instead=asked, **options)

        self.exchange, self._open = yield from asked.reserving(instead)
        changed = self.exchange.reserved(self._open)
        sent = {n: v for n, v in changed.items() if n not in in_path} | {
            n: body[n] for n in in_path if n in body
        }
        return request if sent == body else self.with_content(request, to_json(sent))


def looked_through(
    engine: Engine, request: Any, content: bytes, who: Attribution, rebuilt: Callable[[Any, bytes], Any]
) -> Steps[Any]:
    """The request to send, of those that are not billed, with its texts looked through.

    Args:
        rebuilt: makes a request like one with another body.

    Raises:
        PolicyRefused: something in them blocks them.
    """
    try:
        said = parse_json(content)
    except ValueError:
        said = None
    body = dict(said) if isinstance(said, Mapping) else {}
    unread = ("file",) if content and not isinstance(said, Mapping) else ()
    sent = yield Aside(partial(screened, engine, body, who=who, unread=unread))
    return request if sent is body else rebuilt(request, to_json(sent))


def _looked_through(engine: Engine, request: Any) -> Steps[Any]:
    return looked_through(engine, request, request.content, from_headers(request.headers), with_content)


def _who(sent: Mapping[str, str], *own: Mapping[str, str]) -> tuple[Attribution, Attribution]:
    """Whom a request is for: by what its client sends with every one, and by what is its own alone."""
    told = {name: value for name in (SESSION_HEADER, USER_HEADER) if (value := sent.get(name)) is not None}
    usual = {n: v for n, v in told.items() if any(headers.get(n) == v for headers in own)}
    return from_headers(usual), from_headers({n: v for n, v in told.items() if n not in usual})


def _where(url: Any) -> str:
    return f"{url.scheme}://{url.netloc.decode('latin-1')}"


_served = lru_cache(maxsize=1024)(model_host)


def meter_client(terms: Terms, client: Any, hosts: Iterable[str]) -> Any:
    """See `HTTPDoor.httpx`."""
    return metered_copy(terms, client, hosts=named_hosts(hosts) | terms.engine.hosts)


def metered_copy(
    terms: Terms, client: Any, *, hosts: frozenset[str] | None, headers: Mapping[str, str] = _NONE
) -> Any:
    """A client like `client`, of its own class and over its connections, whose calls are metered.

    Args:
        hosts: that serve models beside those that are known; None: whatever it calls.
        headers: that an SDK sends with each request, beside the client's own.

    Raises:
        ConfigError: not such a client, or metered already.
    """
    base = type(client)
    names = {c.__name__ for c in base.__mro__ if c.__module__.partition(".")[0] in _LIBRARIES}
    if not names & {"Client", "AsyncClient"}:
        raise ConfigError(
            f"meter.httpx() takes a Client or AsyncClient of httpx or httpx2, not {base.__name__}"
        )
    if issubclass(base, _Metered):
        raise ConfigError("this client is metered already")
    mixin = _MeteredAsync if "AsyncClient" in names else _MeteredSync
    metered: Any = object.__new__(metered_class(terms, base, mixin))
    metered.__dict__.update(vars(client))
    metered._behest_hosts = hosts
    metered._behest_headers = {name.lower(): value for name, value in headers.items()}
    return metered
