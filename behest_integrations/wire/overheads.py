"""What surrounds the texts of a request for a model whose tokenizer and template are not known
here, from above; and how bills make that bound tighter, or wider.

Three bounds, from the widest to the tightest:

1. *The starting bound.* Bytes of the texts, and a margin for the chat template (`around`). The
   bytes hold for every byte-level BPE and every SentencePiece vocabulary with byte fallback; the
   margin holds for the templates that it was measured on.
2. *The widened bound.* A bill over the bound widens that model's row (`Learnt`) so that no request
   is over it for the same cause, be it a constant, the messages, the tools or the length: what is
   made of parts that each grow with one of these is at most k times as much for a request that has
   at most k times as much of each.
3. *The narrowed bound.* What a provider billed for a prompt bounds every part of that prompt, and
   so bounds a longer prompt that begins alike: what was billed, and the bytes of what is new
   (`Known`). The same for the overhead of n messages (`Witness`). Both need that the same prompt
   is billed the same, and that more messages never make less of a prompt. Where a bill says
   otherwise, nothing is narrowed for that model any more, in any process that reads the row.

A ratio of tokens to bytes, however many bills agree on it, bounds nothing: the next text may be
digits, or noise. So none is learnt.

Values are whole numbers. No text is kept: heads are keyed digests, in this process alone.

Over 500 lines: the three bounds stand on each other, and are argued in one place.
"""

from __future__ import annotations

import json
import marshal
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from .tokens import byte_length

# ── the start: templates in use ────────────────────────────────────────────────────────


class Around(NamedTuple):
    """Tokens around the texts: of each request, message and part, and of having tools at all."""

    request: int
    message: int
    part: int
    tools: int


# Measured: the 77 chat templates that llama.cpp ships for its tests
# (https://github.com/ggml-org/llama.cpp/tree/master/models/templates), or that it falls back to,
# rendered and counted with 18 vocabularies, most of them of another family than the template. A
# template that its server cannot read is replaced by ChatML, whose marks are then plain text: 18
# tokens a message for Gemma, where its own take 5. The most of any pair: 30.5 a message, 174 a
# request, 177 for tools over what `tool_bytes` counts; families that take more are below.
_AROUND = Around(request=256, message=32, part=8, tools=256)

# Families whose template writes a system prompt of its own, or long marks (part of the model's
# name → its margins): up to 1,494 tokens for Devstral, 1,208 for GigaChat, 678 (tools: 898, a
# message: 57) for Command R, 588 for Mistral Small, 318 for SmolLM, 246 for MiniMax.
_FAMILIES: tuple[tuple[str, Around], ...] = (
    ("devstral", Around(1792, 32, 8, 256)),
    ("gigachat", Around(1536, 32, 8, 256)),
    ("command", Around(896, 64, 8, 1152)),
    ("cohere", Around(896, 64, 8, 1152)),
    ("c4ai", Around(896, 64, 8, 1152)),
    ("mistral-small", Around(768, 32, 8, 256)),
    ("magistral", Around(768, 32, 8, 256)),
    ("ministral", Around(768, 32, 8, 256)),
    ("smollm", Around(512, 32, 8, 256)),
    ("minimax", Around(384, 32, 8, 256)),
    ("kimi", Around(256, 64, 8, 256)),
    ("spark", Around(256, 48, 8, 256)),
)


@lru_cache(maxsize=1024)
def around(model: str) -> Around:
    """The margin that `model` starts with: its family's if its name tells it, else the common one."""
    name = model.lower()
    return next((margin for part, margin in _FAMILIES if part in name), _AROUND)


def escaped_bytes(text: str) -> int:
    """Bytes of `text` as a template may write it into JSON, from above.

    Quotes and what is not ASCII are escaped, and by Jinja's own `tojson` also ``< > & '``:
    https://jinja.palletsprojects.com/en/stable/templates/#jinja-filters.tojson
    """
    return len(json.dumps(text)) + 5 * sum(map(text.count, "<>&'"))


def tool_bytes(tool: Any) -> int:
    """Bytes of one tool's definition as a template may write it, from above, each a token at most.

    Llama 3.1 and Granite print it with an indent of four, Functionary repeats its description,
    others turn it into TypeScript or XML, in which each name can stand twice.
    """
    pretty = json.dumps([tool], indent=4, default=str)
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    said = function.get("description") if isinstance(function, Mapping) else None
    again = escaped_bytes(said) if isinstance(said, str) else 0
    compact = len(
        json.dumps(tool, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")
    )
    return max(len(pretty) + 5 * sum(map(pretty.count, "<>&'")) + again, 2 * compact)


# ── what is known of a request ─────────────────────────────────────────────────────────


class Head(NamedTuple):
    """The beginning of a prompt.

    Attributes:
        digest: of everything that the prompt's beginning is made from.
        rest: at most how many tokens the messages after it are.
        keep: other prompts are likely to begin so: its bill is worth remembering.
    """

    digest: bytes
    rest: int
    keep: bool = True


class Size(NamedTuple):
    """How large one request is.

    Attributes:
        total: its starting bound, in tokens: the texts' bytes and what `around` says.
        surroundings: how much of `total` is from `around`.
        least: how many texts it has that are not empty, each at least a token.
        systems, users, assistants: its messages, by role.
        others: its messages of other roles (tools' results), tool calls and parts of content.
        tools: how many tools are defined.
        heads: its beginnings that may have been billed; empty if they cannot be told.
    """

    total: int
    surroundings: int = 0
    least: int = 0
    systems: int = 0
    users: int = 0
    assistants: int = 0
    others: int = 0
    tools: int = 0
    heads: tuple[Head, ...] = ()

    @property
    def messages(self) -> int:
        return self.systems + self.users + self.assistants + self.others


# Fields of a chat request that no template is told of. All others are part of a head: one that
# is not known here makes another head, never the same.
_NOT_RENDERED = frozenset(
    {"frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages",
     "metadata", "n", "presence_penalty", "prompt_cache_key", "seed", "service_tier", "stop", "store",
     "stream", "stream_options", "temperature", "top_k", "top_logprobs", "top_p", "user"}
)  # fmt: skip
_KEY = os.urandom(32)  # digests say nothing to another process


def _canonical(value: Any) -> bytes:
    """The same bytes for the same JSON (and order of its keys) alone.

    Raises:
        ValueError: it is not made of JSON's types.
    """
    return marshal.dumps(value, 0)  # 0: without references, which depend on who else holds a value


def _all_text(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    content = message.get("content")
    if isinstance(content, str):
        return message.get("audio") is None
    if content is None:
        return message.get("audio") is None
    return isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    )


def heads_of(body: Mapping[str, Any], after: Sequence[int]) -> tuple[Head, ...]:
    """The heads of a chat request; none where they cannot be told.

    Those worth keeping: before its messages (what tools and settings come to), after the system
    messages that it begins with, and whole (the next turn of the conversation begins so).

    Args:
        body: the request.
        after: the tokens counted before its messages, and after each of them.
    """
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or len(after) != len(messages) + 1:
        return ()
    leading = 0
    for message in messages:
        if message.get("role") not in _SYSTEM:
            break
        leading += 1
    kept = (0, leading, len(messages))
    late = len(messages) - _NEWS
    fixed = {n: value for n, value in body.items() if value is not None and n not in _NOT_RENDERED}
    # Many templates write a system prompt of their own where there is none: a prompt that has one
    # says nothing of a prompt that has not.
    try:
        digest = blake2b(_canonical([fixed, leading > 0]), digest_size=16, key=_KEY)
        found = [Head(digest.digest(), after[-1] - after[0])]
        for place, message in enumerate(messages, 1):
            digest.update(_canonical(message))
            if place in kept or place >= late:
                found.append(Head(digest.digest(), after[-1] - after[place], place in kept))
    except ValueError:
        return ()
    return tuple(found)


_NEWS = 24  # messages that one turn of a conversation adds, tools' calls and results with it
_SYSTEM = ("system", "developer")
_PLAIN = ("system", "developer", "user", "assistant")
_COUNTED = ("role", "content")


def size_of(body: Mapping[str, Any], model: str, more: int = 0) -> Size | None:
    """The size of a chat request for a model whose tokenizer is not known.

    None where it is not made of messages of text, calls and tools alone: images and unknown
    kinds of content are bounded elsewhere, and nothing is learnt of them.

    Args:
        more: tokens that other fields than its messages and tools may add.
    """
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or not all(map(_all_text, messages)):
        return None
    margin = around(model)
    systems = users = assistants = others = least = 0
    tokens, after = 0, [0]
    around_message = margin.message
    for message in messages:
        role, content = message.get("role"), message.get("content")
        tokens += around_message
        if isinstance(content, str) and (len(message) == 2 or not message.get("tool_calls")):
            systems += role in _SYSTEM
            users += role == "user"
            assistants += role == "assistant"
            others += role not in _PLAIN
            least += content != ""
            tokens += (
                byte_length(content) if role != "tool" else max(byte_length(content), escaped_bytes(content))
            )
        else:
            others += 1
            if isinstance(content, str):
                tokens += byte_length(content)
                least += content != ""
            elif content is not None:
                tokens += margin.part * len(content) + _json_bytes(content)
                least += 1 if content else 0
        if len(message) > 2:
            for name, value in message.items():
                if isinstance(value, str):
                    tokens += byte_length(value) if name not in _COUNTED else 0
                elif value is not None and name not in _COUNTED:
                    tokens += margin.part + _json_bytes(value)
        after.append(tokens)
    tools = [*(body.get("tools") or ()), *(body.get("functions") or ())]
    surroundings = margin.request + margin.message * len(messages) + (margin.tools if tools else 0)
    total = tokens + margin.request + more
    heads = heads_of(body, after)
    if tools:
        # Mistral's template writes the tools before each user message that equals the last one.
        asked = [message for message in messages if message.get("role") == "user"]
        times = max(1, asked.count(asked[-1])) if asked else 1
        total += margin.tools + times * (sum(map(tool_bytes, tools)) + margin.message * len(tools))
        heads = heads if times == 1 else ()
    return Size(total, surroundings, least, systems, users, assistants, others, len(tools), heads)


def _json_bytes(value: Any) -> int:
    written = json.dumps(value, default=str)
    return len(written) + 5 * sum(map(written.count, "<>&'"))


# ── what bills have taught ─────────────────────────────────────────────────────────────

# Tokens between what was billed and what is new that neither may count: the merges that a
# boundary breaks, a date that has become longer, a space that is put before a text.
_SEAM = 16
# Fewer tokens than a sixteenth of the bytes, or than the texts and messages: the bill left
# something out (what was cached; see Ollama's `prompt_eval_count`), and bounds nothing.
_FEWEST = 16


class Witness(NamedTuple):
    """A bill that bounds what surrounds messages: so many tokens at most for so many of each role."""

    tokens: int
    systems: int
    users: int
    assistants: int

    def bound(self, size: Size) -> int | None:
        """What surrounds `size` at most; None where this bill says nothing of it.

        Overhead is a constant and so much for each message of a role, all at least 0: k times
        the messages have at most k times the overhead, for k of at least 1.
        """
        if (size.systems > 0) != (self.systems > 0):
            return None  # a template may write a system prompt where there is none
        top, under = 1, 1
        for have, seen in zip((size.systems, size.users, size.assistants), self[1:], strict=True):
            if have and not seen:
                return None
            if have * under > top * seen:
                top, under = have, seen
        return -(-self.tokens * top // under)

    def rank(self) -> tuple[int, int, int, tuple[int, ...]]:
        """The larger, the better: more roles, then fewer tokens a message (in millionths, down)."""
        roles = sum(count > 0 for count in self[1:])
        messages = max(1, sum(self[1:]))
        return (roles, -(self.tokens * 1_000_000 // messages), messages, tuple(-n for n in self))


class Learnt(NamedTuple):
    """What bills have taught of one model at one server: a row of whole numbers.

    Rows merge (`|`) in any order, however often, to the same: processes share them so.

    Attributes:
        request, message, tool: most that has been around the texts of one request, for each
            message and for each tool, as of bills over the bound.
        kilobyte: tokens to add for every 1,000 of the starting bound, likewise.
        distrusted: a bill was over a narrowed bound, or fell where it had to grow: do not narrow.
        witness: the bill that bounds the overhead best; None as long as there is none.
    """

    request: int = 0
    message: int = 0
    tool: int = 0
    kilobyte: int = 0
    distrusted: bool = False
    witness: Witness | None = None

    def __or__(self, other: Learnt) -> Learnt:
        witnesses = [w for w in (self.witness, other.witness) if w is not None]
        return Learnt(
            max(self.request, other.request),
            max(self.message, other.message),
            max(self.tool, other.tool),
            max(self.kilobyte, other.kilobyte),
            self.distrusted or other.distrusted,
            max(witnesses, key=Witness.rank) if witnesses else None,
        )

    def wide(self, size: Size) -> int:
        """The starting bound of `size`, or more where bills were over it."""
        texts = size.total - size.surroundings
        return max(
            size.total - (-self.kilobyte * size.total // 1000),
            texts + max(self.request, self.message * size.messages, self.tool * size.tools),
        )

    def bound(self, size: Size, known: int | None = None) -> int:
        """At most how many input tokens `size` is billed as.

        Args:
            known: what `Known.bound` says of it.
        """
        wide = self.wide(size)
        if self.distrusted:
            return wide
        narrow = wide if known is None else min(wide, known)
        if self.witness is not None and not size.tools and not size.others:
            overhead = self.witness.bound(size)
            if overhead is not None:
                narrow = min(narrow, size.total - size.surroundings + overhead + _SEAM)
        return narrow

    def learn(self, size: Size, bound: int, billed: int) -> Learnt:
        """The row after `size`, bounded by `bound`, was billed as `billed` input tokens."""
        return self | self.taught(size, bound, billed)

    def taught(self, size: Size, bound: int, billed: int) -> Learnt:
        """What that bill adds to the row (to be merged into it); `NOTHING` if it adds nothing."""
        wide = self.wide(size)
        if billed > wide:
            # All that was billed but a token a text may have been around the texts.
            beside = billed - size.least
            return Learnt(
                beside,
                -(-beside // size.messages) if size.messages else 0,
                -(-beside // size.tools) if size.tools else 0,
                -(-(billed - size.total) * 1000 // size.total) if size.total else 0,
                distrusted=billed > bound and bound < wide,
            )
        if billed > bound:
            return _DISTRUSTED
        if size.tools or size.others or not size.messages or not plausible(size, billed):
            return NOTHING
        witness = Witness(billed - size.least, size.systems, size.users, size.assistants)
        if self.witness is not None and witness.rank() <= self.witness.rank():
            return NOTHING
        return Learnt(witness=witness)

    def as_row(self) -> tuple[int, ...]:
        """Nine whole numbers, for a table."""
        return (*self[:4], int(self.distrusted), *(self.witness or (-1, 0, 0, 0)))

    @classmethod
    def from_row(cls, row: Iterable[int]) -> Learnt:
        """The value that `as_row` made the row of."""
        request, message, tool, kilobyte, distrusted, *witness = row
        seen = Witness(*witness) if witness[0] >= 0 else None
        return cls(request, message, tool, kilobyte, bool(distrusted), seen)


NOTHING = Learnt()
_DISTRUSTED = Learnt(distrusted=True)


def plausible(size: Size, billed: int) -> bool:
    """Whether a bill can be the whole of a prompt, and so may bound another."""
    texts = size.total - size.surroundings
    return billed >= size.least + size.messages and billed * _FEWEST >= texts


class Known:
    """Beginnings of prompts that were billed, and as what: for this process, the latest of them.

    Safe for threads. Holds digests and numbers.

    Args:
        capacity: how many beginnings are remembered; a conversation takes one a turn.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._parts: OrderedDict[bytes, int] = OrderedDict()
        self._wholes: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._parts) + len(self._wholes)

    def bound(self, size: Size) -> int | None:
        """What `size` is billed as at most, by the bills of prompts that began alike; None if
        there was none."""
        least: int | None = None
        with self._lock:
            for head in size.heads:
                for bills in (self._parts, self._wholes):
                    billed = bills.get(head.digest)
                    if billed is not None and (least is None or billed + head.rest < least):
                        least = billed + head.rest
        return None if least is None else least + _SEAM

    def learn(self, size: Size, billed: int) -> Learnt:
        """Take in what `size` was billed as; what that teaches of its model.

        A prompt that is billed at less than one which it continues, or than itself before, is
        not billed whole: it teaches that bills of its model bound nothing.
        """
        if not size.heads or not plausible(size, billed):
            return NOTHING
        with self._lock:
            if any(self._wholes.get(head.digest, 0) > billed + _SEAM for head in size.heads):
                return _DISTRUSTED
            for head in size.heads[:-1]:
                if head.keep:
                    # Of a part of the prompt the bill is an upper bound: the least one counts.
                    _note(self._parts, head.digest, billed, min, self._capacity)
            _note(self._wholes, size.heads[-1].digest, billed, max, self._capacity)
        return NOTHING


def _note(
    bills: OrderedDict[bytes, int],
    digest: bytes,
    billed: int,
    better: Callable[[int, int], int],
    capacity: int,
) -> None:
    bills[digest] = better(bills.get(digest, billed), billed)
    bills.move_to_end(digest)
    while len(bills) > capacity:
        bills.popitem(last=False)


class Lessons:
    """What bills have taught this process, by server and model. Safe for threads.

    Args:
        capacity: how many models are remembered.
    """

    def __init__(self, capacity: int = 1_000) -> None:
        self._capacity = capacity
        self._models: OrderedDict[tuple[str, str], tuple[Learnt, Known]] = OrderedDict()
        self._lock = threading.Lock()

    def bound(self, where: str, model: str, size: Size) -> int:
        """At most how many input tokens `size` is billed as.

        Args:
            where: the server (its base URL); "" if it is not known, and then nothing is narrowed.
            model: as sent.
        """
        with self._lock:
            found = self._models.get((where, model))
        if found is None:
            return size.total
        row, known = found
        return row.bound(size, known.bound(size)) if where else row.wide(size)

    def learn(self, where: str, model: str, size: Size, bound: int, billed: int) -> Learnt | None:
        """Take in a bill.

        Args:
            bound: what `bound` said before the call.
            billed: the input tokens of the provider's own usage.

        Returns: the row to merge into the store's; None if it has not changed.
        """
        with self._lock:
            row, known = self._model(where, model)
        taught = row.taught(size, bound, billed) | known.learn(size, billed)
        return self.merge(where, model, taught) if taught != NOTHING else None

    def merge(self, where: str, model: str, taught: Learnt) -> Learnt | None:
        """Take in a row, of a bill or of the store; the new row, or None if it is the same."""
        with self._lock:
            before, known = self._model(where, model)
            after = before | taught
            self._models[where, model] = after, known
        return after if after != before else None

    def _model(self, where: str, model: str) -> tuple[Learnt, Known]:
        found = self._models.setdefault((where, model), (NOTHING, Known()))
        self._models.move_to_end((where, model))
        while len(self._models) > self._capacity:
            self._models.popitem(last=False)
        return found
