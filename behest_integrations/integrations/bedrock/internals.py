"""What of botocore's internals is touched. Read with botocore 1.44.8 (boto3 1.44.8).

A client's methods call its `_make_api_call`, which makes attempts one after the other. For each the client's
events tell, in public, of the request before it is signed (`request-created`), of the response before it is
taken apart (`before-parse`), and of what became of it (`response-received`). Every client is made by
`ClientCreator.create_client`. A body that streams is urllib3's; the `EventStream` over it is in a circle with
its own generator, so that only the garbage collector knows when it was left. `tests/test_bedrock.py` says
what has moved.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

from botocore.client import BaseClient, ClientCreator
from botocore.eventstream import EventStream
from botocore.response import StreamingBody

SERVICE = "bedrock-runtime"
CREATE = ClientCreator, "create_client"

__all__ = [
    "CREATE",
    "SERVICE",
    "content_of",
    "is_runtime",
    "listen",
    "read_whole",
    "shut_down",
    "with_stream",
    "wrap_calls",
]


def is_runtime(client: Any) -> bool:
    """Whether it is a client of Bedrock's models, and blocking."""
    return type(client)._make_api_call is BaseClient._make_api_call and (
        client.meta.service_model.service_name == SERVICE
    )


def wrap_calls(client: Any, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace what all the client's methods call."""
    client._make_api_call = make(client._make_api_call)


def listen(
    client: Any,
    *,
    created: Callable[..., None],
    answered: Callable[..., None],
    received: Callable[..., None],
) -> None:
    """Have each attempt told.

    Args:
        created: of a request that is not signed yet: `request`, which may be changed.
        answered: of a response that is not parsed yet: `response_dict`, which may be changed.
        received: of an attempt that has been answered (`parsed_response`, which may be changed), or has
            failed (`exception`).
    """
    events = client.meta.events
    # Before the signer, who listens to it as well.
    events.register_first(f"request-created.{SERVICE}", created)
    events.register(f"before-parse.{SERVICE}", answered)
    events.register(f"response-received.{SERVICE}", received)


def content_of(request: Any) -> bytes:
    """The body of a request that is not signed yet."""
    data = request.data
    if hasattr(data, "read"):
        data = request.data = data.read()
    return data.encode() if isinstance(data, str) else bytes(data or b"")


def read_whole(body: Any, shown: Callable[[bytes], bytes]) -> Any:
    """A response's body, read: in its place what `shown` says, or None if it is a stream of events."""
    if isinstance(body, bytes):
        return shown(body)
    if isinstance(body, StreamingBody):
        content = shown(body.read())
        return StreamingBody(BytesIO(content), len(content))
    return None


class Stream(EventStream):  # type: ignore[misc]
    """An event stream that ends with its last reader: it is in no circle.

    Args:
        inner: what is read.
    """

    def __init__(self, inner: EventStream) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        yield from self._inner

    def get_initial_response(self) -> Any:
        return self._inner.get_initial_response()

    def close(self) -> None:
        self._inner.close()


def with_stream(parsed: dict[str, Any], made: Callable[[Stream], None]) -> None:
    """Put `Stream` in the place of the event stream of a parsed response, if it has one.

    Args:
        made: is told of it.
    """
    for name, value in parsed.items():
        if isinstance(value, EventStream):
            parsed[name] = stream = Stream(value)
            made(stream)
            return


def shut_down(raw: Any) -> None:
    """Have whoever reads from a response's connection see its end."""
    with suppress(Exception):
        raw.connection.sock.shutdown(socket.SHUT_RDWR)
