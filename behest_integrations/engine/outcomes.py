"""How a call ended, and what is booked for it: README's table, as one table.

A door gathers the `Evidence` of its call; `judge` says what it comes to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

from ..rules.errors import CallRefused, StoreError, causes
from ..rules.usage import Usage
from ..wire import parse_json

Status = Literal["settled", "estimated", "assumed", "failed", "cancelled"]


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        status: ``settled`` (the provider's usage), ``estimated`` (counted by us),
            ``assumed`` (unknown: the worst case is booked), ``failed`` (the provider says
            that it was not billed) or ``cancelled`` (it never left).
        usage: for the first two.
        model, service_tier, provider_id: as the reply says.
        note: for people: what happened. Never text of a prompt or an answer.
        flags: short words for queries.
        terms: what the reply says of that on which the price depends (``speed``, ``inference_geo``).
        uses: how often tools that the provider runs were used, by name; None: the reply does not tell.
    """

    status: Status
    usage: Usage | None = None
    model: str | None = None
    service_tier: str | None = None
    provider_id: str | None = None
    note: str = ""
    flags: tuple[str, ...] = ()
    terms: Mapping[str, str] = {}
    uses: Mapping[str, int] | None = None


CANCELLED = Outcome("cancelled")
USED = Outcome("settled", Usage())
"""The end of a use of a tool; see `outcome_of_use`."""


class Evidence(NamedTuple):
    """What is known of a call that is over, in the words of whichever layer saw it.

    Attributes:
        usage: as the provider told it; None if it told none that can be true.
        final: whether `usage` is the provider's last word, where the reply was not received whole.
        counted: whether `usage` is not the provider's own, but counted by the door.
        whole: whether the reply was received to its end.
        error: what the call raised, if it did.
        before, provider: see `outcome_of_error`.
        note, flag: what happened, where the reply is not whole.
        counting: counts, from above, what was seen of the answer; None where nothing was.
        shows_all: whether all that is billed as output is seen: of a model that is known not to
            think unseen.
        may_count: whether the door counts a whole reply that tells no usage (the meter's choice
            aside).
        input_tokens: of the request, as we count it; 0 where there is none.
        has_output: whether there is any output to bill (embeddings have none).
        model, service_tier, provider_id, terms, uses: as the reply says.
    """

    usage: Usage | None = None
    final: bool = False
    counted: bool = False
    whole: bool = True
    error: BaseException | None = None
    before: int = 0
    provider: str | None = None
    note: str = ""
    flag: str = ""
    counting: Callable[[], Usage] | None = None
    shows_all: bool = False
    may_count: bool = False
    input_tokens: int = 0
    has_output: bool = True
    model: str | None = None
    service_tier: str | None = None
    provider_id: str | None = None
    terms: Mapping[str, str] = {}
    uses: Mapping[str, int] | None = None


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: what happened, for people.
        applies: whether it did; the second argument says that the meter's owner chose
            ``on_unknown="estimate"``.
        booked: what is then booked.
    """

    what: str
    applies: Callable[[Evidence, bool], bool]
    booked: Callable[[Evidence], Outcome]


def _of(
    e: Evidence, status: Status, usage: Usage | None = None, note: str | None = None, flag: str | None = None
) -> Outcome:
    flag = e.flag if flag is None else flag
    return Outcome(
        status,
        usage,
        e.model,
        e.service_tier,
        e.provider_id,
        e.note if note is None else note,
        (flag,) if flag else (),
        e.terms,
        e.uses,
    )


def _told(e: Evidence) -> bool:
    """The provider's own usage, and nothing about it that cannot be."""
    return e.usage is not None and not e.counted and (e.usage.input_tokens > 0 or not e.input_tokens)


def _counted(e: Evidence) -> Outcome:
    assert e.counting is not None
    note, flag = (e.note, e.flag) if not e.whole else ("the reply has no usage: it was counted", "no_usage")
    return _of(e, "estimated", e.counting(), note, flag)


def _with_input(e: Evidence) -> Outcome:
    assert e.usage is not None
    usage = replace(e.usage, input_tokens=e.input_tokens)
    return _of(e, "estimated", usage, "its input was counted: it was told as 0", "no_input")


def _assumed(e: Evidence) -> Outcome:
    return _of(e, "assumed", None, "the reply has no usage", "no_usage") if e.whole else _of(e, "assumed")


TABLE: tuple[Row, ...] = (
    Row(
        "the provider's usage arrived",
        lambda e, _: e.error is None and (e.whole or e.final) and _told(e),
        lambda e: _of(e, "settled", e.usage, "", ""),
    ),
    Row(
        "usage that was counted by the door, which saw all of it",
        lambda e, _: e.error is None and e.whole and e.counted and e.usage is not None,
        lambda e: _of(e, "estimated", e.usage, "the reply has no usage: it was counted", "no_usage"),
    ),
    Row(
        "the provider's usage arrived, but for its input",
        lambda e, _: e.error is None and e.whole and e.usage is not None,
        _with_input,
    ),
    Row(
        "the call raised, and what it raised says whether it was billed",
        lambda e, _: (
            e.error is not None and outcome_of_error(e.error, e.before, e.provider).status != "assumed"
        ),
        lambda e: outcome_of_error(e.error, e.before, e.provider),  # type: ignore[arg-type]
    ),
    Row(
        "a whole reply without usage, of what has no output",
        lambda e, _: e.error is None and e.whole and not e.has_output and e.counting is not None,
        _counted,
    ),
    Row(
        "a whole reply without usage, of a model that shows all that it writes",
        lambda e, chosen: (
            e.error is None
            and e.whole
            and e.counting is not None
            and ((e.may_count and e.shows_all) or chosen)
        ),
        _counted,
    ),
    Row(
        "a reply that is not whole, where its owner chose to count what was seen",
        lambda e, chosen: chosen and not e.whole and e.counting is not None,
        _counted,
    ),
    Row(
        "HTTP 5xx, a timeout, a lost connection: it may have been billed",
        lambda e, _: e.error is not None and not e.note,
        lambda e: outcome_of_error(e.error, e.before, e.provider),  # type: ignore[arg-type]
    ),
    Row("a reply without usage, or one that is not whole", lambda e, _: True, _assumed),
)
"""The first row that applies says what is booked."""


def judge(evidence: Evidence, *, estimate: bool = False) -> Outcome:
    """The outcome of a call that is over.

    Args:
        estimate: whether the meter's owner chose ``on_unknown="estimate"``.
    """
    for row in TABLE:
        if row.applies(evidence, estimate):
            return row.booked(evidence)
    raise AssertionError("the last row always applies")


# ── what an error says ─────────────────────────────────────────────────────────────────

# Errors after which nothing was sent: of httpx and httpx2 (same names in both), and of aiohttp; and of what
# finds the credentials for a request just before it is sent: the SDKs of OpenAI and Anthropic (workload
# identities), google.auth, azure.identity and botocore.
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL", "ProxyError",
     "LocalProtocolError", "ClientConnectorError", "ConnectionTimeoutError",
     "SubjectTokenProviderError", "CredentialsError", "WorkloadIdentityError",
     "DefaultCredentialsError", "RefreshError", "CredentialUnavailableError", "NoCredentialsError"}
)  # fmt: skip


# Codes of a 400 after which the provider bills what it has processed all the same: the prompt, and, for a
# filter that runs beside the model, what that has written. At Azure a prompt that is too long may be billed:
# https://learn.microsoft.com/azure/ai-foundry/openai/how-to/manage-costs ("HTTP Error response code and
# billing status"), https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
_FILTERED = frozenset({"content_filter", "ResponsibleAIPolicyViolation", "ContentPolicyViolationError"})
_BILLED_AT = {"azure": frozenset({"context_length_exceeded"})}


def outcome_of_status(status: int, said: object = None, provider: str | None = None) -> Outcome | None:
    """The outcome of an HTTP status that is not a success; None if it is one.

    Args:
        said: the answer's body (bytes, or what is in them), or the error that an SDK has made of it.
        provider: the price list's id of whose answer it is, if known.
    """
    if 200 <= status < 300:
        return None
    if status == 408 or status >= 500:
        # The request was taken in; whether it was billed cannot be known from here.
        return Outcome("assumed", note=f"HTTP {status}", flags=("server_error",))
    if status == 400 and said is not None:
        billed = (_FILTERED | _BILLED_AT.get(provider or "", frozenset())) & _codes_in(said)
        if billed:
            note = f"HTTP 400, {min(billed)}: what was processed may be billed"
            return Outcome("assumed", note=note, flags=("filtered",))
    return Outcome("failed", note=f"HTTP {status}")


def _codes_in(said: object) -> set[str]:
    """How an error is called, by those who raise it and by the provider."""
    found: list[object] = []
    if isinstance(said, BaseException):
        found += [c.__name__ for c in type(said).__mro__] + [getattr(said, "code", None)]
        said = getattr(said, "body", None)
    elif isinstance(said, (bytes, bytearray)):
        try:
            said = parse_json(said)
        except ValueError:
            said = None
    if isinstance(said, Mapping):
        error = said["error"] if isinstance(said.get("error"), Mapping) else said
        inner = error.get("innererror") or error.get("inner_error")
        found += [error.get("code"), inner.get("code") if isinstance(inner, Mapping) else None]
    return {code for code in found if isinstance(code, str)}


def outcome_of_error(error: BaseException, before: int = 0, provider: str | None = None) -> Outcome:
    """The outcome of a call that raised, whatever SDK it came through.

    SDKs wrap the errors of their HTTP library: the whole chain of causes is looked at.

    Args:
        before: what was being handled when the call began, see `errors.causes`.
        provider: the price list's id of whose call it was, if known.
    """
    if isinstance(error, asyncio.CancelledError):
        return Outcome("assumed", note="the task was cancelled", flags=("cancelled",))
    for cause in islice(causes(error, before), 8):
        if isinstance(cause, (CallRefused, StoreError)):
            return CANCELLED
        # By name: the core knows no HTTP library, and each SDK brings its own.
        if not _NEVER_SENT.isdisjoint(c.__name__ for c in type(cause).__mro__):
            return CANCELLED
        status = getattr(cause, "status_code", None)
        if status is None:
            status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and (known := outcome_of_status(status, cause, provider)) is not None:
            return known
    return Outcome("assumed", note=f"no answer: {type(error).__name__}", flags=("no_answer",))


# What a framework raises to leave a step, and run it again from its beginning once what it waits
# for is there. By name: the core imports no framework.
# https://docs.langchain.com/oss/python/langgraph/interrupts#side-effects-called-before-interrupt-must-be-idempotent
# LlamaIndex: `Context.wait_for_event` in workflows/context/internal_context.py
_RUN_AGAIN = frozenset({"langgraph.errors.GraphInterrupt", "workflows.runtime.types.results.WaitingForEvent"})


def outcome_of_use(error: BaseException | None) -> Outcome:
    """The outcome of a use of a tool: it costs what it costs, whether or not it succeeded.

    One that only asked to be run again has not been used yet: it will be reserved, and booked, then.
    """
    if error is not None and not _RUN_AGAIN.isdisjoint(
        f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__
    ):
        return CANCELLED
    return USED
