"""Alerts arrive, each once: whoever finds it out, whatever the receiver does, and whichever process dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from behest_integrations import BudgetExceeded, ConfigError, Meter, Price, Usage
from behest_integrations.cli import main
from behest_integrations.engine.alert import Alert
from behest_integrations.engine.alerting import AlertSettings
from behest_integrations.engine.outbox import NOBODY
from behest_integrations.engine.sinks import Mail, Webhook
from behest_integrations.wire import RequestBound

SECRET = "the secret of the receiver"
PRICES = {"m": Price(input="1", output="1")}
QUIET = {"burn_rate": False, "anomaly": None}


class Receiver:
    """A webhook's receiver that can fail, hang, go away and come back at the same address."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.tried: Counter[str] = Counter()
        self.fail = self.hang = 0
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._port = 0
        self.start()

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *said: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        id = request.headers["webhook-id"]
        said = b".".join((id.encode(), request.headers["webhook-timestamp"].encode(), body))
        proof = base64.b64encode(hmac.new(SECRET.encode(), said, hashlib.sha256).digest()).decode()
        assert request.headers["webhook-signature"] == f"v1,{proof}"
        with self._lock:
            self.tried[id] += 1
            fail, hang = self.fail > 0, self.hang > 0 and self.fail == 0
            self.fail -= fail
            self.hang -= hang
            if not fail:
                self.got.append((id, body))
        if hang:
            self.released.wait(30)  # it has it, and does not say so
            return
        request.send_response(500 if fail else 204)
        request.end_headers()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    made = Receiver()
    yield made
    made.released.set()
    made.stop()


def hook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {
        **QUIET, "retry": 0.05,
        "webhooks": [{"url": receiver.url, "secret_env": "HOOK_SECRET", "timeout": 0.4}], **more,
    }  # fmt: skip


def spend(meter: Meter, tokens: int = 1000, **who: Any) -> None:
    with meter.session(who.pop("session", "s"), **who):
        meter.reserve(meter.plan("chat", "m", RequestBound(tokens, output_limit=0))).settle(Usage(tokens))


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def untold(meter: Meter) -> int:
    return sum(m.sink != NOBODY for m in meter.ledger.submit(lambda rows: rows.open_messages(1000)))


_WORKER = """
import json, os, sys
from behest_integrations import BudgetExceeded, Meter, Price, Usage
from behest_integrations.wire import RequestBound
store, settings, dies = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "dies"
meter = Meter(store, budgets=["$0.01 per user"], prices={"m": Price(input="1", output="1")}, wait=0,
              alerts=settings)
print("ready", flush=True)
sys.stdin.readline()
for n in range(3):
    for user in ("u0", "u1", "u2", "u3"):
        try:
            with meter.session("s", user=user):
                plan = meter.plan("chat", "m", RequestBound(1000, output_limit=0))
                meter.reserve(plan).settle(Usage(1000))
        except BudgetExceeded:
            pass
if dies:
    os._exit(1)
meter.close()
"""


def test_each_alert_arrives_once_from_four_processes_at_a_receiver_that_fails_hangs_and_restarts(
    receiver: Receiver, sqlite_store: str
) -> None:
    settings = hook(receiver)
    receiver.fail, receiver.hang = 3, 2
    with Meter(sqlite_store, budgets=["$0.01 per user"]):
        pass  # the file is there
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                _WORKER,
                sqlite_store,
                json.dumps(settings),
                "dies" if n == 0 else "lives",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for n in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.close()
    until(lambda: receiver.hang == 0)
    receiver.stop()
    receiver.released.set()
    receiver.start()
    for worker in workers:
        assert worker.stdout is not None
        worker.wait(60)
        worker.stdout.close()
    with Meter(sqlite_store, budgets=["$0.01 per user"], alerts=settings) as meter:
        until(lambda: untold(meter) == 0)
        told = meter.ledger.submit(lambda rows: rows.all_messages())
    assert all(m.done and not m.error for m in told)
    bodies: dict[str, set[bytes]] = {}
    for id, body in receiver.got:
        bodies.setdefault(id, set()).add(body)
    assert all(len(b) == 1 for b in bodies.values())
    alerts = [json.loads(body) for (body,) in bodies.values()]
    found = Counter((a["details"]["user"], a["details"]["percent"]) for a in alerts)
    assert found == Counter((f"u{n}", p) for n in range(4) for p in (50, 80, 100))
    assert sum(receiver.tried.values()) > len(bodies)  # it was tried again, under the same id
    assert {a["type"] for a in alerts} == {"behest.threshold"}


def test_what_a_process_leaves_is_told_by_the_next(receiver: Receiver, sqlite_store: str) -> None:
    receiver.stop()
    with Meter(sqlite_store, budgets=["$0.002 per user"], prices=PRICES, alerts=hook(receiver)) as meter:
        spend(meter, user="ada")
        until(lambda: any(m.error for m in meter.ledger.submit(lambda rows: rows.all_messages())))
    receiver.start()
    assert not receiver.got
    with Meter(sqlite_store, budgets=["$0.002 per user"], prices=PRICES, alerts=hook(receiver)) as meter:
        until(lambda: untold(meter) == 0)
        spend(meter, user="bob", tokens=900)
    assert len(receiver.got) == 1
    said = json.loads(receiver.got[0][1])
    assert said["text"] == 'budget "$0.002 per user" for user ada has reached 50 %: $0.001 of $0.002'
    assert said["details"]["spent"] == 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = int(datetime(2026, 11, 3, 2, tzinfo=timezone.utc).timestamp() * 1000)

    def __call__(self) -> int:
        return self.now


def test_what_burns_too_fast_is_told_once_a_window(store: str) -> None:
    got: list[Alert] = []
    clock = Clock()
    settings = {"anomaly": None, "every": 0.1}
    budgets = ["$0.01/day per user", "$5"]
    with Meter(
        store,
        budgets=budgets,
        prices=PRICES,
        clock=clock,
        alerts=settings,
        on_alert=got.append,
        thresholds=[],
    ) as meter:
        spend(meter, user="slow", tokens=100)
        spend(meter, user="fast", tokens=2000)  # a fifth in a twelfth of the day
        until(lambda: bool(got))
        (alert,) = got
        assert alert.kind == "burn_rate"
        assert alert.details["user"] == "fast"
        assert "2026-11-03 10:00 UTC" in alert.text  # 2 h for a fifth
        clock.now += 60_000
        spend(meter, user="fast", tokens=100)
        looked = next_look(meter)
        until(lambda: next_look(meter) > looked + 100)
        meter.flush()
        assert len(got) == 1
        clock.now += 24 * 3_600_000
        spend(meter, user="fast", tokens=2000)
        until(lambda: len(got) == 2)
        assert len({a.id for a in got}) == 2


def next_look(meter: Meter) -> int:
    return next(
        (m.due for m in meter.ledger.submit(lambda rows: rows.open_messages(100)) if m.sink == NOBODY), 0
    )


def test_a_session_beyond_what_is_usual_in_its_project_is_told_once(sqlite_store: str) -> None:
    got: list[Alert] = []

    async def told(alert: Alert) -> None:
        got.append(alert)

    with Meter(sqlite_store, budgets=["$5"], prices=PRICES, thresholds=[]) as quiet:
        for n in range(20):
            spend(quiet, 100, session=f"s{n}", project="p")
        spend(quiet, 5000, session="alone", project="q")  # nothing is usual there
        spend(quiet, 1000, session="wild", project="p")
        spend(quiet, 900, session="busy", project="p")
    for _ in range(2):
        with Meter(
            sqlite_store, prices=PRICES, alerts={"burn_rate": False, "every": 0.1}, on_alert=told
        ) as meter:
            looked = next_look(meter)
            until(lambda: next_look(meter) > looked)  # noqa: B023
            until(lambda: untold(meter) == 0)
    (alert,) = got
    assert (alert.kind, alert.details["session"], alert.details["usual"]) == ("anomaly", "wild", 100_000)
    assert "10 times" in alert.text


def test_unpriced_and_over_bound_calls_are_told_once_a_day_and_model(store: str) -> None:
    got: list[Alert] = []
    clock = Clock()
    with Meter(store, budgets=["9k tokens"], clock=clock, alerts=QUIET, on_alert=got.append) as meter:
        for _ in range(2):
            plan = meter.plan("chat", "unknown", RequestBound(10, output_limit=10))
            meter.reserve(plan).settle(Usage(10, 30))
        meter.flush()
        until(lambda: untold(meter) == 0)
        assert sorted(a.kind for a in got) == ["over_bound", "unpriced"]
        clock.now += 86_400_000
        meter.reserve(meter.plan("chat", "unknown", RequestBound(10, output_limit=10))).settle(Usage(10, 10))
        meter.flush()
        until(lambda: untold(meter) == 0)
    assert sorted(a.kind for a in got) == ["over_bound", "unpriced", "unpriced"]


def test_a_rolling_window_that_is_full_again_is_told_again(store: str) -> None:
    got: list[Alert] = []
    clock = Clock()
    with Meter(
        store,
        budgets=["$0.001 per 1h rolling"],
        prices=PRICES,
        clock=clock,
        alerts=QUIET,
        on_alert=got.append,
        thresholds=[80],
    ) as meter:
        for _ in range(2):
            spend(meter, 900)
            clock.now += 2 * 3_600_000
            spend(meter, 10)
            clock.now += 2 * 3_600_000
        meter.flush()
        until(lambda: untold(meter) == 0)
    assert len({a.id for a in got}) == len(got) == 2


def test_what_is_refused_is_told_too(store: str) -> None:
    got: list[Alert] = []
    with Meter(store, budgets=["$0.001"], prices=PRICES, wait=0, alerts=QUIET, on_alert=got.append) as meter:
        spend(meter, 960)
        with pytest.raises(BudgetExceeded):
            spend(meter, 100)
        meter.flush()
        until(lambda: untold(meter) == 0)
    assert [a.details["percent"] for a in got] == [50, 80, 100]


WILD = "session <!channel> & [a](http://evil) is <b>wild</b>"
HOSTILE = Alert("id", "test", 0, f"{WILD}\r\nBcc: y", {"session": "x\r\nBcc: y"})


@pytest.mark.parametrize("shape", ["json", "slack", "teams"])
def test_the_shapes_of_webhooks(receiver: Receiver, shape: str) -> None:
    settings = AlertSettings.of(
        {"webhooks": [{"url": receiver.url, "secret_env": "HOOK_SECRET", "shape": shape}]}
    )
    sink = Webhook(settings.webhooks[0])
    assert receiver.url not in sink.name  # an address may be a secret
    sink.send(HOSTILE)
    said = json.loads(receiver.got[0][1])
    if shape == "json":
        assert said == {"type": "behest.test", **HOSTILE.as_dict()}
    elif shape == "slack":
        safe = WILD.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert said["text"].startswith(safe)
    else:
        card = said["attachments"][0]["content"]
        assert card["type"] == "AdaptiveCard"
        assert r"\[a\]\(http://evil\)" in card["body"][1]["text"]


class Post(socketserver.ThreadingTCPServer):
    """As much of SMTP as takes a message."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        self.messages: list[str] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 here\r\n")
                while line := self.rfile.readline():
                    if line.strip().upper() == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        lines = []
                        while (part := self.rfile.readline()) != b".\r\n":
                            lines.append(part.decode())
                        server.messages.append("".join(lines))
                    bye = line.strip().upper() == b"QUIT"
                    self.wfile.write(b"221 bye\r\n" if bye else b"250 good\r\n")
                    if bye:
                        return

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


def test_mail(sqlite_store: str) -> None:
    with Post() as post:
        mail = {
            "host": "127.0.0.1",
            "port": post.server_address[1],
            "security": "none",
            "sender": "b@example.com",
            "to": ["f@example.com"],
        }
        with Meter(
            sqlite_store, budgets=["$0.002 per user"], prices=PRICES, alerts={**QUIET, "mail": mail}
        ) as meter:
            spend(meter, user="ada")
            meter.flush()
            until(lambda: untold(meter) == 0)
        settings = AlertSettings.of({"mail": mail})
        assert settings.mail is not None
        Mail(settings.mail).send(HOSTILE)
        post.shutdown()
    first, second = post.messages
    assert "Subject: behest: budget" in first
    assert "user: ada" in first
    head, _, _ = second.partition("\r\n\r\n")
    assert "\nBcc" not in head


@pytest.mark.parametrize(
    "said",
    [{"webhoks": []}, {"webhooks": [{}]}, {"webhooks": [{"url": "ftp://x"}]}, {"anomaly": 1},
     {"webhooks": [{"url_env": "NOT_SET_AT_ALL"}]}, {"mail": {"host": "h", "sender": "s", "to": []}},
     {"webhooks": [{"url": "http://x", "kinds": ["thresholds"]}]}],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_said_at_once(said: Any) -> None:
    with pytest.raises(ConfigError):
        Meter("memory://", alerts=said)


def test_nothing_of_it_costs_anything_where_nobody_is_named(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Meter(store, budgets=["$0.001"], prices=PRICES) as meter:
        spend(meter, 600)
        meter.flush()
        assert not meter.ledger.submit(lambda rows: rows.all_messages())
    assert [r.getMessage() for r in caplog.records if r.name == "behest"] == [
        'budget "$0.001" has reached 50 %: $0.0006 of $0.001'
    ]


def waiting(run: CliRunner) -> list[Any]:
    found: list[Any] = json.loads(run.invoke(main, ["alerts", "list", "--json"]).output)
    return found


def test_the_commands(
    receiver: Receiver, sqlite_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEHEST_STORE", sqlite_store)
    run = CliRunner()
    said = run.invoke(main, ["alerts", "test"])
    assert said.exit_code == 1
    assert "[alerts]" in said.output
    (tmp_path / "behest.toml").write_text(
        "[alerts]\nretry = 0.05\nburn_rate = false\n"
        f'[[alerts.webhooks]]\nurl = "{receiver.url}"\nsecret_env = "HOOK_SECRET"\n'
    )
    said = run.invoke(main, ["alerts", "test"])
    assert said.exit_code == 0, said.output
    assert "taken" in said.output
    receiver.fail = 1
    assert run.invoke(main, ["alerts", "test"]).exit_code == 1
    receiver.fail = 9
    with Meter.from_toml(budgets=["$0.002 per user"], prices=PRICES) as meter:
        spend(meter, user="ada")
    said = run.invoke(main, ["alerts", "list"])
    assert "for user ada has reached 50 %" in said.output
    assert (
        json.loads(run.invoke(main, ["alerts", "list", "--json"]).output)[0]["alert"]["kind"] == "threshold"
    )
    receiver.fail = 0
    said = run.invoke(main, ["alerts", "send"])
    assert said.exit_code == 0, said.output
    until(lambda: bool(run.invoke(main, ["alerts", "send"])) and not waiting(run))
    assert run.invoke(main, ["alerts", "list"]).output == "Nothing waits to be told.\n"
    assert ": told" in run.invoke(main, ["alerts", "list", "--all"]).output
