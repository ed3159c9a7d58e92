"""The Anthropic client: `Anthropic`, `AsyncAnthropic`, those of Bedrock and Vertex, and subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...engine.engine import Engine
from ..kit.clients import SDK, SDKS
from ..kit.instrument import on_import
from ..kit.terms import Terms
from ..kit.undo import Undo

if TYPE_CHECKING:
    from .client import C


class AnthropicDoor(Engine):
    """The Anthropic client."""

    def anthropic(self, client: C, *, provider: str | None = None, send_attribution: bool = False) -> C:
        """A client like `client`, of its own class, whose every call is metered.

        Messages are bounded, held and booked, streamed or not; counting tokens is free; batches, and
        whatever else is billed, are calls that need a price of their own (`Meter(allow=...)`).

        Args:
            client: an Anthropic, AsyncAnthropic, a client of Bedrock or Vertex, or a subclass.
            provider: whose prices apply; default: by the client's base URL.
            send_attribution: send the session and user on to the provider as
                `X-Session-Id` and `X-End-User-Id` (for a Behest endpoint).

        Raises:
            MissingExtra: the `anthropic` package is not installed.
            ConfigError: not an Anthropic client.
        """
        from .client import meter_client

        return meter_client(Terms(self, provider, send_attribution=send_attribution), client)

    @on_import("anthropic")
    def instrument_anthropic(self) -> Undo:
        """Meter every Anthropic client that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`. Clients that were made before stay metered.

        Raises:
            MissingExtra: the `anthropic` package is not installed.
        """
        from .client import meter_what_is_made

        return meter_what_is_made(Terms(self))


def _meter(terms: Terms, client: Any) -> Any:
    from .client import meter_client

    return meter_client(terms, client)


SDKS.append(SDK("anthropic", ("SyncAPIClient", "AsyncAPIClient"), _meter))
