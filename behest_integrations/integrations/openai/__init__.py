"""The OpenAI client: `OpenAI`, `AsyncOpenAI`, Azure's, and their subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...engine.engine import Engine
from ..kit.clients import SDK, SDKS
from ..kit.instrument import on_import
from ..kit.terms import Terms
from ..kit.undo import Undo

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    C = TypeVar("C", bound=OpenAI | AsyncOpenAI)


class OpenAIDoor(Engine):
    """The OpenAI client."""

    def openai(self, client: C, *, provider: str | None = None, send_attribution: bool = False) -> C:
        """A client like `client`, of its own class, whose every call is metered.

        Args:
            client: an OpenAI, AsyncOpenAI, AzureOpenAI, AsyncAzureOpenAI or a subclass.
            provider: whose prices apply; default: by the client's base URL.
            send_attribution: send the session and user on to the provider as
                `X-Session-Id` and `X-End-User-Id` (for a Behest endpoint).

        Raises:
            MissingExtra: the `openai` package is not installed.
            ConfigError: not an OpenAI client.
        """
        from .client import meter_client

        return meter_client(Terms(self, provider, send_attribution=send_attribution), client)

    @on_import("openai")
    def instrument_openai(self) -> Undo:
        """Meter every OpenAI client that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`. Clients that were made before stay metered.

        Raises:
            MissingExtra: the `openai` package is not installed.
        """
        from .client import meter_what_is_made

        return meter_what_is_made(Terms(self))


def _meter(terms: Terms, client: Any) -> Any:
    from .client import meter_client

    return meter_client(terms, client)


SDKS.append(SDK("openai", ("OpenAI", "AsyncOpenAI"), _meter))
