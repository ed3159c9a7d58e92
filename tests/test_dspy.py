"""DSPy's models, metered whichever engine asks them: what is booked is what was billed, and for whom."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import Any

import pytest
from support import (
    ANSWER,
    MODEL,
    aclient,
    arun,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    client,
    close_loop,
    entries,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, CallRefused, ConfigError, Meter, PolicyRefused, UnknownPrice
from behest_integrations.sandbox import Sandbox

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
dspy = pytest.importorskip("dspy", reason="dspy is not installed")
pytest.importorskip("dspy.clients.execution", reason="dspy is older than 3.4")

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    close_loop()


class Elsewhere:
    """An engine of one's own, which asks as no door knows it; the sandbox all the same."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self._name = name
        self._ask = client(sandbox)

    def asked(self, request: Any) -> dict[str, Any]:
        config = request.config
        messages: Any = [{"role": m.role, "content": m.text} for m in request.messages]
        user = config.user_id
        marked: dict[str, Any] = {"user": user} if user else {}
        return {"model": self._name, "messages": messages, "max_tokens": config.max_tokens, **marked}

    def answered(self, reply: Any) -> Any:
        usage = dspy.lm15.Usage(
            input_tokens=reply.usage.prompt_tokens, output_tokens=reply.usage.completion_tokens
        )
        text = dspy.lm15.Message.assistant(reply.choices[0].message.content)
        return dspy.lm15.Response(
            id=reply.id, model=reply.model, message=text, finish_reason="stop", usage=usage
        )

    def complete(self, request: Any) -> Any:
        return self.answered(self._ask.chat.completions.create(**self.asked(request)))


class AElsewhere(Elsewhere):
    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self._name = name
        self._aask = aclient(sandbox)

    async def complete(self, request: Any) -> Any:
        return self.answered(await self._aask.chat.completions.create(**self.asked(request)))


class Old(dspy.BaseLM):  # type: ignore[misc,name-defined]
    """A model as DSPy had them before 3.4."""

    def __init__(self, sandbox: Sandbox, name: str = MINI, **options: Any) -> None:
        super().__init__(name, **options)
        self._sandbox = sandbox

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        asked = {n: v for n, v in {**self.kwargs, **kwargs}.items() if v is not None}
        messages = messages or [{"role": "user", "content": prompt}]
        return client(self._sandbox).chat.completions.create(model=self.model, messages=messages, **asked)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self.forward, prompt, messages, **kwargs)


def lm(sandbox: Sandbox, kind: str = "own", name: str = MINI, **options: Any) -> Any:
    options = {"cache": False, "max_tokens": 100, "num_retries": 0, **options}
    if kind == "elsewhere":
        engines = {"engine": Elsewhere(sandbox, name), "async_engine": AElsewhere(sandbox, name)}
        return dspy.LM(f"openai/{name}", **engines, **options)
    if kind == "old":
        return Old(sandbox, name, **options)
    if kind == "anthropic":
        name = "claude-haiku-4-5"
        return dspy.LM(f"anthropic/{name}", api_base=sandbox.base_url, api_key="none", **options)
    if kind == "gemini":
        name = "gemini-2.5-flash"
        return dspy.LM(f"gemini/{name}", api_base=f"{sandbox.url}/v1beta", api_key="none", **options)
    engine = "litellm" if kind.startswith("litellm") else "lm15"
    if kind == "responses":
        options["model_type"] = kind
    return dspy.LM(f"openai/{name}", api_base=sandbox.base_url, api_key="none", engine=engine, **options)


def metered(meter: Meter, kind: str, stack: ExitStack, model: Any) -> Any:
    """Metered on its own; with LiteLLM metered beneath; or all that there is."""
    if kind.endswith("all"):
        stack.enter_context(meter.instrument())
        return model
    if kind.endswith("beneath"):
        stack.enter_context(meter.litellm())
    return meter.dspy(model)


KINDS = ("own", "own, all", "responses", "anthropic", "gemini", "elsewhere", "old")
LITELLM = ("litellm", "litellm, beneath", "litellm, all")


@pytest.mark.parametrize("kind", [*KINDS, *LITELLM])
def test_what_is_booked_is_what_was_billed(kind: str, sandbox: Sandbox) -> None:
    """Called, awaited, by two, by a program and by its retry, and not again from the cache."""
    if kind in LITELLM:
        pytest.importorskip("litellm")
    way = kind.split(",")[0]
    with Meter("memory://", budgets=["$1 per session"]) as meter, ExitStack() as stack:
        model = metered(meter, kind, stack, lm(sandbox, way))
        assert isinstance(model, dspy.BaseLM)
        with meter.session("s", user="ada"):
            model("hello")
            arun(model.acall("hello"))
            if way not in ("responses", "old"):
                assert len(model("hello", n=2)) == 2
            with dspy.context(lm=model), suppress(dspy.utils.exceptions.AdapterParseError):
                dspy.ChainOfThought("question -> answer")(question="hello")
            if way in ("own", "litellm"):
                before = sandbox.requests
                kept = metered(
                    meter, "own" if kind.endswith("all") else kind, stack, lm(sandbox, way, cache=True)
                )
                kept("Kept?")
                kept("Kept?")
                assert sandbox.requests == before + 1
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) == sandbox.requests
        assert {(e.session_id, e.user_id, e.status) for e in found} == {("s", "ada", "settled")}
        assert {e.tags.get("module") for e in found} == {None, "ChainOfThought"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_refusal_comes_out_as_it_is(sandbox: Sandbox) -> None:
    """Of a program, of many at once, of a stream; and is repeated by nobody."""

    def search(query: str) -> str:
        """Search."""
        return "nothing"

    with Meter("memory://", budgets=["$0.000001"]) as meter:
        for kind in ("own", "elsewhere", "old"):
            model = meter.dspy(lm(sandbox, kind, num_retries=3))
            predict = dspy.Predict("question -> answer")
            examples = [dspy.Example(question=str(i), answer="").with_inputs("question") for i in range(12)]

            async def stream(predict: Any = predict) -> None:
                async for _ in dspy.streamify(predict)(question="hello"):
                    pass

            refused: dict[str, Any] = {
                "call": lambda model=model: model("hello"),
                "acall": lambda model=model: arun(model.acall("hello")),
                "forward": lambda model=model: model.forward("hello"),
                "predict": lambda predict=predict: predict(question="hello"),
                "react": lambda: dspy.ReAct("question -> answer", tools=[search])(question="hello"),
                "batch": lambda predict=predict, e=examples: predict.batch(e, num_threads=4),
                "evaluate": lambda predict=predict, e=examples: dspy.Evaluate(
                    devset=e, metric=lambda *_: 1, num_threads=4
                )(predict),
                "stream": lambda stream=stream: arun(stream()),
            }
            if kind == "old":
                del refused["forward"]  # its own
            with dspy.context(lm=model):
                for name, call in refused.items():
                    with pytest.raises(BudgetExceeded) as refusal:
                        call()
                    assert refusal.value.shortfall.limit == 1000, (kind, name)
        assert sandbox.requests == 0
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        for kind in ("own", "elsewhere", "old"):
            with pytest.raises(UnknownPrice, match="my-own"):
                meter.dspy(lm(sandbox, kind, "my-own"))("hello")
        with pytest.raises(ConfigError, match="takes a language model of DSPy"):
            meter.dspy("openai/gpt-4o")
        with pytest.raises(ConfigError, match="metered already"):
            meter.dspy(meter.dspy(lm(sandbox)))
        dummy = meter.dspy(dspy.utils.DummyLM([{"answer": "no"}]))
        assert dummy("hello")
        assert sandbox.requests == 0
        assert entries(meter) == []


def test_what_is_signed_is_not_changed(sandbox: Sandbox) -> None:
    """A signature of AWS is of the whole body: where a limit would have to be put in, nothing is sent."""
    from dspy._vendor.lm15.transports import StdlibTransport, TransportRequest

    headers = [("Authorization", "AWS4-HMAC-SHA256 Credential=none"), ("Content-Type", "application/json")]
    body = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]%s}'

    def ask(limit: bytes) -> bytes:
        url = f"{sandbox.base_url}/chat/completions"
        with StdlibTransport().stream(TransportRequest("POST", url, headers, body % limit)) as reply:
            return bytes(reply.read())

    with Meter("memory://", budgets=["$1"]) as meter, meter.instrument():
        with pytest.raises(ConfigError, match="signed for AWS"):
            ask(b"")
        assert sandbox.requests == 0
        assert_sound(meter)
    with Meter("memory://", budgets=["100 output tokens"]) as meter, meter.instrument():
        assert b"choices" in ask(b', "max_completion_tokens": 64')
        with pytest.raises(BudgetExceeded):
            ask(b', "max_completion_tokens": 64')
        assert [e.output_tokens for e in entries(meter)] == [64]
        assert_sound(meter)


def test_near_the_cap_answers_get_shorter_and_are_not_kept(sandbox: Sandbox) -> None:
    for number, kind in enumerate(("own", "anthropic", "elsewhere", "old")):
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
            model = meter.dspy(lm(sandbox, kind, max_tokens=64, cache=True))
            with meter.session("one"):
                model(f"hello {number}")
                model(f"and now {number}")
                with pytest.raises(BudgetExceeded):
                    model(f"and then {number}")
            assert [e.output_tokens for e in entries(meter)] == [64, 36], kind
            with meter.session("two"):
                model(f"and now {number}")
            assert [e.output_tokens for e in entries(meter)] == [64, 36, 64], kind


def test_an_answer_that_was_cut_off_is_no_failure_of_the_model(sandbox: Sandbox) -> None:
    chat = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with Meter("memory://", budgets=["20 output tokens"]) as meter:
        predict = dspy.Predict("question -> answer")
        with dspy.context(lm=meter.dspy(lm(sandbox)), adapter=chat):
            with pytest.raises(BudgetExceeded, match="had room for 20 tokens") as refusal:
                predict(question="hello")
            assert refusal.value.shortfall.cut_at == 20
        with (
            dspy.context(lm=lm(sandbox), adapter=chat),
            pytest.raises(dspy.utils.exceptions.AdapterParseError),
        ):
            arun(predict.acall(question="hello"))
        assert [e.output_tokens for e in entries(meter)] == [20]


def test_threads_of_parallel_take_the_session_along(sandbox: Sandbox) -> None:
    class Ask(dspy.Module):  # type: ignore[misc,name-defined]
        def forward(self, q: str) -> Any:
            return dspy.Prediction(answer=dspy.settings.lm(q))

    with Meter("memory://", budgets=["$1 per session"]) as meter:
        many = [(Ask(), {"q": str(number)}) for number in range(6)]
        with dspy.context(lm=meter.dspy(lm(sandbox))), meter.session("s", user="ada"):
            dspy.Parallel(num_threads=4, disable_progress_bar=True)(many)
        whose = [(e.session_id, e.user_id, e.tags) for e in entries(meter)]
        assert whose == [("s", "ada", {"module": "Ask"})] * 6
        assert_agrees(meter, sandbox)


def test_a_policy_looks_through_what_is_sent(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"], policy={"models": ["gpt-4o"]}) as meter:
        for kind in ("own", "elsewhere"):
            with pytest.raises(PolicyRefused):
                meter.dspy(lm(sandbox, kind))("hello")
        assert sandbox.requests == 0


def test_instrumented_and_no_more(sandbox: Sandbox) -> None:
    before = lm(sandbox)
    with Meter("memory://", budgets=["3 calls"]) as meter:
        with meter.instrument():
            before("hello")
            lm(sandbox, "old")("hello")
            arun(lm(sandbox).acall("hello"))
            with pytest.raises(BudgetExceeded):
                before("hello")
            assert meter.unmetered == ()
        before("hello")
        assert len(entries(meter)) == 3
        assert len(sandbox.bill.lines) == 4
        assert_sound(meter)


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def big(meter: Meter, sandbox: Sandbox, kind: str, **options: Any) -> Any:
    return meter.dspy(lm(sandbox, kind, MODEL, max_tokens=ANSWER, **options))


def marked(kind: str, who: str) -> dict[str, Any]:
    """The mark for the provider, which DSPy's own engine sends under another name."""
    return {"extra_body": {"user": who}} if kind == "old" else {"user": who}


def settled(sandbox: Sandbox, least: int) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * least / 100)


@pytest.mark.parametrize("kind", ["own", "elsewhere"])
def test_64_threads(kind: str, sqlite_store: str) -> None:
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        model = big(meter, sandbox, kind)

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: model("hello there", **marked(kind, who)))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_tasks_whose_attempts_fail() -> None:
    """A 500 is billed here all the same: each of DSPy's attempts is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        sandbox.fault("status", status=500, billed=True, times=6)
        model = big(meter, sandbox, "own", num_retries=1)

        async def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: model.acall("hello there", **marked("own", who)))

        async def all_of_them() -> None:
            await asyncio.gather(*map(work, range(64)))

        arun(all_of_them())
        settled(sandbox, 97)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_48_streams_a_third_broken_off() -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""

    class Ask(dspy.Module):  # type: ignore[misc,name-defined]
        async def aforward(self, who: str) -> Any:
            return dspy.Prediction(answer=await model.acall("hello there", **marked("own", who)))

    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        model = big(meter, sandbox, "own")
        places = itertools.count()

        async def stream(who: str, breaks: bool) -> None:
            chunks = 0
            async for _ in dspy.streamify(Ask(), is_async_program=True)(who=who):
                chunks += 1
                if breaks and chunks == 2:
                    raise asyncio.CancelledError

        async def call(who: str) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, next(places) % 3 == 0))

        async def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: call(who))

        async def all_of_them() -> None:
            await asyncio.gather(*map(work, range(48)))

        arun(all_of_them())
        settled(sandbox, 97)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


# ── what of DSPy's internals is touched ────────────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from dspy._vendor.lm15.transports import TransportRequest, TransportResponse
    from dspy.clients import execution

    from behest_integrations.integrations.dspy import internals

    for name in (internals.BLOCKING[1], internals.AWAITED[1]):
        assert tuple(inspect.signature(getattr(execution, name)).parameters) == internals.Attempt._fields
    for name in (internals.BLOCKING[0], internals.AWAITED[0]):
        assert list(inspect.signature(getattr(execution, name)).parameters) == ["lm", "call"]
    assert {"legacy", "kwargs", "cache"} <= set(execution.PreparedCall.__dataclass_fields__)
    assert "send_stream" in dspy.settings.config
    for cls, name in internals.TRANSPORTS:
        assert list(inspect.signature(getattr(cls, name)).parameters) == ["self", "request"]
    assert {"method", "url", "headers", "body"} <= set(TransportRequest.__dataclass_fields__)
    assert {"chunks", "release", "status"} <= set(inspect.signature(TransportResponse.__init__).parameters)
    cls, name = internals.EXECUTOR
    assert list(inspect.signature(getattr(cls, name)).parameters) == ["self", "function", "data"]
    assert not issubclass(dspy.utils.exceptions.LMUnexpectedError, CallRefused)
