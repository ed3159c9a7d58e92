"""A TCP proxy between a ledger and its server, that does what networks do: it delays, cuts, swallows, and
hangs up on one side only."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Proxy:
    """Listens on a port of this machine, and passes on to the server at `uri`.

    Attributes:
        delay: seconds that everything takes.
        swallows: nothing is passed on, in whatever direction, and nothing is hung up.
        refuses: no new connection is taken.
        watch: asked of all that a client sends, before it is passed on; what it returns is done:
            ``"cut"`` before it is passed on, ``"cut after"``, or None.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
        if host.startswith("/"):
            self._target: Any = f"{host}/.s.PGSQL.{parts.port or 5432}"
        else:
            self._target = (host or "127.0.0.1", parts.port or 5432)
        user = parts.username or "postgres"
        self.delay = 0.0
        self.swallows = self.refuses = False
        self.watch: Callable[[bytes], str | None] = lambda data: None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.uri = f"postgresql://{user}@127.0.0.1:{port}{parts.path or '/postgres'}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self.refuses:
                    raise ConnectionRefusedError
                if isinstance(self._target, str):
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(self._target)
                else:
                    server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            for source, target, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, target, asks, pair), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, asks: bool, pair: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                what = self.watch(data) if asks else None
                if what == "cut":
                    break
                while self.swallows:
                    time.sleep(0.01)
                if what == "cut after":
                    with contextlib.suppress(OSError):
                        pair[0].shutdown(socket.SHUT_RDWR)
                target.sendall(data)
                if what == "cut after":
                    time.sleep(0.1)  # the server has it, and what it says to it is lost
                    break
        self._hang_up(pair)

    def _hang_up(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """Hang up on everybody."""
        for pair in list(self._pairs):
            self._hang_up(pair)

    def half_close(self) -> None:
        """Say to each client that no more will come, and go on listening to it."""
        for client, _ in list(self._pairs):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.close()
        self.swallows = False
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
