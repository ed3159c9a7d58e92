"""What is booked when a call is over: the README's table, row by row, against the engine's."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from behest_integrations import BudgetExceeded, StoreError, Usage
from behest_integrations.engine.outcomes import TABLE, Evidence, Outcome, judge, outcome_of_status

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = dict(
    re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", README.partition("## What is booked")[2], re.MULTILINE)
)
USAGE = Usage(10, 20)


class ConnectError(Exception):
    """Named as httpx names it."""


class ReadTimeout(Exception):
    """Named as httpx names it."""


class StatusError(Exception):
    def __init__(self, status: int, code: str | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.body = {"message": "no", "code": code}


def broken(note: str = "the stream broke", **said: object) -> Evidence:
    return Evidence(whole=False, note=note, flag="broken", counting=lambda: USAGE, **said)  # type: ignore[arg-type]


FILTERED = "HTTP 400 of a content filter; at Azure, of a prompt that is too long"

# The README's row, what is known of the call, and what is booked: (status, usage).
CASES: list[tuple[str, Evidence, tuple[str, Usage | None]]] = [
    ("the provider's usage arrived", Evidence(USAGE, input_tokens=9), ("settled", USAGE)),
    ("the provider's usage arrived", broken(usage=USAGE, final=True), ("settled", USAGE)),
    ("HTTP 4xx, 429 included", Evidence(whole=False, error=StatusError(400)), ("failed", None)),
    ("HTTP 4xx, 429 included", Evidence(whole=False, error=StatusError(429)), ("failed", None)),
    (FILTERED, Evidence(whole=False, error=StatusError(400, "content_filter")), ("assumed", None)),
    (
        FILTERED,
        Evidence(whole=False, error=StatusError(400, "context_length_exceeded"), provider="azure"),
        ("assumed", None),
    ),
    (
        "HTTP 4xx, 429 included",
        Evidence(whole=False, error=StatusError(400, "context_length_exceeded"), provider="openai"),
        ("failed", None),
    ),
    (
        "HTTP 5xx, a timeout, a lost connection",
        Evidence(whole=False, error=StatusError(503)),
        ("assumed", None),
    ),
    ("HTTP 5xx, a timeout, a lost connection", Evidence(whole=False, error=ReadTimeout()), ("assumed", None)),
    (
        "HTTP 5xx, a timeout, a lost connection",
        Evidence(whole=False, error=asyncio.CancelledError()),
        ("assumed", None),
    ),
    ("a stream is closed or dropped early", broken("the stream was closed"), ("assumed", None)),
    ("a stream is closed or dropped early", Evidence(USAGE, input_tokens=9), ("settled", USAGE)),
    ("a stream breaks", broken(), ("assumed", None)),
    ("a stream breaks", broken(usage=USAGE), ("assumed", None)),
    ("a reply without usage", Evidence(counting=lambda: USAGE), ("assumed", None)),
    ("a reply without usage", Evidence(counting=lambda: USAGE, shows_all=True), ("assumed", None)),
    ("a reply without usage", Evidence(counting=lambda: USAGE, may_count=True), ("assumed", None)),
    (
        "a reply without usage",
        Evidence(counting=lambda: USAGE, may_count=True, shows_all=True),
        ("estimated", USAGE),
    ),
]
"""A running total in a stream that broke is no usage; one that the provider ended is."""


@pytest.mark.parametrize(
    ("row", "evidence", "booked"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_what_is_booked(row: str, evidence: Evidence, booked: tuple[str, Usage | None]) -> None:
    said = judge(evidence)
    assert (said.status, said.usage) == booked
    assert f"`{said.status}`" in ROWS[row], "the README says otherwise"


# Rows of the README that are about the process and the store, each with its own tests.
ELSEWHERE = {
    "the process dies": "test_crashes.py",
    "the store cannot be written": "test_store_failures.py",
    "the provider bills more than the worst case": "test_meter.py",
}


def test_every_row_of_the_readme_is_tested() -> None:
    tested = {row for row, _, _ in CASES} | set(ELSEWHERE)
    rows = set(ROWS) - {"what happened", "---"}
    assert rows == tested
    for file in ELSEWHERE.values():
        assert (Path(__file__).parent / file).exists()


def test_every_row_of_the_engine_is_reached() -> None:
    more = [
        Evidence(USAGE, counted=True),
        Evidence(Usage(0, 5), input_tokens=9),
        Evidence(counting=lambda: USAGE, has_output=False),
    ]
    reached = set()
    for evidence, chosen in [
        *((e, False) for _, e, _ in CASES),
        *((e, False) for e in more),
        (broken(), True),
    ]:
        reached.add(next(row.what for row in TABLE if row.applies(evidence, chosen)))
    assert reached == {row.what for row in TABLE}


def test_what_never_left_is_as_if_it_had_not_been_reserved() -> None:
    for error in (ConnectError(), StoreError("out"), BudgetExceeded.__new__(BudgetExceeded)):
        assert judge(Evidence(whole=False, error=error)).status == "cancelled"
    wrapped = RuntimeError("an SDK's own error")
    wrapped.__cause__ = ConnectError()
    assert judge(Evidence(whole=False, error=wrapped)).status == "cancelled"


def test_credentials_that_cannot_be_had_cost_nothing() -> None:
    exceptions = pytest.importorskip("openai._exceptions")
    found = getattr(exceptions, "SubjectTokenProviderError", None)
    if found is None:
        pytest.skip("this openai has no workload identities")
    assert judge(Evidence(whole=False, error=found("no such file"))).status == "cancelled"
    credentials = pytest.importorskip("anthropic").CredentialsError
    assert judge(Evidence(whole=False, error=credentials("none"))).status == "cancelled"


def test_who_chose_to_estimate_gets_what_was_seen() -> None:
    assert judge(broken(), estimate=True)[:2] == ("estimated", USAGE)
    assert judge(Evidence(counting=lambda: USAGE), estimate=True)[:2] == ("estimated", USAGE)
    # Nothing was seen: there is nothing to count.
    assert judge(Evidence(whole=False, note="closed"), estimate=True).status == "assumed"


def test_input_that_was_told_as_nothing_is_counted() -> None:
    said = judge(Evidence(Usage(0, 5), input_tokens=9))
    assert (said.status, said.usage, said.flags) == ("estimated", Usage(9, 5), ("no_input",))


@pytest.mark.parametrize(
    ("status", "said"), [(200, None), (204, None), (404, "failed"), (408, "assumed"), (500, "assumed")]
)
def test_statuses(status: int, said: str | None) -> None:
    outcome: Outcome | None = outcome_of_status(status)
    assert (outcome.status if outcome else None) == said


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": "content_filter", "status": 400, "innererror": {}}}',
        b'{"error": {"code": "BadRequest", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}',
        {"error": {"code": "content_filter"}},
    ],
)
def test_a_filter_is_known_by_its_code(body: object) -> None:
    """https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter"""
    found = outcome_of_status(400, body)
    assert found is not None
    assert (found.status, found.flags) == ("assumed", ("filtered",))


@pytest.mark.parametrize(
    "body", [b"", b"no JSON", b"[]", b'{"error": "content_filter"}', b'{"error": {"code": 400}}', {}, None]
)
def test_other_errors_cost_nothing(body: object) -> None:
    found = outcome_of_status(400, body, "azure")
    assert found is not None
    assert found.status == "failed"
