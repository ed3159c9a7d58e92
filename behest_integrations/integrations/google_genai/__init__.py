"""Google's Gen AI client (`google-genai`): `genai.Client`, blocking and `.aio`, for Gemini and for Vertex."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...engine.engine import Engine
from ..kit.instrument import on_import
from ..kit.terms import Terms
from ..kit.undo import Undo

if TYPE_CHECKING:
    from .client import C


class GoogleGenAIDoor(Engine):
    """Google's Gen AI client."""

    def google_genai(self, client: C, *, provider: str | None = None) -> C:
        """A client like `client`, of its own class, whose every call is metered, blocking and awaited.

        Contents, chats, streams and embeddings are bounded, held and booked, attempt by attempt; counting
        tokens and files are free; batches, images, videos, interactions, and whatever else is billed, are
        calls that need a price of their own (`Meter(allow=...)`); so are Live's sessions (``realtime``).
        What is asked goes by the SDK's httpx client, and not by aiohttp.

        Args:
            client: a `google.genai.Client`.
            provider: whose prices apply; default: Google's.

        Raises:
            MissingExtra: `google-genai` is not installed.
            ConfigError: not such a client; or one that sends by another HTTP client: of aiohttp, or
                with certificates of a device (mTLS).
        """
        from .client import meter_client

        return meter_client(Terms(self, provider or "google"), client)

    @on_import("google.genai")
    def instrument_google_genai(self) -> Undo:
        """Meter every client of `google-genai` that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`. Clients that were made before stay metered.

        Raises:
            MissingExtra: `google-genai` is not installed.
        """
        from .client import meter_what_is_made

        return meter_what_is_made(Terms(self, "google"))
