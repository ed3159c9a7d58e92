"""The gateway's settings, changed while it runs: in every worker, from the next request on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat

from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore, id_in
from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=5)
FILE = """
[gateway.tiers]
team = { number = 4, budgets = ["6 calls/day per user"] }

[gateway.projects.shop]
origins = ["https://shop.example.com"]
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("settings")
    with Gateway(
        folder,
        sandbox,
        workers=2,
        budgets=["1000 calls/day per user"],
        provider="retries = 0\nsend_attribution = true",
        more=FILE,
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def admin(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.meter() as meter:
        text = KeyStore(meter.ledger).create_admin()[1]
    headers = {"Authorization": f"Bearer {text}"}
    with httpx.Client(base_url=f"{gateway.url}/admin/v1", headers=headers, timeout=30) as client:
        yield client


class User:
    """Somebody who calls, each time by a connection of its own, which any worker may take."""

    def __init__(self, gateway: Gateway, sandbox: Sandbox, name: str, **key: Any) -> None:
        self.name = name
        self.key = gateway.key(**key)
        self._sandbox = sandbox
        self._headers = {"X-End-User-Id": name, "Connection": "close"}
        self._http = gateway.http(self.key, **self._headers)

    def status(self) -> int:
        return self._http.post("/chat/completions", json=ASK).status_code

    def statuses(self, count: int) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return sorted(pool.map(lambda _: self.status(), range(count)))

    @property
    def served(self) -> int:
        """What the provider has billed for."""
        return sum(line.user_id == self.name for line in self._sandbox.bill.lines)


@pytest.fixture
def user(gateway: Gateway, sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[User] = []

    def make(name: str = "", **key: Any) -> User:
        made.append(User(gateway, sandbox, name or f"u-{request.node.name[:40]}", **key))
        return made[-1]

    yield make
    for one in made:
        one._http.close()


def behest(gateway: Gateway, *args: str, ok: bool = True) -> str:
    here = os.getcwd()
    os.chdir(gateway.folder)
    try:
        done = CliRunner().invoke(main, args)
    finally:
        os.chdir(here)
    assert (done.exit_code == 0) is ok, done.output
    return " ".join(done.output.split())


def test_a_tier_is_another_at_once(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    one = user(tier="team")
    assert one.statuses(8) == [200] * 6 + [402] * 2
    # More: what was spent stays. Less than that: nothing more.
    assert admin.put("/tiers/team", json={"budgets": ["9 calls/day per user"]}).status_code == 200
    assert one.statuses(8) == [200] * 3 + [402] * 5
    shown = {tier["name"]: tier for tier in admin.get("/tiers").json()["data"]}
    assert shown["team"] == {
        "name": "team", "value": {"budgets": ["9 calls/day per user"], "number": None},
        "source": "run time", "file": {"budgets": ["6 calls/day per user"], "number": 4},
    }  # fmt: skip
    assert (shown["free"]["source"], shown["free"]["value"]["number"]) == ("built in", 1)
    assert "passed over" in behest(gateway, "tiers", "list")
    two = user("u-second", tier="team")
    behest(gateway, "tiers", "set", "team", "--budget", "2 calls/day per user", "--why", "too many")
    assert one.statuses(4) == [402] * 4
    assert two.statuses(4) == [200] * 2 + [402] * 2
    behest(gateway, "tiers", "reset", "team")
    assert two.statuses(6) == [200] * 4 + [402] * 2
    assert (one.served, two.served) == (9, 6)


def test_a_tier_comes_and_goes_with_its_keys(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    refused = admin.post("/keys", json={"tenant": "acme", "project": "p", "tier": "gold"})
    assert refused.status_code == 400
    assert (
        admin.put("/tiers/gold", json={"budgets": ["2 calls/day per user"], "number": 7}).status_code == 200
    )
    made = admin.post("/keys", json={"tenant": "acme", "project": "p", "tier": "gold"}).json()
    one = user(tier="gold")
    assert one.statuses(4) == [200] * 2 + [402] * 2
    minted = gateway.http(one.key).post("/auth/mint", json={"user_id": "u-minted", "tier": 7})
    assert minted.status_code == 200
    kept = admin.delete("/tiers/gold")
    assert kept.status_code == 400
    assert "keys have the tier" in kept.json()["error"]["message"]
    # Taken out past all that: who has it is held to what is not known, and let in no more.
    with gateway.meter() as meter:
        meter.ledger.keys().drop_setting("tier", "gold")
    assert one.statuses(3) == [403] * 3
    assert gateway.http(minted.json()["token"]).post("/chat/completions", json=ASK).status_code == 403
    for key in (made["key"]["id"], id_in(one.key)):
        assert admin.delete(f"/keys/{key}").status_code == 200
    assert admin.delete("/tiers/gold").status_code == 400


def test_a_projects_budgets_tier_and_pause(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    web, theirs, other = user(project="web"), user("u-theirs", project="web", tenant="globex"), user("u-o")
    said = {"budgets": ["3 calls/day"], "default_tier": "team"}
    assert admin.put("/projects/acme/web", json=said).status_code == 200
    assert web.statuses(5) == [200] * 3 + [402] * 2
    assert theirs.statuses(5) == [200] * 5
    assert other.statuses(2) == [200] * 2
    tier = web._http.get("/models").headers["x-tier"]
    assert tier == "team"
    assert admin.put("/projects/acme/web", json={**said, "paused": True}).status_code == 200
    assert web.statuses(6) == [403] * 6
    assert theirs.status() == 200
    behest(gateway, "projects", "reset", "acme/web")
    assert web.statuses(2) == [200] * 2
    assert (web.served, theirs.served) == (5, 6)


def test_pages_may_call_at_once(gateway: Gateway, admin: httpx.Client) -> None:
    def may(origin: str) -> set[int]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Connection": "close"}
        url = f"{gateway.base_url}/chat/completions"
        return {httpx.options(url, headers=headers).status_code for _ in range(9)}

    assert may("https://shop.example.com") == {204}
    assert may("https://new.example.com") == {403}
    behest(gateway, "projects", "set", "shop", "--origin", "https://new.example.com")
    assert may("https://new.example.com") == {204}
    assert may("https://shop.example.com") == {403}
    shown = {one["name"]: one for one in admin.get("/projects").json()["data"]}
    assert shown["shop"]["file"]["origins"] == ["https://shop.example.com"]
    assert admin.put("/defaults", json={"origins": ["https://all.example.com"]}).status_code == 200
    assert may("https://all.example.com") == {204}
    assert admin.delete("/defaults").json()["source"] == "behest.toml"
    assert may("https://all.example.com") == {403}
    assert admin.delete("/projects/shop").json()["source"] == "behest.toml"
    assert may("https://shop.example.com") == {204}


def test_who_has_no_tier_has_the_one_of_all(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    one = user()
    assert one.statuses(7) == [200] * 7
    behest(gateway, "projects", "defaults", "--default-tier", "team")
    token = gateway.http(one.key).post("/auth/mint", json={"user_id": "u-of-a-token"}).json()["token"]
    assert gateway.http(token).get("/models").headers["x-tier"] == "team"
    assert one.statuses(8) == [200] * 6 + [402] * 2
    behest(gateway, "projects", "defaults", "--reset")
    assert one.statuses(2) == [200] * 2
    # A token that was minted meanwhile has what all have now, and not what they had.
    assert "x-tier" not in gateway.http(token).get("/models").headers


def test_limits_hold_while_settings_change(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    one = user(budgets=["30 calls/day"])
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(one.statuses, 60)
        changes = 0
        while not said.done():
            budgets = {"budgets": [f"{changes + 1} calls/day per session"]}
            assert admin.put(f"/projects/changing-{changes % 3}", json=budgets).status_code == 200
            changes += 1
    assert said.result() == [200] * 30 + [402] * 30
    assert one.served == 30
    assert changes > 3
    for number in range(3):
        assert admin.delete(f"/projects/changing-{number}").status_code == 200


def test_budgets_over_http(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    one, free = user(tenant="t-budgets"), user("u-free")
    budget = {"budget": "4 calls/day per tenant as extra"}
    of_one = {"budget": "extra", "tenant": "t-budgets"}

    def change(what: str, said: dict[str, Any]) -> Any:
        answered = admin.post(f"/budgets{what}", json={**said, "why": "a test"})
        assert answered.status_code in (200, 201), answered.text
        return answered.json()["limit"]

    assert change("", budget) == "4 calls"
    assert one.statuses(6) == [200] * 4 + [402] * 2
    assert change("/set", {**of_one, "amount": "6 calls"}) == "6 calls"
    assert one.statuses(4) == [200] * 2 + [402] * 2
    assert change("/raise", {**of_one, "amount": "1 calls"}) == "7 calls"
    assert change("/grant", {**of_one, "amount": "1 calls", "seconds": 3600}) == "7 calls"
    assert one.statuses(4) == [200] * 2 + [402] * 2
    assert change("/reset", of_one) == "4 calls"
    assert change("/pause", {"budget": "extra"}) is None
    listed = {b["name"]: b for b in admin.get("/budgets").json()["data"] if b["name"]}
    assert listed["extra"]["limit"] is None
    assert listed["extra"]["source"] == "run time"
    assert one.statuses(3) == [200] * 3
    assert change("/resume", {"budget": "extra"}) == "4 calls"
    assert one.statuses(3) == [402] * 3
    again = admin.post("/budgets", json={"budget": "9 calls/day per tenant as extra"})
    assert again.status_code == 400
    assert change("/remove", {"budget": "extra"}) is None
    assert one.statuses(3) == [200] * 3
    assert free.statuses(3) == [200] * 3
    assert one.served == 4 + 2 + 2 + 3 + 3
    behest(gateway, "budgets", "add", "1 calls/day per session", "--why", "a test")
    assert "added: none" not in behest(gateway, "budgets", "remove", "5 calls/day per user", ok=False)
    behest(gateway, "budgets", "remove", "1 calls/day per session")
    with gateway.meter() as meter, meter.ledger.reading().connect() as connection:
        rows = connection.exec_driver_sql("SELECT kind, rule, actor, details FROM audit").fetchall()
    me = id_in(admin.headers["Authorization"].removeprefix("Bearer "))
    mine = [(kind, rule) for kind, rule, actor, details in rows if actor == me and "a test" in details]
    assert [kind for kind, _ in mine] == [
        "admin",
        "budget",
        "budget",
        "budget",
        "budget",
        "budget",
        "budget",
        "admin",
    ]


@pytest.mark.parametrize(
    ("method", "path", "said", "wanted"),
    [
        ("put", "/tiers/bad", {"budgets": ["5 dollars"]}, "5 dollars"),
        ("put", "/tiers/bad", {"budgets": ["$1/day"], "number": 4}, "number 4"),
        ("put", "/tiers/bad", {"budget": ["$1/day"]}, "budget"),
        ("put", "/projects/p", {"default_tier": "platinum"}, "platinum"),
        ("put", "/projects/p", {"origins": ["example.com"]}, "origins"),
        ("put", "/projects/p", {"budgets": ["$1/day", "$2/day"]}, "same thing"),
        ("put", "/defaults", {"default_tier": "platinum"}, "platinum"),
        ("post", "/budgets", {"budget": "1000 calls/day per user"}, "behest budgets set"),
        ("post", "/budgets/set", {"budget": "$9/year", "amount": "$1"}, "no budget"),
        ("post", "/budgets/set", {"budget": "1000 calls/day per user", "amount": "$1"}, "calls"),
        ("post", "/budgets/grant", {"budget": "1000 calls/day per user", "amount": "1 calls"}, "seconds"),
        ("post", "/budgets/remove", {"budget": "1000 calls/day per user"}, "behest.toml"),
    ],
)
def test_what_cannot_be_used_is_said_and_not_kept(
    admin: httpx.Client, method: str, path: str, said: dict[str, Any], wanted: str
) -> None:
    refused = admin.request(method, path, json=said)
    assert refused.status_code == 400, refused.text
    assert wanted in refused.text
    assert "bad" not in {tier["name"] for tier in admin.get("/tiers").json()["data"]}
    assert admin.get("/defaults").json()["source"] == "behest.toml"


@pytest.mark.parametrize(
    "args",
    [
        ("tiers", "set", "x", "--budget", "5dollars"),
        ("projects", "set", "x", "--default-tier", "platinum"),
        ("projects", "set", "x", "--origin", "example.com"),
        ("projects", "defaults", "--default-tier", "platinum"),
        ("budgets", "add", "nonsense"),
        ("tiers", "reset", "x"),
        ("projects", "reset", "x"),
        ("budgets", "remove", "$1/day"),
    ],
)
def test_wrong_commands_make_no_ledger(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 1, done.output
    assert done.output.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_it_is_kept_and_said_when_it_starts_again(gateway: Gateway, admin: httpx.Client, user: Any) -> None:
    behest(gateway, "tiers", "set", "team", "--budget", "1 calls/day per user")
    one = user(tier="team")
    assert one.statuses(2) == [200, 402]
    gateway.stop()
    gateway.start()
    assert one.statuses(2) == [402, 402]
    behest(gateway, "tiers", "reset", "team")
    assert one.statuses(2) == [200, 200]
    assert "Changed at run time, which goes before behest.toml: tiers team." in gateway.stop()
