"""Whom a call is for, where Python's contexts do not follow: threads, pools, generators, dependencies."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import HELLO, aclient, assert_agrees, client, entries

from behest_integrations import (
    BudgetExceeded,
    CallRefused,
    ConfigError,
    ContextThreadPoolExecutor,
    Meter,
    Unattributed,
    bind,
    session,
)
from behest_integrations.engine.stages import STAGES
from behest_integrations.integrations.kit.threads import carrying_threads
from behest_integrations.rules import nesting
from behest_integrations.rules.attribution import NOBODY, SESSIONS, current
from behest_integrations.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _untold() -> Iterator[None]:
    """Each test is told anew; and leaves nothing open."""
    nesting._told.clear()
    yield
    gc.collect()
    assert not SESSIONS.registered
    assert not STAGES.registered
    assert current() is NOBODY


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "behest")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "behest"]


def here() -> str | None:
    return current().session_id


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in a thread that knows nothing."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(contextvars.Context().run(work)))
    thread.start()
    thread.join()
    return found[0]


# ── bind ───────────────────────────────────────────────────────────────────────────────


def test_a_bound_function_runs_where_it_was_bound() -> None:
    with session("bound"):
        plain = bind(here)
    assert in_thread(plain) == "bound"
    with session("caller"):
        assert plain() == "bound"
        assert here() == "caller"
    assert bind(here)() is None
    nobody = bind(here)
    with session("caller"):
        assert nobody() is None  # exactly what was in force, which was nothing


def test_bound_functions_of_every_kind() -> None:
    async def coroutine(x: int) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return x, here()

    def generator() -> Iterator[str | None]:
        yield here()
        yield here()

    async def agenerator() -> AsyncIterator[str | None]:
        yield here()
        await asyncio.sleep(0)
        yield here()

    class Callable_:
        async def __call__(self) -> str | None:
            await asyncio.sleep(0)
            return here()

    with session("bound"):
        bound = bind(coroutine), bind(generator), bind(agenerator), bind(Callable_())
        lazy = bind(lambda: coroutine(2))
        lazy_generator, lazy_agenerator = bind(lambda: generator()), bind(lambda: agenerator())
        partial = bind(functools.partial(coroutine, 3))
    assert inspect.iscoroutinefunction(bound[0])
    assert inspect.isgeneratorfunction(bound[1])
    assert inspect.isasyncgenfunction(bound[2])
    assert bound[0].__name__ == "coroutine"
    assert inspect.signature(bound[0]) == inspect.signature(coroutine)

    async def run() -> None:
        assert await bound[0](1) == (1, "bound")
        assert [x async for x in bound[2]()] == ["bound", "bound"]
        assert await bound[3]() == "bound"
        assert await lazy() == (2, "bound")
        assert [x async for x in lazy_agenerator()] == ["bound", "bound"]
        assert await partial() == (3, "bound")
        assert here() is None

    asyncio.run(run())
    for made in (bound[1](), lazy_generator()):
        assert next(made) == "bound"
        assert here() is None
        assert next(made) == "bound"


def test_only_our_own_variables_are_carried() -> None:
    theirs: contextvars.ContextVar[str] = contextvars.ContextVar("theirs", default="unset")
    with session("s"), ContextThreadPoolExecutor(1) as pool, carrying_threads():
        theirs.set("set")
        assert pool.submit(theirs.get).result() == "unset"
        assert bind(theirs.get)() == "set"
    theirs.set("unset")


def test_a_stage_is_held_to_in_a_pool(sandbox: Sandbox) -> None:
    """The hole that this is about: a stage's budget around `pool.map`."""
    with Meter("memory://") as meter:
        metered = meter.openai(client(sandbox))

        def ask(text: str) -> bool:
            try:
                metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=16)
            except BudgetExceeded:
                return False
            return True

        def tried(carry: str, pools: int) -> int:
            with meter.budget("3 calls", name=carry), ThreadPoolExecutor(pools) as pool:
                return sum(pool.map(meter.bind(ask) if carry == "bind" else ask, "0123456789"))

        assert tried("bind", 2) == 3
        with meter.budget("3 calls", name="executor"), ContextThreadPoolExecutor(2) as pool:
            assert sum(pool.map(ask, "0123456789")) == 3
        with carrying_threads():
            assert tried("instrumented", 2) == 3
            with meter.budget("3 calls", name="threads"), ThreadPool(2) as old:
                assert sum(old.map(ask, "0123456789")) == 3
        stages = [e.stage for e in entries(meter) if e.status == "settled"]
        assert sorted(set(stages)) == ["bind", "executor", "instrumented", "threads"]
        assert_agrees(meter, sandbox)


# ── pools and threads by themselves ────────────────────────────────────────────────────


def test_threads_of_every_kind_carry_while_instrumented() -> None:
    class Own(threading.Thread):
        found: str | None = None

        def run(self) -> None:
            self.found = here()

    async def executor() -> str | None:
        return await asyncio.get_running_loop().run_in_executor(None, here)

    def all_kinds() -> list[str | None]:
        found: list[str | None] = []
        for thread in (
            threading.Thread(target=lambda: found.append(here())),
            threading.Timer(0, lambda: found.append(here())),
        ):
            thread.start()
            thread.join()
        own = Own()
        own.start()
        own.join()
        found.append(own.found)
        with ThreadPoolExecutor(1) as pool:
            found += [pool.submit(here).result(), *pool.map(lambda _: here(), [0])]
        with ThreadPool(1) as old:
            found += [old.apply(here), *old.map(lambda _: here(), [0]), *old.imap(lambda _: here(), [0])]
            found += old.starmap(lambda _: here(), [(0,)])
        found.append(asyncio.run(executor()))
        found.append(asyncio.run(asyncio.to_thread(here)))
        return found

    with session("s"):
        assert set(all_kinds()[:-1]) == {None}
        with carrying_threads():
            assert set(all_kinds()) == {"s"}
        assert set(all_kinds()[:-1]) == {None}
    with carrying_threads():
        assert set(all_kinds()) == {None}


def test_a_pools_threads_serve_everybody() -> None:
    """They are started by whoever comes first; what comes later is not that one's."""
    with carrying_threads(), ThreadPoolExecutor(1) as pool, session("first"):
        assert pool.submit(here).result() == "first"
        with session("second"):
            assert pool.submit(here).result() == "second"
        done = contextvars.Context().run(pool.submit, here)
        assert done.result() is None
        with ThreadPool(1) as old:
            assert contextvars.Context().run(old.apply, here) is None


def test_instrumenting_nests_and_is_undone() -> None:
    before = ThreadPoolExecutor.submit, threading.Thread.start, ThreadPool.map
    first, second = carrying_threads(), carrying_threads()
    with session("s"), ThreadPoolExecutor(1) as pool:
        first.remove()
        first.remove()
        assert pool.submit(here).result() == "s"
        second.remove()
        assert pool.submit(here).result() is None
    assert (ThreadPoolExecutor.submit, threading.Thread.start, ThreadPool.map) == before
    assert "map" not in vars(ThreadPool)  # it is inherited again


@pytest.mark.parametrize("wraps", [True, False])
def test_others_may_have_put_theirs_over_ours(monkeypatch: pytest.MonkeyPatch, wraps: bool) -> None:
    seen = []
    ours = carrying_threads()
    inner = ThreadPoolExecutor.submit

    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("theirs")
        return inner(self, *args, **kwargs)

    theirs = functools.wraps(inner)(submit) if wraps else submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", theirs)
    with session("s"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(here).result() == "s"
        ours.remove()
        assert ThreadPoolExecutor.submit is theirs
        assert pool.submit(here).result() is None  # ours is inside, and does nothing
        with carrying_threads():
            assert pool.submit(here).result() == "s"
        assert pool.submit(here).result() is None
    assert len(seen) == 4


def test_a_thread_that_could_not_start_is_as_it_was() -> None:
    with carrying_threads(), session("s"):
        thread = threading.Thread(target=here)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError):
            thread.start()
        assert "run" not in vars(thread)


# ── scopes ─────────────────────────────────────────────────────────────────────────────


def test_scopes_that_cross() -> None:
    first, second = session("first", user="u"), session("second")
    first.__enter__()
    second.__enter__()
    assert (here(), current().user_id) == ("second", "u")
    first.__exit__()
    assert (here(), current().user_id) == ("second", None)
    second.__exit__()
    assert current() is NOBODY
    second.__exit__()  # never entered since: nothing happens


def test_one_scope_object_used_by_many_threads_at_once() -> None:
    scope = session("shared")
    barrier = threading.Barrier(8)
    found = []

    def work() -> None:
        for _ in range(50):
            with scope:
                barrier.wait()
                found.append(here())
            found.append(here())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found.count("shared"), found.count(None)) == (400, 400)


def test_a_generator_keeps_its_scope_to_itself() -> None:
    def generator() -> Iterator[str | None]:
        with session("generator"):
            yield here()
            with session("inner"):
                yield here()
            yield here()

    def outer() -> Iterator[str | None]:
        yield from generator()

    for make in (generator, outer):
        found = []
        for item in make():
            found.append(item)
            assert here() is None
            with session("consumer"):
                assert here() == "consumer"
        assert found == ["generator", "inner", "generator"]
    half = generator()
    next(half)
    assert here() is None
    with session("consumer"):
        assert next(half) == "inner"
        assert here() == "consumer"
    assert here() is None
    del half
    gc.collect()
    pairs = [*zip(generator(), generator(), strict=True)]
    assert pairs == [("generator", "generator"), ("inner", "inner"), ("generator", "generator")]


def test_an_asynchronous_generator_keeps_its_scope_to_itself() -> None:
    async def generator() -> AsyncIterator[list[str | None]]:
        with session("generator"):
            for _ in range(2):
                await asyncio.sleep(0)
                beside = await asyncio.gather(asyncio.to_thread(here), asyncio.create_task(ahere()))
                yield [here(), *beside]

    async def ahere() -> str | None:
        await asyncio.sleep(0)
        return here()

    async def run() -> None:
        async for item in generator():
            assert item == ["generator"] * 3
            assert here() is None
        half = generator()
        await half.__anext__()
        assert here() is None
        await half.aclose()

    asyncio.run(run())


def test_tasks_begun_between_the_steps_of_a_generator(warned: Callable[[], list[str]]) -> None:
    def generator() -> Iterator[int]:
        with session("generator"):
            yield from range(3)

    @session("generator")
    async def decorated() -> AsyncIterator[int]:
        for i in range(3):
            await asyncio.sleep(0.001)
            yield i

    async def later() -> str | None:
        await asyncio.sleep(0)
        return here()

    async def run() -> None:
        with session("consumer"):
            tasks = [asyncio.create_task(later()) async for _ in decorated()]
            assert await asyncio.gather(*tasks) == ["consumer"] * 3
            assert warned() == []
            tasks = [asyncio.create_task(later()) for _ in generator()]
            assert await asyncio.gather(*tasks) == ["consumer"] * 3
            (text,) = warned()
            assert "Decorate the generator" in text

    asyncio.run(run())


@pytest.mark.parametrize("entered", ["with", "stack"])
def test_a_generators_steps_may_be_run_in_threads(entered: str, warned: Callable[[], list[str]]) -> None:
    """As servers do with a stream: each step in a copy of the request's context."""

    def generator() -> Iterator[str | None]:
        with ExitStack() as stack:
            if entered == "stack":
                stack.enter_context(session("stream"))
                yield here()
                yield here()
            else:
                with session("stream"):
                    yield here()
                    yield here()
        yield here()

    with session("request"):
        stream = generator()
        steps = [in_thread(functools.partial(contextvars.copy_context().run, next, stream)) for _ in range(3)]
        assert steps == ["stream", "stream", "request"]
        assert here() == "request"
    assert warned() == []


def test_a_context_manager_is_for_the_code_around_it() -> None:
    @contextmanager
    def inner() -> Iterator[None]:
        with session("manager", user="u"):
            yield

    @contextmanager
    def outer() -> Iterator[None]:
        with inner(), session("inside"):
            yield

    @asynccontextmanager
    async def both() -> AsyncIterator[None]:
        with outer():
            yield

    def generator() -> Iterator[str | None]:
        with outer():
            yield here()

    async def run() -> None:
        async with both():
            await asyncio.sleep(0)
            assert (here(), current().user_id) == ("inside", "u")
            assert await asyncio.to_thread(here) == "inside"

    with outer():
        assert (here(), current().user_id) == ("inside", "u")
    asyncio.run(run())
    for item in generator():  # the managers are of the generator's body, and so are their scopes
        assert item == "inside"
        assert here() is None


def test_a_generator_left_half_way_is_closed_without_a_word(warned: Callable[[], list[str]]) -> None:
    async def generator() -> AsyncIterator[str | None]:
        with session("half"):
            yield here()
            yield here()

    async def run() -> None:
        async for item in generator():
            assert item == "half"
            break
        assert here() is None
        gc.collect()
        await asyncio.sleep(0.01)
        assert here() is None

    asyncio.run(run())
    assert warned() == []


def test_leaving_elsewhere_says_so_and_raises_nothing(warned: Callable[[], list[str]]) -> None:
    scope = session("elsewhere", user="u")
    scope.__enter__()
    inherited = contextvars.copy_context()
    assert here() == "elsewhere"
    for _ in range(2):
        in_thread(functools.partial(scope.__exit__, ValueError, ValueError(), None))
    assert here() is None  # where it was entered it ends as well
    assert asyncio.run(asyncio.to_thread(here)) is None
    assert inherited.run(here) is None  # begun inside, or after? nobody knows
    (text,) = warned()
    assert "test_contexts.py" in text
    assert "async def" in text
    assert "session(session='elsewhere', user='u')" in text


# ── lost ───────────────────────────────────────────────────────────────────────────────


def ask(meter: Meter, **who: Any) -> None:
    """A call of a tool for nothing: all that it needs is a plan."""
    from behest_integrations import Attribution

    with meter.cost("$0.001", name="tool", who=Attribution(**who)):
        pass


def test_a_lost_stage_or_session_is_warned_of_once_a_place(warned: Callable[[], list[str]]) -> None:
    with Meter("memory://", project="p") as meter, Meter("memory://") as other:
        with ThreadPoolExecutor(1) as pool, meter.budget("9 calls", name="sum"):
            for _ in range(3):
                pool.submit(ask, meter).result()
            (text,) = warned()
            assert "stage 'sum'" in text
            assert f"{__file__}:" in text
            assert "meter.bind" in text
            pool.submit(ask, other).result()  # another meter's stage
            assert len(warned()) == 1
            pool.submit(lambda: ask(meter)).result()
            assert len(warned()) == 1  # the same line asks
        nesting._told.clear()
        with ThreadPoolExecutor(1) as pool, meter.session("s"):
            pool.submit(ask, meter).result()
            assert len(warned()) == 2
            assert "a session is open" in warned()[1]
            nesting._told.clear()
            pool.submit(ask, meter, user_id="named").result()
            pool.submit(bind(ask), meter).result()
            ask(meter)
            assert len(warned()) == 2
        ask(meter)
        assert len(warned()) == 2


def test_another_requests_stage_is_no_reason_to_warn(warned: Callable[[], list[str]]) -> None:
    def other_request(meter: Meter) -> None:
        with session("b", user="b"):
            ask(meter)

    def same_request(meter: Meter) -> None:
        with session("a"):
            ask(meter)

    with Meter("memory://") as meter, session("a", user="a"), meter.budget("9 calls", name="s"):
        in_thread(lambda: other_request(meter))
        assert warned() == []
        in_thread(lambda: same_request(meter))
        assert len(warned()) == 1


def test_a_thread_that_outlives_its_scope_is_warned_of(warned: Callable[[], list[str]]) -> None:
    go = threading.Event()
    with Meter("memory://") as meter, carrying_threads():

        def work() -> None:
            ask(meter)
            assert warned() == []
            go.wait()
            ask(meter)

        with session("s"):
            thread = threading.Thread(target=work)
            thread.start()
        go.set()
        thread.join()
        (text,) = warned()
        assert "has been left since" in text
        assert [e.session_id for e in entries(meter)] == ["s", "s"]


# ── require ────────────────────────────────────────────────────────────────────────────


def test_what_is_required_and_not_said_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", require=("user", "tenant", "tag:feature")) as meter:
        metered = meter.openai(client(sandbox))

        def call(**options: Any) -> None:
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=16, **options)

        with pytest.raises(Unattributed) as caught:
            call()
        assert isinstance(caught.value, CallRefused)
        assert caught.value.missing == ("user", "tenant", "tag:feature")
        for words in ("meter.session(user=..., tenant=..., tags={'feature': ...})", "X-End-User-Id", "bind"):
            assert words in str(caught.value)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.missing) == (str(caught.value), caught.value.missing)
        with session(tenant="t", tags={"feature": "f"}):
            with pytest.raises(Unattributed, match="does not say its user"):
                call()
            with ThreadPoolExecutor(1) as pool, pytest.raises(Unattributed):
                pool.submit(call, extra_headers={"X-End-User-Id": "u"}).result()
            call(extra_headers={"X-End-User-Id": "u"})
        with pytest.raises(Unattributed), meter.cost("$0.01", name="tool"):
            pass
        assert sandbox.requests == 1
    with Meter("memory://", user="u", require="user") as meter:
        ask(meter)
    for bad in ("model", "tag:", ["session_id"], [3]):
        with pytest.raises(ConfigError, match="tag:NAME"):
            Meter("memory://", require=bad)  # type: ignore[arg-type]


# ── FastAPI ────────────────────────────────────────────────────────────────────────────


def served(meter: Meter, sandbox: Sandbox, dependency: Callable[..., Any]) -> list[str | None]:
    """Whom the calls of endpoints of every kind were for; each request is of another user."""
    fastapi = pytest.importorskip("fastapi")
    from fastapi.responses import StreamingResponse
    from fastapi.testclient import TestClient

    metered, ametered = meter.openai(client(sandbox)), meter.openai(aclient(sandbox))
    app = fastapi.FastAPI(dependencies=[fastapi.Depends(dependency)])
    options: Any = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 16}

    @app.get("/sync")
    def sync() -> str:
        metered.chat.completions.create(**options)
        return "done"

    @app.get("/async")
    async def asynchronous() -> str:
        await asyncio.gather(*(ametered.chat.completions.create(**options) for _ in range(2)))
        return "done"

    @app.get("/stream")
    def stream(user: str) -> StreamingResponse:
        def chunks() -> Iterator[str]:
            with meter.session(user=user):
                for _ in range(3):
                    metered.chat.completions.create(**options)
                    yield "a line"
                    assert current().user_id == user
            yield "done"

        return StreamingResponse(chunks())

    with TestClient(app) as http:
        for i, path in enumerate(("/sync", "/async", "/stream")):
            assert "done" in http.get(path, params={"user": f"u{i}"}).text
    assert_agrees(meter, sandbox)
    return [e.user_id for e in entries(meter)]


def test_dependencies_of_fastapi(sandbox: Sandbox, warned: Callable[[], list[str]]) -> None:
    with Meter("memory://") as meter:

        async def dependency(user: str) -> AsyncIterator[None]:
            with meter.session(user=user):
                yield

        assert served(meter, sandbox, dependency) == ["u0", "u1", "u1", "u2", "u2", "u2"]
    assert warned() == []


def test_a_dependency_in_a_thread_is_warned_of_and_harms_nobody(
    sandbox: Sandbox, warned: Callable[[], list[str]]
) -> None:
    with Meter("memory://") as meter:

        def dependency(user: str) -> Iterator[None]:
            with meter.session(user=user):
                yield

        # Its scope cannot reach the endpoint; a stream's own scope does reach each step.
        assert served(meter, sandbox, dependency) == [None, None, None, "u2", "u2", "u2"]
    said = warned()
    assert sum("was left in another context" in text for text in said) == 1
    assert sum("while a session is open" in text for text in said) == 2  # /sync and /async


# ── every history ──────────────────────────────────────────────────────────────────────

NAMES = st.sampled_from("abc")


class Histories(RuleBasedStateMachine):
    """Scopes entered, left, crossed and iterated in several contexts; a model says who is meant.

    Each actor is a context of its own, as a task or a thread has. The model keeps, for each, the
    names of the scopes that the code there is in. Whatever happens to one is nothing to another.
    """

    @initialize()
    def begin(self) -> None:
        self.actors: list[tuple[contextvars.Context, list[tuple[Any, str]]]] = []
        self.jobs: list[tuple[Callable[[], Any], str | None]] = []
        self.generators: list[tuple[Any, str]] = []
        self.pool = ThreadPool(2)
        self.executor = ContextThreadPoolExecutor(2)
        self.plain = ThreadPoolExecutor(1)
        self.hooks = carrying_threads()
        self.actors.append((contextvars.Context(), []))

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.hooks.remove()
            self.pool.terminate()
            self.executor.shutdown()
            self.plain.shutdown()
            for context, scopes in self.actors:
                for scope, _ in reversed(scopes):
                    context.run(scope.__exit__)
            for made, _ in self.generators:
                made.close()

    def pick(self, n: int) -> tuple[contextvars.Context, list[tuple[Any, str]]]:
        return self.actors[n % len(self.actors)]

    @staticmethod
    def meant(scopes: list[tuple[Any, str]]) -> str | None:
        return scopes[-1][1] if scopes else None

    @rule(n=st.integers(0, 9), name=NAMES)
    def enter(self, n: int, name: str) -> None:
        context, scopes = self.pick(n)
        scope = session(name)
        context.run(scope.__enter__)
        scopes.append((scope, name))

    @rule(n=st.integers(0, 9), which=st.integers(0, 9))
    def leave(self, n: int, which: int) -> None:
        """The innermost, or one around it: then they cross."""
        context, scopes = self.pick(n)
        if scopes:
            scope, _ = scopes.pop(which % len(scopes))
            context.run(scope.__exit__, None, None, None)

    @precondition(lambda self: len(self.actors) < 5)
    @rule()
    def another_request(self) -> None:
        self.actors.append((contextvars.Context(), []))

    @rule(n=st.integers(0, 9))
    def task(self, n: int) -> None:
        """A task takes a copy along, whatever its parent enters and leaves meanwhile."""
        context, scopes = self.pick(n)
        copy = context.run(contextvars.copy_context)
        self.jobs.append((functools.partial(copy.run, here), self.meant(scopes)))

    @rule(n=st.integers(0, 9))
    def bound(self, n: int) -> None:
        context, scopes = self.pick(n)
        self.jobs.append((context.run(bind, here), self.meant(scopes)))

    @rule(n=st.integers(0, 9), kind=st.sampled_from(["pool", "executor", "plain", "thread"]))
    def pooled(self, n: int, kind: str) -> None:
        """Pools whose threads were started by whoever came first."""
        context, scopes = self.pick(n)
        if kind == "thread":
            assert context.run(in_plain_thread, here) == self.meant(scopes)
            return
        if kind == "pool":
            found = context.run(self.pool.apply_async, here).get()
        else:
            pool = self.executor if kind == "executor" else self.plain
            found = context.run(pool.submit, here).result()
        assert found == self.meant(scopes)

    @rule(n=st.integers(0, 9), which=st.integers(0, 9))
    def do(self, n: int, which: int) -> None:
        """What was put off is done, in another's context and in a thread of nobody's."""
        if self.jobs:
            job, name = self.jobs.pop(which % len(self.jobs))
            if isinstance(job, functools.partial):
                assert in_thread(job) == name  # a task, which has a context already
            else:
                assert self.pick(n)[0].run(job) == name
                assert in_thread(job) == name

    @rule(name=NAMES, decorated=st.booleans(), inner=NAMES)
    def generator(self, name: str, decorated: bool, inner: str) -> None:
        def body() -> Iterator[str | None]:
            while True:
                yield here()
                with session(inner):
                    assert here() == inner
                assert here() == name

        def scoped() -> Iterator[str | None]:
            with session(name):
                yield from body()

        self.generators.append(((session(name)(body) if decorated else scoped)(), name))

    @rule(n=st.integers(0, 9), which=st.integers(0, 9), thread=st.booleans())
    def step(self, n: int, which: int, thread: bool) -> None:
        """A generator is run on, in whatever context, and left half way."""
        if self.generators:
            made, name = self.generators[which % len(self.generators)]
            context, scopes = self.pick(n)
            assert (in_thread(lambda: next(made)) if thread else context.run(next, made)) == name
            assert context.run(here) == self.meant(scopes)

    @rule(n=st.integers(0, 9), which=st.integers(0, 9), close=st.booleans())
    def drop(self, n: int, which: int, close: bool) -> None:
        if self.generators:
            made, _ = self.generators.pop(which % len(self.generators))
            if close:
                self.pick(n)[0].run(made.close)
            del made

    @invariant()
    def everybody_is_where_their_code_is(self) -> None:
        for context, scopes in getattr(self, "actors", ()):
            assert context.run(here) == self.meant(scopes)


def in_plain_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
