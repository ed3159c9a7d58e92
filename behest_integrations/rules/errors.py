"""Every error this package raises, and nothing else.

    BehestError
    ├── ConfigError (ValueError)        a setting, an id or a price that cannot be used
    │   └── BudgetSyntaxError           a budget text that does not parse
    ├── MissingExtra (ImportError)      an optional dependency is not installed
    ├── CallRefused (RuntimeError)      the call was stopped before it reached the provider
    │   ├── BudgetExceeded              it does not fit in a budget
    │   ├── UnknownPrice                it has no price, and a budget in dollars applies
    │   ├── Unbounded                   its worst case cannot be known
    │   ├── Unattributed                it does not say whom it is for
    │   ├── Unmetered                   nothing has metered it, and that is not to be
    │   ├── LoopDetected                its session goes round in circles, or without end
    │   └── PolicyRefused               a rule of the policy forbids it
    └── StoreError (RuntimeError)       the ledger cannot be read or written

Refusals are `RuntimeError`s: frameworks that retry by default (LangGraph's
`RetryPolicy`, for one) leave those alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone

from .balance import Reason, Shortfall


class BehestError(Exception):
    """Base of every error raised by this package."""


class ConfigError(BehestError, ValueError):
    """A setting, an id, a price or a budget that cannot be used as given."""


class BudgetSyntaxError(ConfigError):
    """A budget text that does not parse.

    Attributes:
        text: the whole text.
        word: the word that is wrong ("" when the text ends too early).
        position: where that word starts, in characters from 0.
    """

    def __init__(self, message: str, *, text: str, word: str, position: int, grammar: str) -> None:
        marker = " " * position + "^" * max(1, len(word))
        super().__init__(f"{message}\n\n    {text}\n    {marker}\n\n{grammar}")
        self.text = text
        self.word = word
        self.position = position


class MissingExtra(BehestError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed. Install it with: pip install 'behest-integrations[{extra}]'"
        )
        self.extra = extra


@contextmanager
def need(what: str, extra: str) -> Iterator[None]:
    """Around the import of an optional dependency.

    Args:
        what: what is missing without it, for people.
        extra: the extra of this package that brings it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ImportError:
        raise MissingExtra(what, extra) from None


class CallRefused(BehestError, RuntimeError):
    """A call that was stopped before it reached the provider. Nothing was billed."""


class BudgetExceeded(CallRefused):
    """The call does not fit in a budget; the provider was not called.

    Attributes:
        reason: ``busy`` when calls in flight hold what this one needs, so that waiting
            could help; ``exhausted`` when it could not until the window turns over, or while
            what the call is made inside of holds the rest (`shortfall.around`);
            ``too_large`` when this call would not fit even in an untouched budget.
        shortfall: which budget, and its numbers.
        retry_after: seconds after which the same call may fit: when the window turns over, or enough
            of it has left; 1 where calls in flight hold what it needs; None where only a higher
            budget helps.
    """

    def __init__(self, shortfall: Shortfall, reason: Reason, *, now: datetime | None = None) -> None:
        now = now or datetime.now(timezone.utc)
        self.shortfall = shortfall
        self.reason = reason
        free = None
        if reason == "exhausted" and not shortfall.around:
            free = shortfall.resets_at or shortfall.frees_at
        self.retry_after: float | None = 1.0 if reason == "busy" else None
        if free is not None:
            self.retry_after = max(0.0, (free - now).total_seconds())
        super().__init__(shortfall.say(reason, now))

    def __reduce__(self) -> tuple[object, ...]:
        # The message is rebuilt from the parts, so the error survives process pools.
        return (type(self), (self.shortfall, self.reason))

    @property
    def budget(self) -> str:
        """The text of the budget that refused."""
        return self.shortfall.budget

    @property
    def busy(self) -> bool:
        """Whether waiting for calls in flight could help."""
        return self.reason == "busy"

    @property
    def resets_at(self) -> datetime | None:
        """When the budget's window turns over (UTC), if it does at a known time."""
        return self.shortfall.resets_at


class UnknownPrice(CallRefused):
    """A model without a known price, under a budget in dollars.

    Attributes:
        model: the model as it was asked for.
    """

    def __init__(self, model: str, provider: str | None, why: str = "") -> None:
        at = f" at provider {provider!r}" if provider else ""
        super().__init__(
            "The request names no model, and a budget in dollars applies, so the call was refused before it "
            "reached the provider. Name the model in the request, also where a prompt that is stored at the "
            "provider has one, or use budgets in tokens or calls."
            if not model
            else f"No price is known for model {model!r}{at}, and a budget in dollars applies, so the "
            f"call was refused before it reached the provider.{' ' + why if why else ''} "
            f"Give its price: Meter(prices={{{model!r}: Price(input='0.15', output='0.60')}}) "
            "(USD per million tokens), name the model it stands for: "
            f"Meter(aliases={{{model!r}: 'gpt-4o'}}), or use budgets in tokens or calls."
        )
        self.model = model

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, {"model": self.model}))


class Unbounded(CallRefused):
    """A call whose worst case cannot be known before it is made.

    Attributes:
        feature: what cannot be bounded; the key to give to ``Meter(allow=...)``.
    """

    def __init__(self, feature: str, why: str, *, unit: str = "usd") -> None:
        counted = "dollars" if unit == "usd" else unit.replace("_", " ")
        if feature.startswith("field:"):
            advice = ", and a field may raise the bill."  # `why` says how to allow it
        else:
            amount = "$0.05" if unit == "usd" else f"50k {counted}"
            advice = (
                " and nothing says what it may cost at most. If you know, say so, and that much is reserved "
                f"and booked for each such request: Meter(allow={{{feature!r}: {amount!r}}})."
            )
        super().__init__(
            f"{why}, so the call was refused before it reached the provider: a budget in {counted} "
            f"applies{advice}"
        )
        self.feature = feature

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, {"feature": self.feature}))


class Unattributed(CallRefused):
    """A call that does not say all that ``Meter(require=...)`` asks for.

    Attributes:
        missing: what it does not say: ``session``, ``user``, ``project``, ``tenant``, ``tag:NAME``.
    """

    def __init__(self, missing: tuple[str, ...]) -> None:
        plain = [f"{name}=..." for name in missing if not name.startswith("tag:")]
        tags = ", ".join(f"{name[4:]!r}: ..." for name in missing if name.startswith("tag:"))
        scope = ", ".join([*plain, f"tags={{{tags}}}"] if tags else plain).replace("session=", "session_id=")
        headers = {"session": "X-Session-Id", "user": "X-End-User-Id"}
        named = " and ".join(headers[name] for name in missing if name in headers)
        super().__init__(
            f"The call does not say its {' and '.join(missing)}, which this meter requires, so it was "
            f"refused before it reached the provider. Make it inside `with meter.session({scope}):`"
            f"{f', or send {named} with it (extra_headers)' if named else ''}. If it is inside one: "
            "threads and pools do not take that along by themselves; wrap what they run in "
            "meter.bind(...), or use meter.instrument()."
        )
        self.missing = missing

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.missing,))


class Unmetered(CallRefused):
    """A call of a model that was about to be sent, and that nothing has metered, under ``strict``.

    Attributes:
        host: of the model, with its port where it is not the usual one.
        library: the HTTP library that was about to send it.
        place: file and line of the caller.
    """

    def __init__(self, method: str, url: str, *, host: str, library: str, place: str) -> None:
        super().__init__(f"{self.say(method, url, library, place, refused=True)}")
        self.host = host
        self.library = library
        self.place = place

    @staticmethod
    def say(method: str, url: str, library: str, place: str, *, refused: bool = False) -> str:
        """What is told of such a call, whether it is refused or made.

        Args:
            url: less its query, in which there may be a key.
        """
        if refused:
            what = "was refused before it was sent: no budget would have counted it"
            then = "Meter(strict=False) warns of such calls instead"
        else:
            what = "counts in no budget and is in no report"
            then = "Meter(strict=True) refuses such calls"
        meter = "meter.httpx(client)" if library.startswith("httpx") else "an SDK's or meter.httpx(client)"
        return (
            f"{method} {url} by {library}, at {place}, is a call of a model that nothing has metered. "
            f"It {what}. Make it by a client that is metered ({meter}); {then}."
        )

    def __reduce__(self) -> tuple[object, ...]:
        state = {"host": self.host, "library": self.library, "place": self.place}
        return (_rebuild, (type(self), self.args, state))


class PolicyRefused(CallRefused):
    """A call that a rule of the policy forbids. What it says has nothing of the prompt in it.

    Attributes:
        rule: the rule's name.
        kind: what it is about: ``models``, ``providers``, ``regions``, ``output``, ``context``, ``price``,
            ``pii``, ``content``, ``unscanned``.
        found: what was found, by kind of entity or name of check, and how often.
        code: the word for programs: ``pii_blocked``, ``content_blocked`` or ``policy_refused``.
    """

    def __init__(self, message: str, *, rule: str, kind: str, found: Mapping[str, int] | None = None) -> None:
        super().__init__(
            "The policy forbids this call, so it was refused before it reached the provider: "
            f'{message} (rule "{rule}").'
        )
        self.rule = rule
        self.kind = kind
        self.found = dict(found or {})

    @property
    def code(self) -> str:
        return {"pii": "pii_blocked", "content": "content_blocked"}.get(self.kind, "policy_refused")

    def __reduce__(self) -> tuple[object, ...]:
        state = {"rule": self.rule, "kind": self.kind, "found": self.found}
        return (_rebuild, (type(self), self.args, state))


class LoopDetected(CallRefused):
    """A call of a session that goes round in circles, or without end: the loop guard has refused it.

    Attributes:
        guard: ``same_tool_call``, ``steps`` or ``minutes``.
        times: how often the tool was called, how many calls the session has made, or since how many minutes.
        limit: how many are allowed.
        session: the session's id, if it has one; stage: the path of the stages that it was made in.
        tool: the name of the tool that was called again and again; None for the other guards. What it was
            called with is not told.
        reason: ``loop``.
    """

    reason = "loop"

    def __init__(
        self,
        guard: str,
        times: int,
        limit: float,
        *,
        session: str | None = None,
        stage: str | None = None,
        tool: str | None = None,
    ) -> None:
        self.guard, self.times, self.limit = guard, times, limit
        self.session, self.stage = session, stage
        self.tool = tool if tool is None else tool[:_LONGEST_NAME]
        whose = f"stage {stage!r}" if stage is not None else f"session {session!r}"
        if guard == "same_tool_call":
            what = (
                f"the tool {self.tool!r} has been called {times} times in a row with the same arguments, and "
                f"less than {limit} are allowed (same_tool_call). A tool that may be repeated is named in "
                f"allow_repeats"
            )
        elif guard == "steps":
            what = f"{whose} has made {times:,} calls, and {limit:,} are allowed (steps)"
        else:
            what = f"{whose} has been calling for {times:,} minutes, and {limit:g} are allowed (minutes)"
        super().__init__(
            f"The loop guard refused this call before it reached the provider: {what}. Guards are set by "
            "Meter(guards=...), or [guards] in behest.toml; another run is another session."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, dict(vars(self))))


_LONGEST_NAME = 64
"""Characters of a tool's name: a model writes it."""


class StoreError(BehestError, RuntimeError):
    """The ledger cannot be read or written. By default calls are refused until it can.

    Attributes:
        retryable: whether the same operation may succeed later (a lock, a full disk),
            as opposed to one that needs a person (a deleted or corrupt file).
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, {"retryable": self.retryable}))


# ── what an error was made of ──────────────────────────────────────────────────────────


def handled() -> int:
    """Which error is being handled where this is called, by its id; 0: none."""
    error = sys.exc_info()[1]
    return 0 if error is None else id(error)


def causes(error: BaseException | None, before: int = 0) -> Iterator[BaseException]:
    """An error, and what it was made of, the outermost first.

    Python chains an error to whatever is being handled where it is raised, however far out. That of a call
    which stands in for another, in the other's ``except``, is chained to the other's: it says nothing of it.
    https://docs.python.org/3/reference/simple_stmts.html#the-raise-statement

    Args:
        before: what was being handled already when the call began, see `handled`.
    """
    seen = {before}
    while error is not None:
        yield error
        seen.add(id(error))
        # Some raise an error from itself: its cause is then lost, and its context is not.
        made_of = (error.__cause__, error.__context__, getattr(error, "original_exception", None))
        error = next((found for found in made_of if found is not None and id(found) not in seen), None)


def _rebuild(cls: type[BehestError], args: tuple[object, ...], state: dict[str, object]) -> BehestError:
    """Unpickle an error whose constructor takes other arguments than its message."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error
