"""A gateway as people run it: `behest serve` in a process of its own, in front of a sandbox. With several
workers it is started by its command; with one it is a fork of a process that has imported it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from warm import Warm

from behest_integrations import Meter
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.sandbox import Sandbox

SECRET = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Gateway:
    """`behest serve` in `folder`, with a `behest.toml` of these parts; use it with `with`.

    Args:
        sandbox: the only provider, called "sandbox"; None: nothing is said of providers.
        more: what else `[gateway]` is to say, as TOML.
        store: its ledger's URL; None: a file in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox | None,
        *,
        budgets: Sequence[str] = (),
        top: str = "",
        more: str = "",
        provider: str = "retries = 0",
        workers: int = 1,
        keyless: bool = False,
        env: dict[str, str] | None = None,
        store: str | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.store = store or f"sqlite:///{folder}/ledger.db"
        self._options = ["--port", str(self.port), "--workers", str(workers)] + ["--keyless"] * keyless
        self._several = workers > 1
        self._env = {**os.environ, "BEHEST_TOKEN_SECRET": SECRET, **(env or {})}
        text = f'store = "{self.store}"\nbudgets = {json.dumps(list(budgets))}\n{top}\n'
        if sandbox is not None:
            text += f'[gateway.providers.sandbox]\nbase_url = "{sandbox.base_url}"\n{provider}\n'
        (folder / "behest.toml").write_text(text + more)
        self.process: subprocess.Popen[str] | Warm | None = None
        self.budgets = list(budgets)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def start(self) -> Gateway:
        if self._several:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "behest_integrations.cli", "serve", *self._options],
                cwd=self.folder,
                env=self._env,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        else:
            self.process = Warm(["serve", *self._options], cwd=self.folder, env=self._env)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.02)
        said = self.stop()
        raise AssertionError(f"the gateway did not start:\n{said}")

    def stop(self, how: int = signal.SIGTERM) -> str:
        """What it said, once it has ended."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            _out, said = self.process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            _out, said = self.process.communicate()
            raise AssertionError(f"the gateway did not end:\n{said}") from None
        return said

    def kill(self) -> None:
        """As a machine ends whose power is cut: none of its processes gets to do anything."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def workers(self) -> list[int]:
        """The processes that serve."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in "".join(
                    child.cmdline()
                ):
                    found.append(child.pid)
        return found

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    # ── what a person does beside it ───────────────────────────────────────────────────

    def meter(self, **options: Any) -> Meter:
        """The same ledger, seen from here."""
        return Meter(self.store, budgets=self.budgets, **options)

    def key(self, tenant: str = "acme", project: str = "support", **options: Any) -> str:
        with self.meter() as meter:
            return KeyStore(meter.ledger).create(tenant=tenant, project=project, **options)[1]

    def http(self, key: str | None = None, **headers: str) -> httpx.Client:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], **fields}
