"""The stock `openai` package in a real browser: pages of a named origin may call, and no others.

And the page about browsers, its JavaScript as it is written.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_support import Gateway, chat
from support import entries
from test_gateway_clients import npm

from behest_integrations.sandbox import Sandbox

PAGE = Path(__file__).parent / "clients" / "page.mjs"
WRITTEN = Path(__file__).parent.parent / "quickstarts" / "gateway" / "BROWSER.md"
HTML = """<!doctype html><body></body>
<script type="importmap">{"imports": {"openai": "/node_modules/openai/index.mjs"}}</script>
<script type="module" src="%s.mjs"></script>
"""
# What the page about browsers shows, told to the test.
TELLS = """
await fetch("/said", { method: "POST", body: JSON.stringify(document.body.innerText) });
"""
SECONDS = 120
Served = tuple["App", Sandbox, Gateway]


class App:
    """A web server with the pages; `ask` opens one in a browser, and waits for what it tells.

    Args:
        settings: what the gateway's addresses and keys are. The page about browsers asks for a token, which
            is minted with the key `minting`.
    """

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        said: queue.Queue[Any] = queue.Queue()

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                if self.path != "/settings":
                    return super().do_GET()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(settings).encode())
                return None

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if self.path == "/token":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps(minted(settings)).encode())
                    return
                said.put(json.loads(sent))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        Handler.extensions_map = {**Handler.extensions_map, ".mjs": "text/javascript"}
        for name in ("page", "written"):
            (folder / f"{name}.html").write_text(HTML % name)
        (script,) = re.findall(r"```js\n(.*?)```", WRITTEN.read_text(encoding="utf-8"), re.DOTALL)
        (folder / "written.mjs").write_text(script + TELLS)
        self.folder = folder
        self.settings = settings
        self.said = said
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, browser: str, host: str, page: str = "page") -> Any:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", f"--user-data-dir={self.folder}/profile-{host}", "--remote-debugging-port=0",
            f"http://{host}:{self.port}/{page}.html",
        ]  # fmt: skip
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return self.said.get(timeout=SECONDS)
        finally:
            running.terminate()
            running.wait(20)


def minted(settings: dict[str, str]) -> dict[str, Any]:
    """A token for whoever is logged in, as a backend gets one (quickstarts/gateway/app.py)."""
    key = {"Authorization": f"Bearer {settings['minting']}"}
    answered = httpx.post(f"{settings['baseURL']}/auth/mint", json={"user_id": "ada"}, headers=key)
    return {**answered.raise_for_status().json(), "base_url": settings["baseURL"]}


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium here: what it shows is not shown here")


@pytest.fixture(scope="module")
def app(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, pages = tmp_path_factory.mktemp("browser"), tmp_path_factory.mktemp("pages")
    npm(pages, "openai@6")
    shutil.copy(PAGE, pages)
    settings: dict[str, str] = {}
    served = App(pages, settings)
    budgets = ["$1/day per user", "1 calls/day for project spent"]
    more = "".join(
        f'[gateway.projects.{name}]\norigins = ["http://localhost:{served.port}"]\n'
        for name in ("web", "spent")
    )
    with Sandbox() as sandbox, Gateway(folder, sandbox, budgets=budgets, more=more) as gateway:
        settings["baseURL"] = gateway.base_url
        settings["key"] = settings["minting"] = gateway.key(project="web")
        settings["spent"] = gateway.key(project="spent")
        http = gateway.http(settings["spent"])
        assert http.post("/chat/completions", json=chat(max_tokens=5)).status_code == 200
        yield served, sandbox, gateway
    served.server.shutdown()
    served.server.server_close()


def test_a_page_of_an_origin_that_is_named(app: Served, browser: str) -> None:
    said = app[0].ask(browser, "localhost")
    assert said["chat"] == 20, said
    assert said["streamed"] is True
    assert (said["over"]["status"], said["over"]["code"]) == (402, "quota_exceeded")
    assert "1 calls/day" in said["over"]["message"]
    assert (said["unknown"]["status"], said["unknown"]["code"]) == (401, "invalid_token")
    assert said["left"].startswith("$0.99")


def test_a_page_of_another(app: Served, browser: str) -> None:
    before = app[1].requests
    said = app[0].ask(browser, "127.0.0.1")
    assert {said[name]["name"] for name in said} == {"APIConnectionError"}
    assert app[1].requests == before


def test_the_page_about_browsers_as_it_is_written(app: Served, browser: str) -> None:
    """Twice, and once more with nothing left."""
    served, sandbox, gateway = app
    asked = {"messages": [{"role": "user", "content": "Hello"}], "model": "gpt-4o"}
    answer = gateway.http(served.settings["key"]).post("/chat/completions", json=asked).json()
    text = answer["choices"][0]["message"]["content"]
    for _ in range(2):
        assert served.ask(browser, "localhost", "written") == text
    with gateway.meter() as meter:
        hers = [e for e in entries(meter) if e.user_id == "ada"]
    assert [(e.project, e.status) for e in hers] == [("web", "settled")] * 2
    assert len({e.session_id for e in hers}) == 2, "each token is a session of its own"
    before = sandbox.requests
    served.settings["minting"] = served.settings["spent"]
    assert served.ask(browser, "localhost", "written") == "Your budget is used up."
    assert sandbox.requests == before
