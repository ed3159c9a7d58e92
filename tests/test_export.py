"""What finance takes away: every file adds up to the ledger, and none is ever rewritten."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import focus_rules
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from support import HELLO, assert_agrees, assert_sound, client, entries

from behest_integrations import ConfigError, Meter, Price, Usage
from behest_integrations.cli import main
from behest_integrations.ledger import Ledger, open_store, schema
from behest_integrations.ledger.closing import close_blocks
from behest_integrations.ledger.pruning import prune
from behest_integrations.ledger.sql import SQLLedger
from behest_integrations.prices import Pricing
from behest_integrations.reports import Asked, report
from behest_integrations.reports.finance import CostCentres, chargeback, export
from behest_integrations.reports.finance import focus as focus_module
from behest_integrations.reports.finance.export import ENTRY_COLUMNS
from behest_integrations.rules.budgets import to_nano
from behest_integrations.rules.units import to_usd
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

NOVEMBER = Asked(datetime(2026, 11, 1, tzinfo=timezone.utc), datetime(2026, 12, 1, tzinfo=timezone.utc))
DECEMBER = Asked(datetime(2026, 12, 1, tzinfo=timezone.utc), datetime(2027, 1, 1, tzinfo=timezone.utc))
PRICES = {
    "m": Price(input="1", output="3", cached_input="0.1", reasoning="5"),
    "odd": Price(input="0.0333333", output="0.0777777", request="0.00001"),
}
CENTRES = {"research": {"project": ["apollo*"]}, "sales": [{"user": "s-*"}, {"tag": {"team": "sales"}}]}


class Clock:
    def __init__(self, *at: int) -> None:
        self.now = int(datetime(*at, tzinfo=timezone.utc).timestamp() * 1000)  # type: ignore[arg-type]

    def __call__(self) -> int:
        return self.now


def spend(meter: Meter, usage: Usage, model: str = "m", **who: Any) -> None:
    with meter.session(who.pop("session", None), **who):
        meter.reserve(meter.plan("chat", model, RequestBound(100_000, output_limit=50_000))).settle(usage)


@pytest.fixture
def clock() -> Clock:
    return Clock(2026, 11, 30, 23, 30)


@pytest.fixture
def meter(store: str, clock: Clock) -> Iterator[Meter]:
    with Meter(store, budgets=["$100", "5M tokens"], prices=PRICES, clock=clock, lease=60) as meter:
        yield meter


def focus(meter: Meter, asked: Asked, path: Path) -> list[dict[str, str]]:
    meter.flush()
    export(meter.ledger, path, "focus", asked, pricing=Pricing(PRICES), centres=CostCentres(CENTRES))
    return focus_rules.read(path)


def billed(rows: list[dict[str, str]], column: str = "BilledCost") -> Decimal:
    return sum((Decimal(row[column]) for row in rows), Decimal(0))


def test_the_rules_hold_of_the_file_that_was_checked_by_hand_and_a_broken_one_is_found() -> None:
    assert focus_rules.problems([{"BilledCost": "21.0000"}])  # nearly everything is missing
    everything = (*focus_rules.MANDATORY, *focus_rules.PROVIDERS, *focus_rules.PROVIDERS_SINCE_1_4)
    good = {
        **dict.fromkeys(everything, "x"),
        **dict.fromkeys(focus_rules.COSTS, "21.0000"), "BillingCurrency": "USD", "PricingCurrency": "USD",
        "BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z",
        "ChargePeriodStart": "2026-11-24T00:00:00Z", "ChargePeriodEnd": "2026-11-25T00:00:00Z",
        "ChargeClass": "", "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based",
        "PricingCategory": "Standard", "ConsumedQuantity": "8400000.0", "ConsumedUnit": "Tokens",
        "PricingQuantity": "8.400000", "PricingUnit": "1000000 Tokens", "ListUnitPrice": "2.50",
        "ContractedUnitPrice": "2.50", "PricingCurrencyEffectiveCost": "21.0000",
        "Tags": '{"feature":"support"}', "SkuPriceDetails": '{"x_ModelId":"gpt-4o"}',
    }  # fmt: skip
    assert focus_rules.problems([good]) == []
    for name, value, words in (
        ("BilledCost", "21", "not a decimal"),
        ("ChargePeriodStart", "2026-11-24", "not a time"),
        ("ChargePeriodStart", "2026-10-24T00:00:00Z", "earlier billing period"),
        ("ListUnitPrice", "2.51", "times PricingQuantity"),
        ("ConsumedUnit", "", "ConsumedUnit is null"),
        ("Tags", "feature=support", "not JSON"),
        ("SubAccountType", "", "SubAccountType"),
        ("InvoiceIssuerName", "", "is null"),
    ):
        assert any(words in said for said in focus_rules.problems([{**good, name: value}])), name


def test_focus_adds_up_to_the_providers_bill_to_the_nano_dollar(store: str, tmp_path: Path) -> None:
    with Sandbox() as sandbox, Meter(store, budgets=["$5"]) as meter:
        metered = meter.openai(client(sandbox))
        for id, user in (("conv-1", "ada"), ("=1+1", "s-bob")):
            with meter.session(id, user=user, project="apollo-1", tags={"team": "sales"}):
                for model in ("gpt-4o", "gpt-4o-mini"):
                    metered.chat.completions.create(model=model, messages=HELLO, max_tokens=50)
        assert_agrees(meter, sandbox)
        rows = focus(meter, Asked(), tmp_path / "f.csv")
        assert focus_rules.problems(rows) == []
        assert billed(rows) == Decimal(sandbox.bill.total())
        assert {row["x_SessionId"] for row in rows} == {"conv-1", "'=1+1"}
        assert {row["x_CostCentre"] for row in rows} == {"research"}
        assert {row["SkuMeter"] for row in rows} == {"Input Tokens", "Output Tokens"}
        prices = {(row["SkuId"], Decimal(row["ListUnitPrice"])) for row in rows}
        assert ("gpt-4o-2024-08-06/Input Tokens", Decimal("2.5")) in prices or (
            "gpt-4o/Input Tokens",
            Decimal("2.5"),
        ) in prices
        assert {row["ServiceProviderName"] for row in rows} <= {"OpenAI", "Unknown"}


def test_each_kind_of_token_has_a_row_and_its_own_price(meter: Meter, tmp_path: Path) -> None:
    spend(meter, Usage(1000, 500, cached_input_tokens=400, reasoning_tokens=500), session="s", project="p")
    spend(meter, Usage(7, 3), "odd")
    rows = focus(meter, Asked(), tmp_path / "f.csv")
    assert focus_rules.problems(rows) == []
    there = {
        row["SkuId"]: (row["ConsumedQuantity"], Decimal(row["ListUnitPrice"]), row["BilledCost"])
        for row in rows
    }
    assert there["m/Input Tokens"] == ("600.0", Decimal(1), "0.000600000")
    assert there["m/Cached Input Tokens"] == ("400.0", Decimal("0.1"), "0.000040000")
    assert there["m/Output Tokens"] == ("500.0", Decimal(5), "0.002500000")
    assert there["odd/Requests"][0] == "1.0"
    assert billed(rows) == to_usd(report(meter.ledger).total.cost)


def test_the_truth_about_a_closed_month_is_a_correction_in_the_next_one(
    meter: Meter, clock: Clock, tmp_path: Path
) -> None:
    late = meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=1000)))
    unknown = meter.reserve(meter.plan("chat", "m", RequestBound(10, output_limit=10)))
    spend(meter, Usage(100, 100), session="s", user="s-eve")
    clock.now += 61_000
    assert meter.sweep() == 2
    november = focus(meter, NOVEMBER, tmp_path / "nov.csv")
    before = (tmp_path / "nov.csv").read_bytes()
    clock.now += 3_600_000  # December
    late.settle(Usage(900, 20))
    spend(meter, Usage(5, 5), session="s")
    december = focus(meter, DECEMBER, tmp_path / "dec.csv")
    focus(meter, NOVEMBER, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == before
    assert focus_rules.problems([*november, *december]) == []
    corrections = [row for row in december if row["ChargeClass"] == "Correction"]
    assert {row["ChargePeriodStart"] for row in corrections} == {"2026-11-30T00:00:00Z"}
    assert {row["BillingPeriodStart"] for row in corrections} == {"2026-12-01T00:00:00Z"}
    by_status = Counter[str]()
    for row in corrections:
        by_status[row["x_Status"]] += to_nano(row["BilledCost"])
    assert by_status == {"assumed": -6_000_000, "settled": 960_000}
    assert billed([*november, *december]) == to_usd(report(meter.ledger).total.cost)
    tokens = sum(
        Decimal(r["ConsumedQuantity"]) for r in [*november, *december] if r["ConsumedUnit"] == "Tokens"
    )
    assert tokens == sum(e.input_tokens + e.output_tokens for e in entries(meter))
    unknown.settle(Usage(1, 1))
    assert_sound(meter)


def test_a_month_that_was_pruned_is_exported_as_before(
    sqlite_store: str, clock: Clock, tmp_path: Path
) -> None:
    with Meter(sqlite_store, budgets=["$100"], prices=PRICES, clock=clock, lease=60) as meter:
        late = [meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=n))) for n in (9, 10)]
        spend(meter, Usage(100, 100))
        clock.now += 61_000
        assert meter.sweep() == 2
        assert isinstance(meter.ledger, SQLLedger)
        close_blocks(meter.ledger, clock.now + 86_400_000)  # what came of them is in another block
        clock.now += 3_600_000  # December
        for tokens in (7, 9):
            spend(meter, Usage(tokens, 5))
        late[0].settle(Usage(900, 20))
        late[1].settle(Usage(800, 20))
        before = [focus(meter, month, tmp_path / "before.csv") for month in (NOVEMBER, DECEMBER)]
        assert sum(row["ChargeClass"] == "Correction" for row in before[1]) == 4
        clock.now += 9 * 86_400_000
        close_blocks(meter.ledger, clock.now)
        done = prune(meter.ledger, clock.now, 2)
        assert (done.blocks, done.after) == (2, done.before - 1)
        assert [focus(meter, month, tmp_path / "after.csv") for month in (NOVEMBER, DECEMBER)] == before
        assert_sound(meter)


def test_what_has_no_price_is_shown_with_its_tokens(sqlite_store: str, tmp_path: Path) -> None:
    with Meter(sqlite_store, budgets=["5M tokens"]) as meter:
        spend(meter, Usage(10, 20), "nobody-knows-it")
        with meter.cost("$0.25", name="search"):
            pass
        rows = focus(meter, Asked(), tmp_path / "f.csv")
        assert focus_rules.problems(rows) == []
        assert {(r["SkuId"], r["ConsumedQuantity"], r["BilledCost"], r["x_Unpriced"]) for r in rows} == {
            ("nobody-knows-it/Input Tokens", "10.0", "0.000000000", "true"),
            ("nobody-knows-it/Output Tokens", "20.0", "0.000000000", "true"),
            ("search/Requests", "1.0", "0.250000000", ""),
        }


def test_every_format_has_every_entry_and_the_same_sum(meter: Meter, clock: Clock, tmp_path: Path) -> None:
    late = meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=1000)))
    clock.now += 61_000
    meter.sweep()
    late.settle(Usage(900, 20))
    spend(meter, Usage(3, 4), "odd", session="会話", user="+1", tags={"team": "sales"})
    total, many = to_usd(report(meter.ledger).total.cost), len(entries(meter))
    centres = CostCentres(CENTRES)
    for form in ("csv", "jsonl", "parquet"):
        told = export(meter.ledger, tmp_path / form, form, centres=centres)
        assert (told.rows, to_usd(told.cost)) == (many, total)
    with (tmp_path / "csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["cost_usd"]) for row in rows) == total
    assert rows[-1]["user_id"] == "'+1"
    lines = [json.loads(line) for line in (tmp_path / "jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(Decimal(line["cost_usd"]) for line in lines) == total
    assert lines[-1]["user_id"] == "+1"
    table = pq.read_table(tmp_path / "parquet")
    assert sum(table["cost_usd"].to_pylist()) == total
    assert tuple(table.column_names) == ENTRY_COLUMNS == tuple(rows[0]) == tuple(lines[0])
    assert table["session_id"].to_pylist()[-1] == "会話"
    assert [x[-1] for x in (table["cost_centre"].to_pylist(), [r["cost_centre"] for r in rows])] == [
        "sales"
    ] * 2
    export(meter.ledger, tmp_path / "f.parquet", "focus", pricing=Pricing(PRICES))
    assert sum(pq.read_table(tmp_path / "f.parquet")["BilledCost"].to_pylist()) == total
    assert not list(tmp_path.glob(".*"))


def synthetic(ledger: Ledger, many: int) -> int:
    """So many entries, written past the meter; their sum in nano-dollars."""
    zeros = dict.fromkeys(
        ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "input_audio_tokens",
         "output_audio_tokens", "reversal"), 0
    )  # fmt: skip
    row = {
        "status": "settled", "tags": {"team": "t"}, "operation": "chat", "model": "gpt-4o",
        "provider": "openai", "calls": 1, "flags": "", "note": "", "bookings": [], **zeros,
    }  # fmt: skip
    start, total = NOVEMBER.since, 0
    assert start is not None
    with ledger.reading().execution_options(write=True).begin() as connection:
        for first in range(0, many, 5000):
            rows = []
            for i in range(first, min(many, first + 5000)):
                inputs, outputs = 100 + i % 977, 10 + i % 89
                cost = 2500 * inputs + 10_000 * outputs
                total += cost
                at = int(start.timestamp() * 1000) + i * 2_000_000_000 // many
                rows.append(
                    {**row, "call_id": f"c{i}", "at": at, "started": at, "session_id": f"s{i % 1000}",
                     "user_id": f"u{i % 50}", "input_tokens": inputs, "output_tokens": outputs, "cost": cost}
                )  # fmt: skip
            connection.execute(sa.insert(schema.entries), rows)
    return total


def test_rows_are_streamed(sqlite_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus_module, "AT_ONCE", 100)
    ledger = open_store(sqlite_store)
    total, peaks = 0, []
    for more in (500, 2_000):
        total += synthetic(ledger, more)
        export(ledger, tmp_path / "f.csv", "focus")  # what is loaded once is loaded
        tracemalloc.start()
        told = export(ledger, tmp_path / "f.csv", "focus")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert told.cost == total
    assert peaks[1] < 1.5 * peaks[0], peaks
    ledger.close()


def test_cost_centres_show_what_is_mapped_to_none(meter: Meter) -> None:
    spend(meter, Usage(1000), project="apollo-7")
    spend(meter, Usage(2000), user="s-eve")
    spend(meter, Usage(3000), tags={"team": "sales"})
    spend(meter, Usage(4000), project="other", tags={"team": "other"})
    found = chargeback(meter.ledger, CostCentres(CENTRES))
    assert [(line.key, line.cost) for line in found.lines] == [
        (("sales",), 5_000_000), ((None,), 4_000_000), (("research",), 1_000_000),
    ]  # fmt: skip
    assert sum(line.cost for line in found.lines) == found.total.cost == report(meter.ledger).total.cost
    finer = chargeback(meter.ledger, CostCentres(CENTRES), by=("user",))
    assert {line.key for line in finer.lines} == {
        ("sales", "s-eve"), ("sales", None), (None, None), ("research", None)
    }  # fmt: skip
    assert [line.key for line in chargeback(meter.ledger, CostCentres()).lines] == [(None,)]


@pytest.mark.parametrize(
    "said",
    [{"x": {}}, {"x": []}, {"x": {"porject": "a"}}, {"x": {"project": []}}, {"x": {"tag": "a"}},
     {" ": {"user": "a"}}, {"x": "a*"}, {"x": {"user": [1]}}],
)  # fmt: skip
def test_a_cost_centre_that_cannot_be_used_is_said(said: Any) -> None:
    with pytest.raises(ConfigError, match="cost centre"):
        CostCentres(said)


def test_the_commands(meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not meter.ledger.shared:
        pytest.skip("a command reads a file")
    spend(meter, Usage(1000), project="apollo-7")
    spend(meter, Usage(500))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEHEST_STORE", meter.ledger.url)
    (tmp_path / "behest.toml").write_text(
        '[prices.m]\ninput = "1"\noutput = "3"\n[cost_centres]\nresearch = { project = "apollo*" }\n'
    )
    run = CliRunner()
    said = run.invoke(main, ["export", "--month", "2026-11"])
    assert said.exit_code == 0, said.output
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert focus_rules.problems(rows) == []
    assert billed(rows) == Decimal("0.0015")
    said = run.invoke(main, ["export", "--format", "jsonl", "--month", "2026-12"])
    assert (said.exit_code, said.stdout) == (0, "")
    said = run.invoke(main, ["export", "--format", "parquet"])
    assert said.exit_code == 2
    assert "--output" in said.output
    said = run.invoke(main, ["export", "--output", "no/such/folder/f.csv"])
    assert said.exit_code == 1
    assert "cannot write" in said.output
    said = run.invoke(main, ["chargeback", "--json"])
    assert [(line["cost_centre"], line["cost_usd"]) for line in json.loads(said.stdout)["lines"]] == [
        ("research", "0.001000000"), (None, "0.000500000"),
    ]  # fmt: skip
    assert "(none)" in run.invoke(main, ["chargeback"]).stdout
