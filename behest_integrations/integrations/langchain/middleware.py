"""Middleware for `create_agent`: lowers limits, may end the agent kindly, or ask, may go cheaper in time."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Literal, TypeVar

from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage

from ...engine.costs import CostScope
from ...engine.engine import Engine
from ...engine.steps import Steps
from ...rules.checks import one_of
from ...rules.errors import BudgetExceeded, ConfigError, LoopDetected
from .model import is_metered, meter_model
from .translate import attribution_of

T = TypeVar("T")
OnExceeded = Literal["raise", "end", "ask"]


# How many type parameters it takes depends on LangChain's version.
class BudgetMiddleware(AgentMiddleware):
    """See `Meter.langchain_middleware`."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_exceeded: OnExceeded,
        cheaper: BaseChatModel | None,
        cheaper_at: int,
        tool_prices: Mapping[str, int],
    ) -> None:
        super().__init__()
        one_of(on_exceeded, ("raise", "end", "ask"), "on_exceeded")
        if cheaper is not None and not isinstance(cheaper, BaseChatModel):
            raise ConfigError(f"cheaper is a chat model, not {type(cheaper).__name__}")
        self.engine = engine
        self._end = on_exceeded == "end"
        self._ask = on_exceeded == "ask"
        self._cheaper = cheaper
        self._cheaper_at = cheaper_at
        self._tool_prices = dict(tool_prices)

    # ── models ─────────────────────────────────────────────────────────────────────────

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        def attempt() -> Any:
            return handler(self._metered(request, self.engine.run(self._is_late())))

        try:
            return self._tried(attempt)
        except (BudgetExceeded, LoopDetected) as error:
            return self._ended(error)

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        self._say_untold()

        async def attempt() -> Any:
            return await handler(self._metered(request, await self.engine.arun(self._is_late())))

        try:
            return await self._atried(attempt)
        except (BudgetExceeded, LoopDetected) as error:
            return self._ended(error)

    def _say_untold(self) -> None:
        """Before Python 3.11 a task cannot be given a context: LangGraph tells nobody in it of the run."""
        if sys.version_info < (3, 11) and not _run_metadata():
            self.engine.notices.once(
                "middleware on python 3.10",
                "on Python 3.10, LangGraph tells an agent's middleware neither the thread_id nor the "
                "metadata of a run that is awaited: its calls count for whom `with meter.session(...)` "
                "around it says, or for nobody. Say it there, or use Python 3.11.",
            )

    def _tried(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns; where somebody is to be asked, tried again with what was granted."""
        while True:
            try:
                return attempt()
            except BudgetExceeded as error:
                self.engine.run(self._asking(error))

    async def _atried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """`_tried` for coroutines."""
        while True:
            try:
                return await attempt()
            except BudgetExceeded as error:
                await self.engine.arun(self._asking(error))

    def _asking(self, error: BudgetExceeded) -> Steps[None]:
        if not self._ask:
            raise error
        from .asking import asking

        yield from asking(self.engine, error, _run_metadata())

    def _is_late(self) -> Steps[bool]:
        """Whether the fullest budget has reached the share at which to go cheaper."""
        if self._cheaper is None:
            return False
        explicit, framework = attribution_of(_run_metadata())
        used = yield self.engine.share_used(explicit, framework)
        return bool(used >= self._cheaper_at)

    def _metered(self, request: Any, late: bool) -> Any:
        model = self._cheaper if late and self._cheaper is not None else request.model
        if is_metered(model):
            return request.override(model=model)
        return request.override(model=meter_model(self.engine, model))

    def _ended(self, error: BudgetExceeded | LoopDetected) -> Any:
        if not self._end:
            raise error
        what = "budget for" if isinstance(error, BudgetExceeded) else "loop guard of"
        return AIMessage(
            content=f"The {what} this conversation does not allow another step. {error}",
            response_metadata={"behest": error.reason},
        )

    # ── tools ──────────────────────────────────────────────────────────────────────────

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        cost = self._cost(request)
        try:
            with ExitStack() as stack:
                if cost is not None:
                    self._tried(lambda: stack.enter_context(cost))
                # Within what it costs: a use that is interrupted is not booked, and one that is tried
                # again is one use.
                return self._tried(lambda: handler(request))
        except BudgetExceeded as error:
            return self._tool_ended(request, error)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        cost = self._cost(request)
        try:
            async with AsyncExitStack() as stack:
                if cost is not None:
                    await self._atried(lambda: stack.enter_async_context(cost))
                return await self._atried(lambda: handler(request))
        except BudgetExceeded as error:
            return self._tool_ended(request, error)

    def _cost(self, request: Any) -> CostScope | None:
        """What a use of the tool costs; None if it has no price."""
        name = str(request.tool_call.get("name"))
        price = self._tool_prices.get(name)
        return (
            None if price is None else CostScope(self.engine, name, price, *attribution_of(_run_metadata()))
        )

    def _tool_ended(self, request: Any, error: BudgetExceeded) -> Any:
        if not self._end:
            raise error
        call = request.tool_call
        return ToolMessage(str(error), tool_call_id=call["id"], name=call.get("name"), status="error")


def _run_metadata() -> Mapping[str, Any]:
    """The metadata of the run that we are in, LangGraph's `thread_id` included."""
    from langchain_core.runnables.config import var_child_runnable_config

    config = var_child_runnable_config.get() or {}
    return {**(config.get("configurable") or {}), **(config.get("metadata") or {})}
