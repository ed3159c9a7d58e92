"""The stock `openai` package in a real browser: pages of a named origin may call, and no others."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gateway_support import Gateway, chat
from test_gateway_clients import npm

from behest_integrations.sandbox import Sandbox

PAGE = Path(__file__).parent / "clients" / "page.mjs"
SECONDS = 120


class App:
    """A web server with the page; `ask` opens it in a browser, and waits for what it tells."""

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
                said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        Handler.extensions_map = {**Handler.extensions_map, ".mjs": "text/javascript"}
        (folder / "index.html").write_text('<!doctype html><script type="module" src="page.mjs"></script>')
        self.folder = folder
        self.said = said
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, browser: str, host: str) -> dict[str, Any]:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", f"--user-data-dir={self.folder}/profile-{host}", "--remote-debugging-port=0",
            f"http://{host}:{self.port}/",
        ]  # fmt: skip
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found: dict[str, Any] = self.said.get(timeout=SECONDS)
            return found
        finally:
            running.terminate()
            running.wait(20)


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium here: what it shows is not shown here")


@pytest.fixture(scope="module")
def app(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Sandbox]]:
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
        settings["key"], settings["spent"] = gateway.key(project="web"), gateway.key(project="spent")
        http = gateway.http(settings["spent"])
        assert http.post("/chat/completions", json=chat(max_tokens=5)).status_code == 200
        yield served, sandbox
    served.server.shutdown()
    served.server.server_close()


def test_a_page_of_an_origin_that_is_named(app: tuple[App, Sandbox], browser: str) -> None:
    said = app[0].ask(browser, "localhost")
    assert said["chat"] == 20, said
    assert said["streamed"] is True
    assert (said["over"]["status"], said["over"]["code"]) == (402, "quota_exceeded")
    assert "1 calls/day" in said["over"]["message"]
    assert (said["unknown"]["status"], said["unknown"]["code"]) == (401, "invalid_token")
    assert said["left"].startswith("$0.99")


def test_a_page_of_another(app: tuple[App, Sandbox], browser: str) -> None:
    before = app[1].requests
    said = app[0].ask(browser, "127.0.0.1")
    assert {said[name]["name"] for name in said} == {"APIConnectionError"}
    assert app[1].requests == before
