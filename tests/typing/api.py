"""What an editor sees: checked by mypy, never run.

A metered client keeps the type that it had, so that it completes and type-checks as before.
"""

from datetime import datetime

import httpx
from anthropic import Anthropic, AnthropicBedrock, AsyncAnthropic
from anthropic.types import Message
from google import genai
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.settings import Settings
from llama_index.llms.openai import OpenAI as LlamaOpenAI
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from typing_extensions import assert_type

from behest_integrations import (
    Attribution,
    Balance,
    Budget,
    BudgetExceeded,
    ContextThreadPoolExecutor,
    Meter,
    Price,
    Usage,
)


class House(OpenAI):
    def greet(self) -> str:
        return "hello"


meter = Meter(
    "memory://",
    budgets=["$1 per session", Budget(5, "calls", "minute", per=("user",))],
    prices={"own": Price(input="1", output=2)},
)
assert_type(meter.openai(OpenAI()), OpenAI)
assert_type(meter.openai(AsyncOpenAI()), AsyncOpenAI)
assert_type(meter.openai(AzureOpenAI()), AzureOpenAI)
assert_type(meter.openai(AsyncAzureOpenAI()), AsyncAzureOpenAI)
assert_type(meter.openai(House()).greet(), str)
assert_type(
    meter.openai(OpenAI()).chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}]
    ),
    ChatCompletion,
)
assert_type(meter.anthropic(Anthropic()), Anthropic)
assert_type(meter.httpx(httpx.AsyncClient()), httpx.AsyncClient)
assert_type(meter.anthropic(AsyncAnthropic()), AsyncAnthropic)
assert_type(meter.anthropic(AnthropicBedrock()), AnthropicBedrock)
assert_type(meter.google_genai(genai.Client()), genai.Client)
assert_type(
    meter.anthropic(Anthropic()).messages.create(
        model="claude-haiku-4-5", max_tokens=9, messages=[{"role": "user", "content": "hello"}]
    ),
    Message,
)
meter.anthropic(OpenAI())  # type: ignore[type-var]
assert_type(meter.langchain_model(ChatOpenAI()), ChatOpenAI)
assert_type(meter.langchain_embeddings(OpenAIEmbeddings()), OpenAIEmbeddings)
meter.langchain_model("a model")  # type: ignore[type-var]
chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | ChatOpenAI()
chain.invoke({"q": "hello"}, {"callbacks": [meter.langchain(tool_prices={"search": "$0.005"})]})
create_agent(ChatOpenAI(), middleware=[meter.langchain_middleware(on_exceeded="end")])
assert_type(meter.llama_index(LlamaOpenAI()), LlamaOpenAI)
with meter.llama_index(Settings) as metered_settings:
    metered_settings.remove()
CallbackManager([meter.llama_index_handler()])
with meter.instrument() as instrumented:
    instrumented.remove()
meter.openai("a client")  # type: ignore[type-var]

with meter.session("s", user="u", tags={"a": "b"}) as who:
    assert_type(who, Attribution)


@meter.session("s")
def decorated(x: int) -> str:
    return str(x)


@meter.budget("$1", name="stage")
async def staged(x: int) -> str:
    return str(x)


assert_type(decorated(1), str)
decorated("1")  # type: ignore[arg-type]
assert_type(meter.bind(decorated)(1), str)
meter.bind(decorated)("1")  # type: ignore[arg-type]
with ContextThreadPoolExecutor(2) as pool:
    assert_type(pool.submit(decorated, 1).result(), str)
assert_type(meter.spend(), list[Balance])
assert_type(meter.spend()[0].resets_at, datetime | None)
assert_type(Usage(1, 2).total_tokens, int)
try:
    pass
except BudgetExceeded as error:
    assert_type(error.resets_at, datetime | None)
    assert_type(error.shortfall.left, int)


async def run() -> None:
    assert_type(await staged(1), str)
