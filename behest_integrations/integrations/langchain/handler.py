"""The callback handler: reserves as a run starts, settles as it ends, refuses before the provider.

A callback cannot change a request, so it reserves what the request's own output limit allows.
`raise_error` makes LangChain let a refusal through; `run_inline` makes it run us in the caller's
own context, where the layers beneath find the hold that we offer them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.layers import Offer, enclose, offer
from ...engine.outcomes import CANCELLED, USED, Outcome, outcome_of_use
from ...engine.per_engine import PerEngine
from ...engine.steps import Steps, in_loop
from ...rules.usage import Usage
from ..kit.call import ending, read_answer
from ..kit.generation import Generation, Heard
from ..kit.metered import METERED_BY
from ..kit.runs import Runs
from ..kit.settings import output_limit, url_in
from .quiet import tell_refusals_once
from .translate import Chunks, attribution_of, cached, conversation_of, hear, name_model, request_as_wire
from .twofold import Twofold

log = logging.getLogger("behest")

_LAYER = "langchain callback"


class _Run:
    """A run of a model or a priced tool, between its start and its end."""

    __slots__ = ("batch", "chunks", "generation", "hold", "offered", "watched")

    def __init__(self, hold: Hold, generation: Generation | None, batch: _Batch | None) -> None:
        self.hold = hold
        self.generation = generation
        self.batch = batch
        self.chunks: Chunks | None = None
        self.offered: Offer | None = offer(hold, _LAYER) if generation else Offer(hold, _LAYER)
        self.watched: tuple[asyncio.Task[Any], Callable[[Any], None]] | None = None


class _Batch:
    """The runs that LangChain begins together, before any of them is made.

    It hands all of them the same object of parameters, by which they are known.
    """

    def __init__(self, params: object) -> None:
        self.params = params
        self.runs: dict[UUID, _Run] = {}
        self.refused = False


RUNS: PerEngine[Runs[UUID, _Run]] = PerEngine(lambda engine: Runs(engine.lease_ms))
"""The runs that callbacks have seen begin, and not yet end. Shared by all handlers of a meter: a run
that two of them see is metered once."""
_BATCHES: PerEngine[WeakValueDictionary[int, _Batch]] = PerEngine(lambda engine: WeakValueDictionary())


def take_run(engine: Engine, run_id: UUID | None) -> list[Hold]:
    """The holds of a callback for the request of this run, for the layer that makes it."""
    run = RUNS.of(engine).get(run_id) if run_id is not None else None
    if run is None:
        return []
    shared = run.batch is not None and run.hold.plan.operation == "completions"
    runs = list(run.batch.runs.values()) if run.batch is not None and shared else [run]
    return [hold for r in runs if r.offered is not None and (hold := r.offered.take()) is not None]


class BehestCallbackHandler(BaseCallbackHandler):
    """See `Meter.langchain`."""

    raise_error = True
    run_inline = True

    def __init__(
        self,
        engine: Engine,
        *,
        run_tags: bool,
        metadata_tags: Sequence[str],
        tool_prices: Mapping[str, int],
    ) -> None:
        self.engine = engine
        self._run_tags = run_tags
        self._metadata_tags = tuple(metadata_tags)
        self._tool_prices = dict(tool_prices)
        tell_refusals_once()
        self._runs = RUNS.of(engine)
        self._batches = _BATCHES.of(engine)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is one of the meter that went there with it."""
        return _made, (type(self), self.engine, self._run_tags, self._metadata_tags, self._tool_prices)

    # ── models ─────────────────────────────────────────────────────────────────────────

    @Twofold
    def on_chat_model_start(
        self,
        serialized: Mapping[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **run: Any,
    ) -> Steps[None]:
        for asked in messages:
            yield from self._start(serialized, asked, run_id, "chat", **run)

    @Twofold
    def on_llm_start(
        self, serialized: Mapping[str, Any] | None, prompts: list[str], *, run_id: UUID, **run: Any
    ) -> Steps[None]:
        from langchain_core.messages import HumanMessage

        for prompt in prompts:
            yield from self._start(serialized, [HumanMessage(prompt)], run_id, "completions", **run)

    def _start(
        self,
        serialized: Mapping[str, Any] | None,
        messages: Sequence[BaseMessage],
        run_id: UUID,
        operation: str,
        *,
        invocation_params: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        batch_size: int = 1,
        **_: Any,
    ) -> Steps[None]:
        if run_id in self._runs:
            return
        params, metadata = invocation_params or {}, metadata or {}
        settings: Mapping[str, Any] = (serialized or {}).get("kwargs") or {}
        of = ".".join(map(str, (serialized or {}).get("id") or ()))
        named = name_model(params, metadata, settings, of)
        request = request_as_wire(messages, params, named.model)
        if "max_tokens" not in request:
            limit = output_limit(settings, {"max_tokens": metadata.get("ls_max_tokens")})
            if limit is not None:
                request["max_tokens"] = limit
        who, fallback = attribution_of(metadata, (tags or ()) if self._run_tags else (), self._metadata_tags)
        metered = metadata.get(METERED_BY) == self.engine.token
        generation = Generation(
            self.engine,
            request,
            conversation=lambda: conversation_of(messages),
            operation=operation,
            who=who,
            fallback=fallback,
            provider=named.provider,
            can_limit=metered,
            deferred=metered,
            where=url_in(settings),
            choices=_count(params, "best_of"),
            layer=_LAYER,
        )
        batch = self._batch_of(invocation_params) if batch_size > 1 else None
        try:
            # What the others of its batch hold is not given back before it has begun, too.
            alone = batch is None or not batch.runs
            hold = yield from self.engine.reserving(generation.plan, wait=alone)
        except BaseException:
            if batch is not None:
                self._refuse(batch)
            raise
        run = _Run(hold, generation, batch)
        self._runs.put(run_id, run, hold)
        if batch is not None:
            batch.runs[run_id] = run
            if batch.refused:
                self._refuse(batch)
        if operation == "chat":
            self._watch(run_id, run)

    def _batch_of(self, params: object) -> _Batch:
        batches = self._batches
        batch = batches.get(id(params))
        if batch is None or batch.params is not params:
            batch = batches[id(params)] = _Batch(params)
        return batch

    def _refuse(self, batch: _Batch) -> None:
        """One of them was refused, so that none is made: LangChain ends none that had begun."""
        batch.refused = True
        for run_id in list(batch.runs):
            run = self._take(run_id)
            if run is not None:
                run.hold.post(CANCELLED)

    def _watch(self, run_id: UUID, run: _Run) -> None:
        """End the run with its task: LangChain tells nobody of a run that is cancelled with it."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return
        if task is None:
            return

        def done(task: asyncio.Task[Any]) -> None:
            if run.offered is None and not task.cancelled():
                return  # a stream, begun in this task and read on in others
            if self._runs.pop(run_id) is not None:
                self._abandoned(run)

        task.add_done_callback(done)
        run.watched = task, done

    @staticmethod
    def _abandoned(run: _Run) -> None:
        if run.generation is None:
            run.hold.post(USED)
        else:
            run.hold.post(run.generation.failed(asyncio.CancelledError()))

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        self._answering(run_id)
        run = self._runs.get(run_id) if chunk is not None else None
        if run is not None:
            if run.chunks is None:
                run.chunks = Chunks()
            run.chunks.add(chunk)

    def on_stream_event(self, event: Any, *, run_id: UUID, **_: Any) -> None:
        self._answering(run_id)

    def _answering(self, run_id: UUID) -> None:
        run = self._runs.get(run_id)
        if run is not None and run.offered is not None:
            run.offered.withdraw()
            run.offered = None

    @Twofold
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> Steps[None]:
        run = self._take(run_id)
        if run is None or run.generation is None:
            return
        if cached(response):
            yield from ending(run.hold, CANCELLED)
            return
        said = read_answer(lambda result: hear(result, run.chunks), response)
        if run.batch is not None and run.hold.plan.operation == "completions":
            yield from self._end_batch(run.batch, run, said, response)
        else:
            yield from ending(run.hold, run.generation.complete(said))

    def _end_batch(self, batch: _Batch, run: _Run, said: Heard, response: LLMResult) -> Steps[None]:
        """One request for several prompts: its usage comes with the first, for all of them."""
        assert run.generation is not None
        if said.usage is None:
            if (response.llm_output or {}).get("token_usage") != {}:  # else: it came with the first
                yield from ending(run.hold, run.generation.complete(said))
            return
        runs = list(batch.runs.values())
        shares = _shares(said.usage, [r.hold.amounts for r in runs])
        for sibling, usage in zip(runs, shares, strict=True):
            yield from ending(
                sibling.hold, Outcome("settled", usage, model=said.model, service_tier=said.service_tier)
            )

    @Twofold
    def on_llm_error(
        self, error: BaseException, *, run_id: UUID, response: LLMResult | None = None, **_: Any
    ) -> Steps[None]:
        run = self._take(run_id)
        if run is not None and run.generation is not None:
            outcome = run.generation.failed(error, read_answer(hear, response), run.hold.before)
            yield from ending(run.hold, outcome, error)

    def _take(self, run_id: UUID) -> _Run | None:
        run = self._runs.pop(run_id)
        if run is None:
            return None
        if run.offered is not None:
            run.offered.withdraw()
        if run.generation is not None and run.hold.open:  # no metered client beneath has sent a limit
            run.generation.say_unlimited("meter.langchain_model(model)")
        if run.watched is not None:
            task, done = run.watched
            task.remove_done_callback(done)
        return run

    if sys.version_info < (3, 11):

        def on_chain_start(
            self, serialized: Any, inputs: Any, *, metadata: Mapping[str, Any] | None = None, **_: Any
        ) -> None:
            """Before Python 3.11 a task cannot be given a context, and LangGraph has no way to hand
            callbacks on to what an asynchronous node calls."""
            if not metadata or "langgraph_node" not in metadata or not in_loop():
                return
            self.engine.notices.once(
                "langgraph on python 3.10",
                "on Python 3.10, LangGraph does not hand callbacks on to what an async node calls: such "
                "calls are not metered by a callback. Use meter.langchain_model(model), "
                "meter.langchain_middleware() or meter.instrument_langchain(), or Python 3.11.",
            )

    # ── tools ──────────────────────────────────────────────────────────────────────────

    @Twofold
    def on_tool_start(
        self,
        serialized: Mapping[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        **run: Any,
    ) -> Steps[None]:
        name = (serialized or {}).get("name") or run.get("name")
        price = self._tool_prices.get(str(name))
        if price is None or run_id in self._runs:
            return
        who, fallback = attribution_of(
            metadata or {}, (tags or ()) if self._run_tags else (), self._metadata_tags
        )
        plan = self.engine.planner.plan_cost(str(name), price, who=who, fallback=fallback)
        hold = yield from self.engine.reserving(plan)
        enclose(hold)
        used = _Run(hold, None, None)
        self._runs.put(run_id, used, hold)
        self._watch(run_id, used)

    @Twofold
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> Steps[None]:
        run = self._take(run_id)
        if run is not None:
            yield from ending(run.hold, USED)

    @Twofold
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> Steps[None]:
        run = self._take(run_id)
        if run is not None:
            yield from ending(run.hold, outcome_of_use(error), error)


def _made(
    cls: type[BehestCallbackHandler],
    engine: Engine,
    run_tags: bool,
    metadata_tags: Sequence[str],
    tool_prices: Mapping[str, int],
) -> BehestCallbackHandler:
    return cls(engine, run_tags=run_tags, metadata_tags=metadata_tags, tool_prices=tool_prices)


def _count(params: Mapping[str, Any], name: str) -> int:
    value = params.get(name)
    return value if isinstance(value, int) and value > 1 else 1


def _shares(usage: Usage, held: Sequence[Mapping[str, int]]) -> list[Usage]:
    """`usage` cut in parts as the reserved amounts are; the parts add up to it exactly."""

    def cut(total: int, weights: Sequence[int]) -> list[int]:
        whole = sum(weights) or len(weights)
        weights = weights if sum(weights) else [1] * len(weights)
        edges = [total * sum(weights[:i]) // whole for i in range(len(weights) + 1)]
        return [b - a for a, b in pairwise(edges)]

    inputs = [h.get("input_tokens", 0) for h in held]
    outputs = [h.get("output_tokens", 0) for h in held]
    parts = zip(
        cut(usage.input_tokens, inputs), cut(usage.output_tokens, outputs),
        cut(usage.cached_input_tokens, inputs), cut(usage.reasoning_tokens, outputs), strict=True,
    )  # fmt: skip
    return [Usage(i, o, cached_input_tokens=min(c, i), reasoning_tokens=min(r, o)) for i, o, c, r in parts]
