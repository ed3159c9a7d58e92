"""One call of an SDK of the kind that OpenAI and Anthropic have: attempt by attempt, over HTTP.

Both are made by one generator (Stainless): a request passes `request`, which makes attempts of it;
each has its options prepared, is built, and is sent by an `httpx` client. Where a door hooks in is its
own affair; what it does there is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from ...calls.exchange import Exchange, unasked
from ...engine.holds import Hold
from ...engine.outcomes import outcome_of_status
from ...engine.ruling import screened
from ...engine.steps import Aside, Steps
from ...prices import provider_for_url
from ...rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, from_headers
from .response import watch_response
from .terms import Terms


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
        exchange = self.exchange
        if exchange is None:
            client = self.client
            headers = options.headers
            where, provider = server_of(client)
            engine = self.terms.engine
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
            self.exchange = exchange
        hold = self._open = yield from self.terms.engine.reserving(exchange.plan)
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
        if exchange is None or not exchange.answered(response.status_code):
            return None
        # Of the class that the SDK's HTTP library has: there are two of them.
        headers = [(n, v) for n, v in request.headers.raw if n.lower() != b"content-length"]
        return type(request)(
            request.method,
            request.url,
            headers=headers,
            content=unasked(request.content),
            extensions=request.extensions,
        )

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        """The steps that end the attempt; None if its outcome is still to come with the body."""
        exchange, hold = self.exchange, self.take()
        assert exchange is not None
        if hold is None:
            return None
        outcome = outcome_of_status(response.status_code)
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
    policy = terms.engine.policy
    if policy is None or not policy.screening or options.method.upper() not in ("POST", "PUT", "PATCH"):
        return FREE
    return Screened(terms, client)


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
