"""A handler for LlamaIndex's callback manager: it raises before the call, and cannot change it.

LlamaIndex calls handlers in the caller's own thread and context, also from coroutines: what is
reserved here is reserved blocking, and never waits for a busy budget inside of an event loop.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload

from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.layers import Offer, offer
from ...engine.per_engine import PerEngine
from ...engine.steps import in_loop
from ...prices import provider_named
from ...rules.usage import Usage
from ...wire.tokens import bound_tokens
from ..kit.call import ending, read_answer
from ..kit.generation import Generation, Heard
from ..kit.metered import METERED_BY
from ..kit.runs import Runs
from ..kit.settings import model_in, output_limit, url_in
from ..kit.stand_ins import stands_in
from .frames import embedding_asked, events_around, model_asked
from .translate import attribution, conversation_of, hear, provider_by, request_as_wire, settings_of

_LAYER = "llama_index callback"
_METERED = (CBEventType.LLM, CBEventType.EMBEDDING)
# What `metadata.num_output` says where a class says nothing of its own: then nothing limits it.
_SAYS_NOTHING = 256
# The longest input of OpenAI's embedding models, in tokens, where a model's is not known:
# https://platform.openai.com/docs/guides/embeddings
_LONGEST_TEXT = 8192


class _Run:
    __slots__ = ("generation", "hold", "offered")

    def __init__(self, hold: Hold, generation: Generation) -> None:
        self.hold = hold
        self.generation = generation
        self.offered: Offer = offer(hold, _LAYER)


RUNS: PerEngine[Runs[str, _Run]] = PerEngine(lambda engine: Runs(engine.lease_ms))
"""Shared by all handlers of a meter: an event that two of them see is metered once."""


class BehestHandler(BaseCallbackHandler):
    """See `Meter.llama_index_handler`.

    Args:
        clients_metered: whether the OpenAI SDK's clients are metered themselves: then what they
            embed, whose texts they know, is left to them.
    """

    def __init__(self, engine: Engine, *, clients_metered: bool = False) -> None:
        ignored = [event for event in CBEventType if event not in _METERED]
        super().__init__(event_starts_to_ignore=ignored, event_ends_to_ignore=ignored)
        self.engine = engine
        self.meter_on = True
        self._clients_metered = clients_metered
        self._runs = RUNS.of(engine)

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        payload = payload or {}
        model: dict[str, Any] = payload.get(EventPayload.SERIALIZED) or {}
        if model.get(METERED_BY) == self.engine.token or event_id in self._runs or not self.meter_on:
            return event_id
        if (
            event_type == CBEventType.EMBEDDING
            and self._clients_metered
            and "openai" in str(model.get("class_name")).lower()
        ):
            return event_id
        if event_type == CBEventType.LLM:
            generation = self._llm(payload, self._around())
        else:
            generation = self._embedding(payload)
        hold = self.engine.run(self.engine.reserving(generation.plan, wait=not in_loop()))
        self._runs.put(event_id, _Run(hold, generation), hold)
        return event_id

    def _llm(self, payload: dict[str, Any], outer: Hold | None) -> Generation:
        model: dict[str, Any] = payload.get(EventPayload.SERIALIZED) or {}
        model = model.get("llm") or model  # what a structured LLM asks
        kwargs: dict[str, Any] = payload.get(EventPayload.ADDITIONAL_KWARGS) or {}
        messages = payload.get(EventPayload.MESSAGES)
        if messages is None:
            messages = [ChatMessage(str(payload.get(EventPayload.PROMPT) or ""))]
        maker = str(model.get("class_name") or "")
        # What it says of itself are its metadata, or (before 0.14.13) all of its fields.
        own = {**model, **(model.get("additional_kwargs") or {})}
        asked = model_asked()
        if asked is not None:
            own |= settings_of(asked)
        settings = {**own, "max_tokens": output_limit(own) or _limit(model, maker), **kwargs}
        name = str(kwargs.get("model") or model_in(model) or model_in(own) or maker)
        return Generation(
            self.engine,
            request_as_wire(messages, settings, name, kwargs),
            conversation=lambda: conversation_of(messages),
            who=attribution(),
            provider=provider_named(_maker(maker)) if asked is None else provider_by(asked, settings),
            where=url_in(settings),
            layer=_LAYER,
            outer=outer,
        )

    def _embedding(self, payload: dict[str, Any]) -> Generation:
        """Its texts are not told before it is made: as long a batch as there can be."""
        model: dict[str, Any] = payload.get(EventPayload.SERIALIZED) or {}
        maker = str(model.get("class_name") or "")
        name = str(model_in(model) or maker)
        batch = model.get("embed_batch_size")
        texts = batch if isinstance(batch, int) and batch > 0 else 1
        asked = embedding_asked()
        provider = (None if asked is None else stands_in(type(asked))) or provider_named(_maker(maker))
        most = self.engine.pricing.context_window(name, provider) or _LONGEST_TEXT
        return Generation(
            self.engine,
            {"model": name, "input": []},
            operation="embeddings",
            who=attribution(),
            layer=_LAYER,
            provider=provider,
            input_tokens=texts * most,
            unread=("texts that are not told",),
        )

    def _around(self) -> Hold | None:
        """The hold of the event that this one is part of, as `complete` is made by `chat`."""
        for event_id in events_around():
            run = self._runs.get(event_id)
            if run is not None:
                return run.offered.take()
        return None

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        run = self._runs.pop(event_id)
        if run is None:
            return
        run.offered.withdraw()
        if run.hold.open:  # no metered client beneath has sent a limit
            run.generation.say_unlimited("meter.llama_index(model)")
        payload = payload or {}
        error = payload.get(EventPayload.EXCEPTION)
        if isinstance(error, BaseException):
            outcome = run.generation.failed(error, before=run.hold.before)
        elif event_type == CBEventType.EMBEDDING:
            error = None
            outcome = run.generation.complete(self._counted(run, payload.get(EventPayload.CHUNKS)))
        else:
            error = None
            said = payload.get(EventPayload.RESPONSE) or payload.get(EventPayload.COMPLETION)
            outcome = run.generation.complete(read_answer(hear, said))
        self.engine.run(ending(run.hold, outcome, error))

    @staticmethod
    def _counted(run: _Run, chunks: Any) -> Heard:
        model = run.generation.plan.model
        if not chunks:
            return Heard()
        return Heard(Usage(sum(bound_tokens(str(text), model) for text in chunks)), counted=True)

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing is traced."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Nothing is traced."""


def _limit(model: dict[str, Any], maker: str) -> int | None:
    """The output limit that a model's metadata tell."""
    said = model.get("num_output")
    if not isinstance(said, int) or said <= 0:
        return None
    return said if said != _SAYS_NOTHING or maker.startswith(("openai", "OpenAI")) else None


def _maker(class_name: str) -> str:
    """`openai_llm`, `OpenAIEmbedding`, `Anthropic_LLM` → the provider's usual name."""
    name = class_name.lower()
    for ending_ in ("_llm", "llm", "_embedding", "embedding"):
        name = name.removesuffix(ending_)
    return name
