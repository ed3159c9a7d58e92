"""`behest`: reports, budgets, proofs, prices, the gateway, and a demo that needs no key."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..rules.budgets import check_zone, format_usd
from ..rules.errors import BehestError, ConfigError

if TYPE_CHECKING:
    from ..config import Config
    from ..gateway.keys import KeyStore
    from ..ledger.sql import SQLLedger


class _Group(click.Group):
    """Errors of ours are messages to a person, not tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BehestError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="behest")
def main() -> None:
    """Budgets and metering for LLM calls."""


def _config() -> Config:
    from ..config import FILE, Config, load

    return load() if Path(FILE).exists() else Config()


def _ledger(store: str | None) -> SQLLedger:
    """The existing ledger that a person means; reading must not make a new one."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from ..ledger.sql import SQLLedger

    url = _store_url(store)
    try:
        database = make_url(url).database
    except ArgumentError:
        raise ConfigError(
            f"not a store: {url!r}; give a file, or a URL such as sqlite:///behest.db"
        ) from None
    if url.startswith("sqlite") and (not database or not Path(database).exists()):
        raise ConfigError(
            f"there is no ledger at {database or url}. Name one with --store FILE, or run "
            "'behest demo --store FILE' to see one made."
        )
    return SQLLedger(url)


def _store_url(store: str | None) -> str:
    """The ledger that is named, or the one that there is to be without a name."""
    from ..meter import DEFAULT_STORE

    return _as_url(store or os.environ.get("BEHEST_STORE") or _config().store or DEFAULT_STORE)


def _as_url(store: str) -> str:
    """A ledger's file, or its URL, as a URL."""
    return store if "://" in store else f"sqlite:///{store}"


_store = click.option("--store", metavar="FILE|URL", help="The ledger. Default: behest.toml's, or behest.db.")


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a date such as 2026-01-31 or 2026-01-31T12:00") from None
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


EXIT_BUDGET = 3
"""`behest run` ends with this when the budget has ended the program."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--budget", "budgets", multiple=True, metavar="TEXT", help='Such as "$5 per session"; several.')
@click.option("--store", metavar="FILE|URL", help="The ledger. Default: behest.toml's, or memory alone.")
@click.option("--session", help="Attribute the program's calls to this session.")
@click.option("--user", help="Attribute the program's calls to this user.")
@click.option("--by", default="session,model", show_default=True, help="How the report is grouped.")
@click.argument("program", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    budgets: tuple[str, ...],
    store: str | None,
    session: str | None,
    user: str | None,
    by: str,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run a Python program with its model calls metered and held to a budget.

    The program is not changed: OpenAI clients, LangChain and LlamaIndex are metered as it
    imports them. The report goes to standard error. The exit code is the program's own, or 3
    if the budget has ended it.
    """
    from ..meter import Meter
    from ..reports.tables import print_report
    from .programs import run_program

    settings: dict[str, Any] = _config().arguments()
    if budgets:
        settings["budgets"] = budgets
    if not settings.get("budgets"):
        raise click.UsageError('no budget: say one, such as --budget "$5 per session"')
    settings["store"] = _as_url(store) if store else settings.get("store") or "memory://"
    settings |= {"session": session, "user": user}
    with Meter(**settings) as meter:
        code, refusal = run_program(meter, program, args)
        sys.stdout.flush()
        if refusal is not None:
            click.echo(f"\nbehest: the program was ended by its budget.\n{refusal}", err=True)
            code = EXIT_BUDGET
        click.echo(err=True)
        print_report(meter.ledger, by=tuple(by.split(",")), file=sys.stderr)
    raise SystemExit(code)


@main.command()
@_store
@click.option(
    "--by",
    default="session",
    show_default=True,
    help="session, user, project, tenant, model, operation, stage, hour, day, month or tag:NAME; several "
    "with commas.",
)
@click.option("--since", callback=_moment, help="Only from this date (UTC) on.")
@click.option("--until", callback=_moment, help="Only before this date (UTC).")
@click.option("--session", help="Only this session.")
@click.option("--user", help="Only this user.")
@click.option("--timezone", "zone", default=None, help="Of days. Default: behest.toml's, or UTC.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, amounts in USD as text.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV.")
def report(
    store: str | None,
    by: str,
    since: datetime | None,
    until: datetime | None,
    session: str | None,
    user: str | None,
    zone: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """What was spent: by session, user, project, model, day, tag."""
    from ..reports import report as make_report
    from ..reports import stages

    groups = tuple(g.strip() for g in by.split(",") if g.strip())
    if not groups or len(set(groups)) != len(groups):
        raise ConfigError(f"--by names each group once, not {by!r}")
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    zone = check_zone(zone or _config().timezone or "UTC")
    ledger = _ledger(store)
    found = make_report(ledger, groups, since=since, until=until, session=session, user=user, zone=zone)
    if as_json:
        data = {
            "by": list(groups),
            "lines": [line.as_dict(groups) for line in found.lines],
            "total": found.total.as_dict(()),
        }
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif as_csv:
        _write_csv([line.as_dict(groups) for line in found.lines], list(found.total.as_dict(())), groups)
    else:
        from ..reports.tables import console, report_table, stage_tree

        out = console()
        if not found.lines:
            out.print("No calls yet.")
            return
        out.print(report_table(found))
        tree = stages(ledger, session=session) if groups == ("session",) else []
        if tree:
            out.print()
            out.print(stage_tree(tree))


def _write_csv(rows: Sequence[dict[str, Any]], columns: list[str], groups: Sequence[str]) -> None:
    writer = csv.DictWriter(sys.stdout, [*groups, *columns], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _inert(v) for k, v in row.items()})


def _inert(value: Any) -> Any:
    """Ids come from outside: a spreadsheet must not take one for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


@main.command()
@_store
@click.option("--all", "everything", is_flag=True, help="Windows that have passed, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; USD in nano-dollars.")
def budgets(store: str | None, everything: bool, as_json: bool) -> None:
    """Each bucket: spent, held, left, and when it resets."""
    from dataclasses import asdict

    from ..reports.queries import buckets

    ledger = _ledger(store)
    now = datetime.now(timezone.utc)
    lines = buckets(ledger, now_ms=int(now.timestamp() * 1000), everything=everything)
    if as_json:
        click.echo(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False))
        return
    from ..reports.tables import budget_table, console

    out = console()
    if not lines:
        out.print("No budget has been used yet.")
        return
    out.print(budget_table(lines, now))
    out.print("[dim]█ spent  ▒ held by calls in flight  ░ left[/]")


@main.command()
@_store
def verify(store: str | None) -> None:
    """Prove that the buckets equal the ledger. Exit code 1 if they do not."""
    from ..reports import verify as prove

    ledger = _ledger(store)
    expired = _sweep(ledger)
    findings = prove(ledger)
    if expired:
        click.echo(f"{expired} calls whose lease had run out were booked at their worst case (assumed).")
    for finding in findings:
        click.echo(str(finding))
    buckets, holds, entries = ledger.snapshot()
    click.echo(
        f"{len(buckets)} buckets, {len(entries)} entries, {len(holds)} calls in flight: "
        + ("all sums agree." if not findings else f"{len(findings)} buckets disagree; see 'behest repair'.")
    )
    sys.exit(1 if findings else 0)


def _sweep(ledger: SQLLedger) -> int:
    from ..meter import Meter

    with_defaults = Meter(ledger, on_unknown=_config().on_unknown or "assume")
    return with_defaults.sweep()


@main.command()
@_store
@click.option("--yes", is_flag=True, help="Do not ask.")
def repair(store: str | None, yes: bool) -> None:
    """Rebuild the buckets from the ledger."""
    from ..reports import repair as mend
    from ..reports import verify as prove

    ledger = _ledger(store)
    findings = prove(ledger)
    if not findings:
        click.echo("Nothing to repair: all sums agree.")
        return
    for finding in findings:
        click.echo(str(finding))
    if not yes:
        click.confirm(f"Put these right in {len(findings)} buckets?", abort=True)
    click.echo(f"{len(mend(ledger))} buckets rebuilt from the ledger.")


@main.command()
@click.argument("model")
@click.option("--provider", help="A price list's provider id, e.g. openai, azure, google.")
def prices(model: str, provider: str | None) -> None:
    """What MODEL costs, in USD per million tokens, and where that is from."""
    from rich.table import Table

    from ..prices import Pricing
    from ..reports.tables import console

    arguments = _config().arguments()
    pricing = Pricing(arguments["prices"], arguments.get("aliases"))
    found = pricing.find(model, provider)
    out = console()
    where = f" at {found.provider}" if found.provider else ""
    out.print(f"[bold]{found.model}[/]{where} [dim](from {found.source})[/]")
    if found.context_window:
        out.print(f"context window: {found.context_window:,} tokens")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("tier", "prompt over", "input", "cached", "output", "reasoning"):
        table.add_column(header, justify="left" if header == "tier" else "right")
    for tier, tables in [("standard", found.standard), *found.tiers.items()]:
        for start, rates in tables.tiers:
            per_million = [rates.input, rates.cached_input, rates.output, rates.reasoning]
            # Femto-dollars a token are nano-dollars a million tokens.
            table.add_row(tier, f"{start:,}" if start else "", *(format_usd(rate) for rate in per_million))
    out.print(table)


@main.command()
@click.option("--store", metavar="FILE", help="Keep the ledger in this file, to look at afterwards.")
@click.option("--fast", is_flag=True, hidden=True, help="No pauses (for tests).")
def demo(store: str | None, fast: bool) -> None:
    """Real calls against a provider on this machine, until the budget stops them.

    Needs no key and no network. Exit code 0 only if the ledger and the provider's own bill
    agree to the nano-dollar and no cap was passed.
    """
    from .demo import run

    sys.exit(run(store, latency=0.0 if fast else 0.12))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8089, show_default=True)
@click.option("--latency", default=0.05, show_default=True, help="Seconds before each answer.")
def sandbox(host: str, port: int, latency: float) -> None:
    """Serve the offline provider until interrupted."""
    from ..sandbox import Sandbox

    provider = Sandbox(host=host, port=port, latency=latency)
    click.echo(f"The sandbox answers at http://{host}:{port}/v1 (any key); its bill is at /sandbox/bill")
    provider.run()


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes.")
@click.option("--store", metavar="FILE|URL", help="The ledger. Default: behest.toml's, or behest.db.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: behest.toml in this folder, if there is one.",
)
@click.option("--keyless", is_flag=True, help="Let anybody on this machine call, without a key.")
def serve(host: str, port: int, workers: int, store: str | None, config: Path | None, keyless: bool) -> None:
    """Serve the gateway: an OpenAI-compatible endpoint, for programs in any language.

    Where no provider is configured, the sandbox answers: no key, no network.
    """
    from ..gateway.server import serve as run_gateway

    run_gateway(
        host=host,
        port=port,
        workers=workers,
        keyless=keyless,
        store=_as_url(store) if store else None,
        config=config,
        say=lambda line: click.echo(line, err=True),
    )


@main.group()
def keys() -> None:
    """The gateway's API keys."""


def _keys(store: str | None) -> KeyStore:
    """The keys of the ledger that a gateway here would use; it is made if there is none yet."""
    from ..gateway.keys import KeyStore
    from ..ledger.sql import SQLLedger

    return KeyStore(SQLLedger(_store_url(store)))


@keys.command("create")
@_store
@click.option("--tenant", required=True, help="Whose it is.")
@click.option("--project", required=True, help="For which of their projects.")
@click.option("--tier", help="free, pro, max, or one of behest.toml: whose budgets hold it as well.")
@click.option("--name", default="", help="For people.")
@click.option(
    "--end-users/--no-end-users",
    default=True,
    show_default=True,
    help="Whether it may speak for any end user (X-End-User-Id, and tokens for them).",
)
def keys_create(
    store: str | None, tenant: str, project: str, tier: str | None, name: str, end_users: bool
) -> None:
    """Make a key. It is shown once: the ledger has its hash alone."""
    from ..gateway.settings import GatewaySettings

    known = GatewaySettings.of(_config().gateway).tier_texts
    if tier is not None and tier not in known:
        raise ConfigError(f"the tier {tier!r} is not known; known: {', '.join(known)}")
    key, text = _keys(store).create(tenant=tenant, project=project, tier=tier, end_users=end_users, name=name)
    click.echo(f"Key {key.id}, for project {key.project} of {key.tenant}. It is shown this once:", err=True)
    click.echo(text)


@keys.command("list")
@_store
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def keys_list(store: str | None, as_json: bool) -> None:
    """All keys, without the keys."""
    found = _keys(store).all()
    if as_json:
        click.echo(json.dumps([vars(key) for key in found], indent=2, ensure_ascii=False))
        return
    from ..reports.tables import console, key_table

    out = console()
    if not found:
        out.print("No keys yet: 'behest keys create --tenant T --project P' makes one.")
        return
    out.print(key_table([vars(key) for key in found]))


@keys.command("revoke")
@_store
@click.argument("id")
def keys_revoke(store: str | None, id: str) -> None:
    """End the key ID, and every token that was minted with it."""
    key = _keys(store).revoke(id)
    click.echo(f"Key {key.id} is revoked. Gateways that run refuse it within 5 seconds.")
