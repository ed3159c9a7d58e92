"""The audit: every decision, who and which rule, never a text; and nothing of it can be changed unseen."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat
from hypothesis import given
from hypothesis import strategies as st
from support import HELLO, client, entries, forkserver

from behest_integrations import BudgetExceeded, Meter, PolicyRefused, StoreError
from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.ledger.audit import Chain, Decision, Record, verify
from behest_integrations.reports import Asked
from behest_integrations.reports.audit import decisions, prove
from behest_integrations.sandbox import Sandbox

POLICY: dict[str, Any] = {
    "models": ["gpt-4o*"],
    "rules": [{"name": "short", "user": "ada", "max_output_tokens": 9}],
}


def ask(meter: Meter, sandbox: Sandbox, **fields: Any) -> Any:
    asked: Any = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 5, **fields}
    return meter.openai(client(sandbox)).chat.completions.create(**asked)


def written(meter: Meter, **asked: Any) -> list[dict[str, Any]]:
    meter.flush()
    return list(decisions(meter.ledger, Asked(**asked)))


def test_every_decision_is_there_with_who_and_which_rule(store: str, sandbox: Sandbox) -> None:
    with Meter(store, budgets=["12 calls per session", "$0.0002 per user"], policy=POLICY) as meter:
        with meter.session("s", user="ada", tenant="acme"):
            ask(meter, sandbox)
            for fields in ({"max_tokens": 10}, {"model": "gpt-4"}, {"messages": HELLO * 99}):
                with pytest.raises((PolicyRefused, BudgetExceeded)):
                    ask(meter, sandbox, **fields)
        meter.set_limit("12 calls per session", "20 calls")
        meter.set_limit("12 calls per session", "30 calls", session="s", tenant="acme")
        meter.remove_budget("12 calls per session")
        meter.reset_limit("12 calls per session")
        found = written(meter)
        said = [(d["kind"], d["rule"], d["details"]) for d in found]
        assert said == [
            ("allowed", "policy, short", {}),
            ("refused", "short", {"why": "output"}),
            ("refused", "policy", {"why": "models"}),
            ("refused", "$0.0002 per user", {"why": "budget too_large"}),
            ("budget", "12 calls per session", {"what": "set to 20 calls"}),
            (
                "budget",
                "12 calls per session",
                {"what": "set to 30 calls", "scope": "session s (tenant acme)"},
            ),
            ("budget", "12 calls per session", {"what": "removed"}),
            ("budget", "12 calls per session", {"what": "reset"}),
        ]
        assert {(d["user_id"], d["session_id"], d["tenant"]) for d in found[:4]} == {("ada", "s", "acme")}
        assert found[0]["call_id"] == entries(meter)[0].call_id
        assert prove(meter.ledger).flaws == []


def test_calls_are_not_in_it_without_a_policy_nor_where_it_says_so(sandbox: Sandbox) -> None:
    for policy in (None, {**POLICY, "audit": {"allowed": False}}):
        with Meter("memory://", policy=policy) as meter:
            ask(meter, sandbox)
            assert written(meter) == []


def test_an_allowed_call_costs_no_transaction_of_its_own(sqlite_store: str, sandbox: Sandbox) -> None:
    def commits(policy: Any) -> int:
        with Meter(sqlite_store, budgets=["$1"], policy=policy) as meter:
            before = meter.ledger._commits  # type: ignore[attr-defined]
            for _ in range(5):
                ask(meter, sandbox)
            return int(meter.ledger._commits - before)  # type: ignore[attr-defined]

    assert commits(POLICY) == commits(None)


def test_keys_are_in_it_and_the_gateways_trace(sandbox: Sandbox, tmp_path: Path) -> None:
    with Gateway(tmp_path, sandbox, top='[policy]\nmodels = ["gpt-4o"]\n') as gateway:
        key = gateway.key()
        with gateway.http(key) as http:
            good = http.post("/chat/completions", json=chat(max_tokens=5))
            bad = http.post("/chat/completions", json=chat(model="gpt-4"))
        gateway.stop()
        with gateway.meter() as meter:
            store = KeyStore(meter.ledger, actor="tester")
            (kept,) = store.all()
            store.revoke(kept.id)
            found = written(meter)
    assert [(d["kind"], d["rule"]) for d in found] == [
        ("key", "key made"), ("allowed", "policy"), ("refused", "policy"), ("key", "key revoked"),
    ]  # fmt: skip
    assert [d["trace"] for d in found[1:3]] == [r.headers["x-trace-id"] for r in (good, bad)]
    assert found[0]["details"] == {"key": kept.id}
    assert found[3]["actor"] == "tester"
    assert key not in json.dumps(found)


# ── the chain ──────────────────────────────────────────────────────────────────────────


def chains(lengths: list[int]) -> list[Record]:
    found: list[Record] = []
    for number, length in enumerate(lengths):
        chain = Chain(found[-1].hash if found else "")
        chain.id = f"{number:04}"
        found += [chain.link(Decision(n, "allowed", f"r{n}", details={"a": n})) for n in range(length)]
    return found


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_whatever_is_changed_or_taken_out_is_found(lengths: list[int], data: st.DataObject) -> None:
    records = chains(lengths)
    assert verify(records).flaws == []
    place = data.draw(st.integers(0, len(records) - 1))
    field = data.draw(st.sampled_from([f for f in Record._fields if f not in ("chain", "seq")]))
    changed = [*records]
    changed[place] = records[place]._replace(**{field: 77 if field == "at" else "other"})
    assert verify(changed).flaws
    if len(records) > 1:
        less = records[:place] + records[place + 1 :]
        newest = {r.hash for r in records} - {r.prev for r in records}
        assert verify(less).flaws or records[place].hash in newest
    swapped = records[place]._replace(chain="ffff")
    assert verify(sorted([*records, swapped], key=lambda r: (r.chain, r.seq))).flaws


def _append(store: str, number: int, barrier: Any) -> None:
    with Meter(store) as meter:
        barrier.wait()
        for n in range(40):
            decision = Decision(n, "allowed", f"{number}:{n}")
            meter.ledger.submit(lambda rows, decision=decision: rows.add_audit(decision))


def test_several_processes_append_at_once(sqlite_store: str) -> None:
    Meter(sqlite_store).close()
    context = forkserver()
    barrier = context.Barrier(3)
    workers = [context.Process(target=_append, args=(sqlite_store, n, barrier)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with Meter(sqlite_store) as meter:
        proof = prove(meter.ledger)
        assert (proof.records, len(proof.heads), proof.flaws) == (120, 3, [])
        assert len(Counter(d["rule"] for d in written(meter))) == 120


def test_after_a_rollback_the_chain_is_another_and_whole(sqlite_store: str) -> None:
    def fails(rows: Any) -> None:
        rows.add_audit(Decision(1, "allowed", "lost"))
        rows.flush()
        raise StoreError("no")

    with Meter(sqlite_store) as meter:
        for work in (lambda rows: rows.add_audit(Decision(0, "allowed", "first")), fails, None):
            try:
                meter.ledger.submit(work or (lambda rows: rows.add_audit(Decision(2, "allowed", "last"))))
            except StoreError:
                pass
        assert [d["rule"] for d in written(meter)] == ["first", "last"]
        assert prove(meter.ledger).flaws == []


# ── the command ────────────────────────────────────────────────────────────────────────


def test_the_command_lists_filters_proves_and_prunes(tmp_path: Path, sandbox: Sandbox) -> None:
    file = tmp_path / "b.db"
    with Meter(f"sqlite:///{file}", policy=POLICY) as meter, meter.session("s", user="ada"):
        ask(meter, sandbox)
        with pytest.raises(PolicyRefused):
            ask(meter, sandbox, model="gpt-4\x1b[2J")

    def said(*args: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["audit", "--store", str(file), *args])
        assert result.exit_code == code, result.output
        return result.output

    assert "allowed  policy, short  gpt-4o  user=ada session=s" in said()
    assert "\x1b" not in said()
    lines = [json.loads(line) for line in said("--json").splitlines()]
    assert [line["kind"] for line in lines] == ["allowed", "refused"]
    assert said("--kind", "refused", "--json").count("\n") == 1
    assert said("--user", "bob", "--json") == ""
    assert "Nothing of that" in said("--user", "bob")
    proof = said("--verify")
    assert "2 records in 1 chains: all as they were written." in proof
    head = lines[-1]["hash"]
    assert head in proof
    assert said("--verify", "--holds", head)
    assert "is not there" in said("--verify", "--holds", "f" * 64, code=1)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE audit SET user_id = 'eve' WHERE kind = 'refused'")
    assert "record 2: it is not as it was written" in said("--verify", code=1)
    assert "0 records" in said("--prune", "30")


def test_what_is_older_than_the_policy_says_goes_at_the_next_start(sqlite_store: str) -> None:
    day = 86_400_000
    with Meter(sqlite_store, clock=lambda: day) as meter:
        meter.ledger.submit(lambda rows: rows.add_audit(Decision(day, "key", "old")))
    with Meter(sqlite_store, clock=lambda: 9 * day, policy={"audit": {"keep_days": 7}}) as meter:
        assert [d["kind"] for d in written(meter)] == ["pruned"]
        assert prove(meter.ledger).flaws == []
