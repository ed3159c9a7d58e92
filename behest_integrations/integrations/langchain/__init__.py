"""LangChain and LangGraph: a callback, a model wrapper, an agent's middleware, embeddings.

`Meter`'s methods are the way in. Which to choose is said in quickstarts/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...rules.budgets import parse_allowance
from ...rules.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from ...meter import Meter
    from .handler import BehestCallbackHandler
    from .middleware import BudgetMiddleware

M = TypeVar("M")

try:
    import langchain_core.tracers.context as _tracing
except ImportError:
    raise MissingExtra("LangChain", "langchain") from None


def callback_handler(
    meter: Meter,
    *,
    run_tags: bool = False,
    metadata_tags: Sequence[str] = (),
    tool_prices: Mapping[str, str] | None = None,
) -> BehestCallbackHandler:
    """See `Meter.langchain`."""
    from .handler import BehestCallbackHandler

    return BehestCallbackHandler(
        meter, run_tags=run_tags, metadata_tags=metadata_tags, tool_prices=_prices(tool_prices)
    )


def agent_middleware(
    meter: Meter, *, tool_prices: Mapping[str, str] | None = None, **options: Any
) -> BudgetMiddleware:
    """See `Meter.langchain_middleware`."""
    from .middleware import BudgetMiddleware

    return BudgetMiddleware(meter, tool_prices=_prices(tool_prices), **options)


def wrap_model(meter: Meter, model: M, *, provider: str | None, limit_field: str | None) -> M:
    """See `Meter.langchain_model`."""
    from .model import meter_model

    return meter_model(meter, model, provider, limit_field)


def wrap_embeddings(meter: Meter, embeddings: M, *, provider: str | None) -> M:
    """See `Meter.langchain_embeddings`."""
    from .embeddings import meter_embeddings

    return meter_embeddings(meter, embeddings, provider)


class Instrumentation:
    """Everything LangChain is metered until `remove()`; also as `with`. See
    `Meter.instrument_langchain`."""

    def __init__(self, handler: BehestCallbackHandler) -> None:
        self._handler: BehestCallbackHandler | None = handler
        hook: Any = self
        _tracing.register_configure_hook(hook, True)

    def get(self) -> BehestCallbackHandler | None:
        """The handler, where LangChain looks for one: a context variable's value would be lost
        in threads that start with an empty context."""
        return self._handler

    def remove(self) -> None:
        """Stop metering what begins from now on."""
        self._handler = None
        hooks: list[Any] = getattr(_tracing, "_configure_hooks", [])
        hooks[:] = [hook for hook in hooks if hook[0] is not self]

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def _prices(prices: Mapping[str, str] | None) -> dict[str, int]:
    found = {}
    for tool, text in (prices or {}).items():
        amounts = parse_allowance(text)
        if set(amounts) != {"usd"}:
            raise ConfigError(f"a tool's price is an amount in USD such as '$0.005', not {text!r}")
        found[tool] = amounts["usd"]
    return found
