"""Making a call of a metered model, from its hold to its end: whole or streamed, blocking or awaited."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...engine.holds import Hold
from ...engine.layers import Offer, offering
from ...engine.outcomes import Outcome
from ...engine.steps import Steps
from .cutting import note
from .generation import Generation, Heard

log = logging.getLogger("behest")

_inside: ContextVar[frozenset[object]] = ContextVar("behest_inside", default=frozenset())


def is_inside(key: object) -> bool:
    """Whether a call of this key is under way here: a model's methods call each other."""
    return key in _inside.get()


Send = Callable[[Hold], Any]
Read = Callable[[Any], Heard]
Fold = Callable[[Any, Any], Any]


def folding(kind: Callable[[], Any]) -> Fold:
    """Adds a part of a stream to what came before.

    Args:
        kind: makes what they are added to, by its `add`.
    """

    def fold(before: Any, part: Any) -> Any:
        so_far = kind() if before is None else before
        so_far.add(part)
        return so_far

    return fold


class Call:
    """One call of a metered model, from its hold to its end.

    `made`/`amade` for answers that come whole; `opened` and then `read` for streams.

    Args:
        generation: the call's plan.
        keys: what `is_inside` answers to while the model is at work.
    """

    def __init__(self, generation: Generation, *keys: object) -> None:
        self.generation = generation
        self.engine = generation.engine
        self._keys = frozenset(keys)
        self._hold: Hold | None = None
        self._offer: Offer | None = None

    def _reserve(self) -> Steps[Hold]:
        self.generation, hold = yield from self.generation.reserving()
        self._hold, self._offer = hold, Offer(hold, "model")
        note(hold)
        return hold

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Around what the model does, and not around what its caller does between two chunks."""
        assert self._hold is not None
        assert self._offer is not None
        token = _inside.set(_inside.get() | self._keys)
        try:
            with offering(self._offer, self._hold):
                yield
        finally:
            _inside.reset(token)

    def _answering(self) -> None:
        if self._offer is not None:
            self._offer.withdraw()

    def _answered(self, read: Read, result: Any) -> Steps[None]:
        self._answering()
        assert self._hold is not None
        yield from ending(self._hold, self.generation.complete(read_answer(read, result)))

    def _failed(self, error: BaseException, said: Heard | None = None) -> Steps[None]:
        self._answering()
        if self._hold is not None:
            yield from ending(self._hold, self.generation.failed(error, said, self._hold.before), error)

    def _hang_up(self) -> Any:
        """Not every framework closes the stream under one that it is asked to close. Left to the
        garbage collector, it goes on being generated and billed, and is closed at a moment when
        its HTTP library may hold a lock of its own."""
        hang_up = self._hold.last.hang_up if self._hold is not None else None
        return hang_up() if hang_up is not None else None

    def opened(self, send: Send) -> Any:
        """What `send` returns, called under the hold; the call goes on."""
        hold = self.engine.run(self._reserve())
        try:
            with self._at_work():
                return send(hold)
        except BaseException as error:
            self.engine.run(self._failed(error))
            raise

    async def aopened(self, send: Send) -> Any:
        """`opened` for coroutines; what `send` returns is awaited if it can be."""
        hold = await self.engine.arun(self._reserve())
        try:
            with self._at_work():
                result = send(hold)
                return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            await self.engine.arun(self._failed(error))
            raise

    def made(self, send: Send, read: Read) -> Any:
        """The whole call."""
        result = self.opened(send)
        self.engine.run(self._answered(read, result))
        return result

    async def amade(self, send: Send, read: Read) -> Any:
        """The whole call, for coroutines."""
        result = await self.aopened(send)
        await self.engine.arun(self._answered(read, result))
        return result

    def read(self, chunks: Any, read: Read, fold: Fold, *, primed: bool = False) -> Iterator[Any]:
        """The chunks of a stream as they come; the call ends with it.

        Args:
            listen: what the folded chunks say.
            fold: adds a chunk to what came before (None at first).
            primed: yield None first: a generator that has begun is closed when it is dropped.
        """
        so_far: Any = None
        try:
            if primed:
                yield None
            while True:
                with self._at_work():
                    chunk = next(chunks, _END)
                if chunk is _END:
                    break
                self._answering()
                so_far = fold(so_far, chunk)
                yield chunk
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                if hasattr(chunks, "close"):
                    chunks.close()
                self._hang_up()
            self.engine.run(self._failed(error, read_answer(read, so_far)))
            raise
        self.engine.run(self._answered(read, so_far))

    async def aread(self, chunks: Any, read: Read, fold: Fold, *, primed: bool = False) -> AsyncIterator[Any]:
        """`read` for coroutines."""
        so_far: Any = None
        try:
            if primed:
                yield None
            while True:
                with self._at_work():
                    try:
                        chunk = await chunks.__anext__()
                    except StopAsyncIteration:
                        break
                self._answering()
                so_far = fold(so_far, chunk)
                yield chunk
        except BaseException as error:
            # Posted before anything is awaited: a cancelled task may not get further.
            await self.engine.arun(self._failed(error, read_answer(read, so_far)))
            if isinstance(error, GeneratorExit):
                if hasattr(chunks, "aclose"):
                    await chunks.aclose()
                hanging_up = self._hang_up()
                if inspect.isawaitable(hanging_up):
                    await hanging_up
            raise
        await self.engine.arun(self._answered(read, so_far))


_END = object()


def read_answer(read: Read, result: Any) -> Heard:
    """What an answer says; nothing where it cannot be read: it must reach its caller."""
    try:
        return read(result)
    except Exception:
        log.exception("a reply could not be read: its worst case is booked")
        return Heard()


def is_abandoned(error: BaseException | None) -> bool:
    """Whether the call's owner is gone or must not wait: its hold is then ended by `post`."""
    return isinstance(error, (GeneratorExit, asyncio.CancelledError))


def ending(hold: Hold, outcome: Outcome, error: BaseException | None = None) -> Steps[None]:
    """The steps that end `hold`; none where nobody must wait for them."""
    if is_abandoned(error):
        last = hold.last
        if last.read_on is None or not last.read_on():
            last.post(outcome)  # the layer within may not have noticed
        return
    heir = hold.heir
    if outcome.status == "estimated" and heir is not None and heir.without_usage:
        hold = heir  # it saw the reply pass, and not its text
    steps = hold.keeper.ending(hold, outcome)
    if steps is not None:
        yield from steps
