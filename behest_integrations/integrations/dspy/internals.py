"""What of DSPy's internals is touched. Read with dspy 3.4.0 and 3.4.1.

Every call of a `BaseLM` passes `execution.execute` or `aexecute`, which looks into the cache, and then makes
one attempt after the other by `_attempt` or `_aattempt`: of an engine that is DSPy's own (`lm15`), LiteLLM's,
or somebody's own (a model's `forward` among them). They are called by their names in that module. What an
engine raises that is none of DSPy's errors is wrapped there, and not repeated. DSPy's own engine sends by a
transport over sockets, blocking or awaited; each request passes its `stream`, or `_do_stream`, after it is
signed. `dspy.Parallel` and `dspy.Evaluate` run by a `ParallelExecutor`, which keeps errors to itself until
there are too many. `tests/test_dspy.py` says what has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dspy._vendor.lm15.transports import StdlibAsyncTransport, StdlibTransport
from dspy.clients import execution
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.engines import AsyncLiteLLMEngine, AsyncLM15Engine, LiteLLMEngine, LM15Engine
from dspy.clients.engines.dummy_engine import AsyncDummyEngine, DummyEngine
from dspy.clients.lm15_boundary import request_kwargs
from dspy.dsp.utils.settings import settings
from dspy.predict.predict import Predict
from dspy.utils.exceptions import AdapterParseError
from dspy.utils.parallelizer import ParallelExecutor

from ..kit.settings import lowered, schema_sent

BLOCKING, AWAITED = ("execute", "_attempt"), ("aexecute", "_aattempt")
"""What is in `execution`: around all attempts of a call, and one attempt."""
TRANSPORTS: tuple[tuple[type, str], ...] = ((StdlibTransport, "stream"), (StdlibAsyncTransport, "_do_stream"))
PREDICT = (Predict, "forward"), (Predict, "aforward")
UNREADABLE = AdapterParseError
"""What `PREDICT` raises for an answer that has not all its fields, after it has asked in another way."""
EXECUTOR = ParallelExecutor, "execute"

_OWN = CLIENT_KEYS | {"rollout_id", "num_generations", "prompt_cache", "cache", "metadata"}
"""Keywords of a call that are for DSPy or its client, and in no request."""

__all__ = [
    "AWAITED",
    "BLOCKING",
    "EXECUTOR",
    "PREDICT",
    "TRANSPORTS",
    "UNREADABLE",
    "Attempt",
    "answers_by_itself",
    "execution",
    "is_litellm",
    "program",
    "sends_by_us",
]


class Attempt(NamedTuple):
    """The arguments of `_attempt`."""

    lm: Any
    call: Any
    backend: Any
    request: Any
    provider: str | None
    state: Any
    results: list[Any]

    def asked(self) -> dict[str, Any]:
        """What is asked, in OpenAI's shape."""
        if self.request is not None:
            return dict(request_kwargs(self.request, "chat"))
        asked = {n: v for n, v in self.call.legacy.items() if n not in _OWN and v is not None}
        if "response_format" in asked:
            asked["response_format"] = schema_sent(asked["response_format"])
        return asked

    def settings(self) -> Mapping[str, Any]:
        """All keywords of the call, the client's among them."""
        return {**self.lm.kwargs, **self.call.legacy}

    def limited(self, limit: int) -> Attempt:
        """The same, with this output limit."""
        if self.request is not None:
            config = replace(self.request.config, max_tokens=limit)
            return self._replace(request=replace(self.request, config=config))
        own = lowered(self.call.legacy, limit)
        if own.get("max_tokens") is None and own.get("max_completion_tokens") is None:
            own["max_tokens"] = limit
        set_here = {n: v for n, v in own.items() if v != self.call.legacy.get(n)}
        call = replace(self.call, legacy=own, kwargs={**self.call.kwargs, **set_here})
        return self._replace(call=call)

    @property
    def answer(self) -> Any:
        """What came back, as a `CallResult`; None if nothing did."""
        return self.state.result

    @property
    def tells_usage(self) -> bool:
        """Whether the usage that is told is a provider's: LiteLLM makes one up where a stream had none."""
        return settings.send_stream is None or not is_litellm(self.backend)


def sends_by_us(backend: Any) -> bool:
    """Whether an engine sends by one of `TRANSPORTS`."""
    if not isinstance(backend, (LM15Engine, AsyncLM15Engine)):
        return False
    given = backend.config.transport
    return given is None or isinstance(given, tuple(cls for cls, _ in TRANSPORTS))


def is_litellm(backend: Any) -> bool:
    """Whether it asks LiteLLM."""
    return isinstance(backend, (LiteLLMEngine, AsyncLiteLLMEngine))


def answers_by_itself(backend: Any) -> bool:
    """Whether it asks nobody: what `DummyLM` has in the place of an engine."""
    return isinstance(backend, (DummyEngine, AsyncDummyEngine))


def program() -> str | None:
    """The class of the outermost module that is at work."""
    callers = settings.caller_modules
    return type(callers[0]).__name__ if callers else None
