"""The names that the price list knows, to find out which one was meant."""

from __future__ import annotations

from .lists import PriceList, brought


def providers(listed: PriceList | None = None) -> list[str]:
    """The price list's ids of providers."""
    return [provider.id for provider in (listed or brought()).snapshot.providers]


def models_of(provider: str | None = None, listed: PriceList | None = None) -> list[str]:
    """The price list's ids of models, without one that stands twice: at one provider, or at any."""
    found = (
        m.id for p in (listed or brought()).snapshot.providers if provider in (None, p.id) for m in p.models
    )
    return list(dict.fromkeys(found))


def providers_of(model: str, listed: PriceList | None = None) -> list[str]:
    """The ids of the providers that have a model under this very name."""
    return [p.id for p in (listed or brought()).snapshot.providers if any(m.id == model for m in p.models)]
