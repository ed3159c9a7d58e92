"""One call of an SDK of the kind that OpenAI and Anthropic have: attempt by attempt, over HTTP.

Both are made by one generator (Stainless): a request passes `request`, which makes attempts of it;
each has its options prepared, is built, and is sent by an `httpx` client. Where a door hooks in is its
own affair; what it does there is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from ...calls.exchange import Exchange, unasked
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.outcomes import CANCELLED, outcome_of_status
from ...engine.ruling import looks_through, screened
from ...engine.steps import Aside, Steps
from ...prices import provider_for_url
from ...rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, from_headers
from .cutting import note
from .response import watch_response
from .terms import Terms
from .undo import Undo


class Free:
    """A request that is not billed: nothing is done about it."""

    def take(self) -> Hold | None:
        return None


class Call:
    """One `request` of an SDK: the attempts it takes, one after the other.

    Args:
        client: the SDK's client; it has `base_url` and `_custom_headers`.
        asynchronous: whether it is awaited.
    """

    def __init__(self, terms: Terms, operation: str, client: Any, *, asynchronous: bool) -> None:
        self.terms = terms
        self.operation = operation
        self.client = client
        self.asynchronous = asynchronous
        self.exchange: Exchange | None = None
        self._open: Hold | None = None

    def prepared(self, options: Any) -> Steps[Any]:
        """Reserve the attempt that `options` describe; the options to send under its hold."""
        exchange, hold = self.exchange, None
        engine = self.terms.engine
        if exchange is None:
            client = self.client
            headers = options.headers
            where, provider = server_of(client)
            said: dict[str, Any] = {
                "who": from_headers(headers) if headers and isinstance(headers, Mapping) else NOBODY,
                "fallback": from_headers(client._custom_headers) if client._custom_headers else NOBODY,
                "provider": provider,
                "where": where,
            }
            if engine.policy is None or not engine.policy.screening:
                exchange = Exchange(engine, self.operation, body_of(options), **said)
            else:
                said["unread"] = ("file",) if options.files is not None else ()
                exchange = yield Aside(partial(Exchange, engine, self.operation, body_of(options), **said))
            if engine.downgrade is not None and isinstance(options.json_data, Mapping):
                asked = exchange

                def instead(model: str) -> Exchange:
                    return Exchange(engine, self.operation, {"model": model}, instead=asked, **said)

                exchange, hold = yield from asked.reserving(instead)
            self.exchange = exchange
        if hold is None:
            hold = yield from engine.reserving(exchange.plan)
        self._open = hold
        note(hold)
        body = exchange.reserved(hold)
        if options.files is None and (options.json_data is not None or options.extra_json is not None):
            options.json_data, options.extra_json = body, None
        return options

    def headers(self, options: Any) -> dict[str, str]:
        """The headers to send that say who the call is for.

        Taken out of `options`: the SDK takes a header's text for ASCII, and ids may be in any
        script, so these are put on the request that it has built, as UTF-8.
        """
        given = options.headers if isinstance(options.headers, Mapping) else {}
        if not given and not self.terms.send_attribution:
            return {}
        names = (SESSION_HEADER, USER_HEADER)
        sent = {n.lower(): v for n, v in given.items() if n.lower() in names and isinstance(v, str)}
        if self.terms.send_attribution and self.exchange is not None:
            who = self.exchange.plan.who
            ids = ((SESSION_HEADER, who.session_id), (USER_HEADER, who.user_id))
            sent.update({name: value for name, value in ids if value is not None})
        if sent and given:
            options.headers = {n: v for n, v in given.items() if n.lower() not in sent}
        return sent

    @property
    def reserved(self) -> bool:
        """Whether an attempt is reserved, and about to be sent."""
        return self._open is not None

    def keep(self, exchange: Exchange, hold: Hold) -> bool:
        """Whether a reply that has only been queued is seen to its end elsewhere, its hold open."""
        return False

    def take(self) -> Hold | None:
        """The open hold, which the caller will now end."""
        hold, self._open = self._open, None
        return hold

    def again(self, request: Any, response: Any) -> Any:
        """The request to send in the place of one that was refused for what we put in; else None."""
        exchange = self.exchange
        if exchange is None or not exchange.answered(response.status_code, _said(response)):
            return None
        return with_content(request, unasked(request.content))

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        """The steps that end the attempt; None if its outcome is still to come with the body."""
        exchange, hold = self.exchange, self.take()
        assert exchange is not None
        if hold is None:
            return None
        status = response.status_code
        outcome = outcome_of_status(
            status, _said(response) if status == 400 else None, exchange.plan.provider
        )
        if outcome is None:
            if streamed and not response.is_stream_consumed:
                watch_response(response, exchange, hold, asynchronous=self.asynchronous, client=self.client)
                return None
            content = response.content
            shown = exchange.read_body(content)
            if shown is not content:
                response._content = shown  # events that something else has read already
            if exchange.pending and self.keep(exchange, hold):
                return None
            outcome = exchange.complete()
        return hold.keeper.ending(hold, outcome)


FREE = Free()

DOING: list[ContextVar[Any]] = []
"""Where doors note which call they are making."""


def is_sending() -> bool:
    """Whether what is sent here is the attempt of a call that an SDK's door has reserved."""
    return any(isinstance(call := doing.get(), Call) and call.reserved for doing in DOING)


def is_doing() -> bool:
    """Whether what is sent here is an SDK's, whose door has looked at it: billed or free."""
    return any(doing.get() is not None for doing in DOING)


class Screened(Free):
    """A request that is not billed, and takes people's words to the provider all the same, to be counted,
    judged or kept there."""

    def __init__(self, terms: Terms, client: Any) -> None:
        self.terms = terms
        self.client = client

    def prepared(self, options: Any) -> Steps[Any]:
        """The options to send, with their texts looked through.

        Raises:
            PolicyRefused: something in them blocks them.
        """
        headers, client = options.headers, self.client
        who = from_headers(headers) if headers and isinstance(headers, Mapping) else NOBODY
        fallback = from_headers(client._custom_headers) if client._custom_headers else NOBODY
        unread = ("file",) if options.files is not None else ()
        body = body_of(options)
        sent = yield Aside(
            partial(screened, self.terms.engine, body, who=who, fallback=fallback, unread=unread)
        )
        if sent is not body:
            options.json_data, options.extra_json = sent, None
        return options


def free_of(terms: Terms, client: Any, options: Any) -> Free:
    """What is done about a request that is not billed."""
    return Screened(terms, client) if looks_through(terms.engine, options.method) else FREE


def body_of(options: Any) -> Mapping[str, Any]:
    """The JSON that a request's options say, an `extra_body` in it."""
    body = options.json_data if isinstance(options.json_data, Mapping) else {}
    return {**body, **options.extra_json} if options.extra_json else body


def server_of(client: Any) -> tuple[str, str | None]:
    """A client's base URL, and whose prices apply; looked up when the URL changes."""
    url = client.base_url
    known = client.__dict__.get("_behest_server")
    if known is None or known[0] is not url:
        terms: Terms = client._behest
        where = str(url)
        known = (url, (where, terms.provider or provider_for_url(where)))
        client.__dict__["_behest_server"] = known
    return known[1]  # type: ignore[no-any-return]


def with_content(request: Any, content: bytes) -> Any:
    """A request with another body, of the class that its HTTP library has: there are two of them."""
    headers = [(n, v) for n, v in request.headers.raw if n.lower() != b"content-length"]
    return type(request)(
        request.method, request.url, headers=headers, content=content, extensions=request.extensions
    )


# ── an attempt on its way ──────────────────────────────────────────────────────────────


def _status(response: Any) -> int:
    """Its status; 0 of a response that is none of httpx's, and is read by whoever sends it."""
    return getattr(response, "status_code", 0)


def _said(response: Any) -> bytes | None:
    """The body, as far as it has been read."""
    try:
        content: bytes = response.content
    except RuntimeError:
        return None
    return content


def send_reserved(
    engine: Engine, call: Any, send: Callable[..., Any], request: Any, *, stream: bool, **kwargs: Any
) -> Any:
    """Send an attempt that is reserved, and end its hold by what comes back; the response.

    Args:
        call: a `Call`, or what follows one: it takes, sends again, and is answered.
    """
    try:
        response = send(request, stream=stream, **kwargs)
        if _status(response) == 400:  # its body says whether it is billed
            response.read()
        again = call.again(request, response)
        if again is not None:
            response.read()
            response = send(again, stream=stream, **kwargs)
            if _status(response) == 400:
                response.read()
            call.again(again, response)
    except BaseException as error:
        hold = call.take()
        if hold is not None:
            hold.end(hold.failed(error))
        raise
    steps = call.answered(response, streamed=stream)
    if steps is not None:
        engine.run(steps)
    return response


async def asend_reserved(
    engine: Engine, call: Any, send: Callable[..., Any], request: Any, *, stream: bool, **kwargs: Any
) -> Any:
    """`send_reserved` for coroutines."""
    try:
        response = await send(request, stream=stream, **kwargs)
        if _status(response) == 400:
            await response.aread()
        again = call.again(request, response)
        if again is not None:
            await response.aread()
            response = await send(again, stream=stream, **kwargs)
            if _status(response) == 400:
                await response.aread()
            call.again(again, response)
    except BaseException as error:
        hold = call.take()
        if hold is not None:
            # A cancelled task may be cancelled again: it must not wait here.
            hold.post(hold.failed(error))
        raise
    steps = call.answered(response, streamed=stream)
    if steps is not None:
        await engine.arun(steps)
    return response


# ── the clients ────────────────────────────────────────────────────────────────────────


class Metered:
    """What every metered client has. A door says where it notes its calls, and how one begins."""

    _behest: Terms
    _behest_doing: ContextVar[Any]
    _asynchronous: bool

    def _begin(self, options: Any) -> Any:
        raise NotImplementedError

    def _reserving(self) -> Call | None:
        """The call whose attempt is being prepared here."""
        call = self._behest_doing.get()
        return call if isinstance(call, Call) else None

    def _build_request(self, options: Any, **kwargs: Any) -> Any:
        call = self._reserving()
        headers = call.headers(options) if call is not None else None
        request = super()._build_request(options, **kwargs)  # type: ignore[misc]
        if headers:
            request.headers.encoding = "utf-8"
            for name, value in headers.items():
                request.headers[name] = value
        return request


class MeteredSync(Metered):
    """A blocking client."""

    _asynchronous = False

    def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = self._begin(options)
        token = self._behest_doing.set(call)
        try:
            return super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            self._behest_doing.reset(token)
            hold = call.take()
            if hold is not None:  # reserved, but building the request failed
                hold.end(CANCELLED)


class MeteredAsync(Metered):
    """An awaited client."""

    _asynchronous = True

    async def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = self._begin(options)
        token = self._behest_doing.set(call)
        try:
            return await super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            self._behest_doing.reset(token)
            hold = call.take()
            if hold is not None:
                hold.post(CANCELLED)


class Making:
    """Every client of an SDK that is made, metered, whoever makes it.

    `__new__` is replaced for the process, and stays: a class whose `__new__` was set and taken away
    again takes no arguments. None of the versions that the doors name defines one.

    Args:
        metered: the door's own class, of which metered clients are already.
        class_of: the metered subclass of a client's class.
    """

    def __init__(self, metered: type, class_of: Callable[[type, Terms], Any]) -> None:
        self._metered = metered
        self._class_of = class_of
        self._active: list[tuple[object, Terms]] = []
        """Whose clients are metered: the last that was begun and has not ended."""

    def begin(self, terms: Terms, classes: Iterable[type]) -> Undo:
        """Meter what is made of these classes from now on."""
        for cls in classes:
            if "__new__" not in vars(cls):
                cls.__new__ = self._new  # type: ignore[method-assign,assignment]
        mine = (object(), terms)
        self._active.append(mine)
        return Undo(lambda: self._active.remove(mine))

    def _new(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        if self._active and not issubclass(cls, self._metered):
            cls = self._class_of(cls, self._active[-1][1])
        return object.__new__(cls)
