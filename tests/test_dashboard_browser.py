"""The dashboard in a real browser: `behest dashboard` in a process of its own, Chromium in front of it.

Skipped where there is no Chromium; `.ci/run` installs it where it can.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from big_ledger import fill
from gateway_support import free_port
from test_dashboard import BODY, HOSTILE, call

from behest_integrations import BudgetExceeded, Meter, Usage
from behest_integrations.wire import bound_request

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
BUDGETS = ["$3/day per user", "$0.50 per session", "2 calls per session and user"]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meter]:
    path = tmp_path_factory.mktemp("dashboard") / "ledger.db"
    fill(path, 600, days=3)
    with Meter(f"sqlite:///{path}", budgets=BUDGETS, wait=0) as meter:
        for id in HOSTILE:
            call(meter, id, id, project=id, tags={"feature": id})
        with meter.session("nested", user="ada"), meter.budget("$1", name="research"):
            call_inside(meter)
            with meter.budget("$1", name="draft"):
                call_inside(meter)
        with pytest.raises(BudgetExceeded), meter.session("nested", user="ada"):
            meter.reserve(meter.plan("chat", "gpt-4o", bound_request("chat", BODY)))
        yield meter


def call_inside(meter: Meter) -> None:
    meter.reserve(meter.plan("chat", "gpt-4o", bound_request("chat", BODY))).settle(Usage(200, 100))


@pytest.fixture(scope="module")
def address(ledger: Meter) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "behest_integrations.cli", "dashboard", "--no-open", "--port", str(port)]
    server = subprocess.Popen([*command, "--store", str(ledger.ledger.path)])  # type: ignore[attr-defined]
    try:
        url = f"http://localhost:{port}/dashboard"
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url)
                break
            time.sleep(0.05)
        assert server.poll() is None
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs what a container and root have not.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and all that went wrong in it."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2].split(":")[0]))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None
        )

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []
        assert self.hosts == {"localhost"}


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    watched.close()


def test_load_filter_follow_a_session_and_come_back(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(f"{address}?range=7d")
    calls = page.locator(".figures div", has_text="Calls").locator("dd").first
    before = calls.inner_text()
    page.get_by_label("Project", exact=True).fill("billing")
    page.keyboard.press("Enter")
    page.wait_for_url("**project=billing**")
    playwright.expect(calls).not_to_have_text(before)
    page.get_by_label("24 hours").check()
    page.wait_for_url("**range=24h**")
    assert "project=billing" in page.url
    shared = page.url
    link = (
        page.locator("section", has=page.get_by_role("heading", name="Top sessions")).locator("tbody a").first
    )
    name = link.inner_text()
    link.click()
    playwright.expect(page.get_by_role("heading", level=1)).to_have_text(name)
    assert page.locator(".calls tbody tr").count() >= 1
    page.go_back()
    page.wait_for_url(shared)
    playwright.expect(page.get_by_label("Project", exact=True)).to_have_value("billing")


def test_a_session_has_its_calls_in_order_and_its_tree_of_stages(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(f"{address}/session?id=nested")
    tree = page.locator("section", has=page.get_by_role("heading", name="Stages")).locator("tbody th")
    assert [text.split(",")[0].strip() for text in tree.all_inner_texts()] == ["research", "draft"]
    booked = page.locator(".calls tbody time").evaluate_all("all => all.map(one => one.dateTime)")
    assert booked == sorted(booked)
    assert len(booked) == 2
    assert page.get_by_text("2 of 2 calls").is_visible()


def test_it_follows_what_is_booked_until_it_is_held_still(
    watched: Watched, address: str, ledger: Meter
) -> None:
    page = watched.page
    call(ledger, "live")
    page.goto(f"{address}/session?id=live")
    rows = page.locator(".calls tbody tr")
    playwright.expect(rows).to_have_count(1)
    table = page.get_by_text("The same as a table")
    table.click()
    with ledger.session("live", user="bob"):
        call_inside(ledger)
    playwright.expect(rows).to_have_count(2)  # nobody has loaded the page again
    assert page.locator("details").get_attribute("open") is not None  # and what was opened is open
    live = page.get_by_role("button", name="Live")
    live.click()
    assert live.get_attribute("aria-pressed") == "false"


def test_it_is_used_with_the_keyboard_alone(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(f"{address}?range=7d")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "range"
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**range=24h**")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 40)"))
    assert {"Zoom", "The same as a table", "All limits"} <= reached


def test_a_time_is_chosen_by_dragging_over_it(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(f"{address}?range=7d")
    page.get_by_role("button", name="Zoom").click()
    plot = page.locator(".u-over")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 60, steps=4)
    page.mouse.up()
    page.wait_for_url("**from=**to=**")
    assert page.locator(".chosen .chip").count() == 1


def test_hostile_ids_do_nothing(watched: Watched, address: str) -> None:
    page = watched.page
    page.on("dialog", lambda dialog: watched.wrong.append(f"a dialog: {dialog.message}"))
    for by in ("session", "user", "project", "tag:feature"):
        page.goto(f"{address}/list?by={by}&sort=recent")
        shown = page.locator("tbody th").all_inner_texts()
        assert {id for id in HOSTILE if any(id in text for text in shown)} == set(HOSTILE)
    page.goto(f"{address}/list?by=session&sort=recent")
    for id in HOSTILE:
        page.get_by_role("link", name=id, exact=True).click()
        assert page.get_by_role("heading", level=1).inner_text() == id
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.go_back()


@pytest.mark.parametrize(
    ("scheme", "width", "paths"),
    [
        ("light", 1280, ("", "/limits", "/list?by=user", "/session?id=nested", "/user?id=ada", "?range=x")),
        ("dark", 390, ("", "/session?id=nested", "/calls")),
    ],
    ids=("light", "dark"),
)
def test_nothing_serious_is_found_by_axe_and_no_page_is_wider_than_the_screen(
    browser: Any, address: str, scheme: str, width: int, paths: tuple[str, ...]
) -> None:
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
    # The policy lets in no script but ours, and axe is put in by hand.
    watched = Watched(browser, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    watched.page.set_viewport_size({"width": width, "height": 844})
    for path in paths:
        watched.page.goto(address + path)
        watched.page.add_script_tag(path=axe)
        found = watched.page.evaluate("axe.run()")["violations"]
        assert [f"{path}: {v['id']}: {v['nodes'][0]['html']}" for v in found] == []
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    watched.wrong = [text for text in watched.wrong if "400 (Bad Request)" not in text]
    watched.close()
