"""HTTP itself: clients of `httpx` and `httpx2`, for those who call an API by hand, and SDKs that take one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ...engine.engine import Engine
from ..kit.terms import Terms

C = TypeVar("C")


class HTTPDoor(Engine):
    """Clients of HTTP libraries."""

    def httpx(self, client: C, *, provider: str | None = None, hosts: Iterable[str] = ()) -> C:
        """A client like `client`, of its own class, whose calls of models are metered.

        Those are requests to hosts of models, and to those named here, of OpenAI's wire (chat, completions,
        responses, embeddings; Mistral's, too, and its completions in the middle), Anthropic's (messages; also
        as Bedrock and Vertex have it), Gemini's (generateContent, embedContent), Cohere's (chat, embed) or
        Bedrock's (converse).
        Whatever else is posted to such a host is a call that needs a price of its own (`Meter(allow=...)`).
        Requests to other hosts are none of ours.

        Args:
            client: a `Client` or `AsyncClient` of httpx or httpx2, or a subclass.
            provider: whose wire and prices it is, by the price list's id (``cohere``); default: by the
                address.
            hosts: further hosts that serve models, as ``localhost:8000`` or ``models.example.com``; besides
                those of `Meter(hosts=...)`.

        Raises:
            ConfigError: not such a client.
        """
        from ..kit.http import meter_client

        metered: C = meter_client(Terms(self, provider), client, hosts)
        return metered
