"""LlamaIndex's messages with what is somebody's own masked, and its answers with that put back.

For models that ask through no client which the meter reaches; where one is reached, it is done there, on
the bytes that are sent. A provider's own answer (`raw`) stays as it was; handlers hear what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, CompletionResponse
from pydantic import BaseModel

from ...rules.errors import PolicyRefused
from .translate import as_json, fields_of

if TYPE_CHECKING:
    from ...policy.placeholders import Restorer

_WORDLESS = ("image", "audio", "video", "document")
_BYTES = ("image", "audio", "video", "data", "path")
# JSON that is written as a text: what is put into it is written as JSON.
_JSON_INSIDE = frozenset({"arguments", "partial_json", "tool_kwargs"})
_PLAIN = (str, int, float)

# ── before it is sent ──────────────────────────────────────────────────────────────────


def view_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What messages say, as JSON."""
    return [
        {
            "role": str(getattr(m.role, "value", m.role)),
            "blocks": [_seen(block) for block in m.blocks],
            "additional_kwargs": as_json(m.additional_kwargs),
        }
        for m in messages
    ]


def _seen(value: Any) -> Any:
    """A block, or what one has in it."""
    kind = getattr(value, "block_type", None)
    if kind is None:
        return [_seen(inner) for inner in value] if isinstance(value, list) else as_json(value)
    fields = [name for name in type(value).model_fields if name != "block_type"]
    if kind in _WORDLESS:
        fields = [name for name in fields if name not in _BYTES]
    return {"type": kind, **{name: _seen(getattr(value, name)) for name in fields}}


def rebuilt(
    messages: Sequence[ChatMessage], views: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> list[ChatMessage]:
    """The messages that say what `made` does; those of which nothing was changed are the same.

    Raises:
        PolicyRefused: what was changed is in something that cannot be made anew.
    """
    return [_made(m, before, after) for m, before, after in zip(messages, views, made, strict=True)]


def _made(value: Any, before: Any, after: Any) -> Any:
    if after is before:
        return value
    if isinstance(value, BaseModel):
        names = [name for name in after if after[name] is not before[name]]
        return value.model_copy(update={n: _made(getattr(value, n), before[n], after[n]) for n in names})
    if isinstance(value, Mapping):
        parts = zip(value.items(), before.values(), after.values(), strict=True)
        return {name: _made(inner, was, now) for (name, inner), was, now in parts}
    if isinstance(value, (list, tuple)):
        return [_made(inner, was, now) for inner, was, now in zip(value, before, after, strict=True)]
    if not isinstance(value, _PLAIN):
        message = f"what must be masked is in {type(value).__name__} of a message, which cannot be made anew"
        raise PolicyRefused(message, rule="pii", kind="pii")
    return after


# ── when it is answered ────────────────────────────────────────────────────────────────


def put_back(response: Any, restorer: Restorer) -> Any:
    """An answer that is whole, with what was masked put back into it."""
    made = _said(response, restorer.whole)
    if response.delta:
        made["delta"] = restorer.whole(response.delta)
    return response.model_copy(update=made)


def _said(response: Any, text: Callable[..., str]) -> dict[str, Any]:
    name = "text" if isinstance(response, CompletionResponse) else "message"
    names = (name, "additional_kwargs")
    return {n: _restored(getattr(response, n), text, name=n) for n in names}


def _restored(value: Any, text: Callable[..., str], *, name: str = "") -> Any:
    """`value` with `text` applied to its strings; the very same object where that changes nothing."""
    if isinstance(value, str):
        made: Any = text(value, quoted=name in _JSON_INSIDE)
        return value if made == value else made
    if isinstance(value, BaseModel):
        made = {n: new for n, v in fields_of(value).items() if (new := _restored(v, text, name=n)) is not v}
        return value.model_copy(update=made) if made else value
    if isinstance(value, Mapping):
        made = {n: _restored(v, text, name=str(n)) for n, v in value.items()}
        return value if all(made[n] is v for n, v in value.items()) else made
    if isinstance(value, (list, tuple)):
        made = [_restored(v, text, name=name if isinstance(v, str) else "") for v in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else made
    return value


class ChunksPutBack:
    """The chunks of a stream, with what was masked put back into them, wherever they are cut.

    Each carries all that came before it, and what is new (`delta`): either is true by itself.
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        self._last: Any = None

    def chunk(self, chunk: Any) -> Any:
        """A chunk, with what of its text is certain by now."""
        self._last = chunk
        feed = self._restorer.feed
        made = _said(chunk, self._restorer.so_far)
        if chunk.delta:
            made["delta"] = feed("delta", chunk.delta)
        made["additional_kwargs"] = {
            n: feed(n, chunk.additional_kwargs[n]) if _is_delta(n, v) else v
            for n, v in made["additional_kwargs"].items()
        }
        return chunk.model_copy(update=made)

    def rest(self) -> Iterator[Any]:
        """What was held back, now that the stream is over: the last chunk once more, whole."""
        chunk, restorer = self._last, self._restorer
        if chunk is None:
            return
        made = _said(chunk, restorer.whole)
        if not restorer.holding and made == _said(chunk, restorer.so_far):
            return
        made["additional_kwargs"] = {
            n: restorer.rest(n) if _is_delta(n, v) else v for n, v in made["additional_kwargs"].items()
        }
        made["delta"] = restorer.rest("delta")
        yield chunk.model_copy(update=made)


def _is_delta(name: Any, value: Any) -> bool:
    return isinstance(value, str) and str(name).endswith("_delta")
