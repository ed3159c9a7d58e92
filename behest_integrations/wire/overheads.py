"""How bills make the bound of a chat tighter, or wider, for models that are not known here.

Three bounds, from the widest to the tightest:

1. *The starting bound.* Bytes of the texts, and a margin for the chat template: see `sizes`.
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
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from .sizes import Size

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


# They send a model's calls to one of several hosts, each with a tokenizer and template of its
# choice (https://openrouter.ai/docs/features/provider-routing): a bill of one bounds no other's.
_ROUTERS = (
    "openrouter.ai", "router.huggingface.co", "ai-gateway.vercel.sh", "gateway.ai.cloudflare.com",
    "router.requesty.ai", "api.portkey.ai", "litellm",
)  # fmt: skip


@lru_cache(maxsize=256)
def _answers_alike(where: str) -> bool:
    """Whether a server bills the same prompt the same, as far as is known: it is one, and no router."""
    return bool(where) and not any(router in where.lower() for router in _ROUTERS)


@lru_cache(maxsize=256)
def server_name(url: str) -> str:
    """A server by its base URL, less what is nobody's business in a ledger: user, password, query."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}" if host else ""


class Lessons:
    """What bills have taught this process, by server and model. Safe for threads.

    Args:
        capacity: how many models are remembered.
    """

    def __init__(self, capacity: int = 1_000) -> None:
        self._capacity = capacity
        self._models: OrderedDict[tuple[str, str], tuple[Learnt, Known]] = OrderedDict()
        self._recalled: object = None
        self._lock = threading.Lock()

    def bound(self, where: str, model: str, size: Size) -> int:
        """At most how many input tokens `size` is billed as.

        Args:
            where: the server (its base URL); "" if it is not known. Then, and where it passes
                calls on to others, nothing is narrowed.
            model: as sent.
        """
        where = server_name(where)
        with self._lock:
            found = self._models.get((where, model))
        if found is None:
            return size.total
        row, known = found
        return row.bound(size, known.bound(size)) if _answers_alike(where) else row.wide(size)

    def learn(self, where: str, model: str, size: Size, bound: int, billed: int) -> Learnt | None:
        """Take in a bill.

        Args:
            bound: what `bound` said before the call.
            billed: the input tokens of the provider's own usage.

        Returns: the row to merge into the store's; None if it has not changed.
        """
        where = server_name(where)
        with self._lock:
            row, known = self._model(where, model)
        taught = row.taught(size, bound, billed) | known.learn(size, billed)
        return self._merge(where, model, taught) if taught != NOTHING else None

    def recall(self, rows: Mapping[tuple[str, str], tuple[int, ...]]) -> None:
        """Take in what the store has kept, of this process and of others."""
        if rows is not self._recalled:
            for (server, model), values in rows.items():
                self._merge(server, model, Learnt.from_row(values))
            self._recalled = rows

    def _merge(self, where: str, model: str, taught: Learnt) -> Learnt | None:
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
