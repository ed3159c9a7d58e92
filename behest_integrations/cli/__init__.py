"""`behest`: the list of its commands. What each does is in a file of its subject, beside this one.

A file is imported when one of its commands is run, so that `behest --help` is quick. A new command
is a function there and a line here; so is a new report, whose line names the function in `reports/`
(see `reports.shown`, also for reports from outside the package).
"""

from __future__ import annotations

import click

from .. import __version__
from .group import Commands, Group

COMMANDS = {
    "report": ("cli.ledger:report", "What was spent: by session, user, project, model, day, tag."),
    "budgets": ("cli.budgets:budgets", "What is left of each, and how each is changed."),
    "statusline": ("cli.ledger:statusline", "Today's spending and the fullest budget, in a line."),
    "dashboard": ("cli.dashboard:dashboard", "Spending and limits in a browser, live."),
    "verify": ("cli.ledger:verify", "Prove the books: costs, counters, reports, seals."),
    "policy": ("cli.policy:policy", "What may be asked, and which recognisers are on."),
    "audit": ("cli.audit:audit", "What was allowed, refused and changed; and a proof of it."),
    "repair": ("cli.ledger:repair", "Rebuild the buckets from the ledger."),
    "prune": ("cli.ledger:prune", "Replace old entries by their sums."),
    "export": ("cli.finance:export", "The books as a file: FOCUS, CSV, JSON lines, Parquet."),
    "chargeback": ("cli.finance:chargeback", "What was spent, by cost centre."),
    "reconcile": ("cli.finance:reconcile", "A provider's own export against the books."),
    "reprice": ("cli.finance:reprice", "Price the calls that had no price when booked."),
    "alerts": ("cli.alerts:alerts", "Who is told of thresholds and the like: test, list, send."),
    "db": ("cli.db:db", "A ledger's tables: check them, upgrade them, copy them."),
    "prices": ("cli.tools:prices", "What a model costs, and where that is from."),
    "run": ("cli.run:run", "Run a Python program, metered and held to a budget."),
    "serve": ("cli.gateway:serve", "Serve the gateway: an OpenAI-compatible endpoint."),
    "keys": ("cli.gateway:keys", "The gateway's API keys: create, list, revoke."),
    "byok": ("cli.byok:byok", "Tenants' own keys at providers: set, list, remove, reseal."),
    "tiers": ("cli.settings:tiers", "The gateway's tiers: list, set, reset, while it runs."),
    "projects": ("cli.settings:projects", "The gateway's projects: list, set, reset, while it runs."),
    "sandbox": ("cli.tools:sandbox", "Serve the offline provider: no key, no network."),
    "demo": ("cli.demo:demo", "Real calls on this machine, until the budget stops them."),
}
"""By name: where it is, and what it is for in a line of at most 60 characters."""


@click.group(
    cls=Group,
    commands=Commands(COMMANDS, reports="behest_integrations.reports"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="behest")
def main() -> None:
    """Budgets and metering for LLM calls.

    Exit codes: 0 done; 1 the answer is no, or it cannot be done; 2 the command line is not
    understood; 3 a refused call has ended a program ('behest run'); 130 interrupted.
    """
