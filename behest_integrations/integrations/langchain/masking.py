"""LangChain's messages with what is somebody's own masked, and its answers with that put back.

For models that ask through no client which the meter reaches; where one is reached, it is done there, on the
bytes that are sent. Handlers that hear of single tokens hear them as the model has said them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk

if TYPE_CHECKING:
    from ...policy.placeholders import Restorer

_SPOKEN = ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs", "name")


def view_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """What messages say, as JSON."""
    return [{"role": m.type, **{n: v for n in _SPOKEN if (v := getattr(m, n, None))}} for m in messages]


def rebuilt(
    messages: Sequence[BaseMessage], views: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> list[BaseMessage]:
    """The messages that say what `made` does; those of which nothing was changed are the same."""
    return [
        m if after is before else m.model_copy(update={n: after[n] for n in after if n != "role"})
        for m, before, after in zip(messages, views, made, strict=True)
    ]


def put_back(result: Any, restorer: Restorer) -> Any:
    """An answer that is whole, with what was masked put back into it."""
    for row in result.generations:
        for generation in row if isinstance(row, list) else [row]:
            message = getattr(generation, "message", None)
            if message is not None:
                made = {n: restorer.value(v) for n in _SPOKEN if (v := getattr(message, n, None))}
                generation.message = message.model_copy(update=made)
            generation.text = restorer.whole(generation.text)
    return result


class ChunksPutBack:
    """The chunks of a stream, with what was masked put back into them, wherever they are cut."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    def chunk(self, chunk: Any) -> Any:
        """A chunk, with what of its text is certain by now."""
        feed = self._restorer.feed
        message = getattr(chunk, "message", None)
        if message is None:
            return GenerationChunk(text=feed("text", chunk.text), generation_info=chunk.generation_info)
        made: dict[str, Any] = {"content": self._content(message.content)}
        calls = getattr(message, "tool_call_chunks", None)
        if calls:
            made["tool_call_chunks"] = [
                {**c, "args": feed(("args", c.get("index")), c["args"], quoted=True)} if c.get("args") else c
                for c in calls
            ]
        return ChatGenerationChunk(
            message=message.model_copy(update=made), generation_info=chunk.generation_info
        )

    def _content(self, content: Any) -> Any:
        feed = self._restorer.feed
        if isinstance(content, str):
            return feed("content", content) if content else content
        return [
            {**b, "text": feed(("block", b.get("index", place)), b["text"])}
            if isinstance(b, dict) and isinstance(b.get("text"), str)
            else b
            for place, b in enumerate(content)
        ]

    def rest(self) -> Iterator[Any]:
        """What was held back, now that the stream is over."""
        for channel in self._restorer.holding:
            text = self._restorer.rest(channel)
            if channel == "text":
                yield GenerationChunk(text=text)
            elif channel == "content":
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
            elif channel[0] == "block":
                block = {"type": "text", "text": text, "index": channel[1]}
                yield ChatGenerationChunk(message=AIMessageChunk(content=[block]))
            else:
                call: Any = {
                    "name": None,
                    "args": text,
                    "id": None,
                    "index": channel[1],
                    "type": "tool_call_chunk",
                }
                yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))
