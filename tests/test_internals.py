"""What of the frameworks' internals we stand on: each test says what has moved when it moves."""

from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any
from uuid import uuid4

import pytest


def functions_in(code: types.CodeType) -> list[types.CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [*inner, *(deeper for c in inner for deeper in functions_in(c))]


def test_llama_index_keeps_an_events_id_in_a_local_variable() -> None:
    callbacks = pytest.importorskip("llama_index.core.llms.callbacks")
    from behest_integrations.integrations.llama_index.frames import LOCAL, MODEL, MODULE

    assert callbacks.__name__ == MODULE
    code = compile(inspect.getsource(callbacks), MODULE, "exec")
    having = {c.co_name for c in functions_in(code) if LOCAL in (*c.co_varnames, *c.co_cellvars)}
    wrappers = {
        "wrapped_llm_chat",
        "wrapped_async_llm_chat",
        "wrapped_llm_predict",
        "wrapped_async_llm_predict",
    }
    assert wrappers <= having, (
        f"the wrappers of {MODULE} keep no {LOCAL!r}: integrations/llama_index/frames.py finds no outer "
        "event, and a completion that is made by a chat is counted twice"
    )
    having = {c.co_name for c in functions_in(code) if MODEL in (*c.co_varnames, *c.co_cellvars)}
    assert wrappers <= having, (
        f"the wrappers of {MODULE} keep no {MODEL!r}: integrations/llama_index/frames.py finds no model, and "
        "a handler does not see what it puts into its requests"
    )


def test_langchain_logs_what_a_handler_raises() -> None:
    manager = pytest.importorskip("langchain_core.callbacks.manager")
    from behest_integrations.integrations.langchain.quiet import FORMAT, LOGGER

    assert manager.logger.name == LOGGER
    assert f'"{FORMAT}"' in inspect.getsource(manager), (
        f"{LOGGER} words it otherwise: integrations/langchain/quiet.py keeps no line back"
    )


def test_langchain_looks_methods_up_where_it_calls_them() -> None:
    """`langchain/twofold.py` tells by who looks a method up whether it is awaited."""
    manager = pytest.importorskip("langchain_core.callbacks.manager")
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import HumanMessage

    from behest_integrations.integrations.langchain.twofold import Twofold

    seen: list[bool] = []

    class Engine:
        def run(self, steps: Any) -> None:
            seen.append(False)
            steps.close()

        async def arun(self, steps: Any) -> None:
            seen.append(True)
            steps.close()

    class Probe(BaseCallbackHandler):
        raise_error = True
        run_inline = True
        engine = Engine()

        @Twofold
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> Any:
            yield

    asked = [[HumanMessage("hello")]]
    manager.CallbackManager([Probe()]).on_chat_model_start({}, asked, run_id=uuid4())
    asyncio.run(manager.AsyncCallbackManager([Probe()]).on_chat_model_start({}, asked, run_id=uuid4()))
    assert seen == [False, True], (
        "LangChain no longer looks a handler's method up in the coroutine that awaits it"
    )


def test_langchain_keeps_its_hooks_in_a_list() -> None:
    context = pytest.importorskip("langchain_core.tracers.context")
    assert isinstance(context._configure_hooks, list), (
        "integrations/langchain/everywhere.py removes its hook there"
    )


def test_genai_prices_reads_its_data_by_a_function_without_a_public_name() -> None:
    from genai_prices import types, update_prices

    from behest_integrations.prices.lists import LATEST, READER

    assert callable(getattr(types, READER, None)), f"prices/lists.py reads lists by {READER}"
    assert READER in inspect.getsource(update_prices.UpdatePrices.fetch), (
        "genai-prices' own updater reads its data otherwise: prices/lists.py should do so, too"
    )
    assert update_prices.DEFAULT_UPDATE_URL == LATEST, "the list is published elsewhere now"
