"""What every store must do: ours, and one of somebody else's.

    from store_suite import StoreSuite

    class TestTheirs(StoreSuite):
        @pytest.fixture
        def url(self, tmp_path):
            return f"theirs://{tmp_path}/books"

The URL is of a store that is empty. It is opened as users open it, by `open_store`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from behest_integrations import BudgetExceeded, ConfigError, Meter, StoreError, Usage
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.ledger import Bucket, Claim, Entry, HoldRecord, Ledger, audit, open_store, schema
from behest_integrations.ledger.admission import Ask, Need
from behest_integrations.ledger.audit import Decision
from behest_integrations.ledger.book import Grant, Refused, Reserved, Rows, cancel, expire, reserve, settle
from behest_integrations.ledger.keys import ChangedSetting, SealedKey
from behest_integrations.ledger.outbox import Message
from behest_integrations.ledger.retention import prune
from behest_integrations.ledger.stores import store_class
from behest_integrations.reports import Asked, Finding, repair, report, verify
from behest_integrations.reports.audit import decisions, prove
from behest_integrations.reports.budgets import buckets as buckets_report
from behest_integrations.wire import RequestBound

NOW = 1_793_500_000_000
CALL = {"session_id": "s", "user_id": "u", "project": None, "tenant": "t", "tags": {"a": "b"}, "model": "m"}
LIFETIME = Claim("calls all", "[]", 0, "calls", 5, "5 calls")
ROLLING = Claim("tokens 1h", "[]", 0, "tokens", 100, "100 tokens per 1h rolling", None, 3_600_000, 60_000)
KEY = ("usd all", "[]", 0)


def ask(calls: int = 1, tokens: int = 10) -> Ask:
    return Ask({"calls": Need(calls), "tokens": Need(tokens)}, 0, 0)


def entry(call_id: str, **said: Any) -> Entry:
    return Entry(**{**CALL, "call_id": call_id, "at": NOW, "status": "settled", "calls": 1, **said})


def wrong_counters(ledger: Ledger) -> list[Finding]:
    """What `verify` finds of the counters: here entries say less than is booked for them."""
    return [found for found in verify(ledger) if isinstance(found, Finding)]


class StoreSuite:
    """Inherit from it, with a fixture ``url``."""

    @pytest.fixture
    def ledger(self, url: str) -> Iterator[Ledger]:
        ledger = open_store(url)
        yield ledger
        ledger.close()

    def again(self, ledger: Ledger, url: str) -> Ledger:
        """The same books, as a process that comes later finds them."""
        if not ledger.shared:
            return ledger
        ledger.close()
        return open_store(url)

    def test_a_message_is_written_once_and_kept_until_it_is_told(self, ledger: Ledger, url: str) -> None:
        first = Message("id", "sink", NOW, "{}", NOW + 1)
        assert ledger.submit(lambda rows: rows.add_message(first))
        assert ledger.submit(lambda rows: rows.add_message(Message("id", "other", NOW, "{}", NOW)))
        assert not ledger.submit(lambda rows: rows.add_message(Message("id", "sink", NOW, "new", NOW)))
        ledger = self.again(ledger, url)
        found = ledger.submit(lambda rows: rows.open_messages(10))
        assert [(m.sink, m.body) for m in found] == [("other", "{}"), ("sink", "{}")]
        assert len(ledger.submit(lambda rows: rows.open_messages(1))) == 1
        told = Message("id", "sink", NOW, "{}", NOW + 1, 3, NOW + 2)
        ledger.submit(lambda rows: rows.set_message(told))
        assert [m.sink for m in ledger.submit(lambda rows: rows.open_messages(10))] == ["other"]
        assert told in ledger.submit(lambda rows: rows.all_messages())
        assert not ledger.submit(lambda rows: rows.add_message(first))

    def hold(self, ledger: Ledger, id: str, *claims: Claim, now: int = NOW, **asked: int) -> Any:
        claims = claims or (LIFETIME,)
        return ledger.submit(
            lambda rows: reserve(
                rows, call_id=id, claims=claims, ask=ask(**asked), call=CALL, now=now, lease=1000
            )
        )

    def end(self, ledger: Ledger, said: Entry, *claims: Claim, now: int = NOW, **amounts: int) -> Any:
        return ledger.submit(
            lambda rows: settle(
                rows, entry=said, amounts=amounts or {"calls": 1}, claims=claims or (LIFETIME,), now=now
            )
        )

    def sums(self, ledger: Ledger) -> list[tuple[str, int, int, int]]:
        return sorted((b.budget, b.start, b.spent, b.held) for b in ledger.snapshot()[0])

    # ── what is written is read back ───────────────────────────────────────────────────

    def test_a_bucket_has_one_id_and_its_sums(self, ledger: Ledger, url: str) -> None:
        def write(rows: Rows) -> tuple[int, int]:
            rows.load([Claim(*KEY, "usd", 5, "$5"), Claim("usd all", "[]", 60, "usd", 5, "$5")])
            assert rows.bucket(*KEY) is None
            made, other = rows.new_bucket(*KEY, "usd"), rows.new_bucket("usd all", "[]", 60, "usd")
            assert rows.bucket(*KEY) == made == Bucket(made.id, *KEY, "usd")
            assert made.id != other.id
            rows.change_bucket(made.id, 5, 7)
            rows.change_bucket(made.id, -1, 1)
            rows.set_notified(made.id, 50)
            return made.id, other.id

        id, other = ledger.submit(write)
        ledger = self.again(ledger, url)
        found, by_id = ledger.submit(lambda rows: (rows.bucket(*KEY), rows.bucket_by_id(id)))
        assert found == by_id == Bucket(id, *KEY, "usd", 4, 8, 50)
        ledger.submit(lambda rows: rows.set_sums(id, 1, 2))
        assert {b.id: (b.spent, b.held) for b in ledger.snapshot()[0]} == {id: (1, 2), other: (0, 0)}
        assert ledger.submit(lambda rows: rows.bucket_by_id(other + 100)) is None
        ledger.close()

    def test_amounts_of_64_bits(self, ledger: Ledger) -> None:
        most = 2**63 - 1

        def write(rows: Rows) -> None:
            rows.change_bucket(rows.new_bucket(*KEY, "usd").id, most, 0)

        ledger.submit(write)
        assert self.sums(ledger) == [("usd all", 0, most, 0)]

    def test_what_is_missing_is_said(self, ledger: Ledger) -> None:
        with pytest.raises(StoreError, match="damaged"):
            ledger.submit(lambda rows: rows.change_bucket(12345, 1, 1))

    def test_a_rolling_window_sums_its_slots(self, ledger: Ledger) -> None:
        def write(rows: Rows) -> list[int]:
            for start in (0, 60, 120, 180):
                rows.change_bucket(rows.new_bucket("r", "[]", start, "tokens").id, start + 1, 0)
            rows.change_bucket(rows.new_bucket("r", '["u"]', 120, "tokens").id, 1000, 0)
            return [rows.rolling_spent("r", "[]", after) for after in (-9, 0, 60, 180)]

        assert ledger.submit(write) == [61 + 121 + 181, 61 + 121 + 181, 121 + 181, 0]

    def test_a_hold_is_taken_once_and_comes_back_as_it_was(self, ledger: Ledger, url: str) -> None:
        made = HoldRecord("h", NOW, [(1, "usd", 2**60, 0), (2, "calls", 1, 60)], {**CALL, "held": {"usd": 3}})
        ledger.submit(lambda rows: rows.add_hold(made))
        ledger = self.again(ledger, url)
        assert ledger.snapshot()[1] == [made]
        assert ledger.submit(lambda rows: rows.take_hold("h")) == made
        assert ledger.submit(lambda rows: rows.take_hold("h")) is None
        ledger.submit(lambda rows: rows.add_hold(made))
        twice = ledger.submit(lambda rows: (rows.take_hold("h"), rows.take_hold("h")))
        assert twice == (made, None)

        def within_one(rows: Rows) -> Any:
            rows.add_hold(made)
            return rows.take_hold("h"), rows.take_hold("h")

        assert ledger.submit(within_one) == (made, None)
        assert ledger.snapshot()[1] == []
        ledger.close()

    def test_holds_whose_time_is_up(self, ledger: Ledger) -> None:
        def write(rows: Rows) -> Any:
            for id, expires in (("c", 30), ("a", 10), ("b", 20), ("d", 40)):
                rows.add_hold(HoldRecord(id, expires, [], {}))
            return rows.expired_holds(30, 9), rows.expired_holds(30, 2), rows.expired_holds(9, 9)

        assert ledger.submit(write) == (["a", "b", "c"], ["a", "b"], [])

    def test_entries_come_back_as_they_were_and_in_order(self, ledger: Ledger, url: str) -> None:
        whole = entry(
            "1", started=NOW - 5, stage="a/b", operation="chat", provider="openai", service_tier="flex",
            input_tokens=1, output_tokens=2, cached_input_tokens=3, cache_write_tokens=4, reasoning_tokens=5,
            input_audio_tokens=6, output_audio_tokens=7, cost=2**62, output_limit=8, lowered_from=9,
            flags="x,y", note="a 'note' of «words»", provider_id="resp", asked_model="gpt-4",
            bookings=[(1, "usd", 2**62)],
        )  # fmt: skip
        later = entry("1", at=NOW + 1, status="assumed", cost=None)
        reversal = entry("1", reversal=1, cost=-5)
        for one in (whole, later, reversal):
            ledger.submit(lambda rows, one=one: rows.add_entry(one))  # type: ignore[misc]
        ledger = self.again(ledger, url)
        assert ledger.snapshot()[2] == [whole, later, reversal]
        assert ledger.submit(lambda rows: rows.last_entry("1")) == later
        assert ledger.submit(lambda rows: rows.last_entry("2")) is None
        ledger.close()

    def test_limits_are_set_and_dropped(self, ledger: Ledger, url: str) -> None:
        def write(rows: Rows) -> None:
            rows.set_override("a", 5)
            rows.set_override("a", 6)
            rows.set_override("b", None)
            rows.set_override("c", 1)
            rows.drop_override("c")
            rows.drop_override("never there")

        ledger.submit(write)
        ledger = self.again(ledger, url)
        assert ledger.submit(lambda rows: dict(rows.overrides())) == {"a": 6, "b": None}
        ledger.close()

    def test_refusals_and_budgets_are_in_what_is_read(self, ledger: Ledger) -> None:
        with Meter(ledger, budgets=["1 calls per user"]) as meter:
            plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
            meter.reserve(plan).settle(Usage(1))
            for _ in range(2):
                with pytest.raises(BudgetExceeded):
                    meter.reserve(plan)
            meter.set_limit("1 calls per user", 7)
            (line,) = buckets_report(ledger, now_ms=NOW)
            assert (line.budget, line.limit, line.spent, line.refused) == ("7 calls per user", 7, 1, 2)
            assert report(ledger, ("model",)).total.refused == 2

    def test_lessons_are_kept_and_read_back(self, ledger: Ledger, url: str) -> None:
        one, two = (1, 2, 3, 4, 0, 5, 6, 7, 8), (0, 0, 0, 0, 1, -1, 0, 0, 0)

        def write(rows: Rows) -> None:
            assert dict(rows.lessons()) == {}
            rows.keep_lesson("http://a", "m", two)
            rows.keep_lesson("http://a", "m", one)
            rows.keep_lesson("", "m", two)
            assert dict(rows.lessons()) == {("http://a", "m"): one, ("", "m"): two}

        ledger.submit(write)
        before = ledger.submit(lambda rows: rows.lessons())
        ledger.submit(lambda rows: rows.keep_lesson("", "n", two))
        after = ledger.submit(lambda rows: rows.lessons())
        assert after is not before
        assert dict(after) == {("http://a", "m"): one, ("", "m"): two, ("", "n"): two}
        with ledger.reading().connect() as connection:
            found = connection.execute(sa.select(schema.lessons).order_by("model", "server")).fetchall()
        assert [tuple(row) for row in found] == [
            ("", "m", *two),
            ("http://a", "m", *one),
            ("", "n", *two),
        ]

    def test_grants_are_kept_and_mark_their_budget(self, ledger: Ledger, url: str) -> None:
        mine, later = Grant("b", '["u"]', 5, NOW), Grant("b", '["u"]', 7, NOW + 1)

        def write(rows: Rows) -> None:
            assert list(rows.grants("b", '["u"]')) == []
            rows.add_grant(mine)
            rows.add_grant(later)
            assert "b" in rows.own_limited()
            assert list(rows.grants("b", '["u"]')) == [mine, later]
            assert list(rows.grants("b", '["v"]')) == []

        ledger.submit(write)
        assert list(ledger.submit(lambda rows: rows.grants("b", '["u"]'))) == [mine, later]
        assert ledger.submit(lambda rows: rows.own_limit("b", '["u"]')) is None
        with ledger.reading().connect() as connection:
            g = schema.grants
            found = connection.execute(sa.select(g.c.budget, g.c.scope, g.c.amount, g.c.expires)).fetchall()
        assert [Grant(*row) for row in found] == [mine, later]

    def test_limits_of_one_scope_alone(self, ledger: Ledger, url: str) -> None:
        def write(rows: Rows) -> None:
            assert rows.own_limited() == frozenset()
            rows.set_own_limit("b", '["u"]', 5)
            rows.set_own_limit("b", '["v"]', 2**62)
            rows.set_own_limit("b", '["v"]', 6)
            rows.set_own_limit("c", '["u"]', 7)
            rows.set_own_limit("c", '["u"]', None)
            assert "b" in rows.own_limited()
            assert [rows.own_limit("b", s) for s in ('["u"]', '["v"]', '["w"]')] == [5, 6, None]
            assert rows.own_limit("c", '["u"]') is None

        ledger.submit(write)
        assert ledger.submit(lambda rows: rows.own_limit("b", '["v"]')) == 6
        with ledger.reading().connect() as connection:
            own = sa.select(schema.own_limits).where(schema.own_limits.c.scope != "")
            found = connection.execute(own.order_by("scope")).fetchall()
        assert [tuple(row) for row in found] == [('["u"]', "b", 5), ('["v"]', "b", 6)]

    def test_whose_a_stored_response_is(self, ledger: Ledger) -> None:
        def write(rows: Rows) -> None:
            for user, tokens in (("u", 1), ("v", 2)):
                rows.add_entry(
                    entry(user, user_id=user, operation="responses", provider_id="r", input_tokens=tokens)
                )
            rows.add_entry(entry("w", operation="chat", provider_id="r", input_tokens=3))
            rows.add_entry(entry("x", operation="responses", provider_id="r", tenant=None, input_tokens=4))
            rows.add_entry(
                entry("v", operation="responses", provider_id="r", reversal=1, input_tokens=-2, user_id="v")
            )

        ledger.submit(write)
        of = ledger.usage_of_response
        assert of("r", tenant="t", project=None, user="u") == Usage(1, 0)
        assert of("r", tenant="t", project=None) == Usage(2, 0)
        assert of("r", tenant=None, project=None) == Usage(4, 0)
        assert of("r", tenant="t", project="p") is None
        assert of("r", tenant="other", project=None, user="u") is None
        assert of("r", tenant="t", project=None, user="w") is None
        assert of("s", tenant="t", project=None) is None

    # ── the rules of the books ─────────────────────────────────────────────────────────

    def test_a_call_is_held_and_then_booked(self, ledger: Ledger) -> None:
        assert isinstance(self.hold(ledger, "1", LIFETIME, ROLLING), Reserved)
        assert self.sums(ledger) == [("calls all", 0, 0, 1), ("tokens 1h", 0, 0, 10)]
        assert self.end(ledger, entry("1"), LIFETIME, ROLLING, calls=1, tokens=7).written
        slot = NOW // 60_000 * 60_000
        assert self.sums(ledger) == [
            ("calls all", 0, 1, 0),
            ("tokens 1h", 0, 0, 0),
            ("tokens 1h", slot, 7, 0),
        ]
        assert wrong_counters(ledger) == []

    def test_a_refusal_writes_nothing_but_its_count(self, ledger: Ledger) -> None:
        self.hold(ledger, "1", LIFETIME, calls=3)
        refused = self.hold(ledger, "2", ROLLING, LIFETIME, calls=3)
        assert isinstance(refused, Refused)
        assert (refused.claim, refused.spent, refused.held, refused.reason) == (LIFETIME, 0, 3, "busy")
        assert self.sums(ledger) == [("calls all", 0, 0, 3)]
        assert [h.id for h in ledger.snapshot()[1]] == ["1"]
        assert ledger.submit(lambda rows: rows.everything()).refusals[0]["count"] == 1

    def test_the_truth_is_booked_once_and_replaces_an_assumption(self, ledger: Ledger) -> None:
        self.hold(ledger, "1")
        ended = ledger.submit(lambda rows: expire(rows, now=NOW + 1001, book=True))
        assert ended == ["1"]
        assert self.sums(ledger) == [("calls all", 0, 1, 0)]
        assert self.end(ledger, entry("1", cost=5), calls=2).replaced
        assert not self.end(ledger, entry("1", cost=6), calls=3).written
        assert self.sums(ledger) == [("calls all", 0, 2, 0)]
        kept = ledger.snapshot()[2]
        assert [(e.status, e.reversal, e.calls) for e in kept] == [
            ("assumed", 0, 1), ("assumed", 1, -1), ("settled", 0, 1)
        ]  # fmt: skip
        assert wrong_counters(ledger) == []

    def test_a_lease_that_ran_out_books_nothing_if_so_chosen(self, ledger: Ledger) -> None:
        self.hold(ledger, "1")
        ledger.submit(lambda rows: expire(rows, now=NOW + 1001, book=False))
        assert self.sums(ledger) == [("calls all", 0, 0, 0)]
        (line,) = ledger.snapshot()[2]
        assert (line.calls, line.cost, line.input_tokens) == (0, 0, 0)

    def test_a_cancelled_call_leaves_nothing(self, ledger: Ledger) -> None:
        self.hold(ledger, "1")
        assert ledger.submit(lambda rows: cancel(rows, call_id="1"))
        assert not ledger.submit(lambda rows: cancel(rows, call_id="1"))
        assert self.sums(ledger) == [("calls all", 0, 0, 0)]
        assert ledger.snapshot()[1:] == ([], [])

    def test_repair_rebuilds_what_was_tampered_with(self, ledger: Ledger) -> None:
        self.hold(ledger, "1")
        self.end(ledger, entry("1"))
        (bucket,) = ledger.snapshot()[0]
        ledger.submit(lambda rows: rows.set_sums(bucket.id, 9, 9))
        assert len(repair(ledger)) == 1
        assert wrong_counters(ledger) == []
        assert self.sums(ledger) == [("calls all", 0, 1, 0)]

    # ── transactions ───────────────────────────────────────────────────────────────────

    def test_an_operation_that_fails_before_it_writes_takes_nobody_down(self, ledger: Ledger) -> None:
        def bad(rows: Rows) -> None:
            rows.bucket(*KEY)
            raise ZeroDivisionError

        inside, go = threading.Event(), threading.Event()

        def slow(rows: Rows) -> None:
            inside.set()
            assert go.wait(20)

        results: list[Any] = []

        def run(work: Callable[[Rows], Any]) -> None:
            try:
                results.append(ledger.submit(work))
            except ZeroDivisionError as error:
                results.append(error)

        works: list[Callable[[Rows], Any]] = [slow]
        for n in range(6):
            works += [bad, lambda rows, n=n: rows.set_override(f"budget {n}", n)]  # type: ignore[misc]
        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        threads[0].start()
        assert inside.wait(20)
        for thread in threads[1:]:  # all of them queue up behind the first
            thread.start()
        go.set()
        for thread in threads:
            thread.join(20)
        assert sum(isinstance(r, ZeroDivisionError) for r in results) == 6
        assert len(results) == 13
        assert ledger.submit(lambda rows: dict(rows.overrides())) == {f"budget {n}": n for n in range(6)}

    def test_nothing_passes_a_limit_with_many_at_once(self, ledger: Ledger) -> None:
        limit = LIFETIME._replace(limit=100)
        granted: list[bool] = []

        def work(me: int) -> None:
            for n in range(10):
                got = self.hold(ledger, f"{me}-{n}", limit)
                granted.append(isinstance(got, Reserved))
                if granted[-1] and n % 2:
                    assert self.end(ledger, entry(f"{me}-{n}"), limit).written

        threads = [threading.Thread(target=work, args=(me,)) for me in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (len(granted), sum(granted)) == (160, 100)
        ((_, _, spent, held),) = self.sums(ledger)
        assert spent + held == 100
        assert wrong_counters(ledger) == []

    async def test_nothing_passes_a_limit_with_many_tasks(self, ledger: Ledger) -> None:
        def work(n: int) -> Callable[[Rows], Any]:
            return lambda rows: reserve(
                rows, call_id=str(n), claims=[LIFETIME], ask=ask(), call=CALL, now=NOW, lease=9
            )

        got = await asyncio.gather(*(ledger.asubmit(work(n)) for n in range(40)))
        assert sum(isinstance(one, Reserved) for one in got) == 5
        assert self.sums(ledger) == [("calls all", 0, 0, 5)]

    async def test_an_error_comes_back_to_a_task(self, ledger: Ledger) -> None:
        def bad(rows: Rows) -> None:
            raise ZeroDivisionError

        for error in (ZeroDivisionError, ZeroDivisionError):
            with pytest.raises(error):
                await ledger.asubmit(bad)

    def test_a_finaliser_may_end_a_hold_even_inside_an_operation(self, ledger: Ledger) -> None:
        self.hold(ledger, "1")
        failures: list[BaseException] = []

        class Left:
            def __del__(self) -> None:
                ledger.post(lambda rows: cancel(rows, call_id="1"), failures.append)

        def work(rows: Rows) -> None:
            left = Left()
            del left
            gc.collect()

        ledger.submit(work)
        ledger.flush()
        assert failures == []
        assert self.sums(ledger) == [("calls all", 0, 0, 0)]

    def test_what_is_posted_is_written_in_order(self, ledger: Ledger) -> None:
        failures: list[BaseException] = []
        for n in range(300):
            ledger.post(lambda rows, n=n: rows.set_override("a", n), failures.append)  # type: ignore[misc]
        assert ledger.submit(lambda rows: dict(rows.overrides())) == {"a": 299}
        ledger.post(lambda rows: 1 // 0, failures.append)
        ledger.flush()
        assert [type(f) for f in failures] == [ZeroDivisionError]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_shares_the_books_or_is_refused(self, ledger: Ledger) -> None:
        self.hold(ledger, "parent")
        child = os.fork()
        if not child:
            code = 9
            try:
                code = 1 if isinstance(self.hold(ledger, "child"), Reserved) else 2
            except StoreError:
                code = 3
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (1 if ledger.shared else 3)
        self.hold(ledger, "parent again")
        assert self.sums(ledger) == [("calls all", 0, 0, 3 if ledger.shared else 2)]

    # ── what a store says of itself ────────────────────────────────────────────────────

    def test_it_exists_once_it_was_made_and_asking_makes_none(self, url: str) -> None:
        kind = store_class(url)
        assert not kind.exists(url)
        assert not kind.exists(url)
        open_store(url).close()
        assert kind.exists(url) == kind.shared

    def test_two_who_open_a_shared_store_have_the_same_books(self, ledger: Ledger, url: str) -> None:
        other = open_store(url)
        self.hold(ledger, "1")
        assert self.sums(other) == (self.sums(ledger) if ledger.shared else [])
        if ledger.shared:
            self.hold(other, "2")
            assert other.submit(lambda rows: rows.take_hold("1")) is not None
            assert ledger.submit(lambda rows: rows.take_hold("1")) is None
            # What the other has written meanwhile is seen, and so is what it has taken.
            self.hold(ledger, "3")
            assert ledger.submit(lambda rows: expire(rows, now=NOW + 1001, book=True)) == ["2", "3"]
            assert self.sums(other) == self.sums(ledger) == [("calls all", 0, 2, 1)]
            assert not self.end(other, entry("2", status="assumed")).written
            assert self.end(other, entry("2")).replaced
            assert isinstance(self.hold(ledger, "4", calls=2), Reserved)
            assert isinstance(self.hold(other, "5"), Refused)
        other.close()

    def test_a_closed_store_says_so(self, url: str) -> None:
        ledger = open_store(url)
        ledger.close()
        ledger.close()
        with pytest.raises(StoreError, match="closed"):
            ledger.submit(lambda rows: None)

    def test_the_audit_is_kept_and_chained(self, ledger: Ledger, url: str) -> None:
        for number in range(3):
            said = Decision(NOW + number, "refused", f"rule {number}", user_id="ü", details={"EMAIL": number})
            ledger.submit(lambda rows, said=said: rows.add_audit(said))
        kept = ledger.submit(lambda rows: list(rows.audit()))
        assert [(r.rule, r.user_id, r.details) for r in kept][2] == ("rule 2", "ü", '{"EMAIL":2}')
        assert audit.verify(kept).flaws == []
        assert [r["rule"] for r in decisions(ledger, Asked())] == ["rule 0", "rule 1", "rule 2"]
        assert prove(ledger).records == 3
        # Let go of, it can still be proved.
        assert prune(ledger, NOW + 86_400_001, 1) == 1
        assert ledger.submit(lambda rows: rows.audit()[0].rule) == "rule 1"
        assert prove(ledger).flaws == []
        assert prove(ledger).pruned == 1

    def test_what_the_gateway_is_told_while_it_runs_is_kept(self, ledger: Ledger) -> None:
        if type(ledger).keys is Ledger.keys:  # it keeps none, and says so
            return
        keys, others = ledger.keys(), ledger.keys()
        key = SealedKey("t", "openai", "1", "sealed", "m", "0001", 5)
        setting = ChangedSetting("tier", "gold", {"budgets": ["$1/day"]}, 5, None)
        steps: list[Callable[[], object]] = [
            lambda: keys.put_provider_key(key),
            lambda: keys.put_provider_key(replace(key, id="2", sealed="again")),
            lambda: keys.put_provider_key(replace(key, tenant="other")),
            lambda: keys.put_setting(setting),
            lambda: keys.put_setting(replace(setting, value={"budgets": []})),
            lambda: keys.drop_setting("tier", "gold"),
            lambda: keys.drop_provider_key("t", "openai"),
        ]
        for step in steps:
            before = keys.revision()
            assert step() in (True, None)
            assert keys.revision() > before
        assert others.provider_keys() == [replace(key, tenant="other")]
        assert others.provider_keys("t") == others.settings() == []
        before = keys.revision()
        assert not keys.put_provider_key(key, instead_of=key)
        assert not keys.drop_setting("tier", "gold")
        assert not keys.drop_provider_key("t", "openai")
        assert keys.revision() == before

    def test_keys_are_kept_or_refused(self, ledger: Ledger) -> None:
        try:
            ledger.keys()
        except ConfigError:
            return
        keys = KeyStore(ledger)
        key, text = keys.create(tenant="t", project="p", tier="pro", name="one")
        assert keys.find(text) == key == keys.by_id(key.id)
        assert keys.find(text[:-1] + ("a" if text[-1] != "a" else "b")) is None
        assert keys.all() == [key]
        assert keys.revoke(key.id).revoked is not None
        assert keys.find(text) is None
        for id in (key.id, "nobody"):
            with pytest.raises(ConfigError):
                keys.revoke(id)

    def test_a_meter_over_it(self, url: str) -> None:
        with Meter(url, budgets=["$1 per session", "20 calls"], on_unknown="assume") as meter:
            plan = meter.plan(
                "chat", "gpt-4o", RequestBound(100, output_limit=50, limit_fields=("max_tokens",))
            )
            meter.reserve(plan).settle(Usage(10, 5))
            late = meter.reserve(plan)
            late.end(Outcome("assumed"))
            late.settle(Usage(10, 5))
            meter.reserve(plan).release()
            assert [e.status for e in meter.ledger.snapshot()[2]] == [
                "settled",
                "assumed",
                "assumed",
                "settled",
            ]
            assert report(meter.ledger).total.calls == 2
            assert verify(meter.ledger) == []
