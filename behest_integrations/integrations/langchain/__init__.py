"""LangChain and LangGraph: a callback, a model wrapper, an agent's middleware, embeddings.

Which to choose is said in quickstarts/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ...engine.engine import Engine
from ...rules.budgets import parse_allowance
from ...rules.errors import ConfigError, need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel, BaseLLM

    from .handler import BehestCallbackHandler
    from .middleware import BudgetMiddleware

    M = TypeVar("M", bound=BaseChatModel | BaseLLM)
    E = TypeVar("E", bound=Embeddings)


class LangChainDoor(Engine):
    """LangChain and LangGraph."""

    def langchain(
        self,
        *,
        run_tags: bool = False,
        metadata_tags: Sequence[str] = (),
        tool_prices: Mapping[str, str] | None = None,
    ) -> BehestCallbackHandler:
        """A LangChain callback handler: `config={"callbacks": [meter.langchain()]}`.

        It refuses before the provider is called. It cannot lower an output limit: set one on
        the model, or use `langchain_model`.

        Args:
            run_tags: book the run's tags; `key:value` becomes that tag.
            metadata_tags: names in the run's metadata to book as tags.
            tool_prices: USD for each use of a tool, by its name: `{"search": "$0.005"}`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: a price is not an amount in USD.
        """
        with need("LangChain", "langchain"):
            from .handler import BehestCallbackHandler

        return BehestCallbackHandler(
            self, run_tags=run_tags, metadata_tags=metadata_tags, tool_prices=_prices(tool_prices)
        )

    def langchain_model(self, model: M, *, provider: str | None = None, limit_field: str | None = None) -> M:
        """A model like `model`, of its own class, metered, that lowers its output limit near the cap.

        Args:
            model: any chat model or LLM of LangChain.
            provider: whose prices apply; default: what the model says of itself.
            limit_field: the model's field for its output limit; default: the usual names.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: not a model, or metered already.
        """
        with need("LangChain", "langchain"):
            from .model import meter_model

        return meter_model(self, model, provider, limit_field)

    def langchain_embeddings(self, embeddings: E, *, provider: str | None = None) -> E:
        """Embeddings like `embeddings`, of their own class, metered.

        Their usage is not told by LangChain: where their client is not OpenAI's, it is counted,
        and booked as `estimated`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: not embeddings, or metered already.
        """
        with need("LangChain", "langchain"):
            from .embeddings import meter_embeddings

        return meter_embeddings(self, embeddings, provider)

    def langchain_middleware(
        self,
        *,
        on_exceeded: Literal["raise", "end", "ask"] = "raise",
        cheaper: BaseChatModel | None = None,
        cheaper_at: int = 80,
        tool_prices: Mapping[str, str] | None = None,
    ) -> BudgetMiddleware:
        """Middleware for `create_agent(..., middleware=[meter.langchain_middleware()])`.

        Args:
            on_exceeded: ``raise`` `BudgetExceeded` (or `LoopDetected`), or ``end`` the agent with a
                message that says why; or ``ask``: interrupt the graph with the numbers of the budget, and
                go on with what is granted (`Command(resume={"grant": "$2"})`). That needs a
                checkpointer; see `asking`.
            cheaper: the model to go on with once a budget has been used up to `cheaper_at`.
            cheaper_at: percent of the fullest budget that applies.
            tool_prices: USD for each use of a tool, by its name.

        Raises:
            MissingExtra: `langchain` is not installed.
            ConfigError: an option cannot be used.
        """
        with need("LangChain", "langchain"):
            import langchain_core  # noqa: F401
        with need("LangChain's agent middleware", "langgraph"):
            from .middleware import BudgetMiddleware

        return BudgetMiddleware(
            self,
            on_exceeded=on_exceeded,
            cheaper=cheaper,
            cheaper_at=cheaper_at,
            tool_prices=_prices(tool_prices),
        )

    @on_import("langchain_core.language_models.chat_models")
    def instrument_langchain(self, **options: Any) -> Undo:
        """Meter every LangChain run of this process, with no callback passed.

        Args:
            options: as for `langchain`.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
        """
        with need("LangChain", "langchain"):
            from .everywhere import put_everywhere

        return put_everywhere(self.langchain(**options))


def _prices(prices: Mapping[str, str] | None) -> dict[str, int]:
    found = {}
    for tool, text in (prices or {}).items():
        amounts = parse_allowance(text)
        if set(amounts) != {"usd"}:
            raise ConfigError(f"a tool's price is an amount in USD such as '$0.005', not {text!r}")
        found[tool] = amounts["usd"]
    return found
