"""Who a call is for: session, user, project, tenant and tags.

The `session(...)` scope travels in a context variable (see `nesting`), so it reaches
coroutines, tasks and threads started by context-aware pools; others need `bind`. Ids are
data: they are checked for length and control characters and otherwise carried as they are.
"""

from __future__ import annotations

import functools
import inspect
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, TypeVar

from .errors import ConfigError, Unattributed
from .nesting import Nesting, Scope

MAX_ID = 256
"""Longest id, tag name or tag value, in characters."""
MAX_TAGS = 64
"""Most tags on one call."""

SESSION_HEADER = "x-session-id"
USER_HEADER = "x-end-user-id"

F = TypeVar("F", bound=Callable[..., Any])


def check_id(value: object, what: str) -> str:
    """Return `value` if it can be an id.

    Raises:
        ConfigError: it is not text, is empty, is longer than 256 characters, or has
            control characters (a line break in an id would forge a header or a log line).
    """
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be text, not {type(value).__name__}: {value!r}")
    if not value:
        raise ConfigError(f"{what} is empty: give it a value, or leave it out")
    if len(value) > MAX_ID:
        raise ConfigError(f"{what} has {len(value)} characters; the limit is {MAX_ID}")
    if not (value.isascii() and value.isprintable()):
        for char in value:
            # Cc: control; Cs: lone surrogates (not storable as UTF-8); Zl, Zp: line breaks.
            if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
                raise ConfigError(f"{what} contains the control character {char!r}: {value!r}")
    return value


@dataclass(frozen=True)
class Attribution:
    """Who a call is for. None means "not said here"."""

    session_id: str | None = None
    user_id: str | None = None
    project: str | None = None
    tenant: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("session_id", "user_id", "project", "tenant"):
            value = getattr(self, name)
            if value is not None:
                check_id(value, name)
        if self.tags:
            if len(self.tags) > MAX_TAGS:
                raise ConfigError(f"{len(self.tags)} tags; the limit is {MAX_TAGS}")
            for key, value in self.tags.items():
                check_id(key, "a tag's name")
                check_id(value, f"tag {key!r}")
            object.__setattr__(self, "tags", dict(self.tags))

    def __hash__(self) -> int:
        return hash((self.session_id, self.user_id, self.project, self.tenant, *sorted(self.tags.items())))

    def over(self, other: Attribution) -> Attribution:
        """This attribution, with what it does not say filled in from `other`."""
        if other is NOBODY or other == NOBODY:
            return self
        if self is NOBODY:
            return other
        return Attribution(
            self.session_id if self.session_id is not None else other.session_id,
            self.user_id if self.user_id is not None else other.user_id,
            self.project if self.project is not None else other.project,
            self.tenant if self.tenant is not None else other.tenant,
            {**other.tags, **self.tags},
        )


NOBODY = Attribution()

SESSIONS: Nesting[Attribution, Attribution] = Nesting("behest_attribution", NOBODY, Attribution.over)
"""The `session(...)` scopes that the running code is in."""

current = SESSIONS.inside
"""The attribution of the innermost `session(...)` scope, and of those around it."""

_run: ContextVar[tuple[Attribution, Attribution]] = ContextVar("behest_run", default=(NOBODY, NOBODY))

run_around = _run.get
"""What a framework's run says that the running code is part of: (said on the run, its own ids)."""


@contextmanager
def in_run(said: Attribution, own: Attribution) -> Iterator[None]:
    """What is called inside is part of a framework's run, whose call an SDK's door below reserves.

    Args:
        said: on the run itself: before any scope.
        own: the framework's own ids: after scopes and clients.
    """
    token = _run.set((said, own))
    try:
        yield
    finally:
        _run.reset(token)


def parse_required(names: str | Iterable[str]) -> tuple[str, ...]:
    """What every call must say: session, user, project, tenant, tag:NAME.

    Raises:
        ConfigError: something else is named.
    """
    required = (names,) if isinstance(names, str) else tuple(names)
    for name in required:
        is_tag = isinstance(name, str) and name.startswith("tag:") and len(name) > 4
        if name not in _FIELDS and not is_tag:
            raise ConfigError(f"require names {', '.join(_FIELDS)} or tag:NAME, not {name!r}")
    return required


def check_required(who: Attribution, required: Iterable[str]) -> None:
    """Refuse a call that does not say all that is required.

    Args:
        required: as `parse_required` returns it.

    Raises:
        Unattributed: something is missing.
    """
    missing = tuple(name for name in required if _said(who, name) is None)
    if missing:
        raise Unattributed(missing)


def _said(who: Attribution, name: str) -> str | None:
    said: str | None = who.tags.get(name[4:]) if name.startswith("tag:") else getattr(who, _FIELDS[name])
    return said


_FIELDS = {"session": "session_id", "user": "user_id", "project": "project", "tenant": "tenant"}


def from_headers(headers: Mapping[str, Any] | None) -> Attribution:
    """Attribution from `X-Session-Id` and `X-End-User-Id`; other headers are ignored.

    Blank values count as absent. Values may be text or UTF-8 bytes.

    Raises:
        ConfigError: a header carries something that cannot be an id.
    """
    if not headers:
        return NOBODY
    found: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if key in (SESSION_HEADER, USER_HEADER):
            if isinstance(value, bytes):
                try:
                    value = value.decode("utf-8")
                except UnicodeDecodeError:
                    raise ConfigError(f"{name} is not UTF-8: {value!r}") from None
            if isinstance(value, str) and value.strip():
                found[key] = value.strip(" \t")
    if not found:
        return NOBODY
    return Attribution(session_id=found.get(SESSION_HEADER), user_id=found.get(USER_HEADER))


def from_body(body: Mapping[str, Any]) -> Attribution:
    """Attribution that a request of OpenAI's shape has in itself, which is the last that is asked.

    The user is `safety_identifier`, or the older `user`; the session is `metadata.session_id`. What cannot be
    an id is none: these are fields of a provider's, which worked before anybody counted by them.
    https://platform.openai.com/docs/api-reference/chat/create
    """
    user = body.get("safety_identifier") or body.get("user")
    metadata = body.get("metadata")
    if user is None and metadata is None:
        return NOBODY
    session = metadata.get("session_id") if isinstance(metadata, Mapping) else None
    session, user = _id_or_none(session), _id_or_none(user)
    return NOBODY if session is None and user is None else Attribution(session_id=session, user_id=user)


def _id_or_none(value: object) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        return check_id(value.strip(" \t"), "an id")
    except ConfigError:
        return None


class SessionScope(Scope):
    """Everything inside is attributed; see `session`. Works as `with`, `async with`, decorator."""

    def __init__(self, attribution: Attribution) -> None:
        super().__init__()
        self.attribution = attribution

    def __enter__(self) -> Attribution:
        return SESSIONS.enter(self, self.attribution, sys._getframe(1))

    def __exit__(self, *exc: object) -> None:
        SESSIONS.leave(self, sys._getframe(1))

    async def __aenter__(self) -> Attribution:
        return SESSIONS.enter(self, self.attribution, sys._getframe(1))

    async def __aexit__(self, *exc: object) -> None:
        SESSIONS.leave(self, sys._getframe(1))

    def __call__(self, function: F) -> F:
        return decorate(function, lambda: SessionScope(self.attribution))

    def __str__(self) -> str:
        said = {name: _said(self.attribution, name) for name in _FIELDS}
        return f"session({', '.join(f'{k}={v!r}' for k, v in said.items() if v is not None)})"


def decorate(function: F, scope: Callable[[], Any]) -> F:
    """Run each call of `function` inside a fresh `scope()`; sync, async and generators."""
    wrapped: Any
    if inspect.isasyncgenfunction(function):
        wrapped = _asynchronous_generator(function, scope)
    elif inspect.iscoroutinefunction(function):
        wrapped = _coroutine(function, scope)
    elif inspect.isgeneratorfunction(function):
        wrapped = _generator(function, scope)
    else:
        wrapped = _plain(function, scope)
    return wrapped  # type: ignore[no-any-return]


def _plain(function: Callable[..., Any], scope: Callable[[], Any]) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        entered = scope()
        with entered:
            result = function(*args, **kwargs)
        if isinstance(entered, Scope):
            # A lambda that makes a coroutine, a wrapper of a coroutine function, an object with
            # an asynchronous __call__: what it does is yet to come.
            for kind, wrapper in _TO_COME.items():
                if isinstance(result, kind):
                    return wrapper(lambda: result, lambda: entered)()
        return result

    return wrapped


def _coroutine(function: Callable[..., Any], scope: Callable[[], Any]) -> Any:
    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        with scope():
            return await function(*args, **kwargs)

    return wrapped


def _generator(function: Callable[..., Any], scope: Callable[[], Any]) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        inner, entered = function(*args, **kwargs), scope()
        # The scope is entered anew around each step: a generator shares its consumer's
        # context, so it must not stay entered while suspended.
        step: Callable[[Any], Any] = inner.send
        value: Any = None
        try:
            while True:
                with entered:
                    try:
                        item = step(value)
                    except StopIteration as stop:
                        return stop.value
                try:
                    value = yield item
                    step = inner.send
                except Exception as error:
                    value, step = error, inner.throw
        finally:
            with _at_end(entered):
                inner.close()

    return wrapped


def _asynchronous_generator(function: Callable[..., Any], scope: Callable[[], Any]) -> Any:
    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        inner, entered = function(*args, **kwargs), scope()
        step: Callable[[Any], Any] = inner.asend
        value: Any = None
        try:
            while True:
                with entered:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        return
                try:
                    value = yield item
                    step = inner.asend
                except Exception as error:
                    value, step = error, inner.athrow
        finally:
            with _at_end(entered):
                await inner.aclose()

    return wrapped


def _at_end(entered: Any) -> Any:
    """What a generator does at its end is inside as well; a cost is not had for that."""
    return entered if isinstance(entered, Scope) else nullcontext()


_TO_COME = {
    CoroutineType: _coroutine,
    GeneratorType: _generator,
    AsyncGeneratorType: _asynchronous_generator,
}


def session(
    session_id: str | None = None,
    *,
    user: str | None = None,
    project: str | None = None,
    tenant: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> SessionScope:
    """Attribute every call made inside.

    Scopes nest: an inner one overrides what it names and inherits the rest; tags add up.

    Args:
        session_id: the conversation or run, at most 256 characters, no control characters.
        user: the end user; the same limits, as for the others.
        project, tenant: for charging back.
        tags: anything else, e.g. ``{"feature": "support"}``.

    Raises:
        ConfigError: a value cannot be an id.
    """
    return SessionScope(
        Attribution(session_id=session_id, user_id=user, project=project, tenant=tenant, tags=tags or {})
    )
