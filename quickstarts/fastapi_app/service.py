"""An app whose users ask a model: each call is for a user and a session, and held to their budgets.

    uvicorn service:app --workers 2

Its clients say who they are in `X-User` and `X-Conversation`; in your app, that is your login. Without
OPENAI_BASE_URL and OPENAI_API_KEY it asks the sandbox at http://127.0.0.1:8089 (`behest sandbox`).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from behest_integrations import BudgetExceeded, ContextThreadPoolExecutor, Meter, ThresholdEvent, Unattributed
from behest_integrations.rules.attribution import SessionScope

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o")
ANSWER = 100
"""Tokens of the longest answer."""


def tell(event: ThresholdEvent) -> None:
    """Somebody has used most of a budget. In your app: a message to them, or to whoever pays.

    It is called on a thread of its own, once for each threshold of a bucket, whichever worker crosses it.
    """
    said = {"percent": event.percent, "user": event.user, "session": event.session, "budget": event.budget}
    with open(os.environ.get("ALERTS", "alerts.jsonl"), "a") as file:
        file.write(json.dumps(said) + "\n")


# One meter for each worker, all over one ledger (BEHEST_STORE, else the file behest.db).
meter = Meter(
    budgets=["$0.004 per session", "$0.02/day per user", "60 calls/minute per user"],
    require=("user", "session"),  # a call that is for nobody is refused
    on_abandoned="drain",  # a stream whose user has left is read on, and booked as it is billed
    thresholds=[80, 100],
    on_threshold=tell,
    service_tier="default",
)
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8089/v1")
KEY = os.environ.get("OPENAI_API_KEY", "not-needed")
# `send_attribution` hands the ids on to the provider: for the sandbox's bill. Leave it out at OpenAI's.
client = meter.openai(OpenAI(base_url=URL, api_key=KEY), send_attribution=True)
aclient = meter.openai(AsyncOpenAI(base_url=URL, api_key=KEY), send_attribution=True)
pool = ContextThreadPoolExecutor(8)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    pool.shutdown()
    # On a thread: the streams that are still read on need the loop.
    await asyncio.to_thread(meter.close)


app = FastAPI(lifespan=lifespan)


# ── who ────────────────────────────────────────────────────────────────────────────────


async def in_session(x_user: Annotated[str, Header()], x_conversation: Annotated[str, Header()]) -> Any:
    """Everything that the endpoint does is for this user and conversation; endpoints that are `def`
    included. It must be `async def`: what a `def` that yields has entered stays in a thread of its own.
    """
    with meter.session(x_conversation, user=x_user):
        yield


def session_of(
    x_user: Annotated[str, Header()], x_conversation: Annotated[str, Header()]
) -> Iterator[SessionScope]:
    """A dependency that is `def` and yields hands the session on; the endpoint enters it."""
    yield meter.session(x_conversation, user=x_user)


# ── what it may not cost ───────────────────────────────────────────────────────────────


@app.exception_handler(BudgetExceeded)
async def over_budget(request: Request, error: BudgetExceeded) -> JSONResponse:
    """429 where the same call will do later, with when; 402 where it will not for longer."""
    later = error.busy or error.shortfall.unit == "calls"
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after is not None else {}
    body = {"error": "rate_limited" if later else "budget_exceeded", "message": str(error)}
    return JSONResponse(body, 429 if later else 402, headers)


@app.exception_handler(Unattributed)
async def for_nobody(request: Request, error: Unattributed) -> JSONResponse:
    return JSONResponse({"error": "for_nobody", "message": str(error)}, 400)


# ── endpoints ──────────────────────────────────────────────────────────────────────────


class Question(BaseModel):
    text: str


def asked(text: str) -> Any:
    return {"model": MODEL, "max_tokens": ANSWER, "messages": [{"role": "user", "content": text}]}


@app.post("/ask", dependencies=[Depends(in_session)])
async def ask(question: Question) -> str:
    answer = await aclient.chat.completions.create(**asked(question.text))
    return answer.choices[0].message.content or ""


@app.post("/stream", dependencies=[Depends(in_session)])
async def stream(question: Question) -> StreamingResponse:
    # Asked here, and not in the generator: a refusal can be told as long as nothing has been sent.
    chunks = await aclient.chat.completions.create(**asked(question.text), stream=True)

    async def words() -> AsyncIterator[str]:
        # A user who leaves cancels this; the meter reads on, and books what is billed.
        async for chunk in chunks:
            if chunk.choices:
                yield chunk.choices[0].delta.content or ""

    return StreamingResponse(words(), media_type="text/plain")


@app.post("/summarise")
def summarise(texts: list[str], session: Annotated[SessionScope, Depends(session_of)]) -> list[str]:
    """Side by side, in a pool of threads; all together at most a cent, within the user's own budgets."""

    def one(text: str) -> str:
        answer = client.chat.completions.create(**asked(f"In one line: {text}"))
        return answer.choices[0].message.content or ""

    with session, meter.budget("$0.01", name="summary"):
        return list(pool.map(one, texts))


@app.get("/spend")
def spend(x_user: Annotated[str, Header()], x_conversation: Annotated[str, Header()]) -> list[str]:
    return [str(balance) for balance in meter.spend(x_conversation, user=x_user)]
