"""`/dashboard` on the gateway: behind a key or a token, and nobody sees what is not theirs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from gateway_support import Gateway, chat

from behest_integrations.gateway.keys import KeyStore, id_in
from behest_integrations.sandbox import Sandbox

BUDGETS = [
    "$500 as everything",
    "$50/day per project",
    "$20/day per user",
    "$5 per session",
    "$9/day per tenant",
]


@dataclass
class There:
    gateway: Gateway
    acme: str
    globex: str
    other: str
    """A key of another project of acme's."""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    folder = tmp_path_factory.mktemp("gateway")
    with Sandbox() as sandbox, Gateway(folder, sandbox, budgets=BUDGETS) as gateway:
        keys = [gateway.key(*who) for who in (("acme", "support"), ("globex", "agents"), ("acme", "vault"))]
        for key, whose in zip(keys, ("acme", "globex", "thirdly"), strict=True):
            for user in ("ann", "bob"):
                with gateway.http(key) as http:
                    headers = {"X-End-User-Id": f"{user}-of-{whose}", "X-Session-Id": f"{user}-at-{whose}"}
                    answer = http.post("/chat/completions", json=chat(max_tokens=20), headers=headers)
                    assert answer.status_code == 200, answer.text
        yield There(gateway, *keys)


def browser(there: There, secret: str | None = None) -> httpx.Client:
    """Somebody with a browser, signed in with `secret`."""
    client = httpx.Client(base_url=there.gateway.url, timeout=60, follow_redirects=True)
    if secret is not None:
        answer = client.post("/dashboard/sign-in", data={"secret": secret})
        assert answer.status_code == 200, answer.text
        assert answer.url.path == "/dashboard", answer.text
    return client


def token(there: There, user: str, **more: object) -> str:
    with there.gateway.http(there.acme) as http:
        return str(http.post("/auth/mint", json={"user_id": user, "ttl": 600, **more}).json()["token"])


def every_page(client: httpx.Client) -> dict[str, str]:
    """All pages that can be reached by links, by their URLs."""
    found: dict[str, str] = {}
    ahead = ["/dashboard"]
    while ahead and len(found) < 40:
        url = ahead.pop(0)
        page = client.get(url)
        assert page.status_code in (200, 401), (url, page.status_code)
        found[url] = page.text
        for link in re.findall(r'(?:href|data-plot)="(/dashboard[^"]*)"', page.text):
            link = html.unescape(link)
            if link not in found and link not in ahead and "/static/" not in link:
                ahead.append(link)
    return found


def test_nobody_gets_in_without_a_key(there: There) -> None:
    for path in (
        "",
        "/limits",
        "/list",
        "/calls",
        "/session?id=ann-at-acme",
        "/user?id=ann-of-acme",
        "/plot",
        "/keys",
    ):
        answer = browser(there).get(f"/dashboard{path}")
        assert answer.status_code == 401
        assert "acme" not in answer.text.replace("ann-at-acme", "").replace("ann-of-acme", "")
    refused = browser(there).post("/dashboard/sign-in", data={"secret": "behest_sk_live_nothing"})
    assert "set-cookie" not in refused.headers
    assert "Not an API key or token" in refused.text


def test_a_key_sees_its_project_alone(there: There) -> None:
    client = browser(there, there.acme)
    pages = every_page(client)
    assert len(pages) > 12
    together = "".join(pages.values())
    for own in ("ann-of-acme", "bob-of-acme", "ann-at-acme", "$20/day per user", "$50/day per project"):
        assert own in together
    for url, page in pages.items():
        assert not re.search(r"globex|agents|thirdly|vault|as everything", page), url


def test_nothing_of_others_is_told_to_who_asks_for_it(there: There) -> None:
    client = browser(there, there.acme)
    for path in (
        "?tenant=globex", "?project=agents", "/session?id=ann-at-globex",
        "/session?id=ann-at-globex&of=globex",
        "/user?id=ann-of-globex&of=globex", f"/key?id={id_in(there.globex)}", "/session?id=ann-at-thirdly",
    ):  # fmt: skip
        answer = client.get(f"/dashboard{path}")
        assert answer.status_code == 404, path
        assert "There is nothing of that name here, or it is not yours to see." in answer.text
    stranger = client.get("/dashboard/user?id=ann-of-globex").text
    assert re.search(r"<dt>Calls</dt><dd[^>]*>0</dd>", stranger)
    assert "20/day" not in stranger


def test_an_end_user_sees_their_own_usage_and_limits_and_nothing_else(there: There) -> None:
    client = browser(there, token(there, "ann-of-acme"))
    pages = every_page(client)
    together = "".join(pages.values())
    assert re.search(r"<h1>My usage</h1>", pages["/dashboard"])
    assert re.search(r"<dt>Calls</dt><dd[^>]*>1</dd>", pages["/dashboard"])
    assert "ann-at-acme" in together
    assert "$20/day per user" in together
    for url, page in pages.items():
        assert not re.search(r"bob|globex|thirdly|per tenant|per project|as everything", page), url
    for path in (
        "?user=bob-of-acme",
        "/session?id=bob-at-acme",
        "/user?id=bob-of-acme",
        f"/key?id={id_in(there.acme)}",
    ):
        assert client.get(f"/dashboard{path}").status_code == 404
    assert "No keys yet" in client.get("/dashboard/keys").text


def test_a_keys_page_has_what_was_spent_with_it(there: There) -> None:
    page = browser(there, there.acme).get(f"/dashboard/key?id={id_in(there.acme)}").text
    assert re.search(r"<dt>Calls</dt><dd[^>]*>2</dd>", page)


def test_what_a_browser_keeps_is_sealed_and_ends_with_the_key(there: There, tmp_path: Path) -> None:
    key = there.gateway.key("acme", "support")
    client = browser(there, key)
    (cookie,) = client.cookies.jar
    assert cookie.path == "/dashboard"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert key not in str(cookie.value)
    assert client.get("/dashboard").status_code == 200
    with there.gateway.meter() as meter:
        KeyStore(meter.ledger).revoke(id_in(key) or "")
    assert client.get("/dashboard", headers={"HX-Request": "true"}).status_code == 401
    forged = browser(there)
    forged.cookies.set("behest_gateway", "forged", path="/dashboard")
    assert forged.get("/dashboard").status_code == 401


def test_a_key_in_a_header_opens_it_as_well(there: There) -> None:
    answer = httpx.get(
        f"{there.gateway.url}/dashboard", headers={"Authorization": f"Bearer {there.acme}"}, timeout=60
    )
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
