"""What a metered class knows: its engine, and how to read what it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.engine import Engine


@dataclass(frozen=True)
class Terms:
    """On what terms an object is metered.

    Attributes:
        engine: where its calls are booked.
        provider: whose prices apply; None: what the object says of itself.
        limit_field: the object's field for its output limit; None if it has none.
        send_attribution: whether the session and user are sent on to the provider.
    """

    engine: Engine
    provider: str | None = None
    limit_field: str | None = None
    send_attribution: bool = False
