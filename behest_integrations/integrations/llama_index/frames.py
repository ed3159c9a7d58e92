"""Which events of LLMs are under way in the code that has called us, and which model is asked.

`complete` may be made by `chat`, and both tell of an event: one call. LlamaIndex tells handlers of no
parent within a thread pool or an event loop, but the function that has begun the outer event is still at
work beneath us, in `llama_index.core.llms.callbacks`, with its event's id and its model in local variables
(handlers are told of the model's metadata alone, and not of what it puts into its requests). Read with
llama-index-core 0.14.5 to 0.14.25; `tests/test_internals.py` says what has moved.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

MODULE = "llama_index.core.llms.callbacks"
LOCAL = "event_id"
MODEL = "_self"
EMBEDDING_MODULE = "llama_index.core.base.embeddings.base"
EMBEDDING = "self"


def model_asked() -> Any:
    """The model object that is asked in the event which is being begun; None if it is not found."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == MODULE and MODEL in frame.f_locals:
            model = frame.f_locals[MODEL]
            return getattr(model, "llm", model)  # what a structured LLM asks
        frame = frame.f_back
    return None


def embedding_asked() -> Any:
    """The embedding model that is asked in the event which is being begun; None if it is not found."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == EMBEDDING_MODULE and EMBEDDING in frame.f_locals:
            return frame.f_locals[EMBEDDING]
        frame = frame.f_back
    return None


def events_around() -> Iterator[str]:
    """The ids of events under way, the innermost first, but for the one that is being begun."""
    # Above us: the handler's two methods, the callback manager, and the event's own function.
    frame: FrameType | None = sys._getframe(5)
    while frame is not None:
        if frame.f_globals.get("__name__") == MODULE and LOCAL in frame.f_locals:
            yield frame.f_locals[LOCAL]
        frame = frame.f_back
