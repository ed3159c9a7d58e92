"""The names that the price list knows, to find out which one was meant."""

from __future__ import annotations


def providers() -> list[str]:
    """The price list's ids of providers."""
    from genai_prices.data_snapshot import get_snapshot

    return [provider.id for provider in get_snapshot().providers]


def models_of(provider: str | None = None) -> list[str]:
    """The price list's ids of models, without one that stands twice: at one provider, or at any."""
    from genai_prices.data_snapshot import get_snapshot

    found = (m.id for p in get_snapshot().providers if provider in (None, p.id) for m in p.models)
    return list(dict.fromkeys(found))


def providers_of(model: str) -> list[str]:
    """The ids of the providers that have a model under this very name."""
    from genai_prices.data_snapshot import get_snapshot

    return [p.id for p in get_snapshot().providers if any(m.id == model for m in p.models)]
