"""`behest demo`: a few chat sessions through the real OpenAI client, until the cap.

The provider is the sandbox, on this machine. It keeps its own bill, priced by other code
than ours, and the demo succeeds only if both agree to the nano-dollar.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from threading import Event

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..ledger.book import ThresholdEvent
from ..meter import Meter
from ..reports import report
from ..reports.look import console, count
from ..rules.budgets import to_nano
from ..rules.errors import BudgetExceeded, ConfigError, MissingExtra
from ..rules.units import NANO, format_usd
from .store import not_empty

# (session, user, longest answer in tokens): the last one is slow, so that the budget of the
# whole demo stops it before its own does.
SESSIONS = (
    ("chat-ada", "ada", 400),
    ("chat-bob", "bob", 400),
    ("chat-cléo", "cléo", 400),
    ("chat-dan", "dan", 150),
)
PER_SESSION = "$0.05 per session"
IN_ALL = "$0.18 as whole-demo"
MODEL = "gpt-4o"
QUESTIONS = (
    "What does a token cost?",
    "And who pays for it?",
    "What happens when the budget is used up?",
    "Explain it once more, please.",
)


@click.command()
@click.option(
    "--store", metavar="FILE", callback=not_empty, help="Keep the ledger in this file, to look at afterwards."
)
@click.option("--dashboard", is_flag=True, help="Show it live in a browser, until Ctrl-C.")
@click.option("--open/--no-open", "open_", default=True, hidden=True, help="Open the browser.")
@click.option("--fast", is_flag=True, hidden=True, help="No pauses (for tests).")
def demo(store: str | None, dashboard: bool, open_: bool, fast: bool) -> None:
    """Real calls against a provider on this machine, until the budget stops them.

    Needs no key and no network. Exit code 0 only if the ledger and the provider's own bill
    agree to the nano-dollar and no cap was passed.
    """
    # Slower, where somebody watches.
    latency = 0.0 if fast else 0.4 if dashboard else 0.12
    sys.exit(run(store, latency=latency, watched=dashboard, open_browser=open_))


def run(store: str | None, *, latency: float, watched: bool = False, open_browser: bool = False) -> int:
    """Run the demo; the exit code.

    Args:
        store: a file for the ledger; None: a temporary one.
        watched: serve the dashboard meanwhile, and afterwards until interrupted.
        latency: seconds that the provider takes to answer.

    Raises:
        ConfigError: the file exists already.
        MissingExtra: the `openai` or the `sandbox` extra is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError:
        raise MissingExtra("The OpenAI client", "openai,sandbox") from None
    from ..sandbox import Sandbox

    out = console()
    # Thresholds are told on the screen here, not through the log.
    logging.getLogger("behest").addHandler(logging.NullHandler())
    logging.getLogger("behest").propagate = False
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = _new_file(store) if store else Path(folder) / "behest.db"
        with (
            Sandbox(latency=latency, output_tokens=400) as provider,
            Meter(f"sqlite:///{path}", budgets=[PER_SESSION, IN_ALL], on_threshold=tell(out)) as meter,
        ):
            if watched:
                address = stack.enter_context(_dashboard(f"sqlite:///{path}", path.name))
                out.print(f"The dashboard is at [bold]{address}[/]\n", soft_wrap=True)
                if open_browser:
                    webbrowser.open(address)
            client = meter.openai(
                OpenAI(base_url=provider.base_url, api_key="not-needed", max_retries=0),
                provider="openai",
                send_attribution=True,
            )
            out.print(
                f"[bold]Four people chat with {MODEL}[/], served on this machine. "
                f"Budgets: [cyan]{PER_SESSION}[/] and [cyan]{IN_ALL}[/].\n",
                soft_wrap=True,
            )
            stopped = _chat_all(out, meter, client)
            out.print()
            for session, error in stopped:
                out.print(Text.assemble((f"{session} ", "yellow"), str(error)), soft_wrap=True)
            agreed = _compare(out, meter, provider.bill.by_session())
        if store:
            out.print(
                f"\nLook further: behest report --store {store} --by user,model", markup=False, soft_wrap=True
            )
        if watched:
            with suppress(KeyboardInterrupt):
                out.print(f"\nThe dashboard stays at [bold]{address}[/] until Ctrl-C.", soft_wrap=True)
                Event().wait()
    return 0 if agreed else 1


@contextmanager
def _dashboard(url: str, name: str) -> Iterator[str]:
    """The dashboard over a ledger while the demo runs; its address."""
    from ..reports.opening import open as open_to_look
    from .dashboard import application, in_background

    with (
        closing(open_to_look(url)) as ledger,
        in_background(application(ledger, "UTC", None, name)) as address,
    ):
        yield address


def _new_file(store: str) -> Path:
    path = Path(store.removeprefix("sqlite:///")).absolute()
    if "://" in store.removeprefix("sqlite:///"):
        raise ConfigError(f"the demo keeps its ledger in a file, such as demo.db, not at {store!r}")
    if path.exists():
        raise ConfigError(f"{path} exists already: give --store a file that does not.")
    return path


def tell(out: Console) -> Callable[[ThresholdEvent], None]:
    def on_threshold(event: ThresholdEvent) -> None:
        whose = f" of {event.scope}" if event.scope else ""
        out.print(f'[dim]budget "{event.budget}"{whose} has reached {event.percent} %[/]', soft_wrap=True)

    return on_threshold


def _chat_all(out: Console, meter: Meter, client: object) -> list[tuple[str, BudgetExceeded]]:
    limit = to_nano("0.05")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        TextColumn("{task.fields[spent]} of $0.05  {task.fields[calls]} calls"),
    )
    stopped: list[tuple[str, BudgetExceeded]] = []
    with Progress(*columns, console=out, transient=not out.is_terminal) as progress:
        tasks = {
            session: progress.add_task(f"{session:<10}", total=limit, spent="$0", calls=0)
            for session, *_ in SESSIONS
        }

        def chat(who: tuple[str, str, int]) -> tuple[str, BudgetExceeded]:
            session, user, longest = who
            with meter.session(session, user=user, tags={"feature": "demo"}):
                calls = 0
                while True:
                    try:
                        _ask(client, QUESTIONS[calls % len(QUESTIONS)], longest, streamed=calls % 3 == 2)
                    except BudgetExceeded as error:
                        if not error.busy:
                            return session, error
                        time.sleep(0.02)
                        continue
                    calls += 1
                    spent = meter.spend()[0].spent
                    progress.update(tasks[session], completed=spent, spent=_cents(spent), calls=calls)

        with ThreadPoolExecutor(len(SESSIONS)) as pool:
            stopped.extend(pool.map(chat, SESSIONS))
    return stopped


def _ask(client: object, question: str, longest: int, *, streamed: bool) -> None:
    from openai import OpenAI

    assert isinstance(client, OpenAI)
    messages = [{"role": "user", "content": question}]
    if streamed:
        for _chunk in client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=longest, stream=True  # type: ignore[arg-type]
        ):  # fmt: skip
            pass
    else:
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=longest)  # type: ignore[arg-type]


def _compare(out: Console, meter: Meter, bill: dict[str | None, Decimal]) -> bool:
    """The ledger and the provider's bill, side by side."""
    ours = report(meter.ledger, ("session", "user"))
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True, footer_style="bold")
    billed_total = sum(bill.values(), Decimal(0))
    footers = [
        ("session", "total"), ("user", ""), ("calls", count(ours.total.calls)),
        ("tokens", count(ours.total.input_tokens + ours.total.output_tokens)),
        ("ledger", format_usd(ours.total.cost)), ("provider's bill", format_usd(to_nano(billed_total))),
        ("", ""),
    ]  # fmt: skip
    for i, (header, footer) in enumerate(footers):
        table.add_column(header, footer=footer, justify="left" if i < 2 else "right", no_wrap=True)
    agreed = ours.total.cost == to_nano(billed_total) and len(bill) == len(ours.lines)
    for line in ours.lines:
        billed = to_nano(bill.get(line.key[0], Decimal(0)))
        same = billed == line.cost
        agreed = agreed and same
        table.add_row(
            line.key[0], line.key[1], count(line.calls), count(line.input_tokens + line.output_tokens),
            format_usd(line.cost), format_usd(billed), "[green]✓[/]" if same else "[red]✗[/]",
        )  # fmt: skip
    out.print()
    out.print(table)
    cap = to_nano("0.18")
    held = billed_total * NANO <= cap and all(to_nano(cost) <= to_nano("0.05") for cost in bill.values())
    used = Decimal(ours.total.cost * 100) / cap
    out.print(f"\n{used:.1f} % of the $0.18 were used.", highlight=False)
    if agreed and held:
        out.print(
            "[green]The ledger and the provider's bill agree to the nano-dollar, and no cap was passed.[/]",
            soft_wrap=True,
        )
    else:
        out.print(
            "[red]The ledger and the provider's bill do not agree, or a cap was passed.[/]", soft_wrap=True
        )
    return agreed and held


def _cents(nano: int) -> str:
    return f"${nano / NANO:.4f}"
