"""Invoices held against the books: each planted difference is found, and none is left once booked."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import assert_sound, entries

from behest_integrations import ConfigError, Meter, Price, Usage
from behest_integrations.cli import main
from behest_integrations.ledger.closing import close_blocks
from behest_integrations.ledger.pruning import prune
from behest_integrations.ledger.sql import SQLLedger
from behest_integrations.prices import Pricing
from behest_integrations.reports import report, verify
from behest_integrations.reports.finance import (
    Reconciliation,
    book_differences,
    read_invoice,
    reconcile,
    reprice,
)
from behest_integrations.reports.finance.differences import (
    ASSUMED,
    NOT_BILLED,
    PRICE,
    ROUNDING,
    UNEXPLAINED,
    UNPRICED,
    UNSEEN,
)
from behest_integrations.wire import RequestBound

PRICES = {m: Price(input="1", output="3") for m in ("exact", "unseen", "assumed", "price", "absent", "mixed")}
DAY = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now = int(datetime(2026, 11, 3, 12, tzinfo=timezone.utc).timestamp() * 1000)

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(store: str, clock: Clock) -> Iterator[Meter]:
    budgets = ["$100", "$50/day", "$5/day per user", "9M tokens", "$9 per 24h rolling"]
    with Meter(store, budgets=budgets, prices=PRICES, clock=clock, lease=60) as meter:
        yield meter


def spend(meter: Meter, model: str, inputs: int = 1000, outputs: int = 100, *, user: str = "u") -> None:
    with meter.session("s", user=user):
        plan = meter.plan("chat", model, RequestBound(inputs, output_limit=outputs))
        meter.reserve(plan).settle(Usage(inputs, outputs))


def assume(meter: Meter, clock: Clock, model: str) -> None:
    """A call whose outcome is not known: $0.0016 at the worst."""
    with meter.session("s", user="u"):
        hold = meter.reserve(meter.plan("chat", model, RequestBound(1000, output_limit=200)))
    hold.end(outcome("assumed"))


def outcome(status: str) -> Any:
    from behest_integrations.engine.outcomes import Outcome

    return Outcome(status)  # type: ignore[arg-type]


COLUMNS = ("date", "model", "cost", "requests", "input_tokens", "output_tokens")


def invoice(path: Path, *lines: tuple[Any, ...], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(lines)
    return path


def compare(meter: Meter, *paths: Path, **said: Any) -> Reconciliation:
    meter.flush()
    billed, provider = read_invoice(paths)
    return reconcile(meter.ledger, billed, provider=provider, pricing=Pricing(PRICES), **said)


def causes(found: Reconciliation) -> dict[tuple[str, str], dict[str, int]]:
    return {(str(line.day), line.model): line.causes for line in found.lines if line.causes}


def test_what_tenants_pay_by_their_own_keys_is_on_their_invoices(meter: Meter, tmp_path: Path) -> None:
    for paid_by in ("platform", "tenant"):
        with meter.session(tags={"paid_by": paid_by}):
            spend(meter, "exact")
    spend(meter, "exact")  # past a gateway, where nobody says it
    path = invoice(tmp_path / "i.csv", ("2026-11-03", "exact", "0.0026", 2, 2000, 200))
    assert compare(meter, path).difference == 0
    assert causes(compare(meter, path)) == {}


def test_each_planted_cause_is_found_and_none_is_left_once_booked(
    meter: Meter, clock: Clock, tmp_path: Path
) -> None:
    for model in ("exact", "unseen", "price"):
        spend(meter, model)
    spend(meter, "absent")  # never on the invoice
    assume(meter, clock, "assumed")
    spend(meter, "mixed")
    assume(meter, clock, "mixed")
    clock.now += DAY
    spend(meter, "exact", user="eve")
    path = invoice(
        tmp_path / "i.csv",
        ("2026-11-03", "exact", "0.0013", 1, 1000, 100),
        ("2026-11-03", "unseen", "0.0039", 3, 3000, 300),  # two calls that did not come past us
        ("2026-11-03", "assumed", "0.0007", 1, 400, 100),  # the truth of the worst case
        ("2026-11-03", "price", "0.0026", 1, 1000, 100),  # twice the price
        ("2026-11-03", "mixed", "0.00415", 3, 2500, 300),  # a truth (500, 100), a call not seen, at 10/8 …
        ("2026-11-04", "exact", "0.001300004", 1, 1000, 100),  # a rounding
    )
    found = compare(meter, path)
    said = causes(found)
    assert said == {
        ("2026-11-03", "unseen"): {UNSEEN: 2_600_000},
        ("2026-11-03", "assumed"): {ASSUMED: 700_000 - 1_600_000},
        ("2026-11-03", "price"): {PRICE: 1_300_000},
        ("2026-11-03", "absent"): {NOT_BILLED: -1_300_000},
        # 1,500 and 200 tokens of two calls, of which one is the worst case's.
        ("2026-11-03", "mixed"): {
            UNSEEN: 750_000 + 300_000,
            ASSUMED: 750_000 + 300_000 - 1_600_000,
            PRICE: 4_150_000 - 1_300_000 - 2_100_000,
        },
        ("2026-11-04", "exact"): {ROUNDING: 4},
    }
    assert sum(found.by_cause().values()) == found.difference
    assert {(line.model, line.calls) for line in found.lines if line.calls} == {
        ("unseen", 2), ("absent", -1), ("mixed", 1)
    }  # fmt: skip
    of_users = [b for b in meter.ledger.snapshot()[0] if "user" in b.budget]
    assert book_differences(meter.ledger, found, now=clock(), source="i.csv") == 6
    assert book_differences(meter.ledger, found, now=clock(), source="i.csv") == 0  # once, by whomever
    again = compare(meter, path)
    assert again.difference == 0
    assert all(not (x.difference or x.tokens or x.calls or x.causes) for x in again.lines)
    assert book_differences(meter.ledger, again, now=clock()) == 0
    billed = sum(Decimal(x) for x in ("0.0013", "0.0039", "0.0007", "0.0026", "0.00415", "0.001300004"))
    assert Decimal(report(meter.ledger).total.cost) / 10**9 == billed
    assert_sound(meter)
    everybody = {b.budget: b.spent for b in meter.spend(user="u")}
    assert everybody["$100"] == to_nano_of(billed)
    assert [b for b in meter.ledger.snapshot()[0] if "user" in b.budget] == of_users


def to_nano_of(usd: Decimal) -> int:
    return int(usd * 10**9)


def test_the_days_of_another_zone_are_found(meter: Meter, clock: Clock, tmp_path: Path) -> None:
    clock.now -= 12 * 3_600_000  # midnight of the third
    billed: dict[date, int] = {}
    pacific = timezone(timedelta(hours=-8))
    for hour in range(96):
        spend(meter, "exact", 1000 + 10 * hour, 100)
        day = datetime.fromtimestamp(clock.now / 1000, pacific).date()
        billed[day] = billed.get(day, 0) + 1000 + 10 * hour
        clock.now += 3_600_000
    billed.pop(min(billed))
    lines = [
        (d, "exact", Decimal(n + 300 * c) / 10**6, c, n, 100 * c)
        for d, n in billed.items()
        for c in [24 if d != max(billed) else 16]
    ]
    found = compare(meter, invoice(tmp_path / "i.csv", *lines))
    assert found.zone == "UTC-8"
    assert found.difference == 0
    assert found.moved > 0
    assert not causes(found)
    as_asked = compare(meter, tmp_path / "i.csv", find_zone=False)
    assert as_asked.zone == "UTC"
    assert any(line.difference for line in as_asked.lines)


def test_an_invoice_without_tokens_says_what_it_can(meter: Meter, clock: Clock, tmp_path: Path) -> None:
    spend(meter, "price")
    assume(meter, clock, "assumed")
    path = invoice(
        tmp_path / "i.csv",
        ("2026-11-03", "price", "0.002"),
        ("2026-11-03", "assumed", "0.0007"),
        ("2026-11-03", "unseen", "0.5"),
        columns=("date", "model", "cost"),
    )
    found = compare(meter, path)
    assert causes(found) == {
        ("2026-11-03", "price"): {UNEXPLAINED: 700_000},
        ("2026-11-03", "assumed"): {ASSUMED: -900_000},
        ("2026-11-03", "unseen"): {UNSEEN: 500_000_000},
    }
    book_differences(meter.ledger, found, now=clock())
    assert compare(meter, path).difference == 0
    assert_sound(meter)


def test_what_had_no_price_is_priced_later_and_what_had_one_stays(
    sqlite_store: str, tmp_path: Path, clock: Clock
) -> None:
    with Meter(sqlite_store, budgets=["9M tokens"], prices={"old": Price(input="9")}, clock=clock) as meter:
        spend(meter, "new-model")
        spend(meter, "old", 1000, 0)
        spend(meter, "never-known")
        meter.flush()
        found = reconcile(
            meter.ledger,
            read_invoice([invoice(tmp_path / "i.csv", ("2026-11-03", "new-model", "0.0013", 1, 1000, 100))])[
                0
            ],
            pricing=Pricing({"new-model": PRICES["exact"]}),
        )
        assert causes(found)["2026-11-03", "new-model"] == {UNPRICED: 1_300_000}
        before = [e for e in entries(meter) if e.model == "old"]
        later = Pricing({"new-model": PRICES["exact"], "old": Price(input="1")})
        done = reprice(meter.ledger, later, now=clock())
        assert (done.calls, done.cost, done.unknown) == (1, 1_300_000, {"never-known": 1})
        assert reprice(meter.ledger, later, now=clock()).calls == 0
        assert [e for e in entries(meter) if e.model == "old"] == before
        total = report(meter.ledger, ("model",)).total
        assert (total.cost, total.unpriced, total.calls) == (9_000_000 + 1_300_000, 1, 3)
        assert verify(meter.ledger) == []


def test_what_was_pruned_is_neither_corrected_nor_priced_again(
    sqlite_store: str, tmp_path: Path, clock: Clock
) -> None:
    later = Pricing({"new-model": PRICES["exact"], "gone": PRICES["exact"]})
    with Meter(sqlite_store, budgets=["9M tokens"], prices=PRICES, clock=clock) as meter:
        for _ in range(2):
            spend(meter, "exact")
            clock.now += DAY
        spend(meter, "new-model")
        with meter.session("s", user="u"):
            late = meter.reserve(meter.plan("chat", "assumed", RequestBound(1000, output_limit=200)))
        late.end(outcome("assumed"))
        meter.flush()
        path = invoice(
            tmp_path / "i.csv",
            ("2026-11-03", "exact", "0.0039", 3, 3000, 300),
            ("2026-11-04", "exact", "0.0026", 2, 2000, 200),
        )
        assert book_differences(meter.ledger, compare(meter, path), now=clock()) == 2
        assert reprice(meter.ledger, later, now=clock()).calls == 1
        spend(meter, "gone")
        meter.flush()
        total = report(meter.ledger).total
        assert isinstance(meter.ledger, SQLLedger)
        clock.now += 9 * DAY
        close_blocks(meter.ledger, clock())
        assert prune(meter.ledger, clock(), 2).blocks == 1
        again = compare(meter, path)
        assert [(x.difference, x.tokens, x.calls) for x in again.lines if x.model == "exact"] == [
            (0, 0, 0)
        ] * 2
        done = reprice(meter.ledger, later, now=clock())
        assert (done.calls, done.unknown) == (0, {})
        assert report(meter.ledger).total.cost == total.cost
        late.settle(Usage(1000, 100))  # it is told after all, and once
        meter.flush()
        assert report(meter.ledger).total.cost == total.cost - 300_000
        assert verify(meter.ledger) == []


def openai_page(*results: dict[str, Any], kind: str) -> dict[str, Any]:
    at = int(datetime(2026, 11, 3, tzinfo=timezone.utc).timestamp())
    bucket = {"object": "bucket", "start_time": at, "end_time": at + 86400}
    made = [{"object": f"organization.{kind}.result", **r} for r in results]
    return {"object": "page", "data": [{**bucket, "results": made}], "has_more": False, "next_page": None}


def _openai(folder: Path) -> list[Path]:
    costs = openai_page(
        {"amount": {"value": 0.001, "currency": "usd"}, "line_item": "exact, input", "project_id": None},
        {"amount": {"value": 0.0003, "currency": "usd"}, "line_item": "exact, output", "project_id": None},
        kind="costs",
    )
    usage = openai_page(
        {"input_tokens": 1000, "output_tokens": 100, "input_cached_tokens": 0, "num_model_requests": 1,
         "model": "exact"},
        kind="usage.completions",
    )  # fmt: skip
    (folder / "costs.json").write_text(json.dumps(costs))
    (folder / "usage.json").write_text(json.dumps(usage))
    return [folder / "costs.json", folder / "usage.json"]


def _openai_csv(folder: Path) -> list[Path]:
    at = int(datetime(2026, 11, 3, tzinfo=timezone.utc).timestamp())
    (folder / "c.csv").write_text(
        "start_time,end_time,start_time_iso,amount_value,amount_currency,line_item\n"
        f'{at},{at + 86400},2026-11-03T00:00:00+00:00,0.001,usd,"exact, input"\n'
        f'{at},{at + 86400},2026-11-03T00:00:00+00:00,0.0003,usd,"exact, output"\n'
    )
    (folder / "u.csv").write_text(
        "start_time,end_time,model,num_model_requests,input_tokens,output_tokens,input_cached_tokens\n"
        f"{at},{at + 86400},exact,1,1000,100,0\n"
    )
    return [folder / "c.csv", folder / "u.csv"]


def _anthropic(folder: Path) -> list[Path]:
    times = {"starting_at": "2026-11-03T00:00:00Z", "ending_at": "2026-11-04T00:00:00Z"}
    costs = [
        {"amount": "0.1", "currency": "USD", "model": "exact", "token_type": "uncached_input_tokens",
         "cost_type": "tokens", "description": "exact Usage - Input Tokens"},
        {"amount": "0.03", "currency": "USD", "model": "exact", "token_type": "output_tokens",
         "cost_type": "tokens", "description": "exact Usage - Output Tokens"},
    ]  # fmt: skip
    usage = [
        {"uncached_input_tokens": 700, "cache_read_input_tokens": 200, "output_tokens": 100, "model": "exact",
         "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0}}
    ]  # fmt: skip
    for name, results in (("ac.json", costs), ("au.json", usage)):
        page = {"data": [{**times, "results": results}], "has_more": False, "next_page": None}
        (folder / name).write_text(json.dumps(page))
    return [folder / "ac.json", folder / "au.json"]


def _google(folder: Path) -> list[Path]:
    rows = [
        {"service": {"description": "Gemini API"}, "sku": {"description": f"Exact {kind} - Predictions"},
         "usage_start_time": "2026-11-03 08:00:00 UTC", "cost": cost, "currency": "USD",
         "cost_type": "regular",
         "usage": {"amount": amount, "unit": "count"}, "credits": credits}
        for kind, cost, amount, credits in (
            ("Text Input", 0.0015, 1000, [{"name": "c", "amount": -0.0005}]),
            ("Text Output", 0.0003, 100, []),
        )
    ]  # fmt: skip
    rows.append({**rows[0], "cost_type": "tax", "cost": 7})
    (folder / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [folder / "g.jsonl"]


def _openrouter(folder: Path) -> list[Path]:
    data = [
        {"date": "2026-11-03", "model": "exact", "model_permaslug": "exact", "provider_name": "P",
         "usage": 0.0013, "byok_usage_inference": 0, "requests": 1, "prompt_tokens": 1000,
         "completion_tokens": 100, "reasoning_tokens": 0}
    ]  # fmt: skip
    (folder / "o.json").write_text(json.dumps({"data": data}))
    return [folder / "o.json"]


@pytest.mark.parametrize(
    ("make", "provider"),
    [(_openai, "openai"), (_openai_csv, "openai"), (_anthropic, "anthropic"), (_google, "google"),
     (_openrouter, "openrouter")],
)  # fmt: skip
def test_the_exports_of_providers_are_read(
    make: Callable[[Path], list[Path]], provider: str, tmp_path: Path
) -> None:
    (line,), whose = read_invoice(make(tmp_path))
    assert whose == provider
    assert (line.day, line.model, line.cost) == (date(2026, 11, 3), "exact", Decimal("0.0013"))
    assert (line.inputs, line.outputs) == (1000, 100)
    assert line.requests == (None if provider in ("anthropic", "google") else 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "--map"),
        ("date,model,cost\n2026-11-03,m,lots\n", "row 1"),
        ("date,model,cost\nyesterday,m,1\n", "row 1"),
        ("{", "not JSON"),
        ('{"data": []}', "no export"),
        ('{"start_time": 1, "amount": {"value": 1, "currency": "eur"}}', "eur"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_invoice([tmp_path / "f"])


def test_the_command(meter: Meter, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not meter.ledger.shared:
        pytest.skip("a command reads a file")
    spend(meter, "exact")
    assume(meter, clock, "assumed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEHEST_STORE", meter.ledger.url)
    prices = "".join(f'[prices.{m}]\ninput = "1"\noutput = "3"\n' for m in PRICES)
    (tmp_path / "behest.toml").write_text(prices)
    invoice(
        tmp_path / "i.csv",
        ("2026-11-03", "exact", "$0.0013", "1,000", 100),
        ("2026-11-03", "assumed", "$0.0007", "400", 100),
        columns=("Day", "Name", "USD", "In", "Out"),
    )
    columns = "date=Day,model=Name,cost=USD,input_tokens=In,output_tokens=Out"
    run = CliRunner()
    said = run.invoke(main, ["reconcile", "i.csv"])
    assert said.exit_code == 1
    assert "--map" in said.output
    said = run.invoke(main, ["reconcile", "i.csv", "--map", columns])
    assert said.exit_code == 0, said.output
    assert "-$0.0009" in said.output
    assert ASSUMED in said.output
    said = run.invoke(main, ["reconcile", "i.csv", "--map", columns, "--book", "--json"])
    assert json.loads(said.stdout)["difference_usd"] == "-0.000900000"
    said = run.invoke(main, ["reconcile", "i.csv", "--map", columns, "--json"])
    assert json.loads(said.stdout)["difference_usd"] == "0.000000000"
    assert run.invoke(main, ["verify"]).exit_code == 0
    said = run.invoke(main, ["reprice"])
    assert said.output == "0 calls have a price now: $0 in all.\n"
