"""Programs made at random, of scopes, tasks, threads, pools and generators: each call is for whom the code
reads it to be for, or, where a scope cannot follow, for nobody: refused where that is required."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behest_integrations import ContextThreadPoolExecutor, Meter, Unattributed, session
from behest_integrations.rules import nesting
from behest_integrations.wire import RequestBound

BOUND = RequestBound(1, output_limit=0)


class Node(NamedTuple):
    kind: str
    name: str
    inside: tuple[Any, ...] = ()


class Meant(NamedTuple):
    """What the code reads as, and whether the scopes may have been lost on the way."""

    who: str | None = None
    stages: tuple[str, ...] = ()
    lost: bool = False


SYNC = ["session", "stage", "crossed", "manager", "generator", "bound", "pool", "executor", "thread", "run"]
ASYNC = [
    "session", "stage", "crossed", "amanager", "agenerator", "half_way", "tasks", "to_thread", "in_executor",
    "bound", "pool",
]  # fmt: skip
NAMES = st.sampled_from("abc")
CALL = st.builds(Node, st.just("call"), NAMES, st.just(()))


def programs(kinds: list[str]) -> st.SearchStrategy[Node]:
    def of(inside: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.builds(
            Node, st.sampled_from(kinds), NAMES, st.lists(inside, min_size=1, max_size=3).map(tuple)
        )

    return st.recursive(CALL, of, max_leaves=8)


class Machine:
    """Runs a program, and compares each call with what is meant."""

    def __init__(self, meter: Meter, strict: Meter, lossless: bool) -> None:
        self.meter = meter
        self.strict = strict
        self.lossless = lossless
        """Whether threads take scopes along by themselves."""
        self.plain = ThreadPoolExecutor(2)
        self.ours = ContextThreadPoolExecutor(2)
        # Threads of nobody's, begun before any scope.
        list(self.plain.map(lambda _: None, range(2)))
        list(self.ours.map(lambda _: None, range(2)))
        self.calls = 0

    def close(self) -> None:
        self.plain.shutdown()
        self.ours.shutdown()

    def call(self, meant: Meant) -> None:
        self.calls += 1
        plan = self.meter.plan("chat", "m", BOUND)
        stage = tuple(part.partition("#")[0] for part in plan.stage.split("/")) if plan.stage else ()
        if meant.lost:
            assert plan.who.session_id in (meant.who, None), (plan.who, meant)
            assert stage in (meant.stages, ()), (stage, meant)
            if meant.who is not None and plan.who.session_id is None:
                assert any(key[0] == "lost" for key in nesting._told), "it is warned of"  # type: ignore[index]
        else:
            assert (plan.who.session_id, stage) == (meant.who, meant.stages)
        if plan.who.session_id is None:
            with pytest.raises(Unattributed):
                self.strict.plan("chat", "m", BOUND)
        else:
            assert self.strict.plan("chat", "m", BOUND).who.session_id == meant.who

    def elsewhere(self, meant: Meant) -> Meant:
        return meant if self.lossless else meant._replace(lost=True)

    def scope(self, node: Node, meant: Meant) -> tuple[Any, Meant]:
        if node.kind == "stage":
            return self.meter.budget("100 calls", name=node.name), meant._replace(
                stages=(*meant.stages, node.name)
            )
        return session(node.name), meant._replace(who=node.name)

    # ── blocking ───────────────────────────────────────────────────────────────────────

    def all(self, nodes: tuple[Node, ...], meant: Meant) -> None:
        for node in nodes:
            self.run(node, meant)

    def run(self, node: Node, meant: Meant) -> None:
        go = functools.partial(self.all, node.inside)
        if node.kind == "call":
            self.call(meant)
        elif node.kind in ("session", "stage"):
            scope, inner = self.scope(node, meant)
            with scope:
                go(inner)
            self.call(meant)
        elif node.kind == "crossed":
            first, second = session(f"{node.name} first"), session(node.name)
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            go(meant._replace(who=node.name))
            second.__exit__(None, None, None)
            self.call(meant)
        elif node.kind == "manager":

            @contextlib.contextmanager
            def manager() -> Iterator[None]:
                with session(node.name):
                    yield

            with manager():
                go(meant._replace(who=node.name))
            self.call(meant)
        elif node.kind == "generator":

            def body() -> Iterator[None]:
                with session(node.name):
                    self.call(meant._replace(who=node.name))
                    yield
                    go(meant._replace(who=node.name))
                    yield

            steps = body()
            next(steps)
            go(meant)  # the code that iterates it is not inside
            next(steps)
            self.call(meant)
            del steps  # left half way
            self.call(meant)
        elif node.kind == "bound":
            self.plain.submit(self.meter.bind(functools.partial(self.apart, go)), meant).result()
        elif node.kind == "pool":
            self.ours.submit(self.apart, go, meant).result()
        elif node.kind == "executor":
            self.plain.submit(self.apart, go, self.elsewhere(meant)).result()
        elif node.kind == "thread":
            failed: list[BaseException] = []

            def work() -> None:
                try:
                    go(self.elsewhere(meant))
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            for error in failed:
                raise error
        else:
            assert node.kind == "run"
            go(meant)

    def apart(self, go: Callable[[Meant], None], meant: Meant) -> None:
        """In a pool's thread: what is inside may use the pool, which then needs another thread."""
        plain, ours = self.plain, self.ours
        deeper = Machine(self.meter, self.strict, self.lossless)
        self.plain, self.ours = deeper.plain, deeper.ours
        try:
            go(meant)
        finally:
            self.plain, self.ours = plain, ours
            deeper.close()

    # ── awaited ────────────────────────────────────────────────────────────────────────

    async def aall(self, nodes: tuple[Node, ...], meant: Meant) -> None:
        for node in nodes:
            await self.arun(node, meant)

    async def arun(self, node: Node, meant: Meant) -> None:
        go = functools.partial(self.aall, node.inside)
        named = meant._replace(who=node.name)
        if node.kind == "call":
            await asyncio.sleep(0)
            self.call(meant)
        elif node.kind in ("session", "stage"):
            scope, inner = self.scope(node, meant)
            with scope:
                await go(inner)
            self.call(meant)
        elif node.kind == "crossed":
            first, second = session(f"{node.name} first"), session(node.name)
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            await go(named)
            second.__exit__(None, None, None)
            self.call(meant)
        elif node.kind == "amanager":

            @contextlib.asynccontextmanager
            async def manager() -> AsyncIterator[None]:
                with session(node.name):
                    yield

            async with contextlib.AsyncExitStack() as stack:  # as FastAPI enters its dependencies
                await stack.enter_async_context(manager())
                await go(named)
            self.call(meant)
        elif node.kind in ("agenerator", "half_way"):

            async def body() -> AsyncIterator[None]:
                with session(node.name):
                    await self.arun(Node("call", ""), named)
                    yield
                    await go(named)
                    yield

            steps = body()
            await steps.__anext__()
            self.call(meant)
            if node.kind == "agenerator":
                await steps.__anext__()
                self.call(meant)
            await steps.aclose()  # type: ignore[attr-defined]
            self.call(meant)
        elif node.kind == "tasks":
            await asyncio.gather(*(self.arun(inner, meant) for inner in node.inside))
        elif node.kind == "to_thread":
            await asyncio.to_thread(self.call, meant)
            await go(meant)
        elif node.kind == "in_executor":
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.plain, self.call, self.elsewhere(meant))
            await go(meant)
        elif node.kind == "bound":
            await asyncio.wrap_future(self.plain.submit(self.meter.bind(self.call), meant))
            await go(meant)
        else:
            assert node.kind == "pool"
            await asyncio.wrap_future(self.ours.submit(self.call, meant))
            await go(meant)


ALWAYS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=[False, True], ids=["plain", "instrumented"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with (
        Meter("memory://") as meter,
        Meter("memory://", require=("session",)) as strict,
        meter.instrument() if request.param else contextlib.nullcontext(),
    ):
        made = Machine(meter, strict, request.param)
        yield made
        made.close()


@ALWAYS
@given(program=programs(SYNC))
def test_programs_of_threads(machine: Machine, program: Node) -> None:
    before = machine.calls
    machine.run(program, Meant())
    machine.call(Meant())
    assert machine.calls > before + 1


@ALWAYS
@given(program=programs(ASYNC))
def test_programs_of_tasks(machine: Machine, program: Node) -> None:
    async def main() -> None:
        await machine.arun(program, Meant())
        machine.call(Meant())

    asyncio.run(main())
