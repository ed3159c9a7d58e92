"""Serving the gateway with uvicorn: one process or several workers over one store."""

from __future__ import annotations

import functools
import gc
import inspect
import ipaddress
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from asyncio import TimerHandle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors import Multiprocess

from ..config import FILE, Config, load
from ..ledger.keys import SealedKey
from ..meter import Meter
from ..policy.placeholders import SECRET_ENV
from ..rules.errors import ConfigError
from ..wire import bound_request
from .app import create_app, gateway_meter
from .byok import Masters, ProviderKeys
from .changing import RUN_TIME, Changes, Shown
from .dashboard import new_seal
from .keys import KeyStore
from .metrics import FOLDER
from .problems import Problem
from .settings import ByokSettings, GatewaySettings, LimitSettings, ProviderSettings
from .tokens import Tokens

if TYPE_CHECKING:
    from asyncio import Transport

    from starlette.applications import Starlette

log = logging.getLogger("behest")

_PLAN = "BEHEST_GATEWAY_PLAN"
_BACKLOG = 2048
_KEEP_ALIVE = 65
"""Longer than clients keep an idle connection: the server must not close one that is being used."""
_SILENT = 20
"""Seconds without a word from a worker after which it is killed and replaced. Uvicorn's five are fewer than
one takes to start on a busy machine: each is killed before it is there. (Older versions know no other.)"""


@dataclass(frozen=True)
class Plan:
    """What a worker must know to build the gateway.

    Attributes:
        config: the file, if there is one.
        store: over what the file says.
        sandbox: the address of the sandbox provider, where nothing is configured.
        seal: seals what browsers keep at the dashboard; whoever has signed in at one worker has at all.
    """

    config: str | None
    store: str | None
    keyless: bool
    sandbox: str | None = None
    seal: str | None = None

    def load(self) -> tuple[Config, GatewaySettings]:
        """The file's settings, with the sandbox where they name no provider."""
        config = load(self.config) if self.config else Config()
        settings = GatewaySettings.of(config.gateway)
        if self.sandbox is not None:
            settings.providers["sandbox"] = ProviderSettings(
                base_url=self.sandbox, apis=["openai", "anthropic"]
            )
        return config, settings

    def meter(self, config: Config, settings: GatewaySettings) -> Meter:
        """The meter of one process."""
        arguments = config.arguments()
        if self.store:
            arguments["store"] = self.store
        return gateway_meter(arguments, settings)


@functools.lru_cache(maxsize=1)
def _plan() -> Plan:
    return Plan(**json.loads(os.environ[_PLAN]))


def application() -> Starlette:
    """The application of one worker, as its parent planned it."""
    plan = _plan()
    config, settings = plan.load()
    app = create_app(plan.meter(config, settings), settings, keyless=plan.keyless, seal=plan.seal)
    _warm()
    return app


def _warm() -> None:
    """Load now what the first call would wait for, in an event loop that then serves nobody.

    What is loaded stays: the collector need not look through the price list again and again.
    """
    for model in ("gpt-4o", "gpt-4"):  # each of another table of tokens
        bound_request("chat", {"model": model, "messages": [{"role": "user", "content": "hello"}]})
    gc.collect()
    gc.freeze()


def serve(
    *,
    host: str,
    port: int,
    workers: int,
    keyless: bool,
    store: str | None,
    config: Path | None,
    say: Any = print,
    log_config: dict[str, Any] | None = None,
) -> None:
    """Serve until told to stop; streams are let finish, and every hold is settled.

    Args:
        config: `behest.toml`; None: the one in the working folder, if there is one.
        say: told, line by line, what is served.
        log_config: how each process logs, as `logging.config` takes it; None: as text.

    Raises:
        ConfigError: something cannot be used as given.
    """
    if keyless and not is_loopback(host):
        raise ConfigError(f"without keys the gateway listens on loopback alone, not on {host!r}")
    path = config or (Path(FILE) if Path(FILE).exists() else None)
    plan = Plan(str(path.absolute()) if path else None, store, keyless, seal=new_seal())
    said, settings = plan.load()
    with ExitStack() as stack:
        if not settings.providers:
            plan = replace(plan, sandbox=stack.enter_context(_sandbox(said)))
            settings = plan.load()[1]
        found = _check(said, settings, plan, workers)
        os.environ[_PLAN] = json.dumps(asdict(plan))
        if settings.tokens.algorithm == "HS256" and not os.environ.get(settings.tokens.secret_env):
            os.environ[settings.tokens.secret_env] = secrets.token_hex(32)
            say(f"Tokens: valid until this ends; set {settings.tokens.secret_env} to keep them.")
        Tokens(settings.tokens)  # says what is wrong with its keys
        # Workers write the same placeholders for what is masked, so that conversations go on in any of them.
        os.environ.setdefault(SECRET_ENV, secrets.token_hex(32))
        if workers > 1:
            os.environ[FOLDER] = stack.enter_context(_folder())
        listener = stack.enter_context(_listen(host, port))
        for line in (*found, *_describe(said, settings, plan, host, port)):
            say(line)
        run = uvicorn.Config(
            f"{__name__}:application",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            http=Protocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_level="warning",
            log_config=uvicorn.config.LOGGING_CONFIG if log_config is None else log_config,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=settings.limits.shutdown_timeout,
        )
        server = uvicorn.Server(run)
        if workers > 1:
            run.timeout_worker_healthcheck = _SILENT
            supervisor: Any = Multiprocess
            # Newer versions make the server themselves.
            old = "target" in inspect.signature(supervisor).parameters
            supervisor(run, sockets=[listener], **({"target": server.run} if old else {})).run()
            return
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        if not server.started:
            raise ConfigError("the gateway did not start; its log says why")


def _listen(host: str, port: int) -> socket.socket:
    """The port, taken: who reads where the gateway answers can connect.

    Raises:
        ConfigError: it cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {why}. Another program may be there: try --port {port + 1}"
        ) from None
    listener.set_inheritable(True)
    return listener


def _check(said: Config, settings: GatewaySettings, plan: Plan, workers: int) -> list[str]:
    """Find out before a worker does what cannot be used; what is to be said of what it is that can."""
    for provider in settings.providers.values():
        provider.key()
    masters = Masters(settings.byok)
    found: list[str] = []
    masters.all()
    with plan.meter(said, settings) as meter:
        if not plan.keyless:
            KeyStore(meter.ledger)
            changes = Changes(meter.ledger, settings)
            changes.settings()
            found += _changed(changes)
            found += _own_keys(ProviderKeys(meter.ledger, masters).listed(), settings.byok)
        elif workers > 1 and not meter.ledger.shared:
            raise ConfigError("several workers need a ledger that they share, such as sqlite:///behest.db")
        if meter.policy is not None:
            from ..policy.telling import describe

            found += [f"Policy: {line}" for line in describe(meter.policy)]
    return found


def _changed(changes: Changes) -> Iterator[str]:
    parts = {"projects": changes.projects(), "tiers": changes.tiers()}
    said = [f"{kind} {', '.join(names)}" for kind, shown in parts.items() if (names := _at_run_time(shown))]
    said += ["what holds for all projects"] if changes.defaults().source == RUN_TIME else []
    added = [f'"{budget}"' for budget, source in changes.budgets() if source == RUN_TIME]
    said += [f"budgets {', '.join(added)}"] if added else []
    if said:
        yield f"Changed at run time, which goes before behest.toml: {'; '.join(said)}."


def _at_run_time(shown: Sequence[Shown]) -> list[str]:
    return [one.name for one in shown if one.source == RUN_TIME]


def _own_keys(listed: Sequence[tuple[SealedKey, str | None]], byok: ByokSettings) -> Iterator[str]:
    if listed:
        yield f"Providers' keys of tenants' own: {len(listed)}; 'behest byok list' shows them."
    for key, why in listed:
        if why is not None:
            then = "made with the gateway's key" if byok.ours_instead else "refused"
            yield f"The key of {key.tenant} for {key.provider} cannot be used: {why}. Its calls are {then}."


def _describe(said: Config, settings: GatewaySettings, plan: Plan, host: str, port: int) -> Iterator[str]:
    where = f"[{host}]" if ":" in host else host
    if plan.sandbox is not None:
        yield "Provider: none is configured, so the sandbox answers. It invents what it says; it is free."
    for name, provider in settings.providers.items():
        if plan.sandbox is None:
            yield f"Provider: {name}, {provider.base_url}"
    texts = [b if isinstance(b, str) else str(b.budget()) for b in said.budgets]
    yield "Budgets: " + (", ".join(f'"{t}"' for t in texts) or "none but those of tiers; calls are counted")
    if plan.keyless:
        yield "Callers: anybody on this machine, without a key."
    else:
        yield "Callers: with a key; 'behest keys create --tenant T --project P' makes one."
    yield f"The gateway answers at http://{where}:{port}/v1 (what it can do: http://{where}:{port}/docs)"
    if settings.dashboard:
        yield f"What is spent is shown at http://{where}:{port}/dashboard"


@contextmanager
def _sandbox(said: Config) -> Iterator[str]:
    """The provider that answers where none is configured: what has a price, by the list or by the file."""
    from ..sandbox import Sandbox

    latest = {m: given[-1] if isinstance(given, list) else given for m, given in said.prices.items()}
    prices = {model: (str(price.input), str(price.output or 0)) for model, price in latest.items()}
    with Sandbox(latency=0.05, chunk_delay=0.01, prices=prices, aliases=said.aliases) as provider:
        yield provider.base_url


@contextmanager
def _folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="behest-metrics-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _HeadTooLarge(Exception):
    pass


_OFFERS = (b"upgrade", b"http2-settings")


class _Unchunked(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks: where no length is told, it ends with the connection."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._endless = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if self._endless:
                self.chunked_encoding = False
        elif self._endless:
            # uvicorn counts down what was announced: each part announces itself.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Protocol(HttpToolsProtocol):
    """uvicorn's own, with bounds on what a client may do before a request is complete.

    An offer to go on with HTTP/2 (`Connection: Upgrade`, as the JDK's client and cURL make it) is passed
    over, as RFC 9110, section 7.8 has it: the request is answered as it is, with its body.
    """

    limits: LimitSettings | None = None
    """Those of the plan, unless they are set."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limits = self.limits or _limits()
        self._in_head, self._head_size, self._head_is_large = True, 0, False
        self._timer: TimerHandle | None = None
        self._offer: bytes | None = None
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over(data[offer.args[0] :])
            return
        except httptools.HttpParserError:
            log.warning("Something that is not HTTP was sent.")
            self.send_400_response("")
            return
        # A line that does not end is told to nobody, and kept by the parser.
        if self._in_head and not self.transport.is_closing():
            self._head_size += len(data)
            if self._head_size > self._limits.max_header:
                self._head_is_large = True
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_size = True, 0
        if self._timer is None:
            self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        if self.parser.should_upgrade():
            # The parser ends here, and what follows of this piece comes back to `data_received`.
            self._offer = self._without_offer()
            return
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _Unchunked  # uvicorn offers no other place to say it

    def on_body(self, body: bytes) -> None:
        if self._offer is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offer is None:
            super().on_message_complete()

    def _without_offer(self) -> bytes:
        """The head of the request that has come, as it would be without the offer."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                kept = [t for t in value.split(b",") if t.strip().lower() not in _OFFERS]
                value = b",".join(kept).strip()
            if name not in _OFFERS and (name != b"connection" or value):
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _pass_over(self, rest: bytes) -> None:
        """Read the request again without the offer, and go on with what follows."""
        head, self._offer = self._offer or b"", None
        if head.startswith(b"CONNECT "):
            self.send_400_response("")
            return
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(head)
        if rest and not self.transport.is_closing():
            self.data_received(rest)

    def send_400_response(self, msg: str) -> None:
        if self._head_is_large:
            problem = Problem(431, f"A request's head may have at most {self._limits.max_header:,} bytes.")
        else:
            problem = Problem(400, "This is not HTTP as the gateway understands it.")
        body = problem.response().body
        head = (
            f"HTTP/1.1 {problem.status} {'Bad Request' if problem.status == 400 else 'Headers Too Large'}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-trace-id: {os.urandom(16).hex()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + bytes(body))
        self.transport.close()

    def _grow(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._limits.max_header:
            self._head_is_large = True
            raise _HeadTooLarge

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self._limits.header_timeout, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@functools.lru_cache(maxsize=1)
def _limits() -> LimitSettings:
    return _plan().load()[1].limits
