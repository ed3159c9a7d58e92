"""`quickstarts/many_hosts` as people run it: two gateways and a worker over one PostgreSQL, one killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from postgres import new_url

from behest_integrations import Meter
from behest_integrations.reports import report

pytest.importorskip("psycopg")

HERE = Path(__file__).parent.parent / "quickstarts" / "many_hosts"


def test_the_limit_holds_though_a_gateway_is_killed(tmp_path: Path) -> None:
    store = new_url()
    done = subprocess.run(
        [sys.executable, str(HERE / "try_it.py")],
        env={**os.environ, "BEHEST_STORE": store},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "gateway B was killed after" in said
    assert "the worker was stopped before call" in said
    assert "all sums agree" in said
    assert "No cap was passed." in said
    found = re.search(r"own bill: \$([0-9.]+)", said)
    assert found is not None, said
    billed = Decimal(found[1])
    with Meter(store) as meter:
        total = report(meter.ledger, ("session",)).total
        booked = Decimal(total.cost) / 10**9
    assert billed <= booked <= Decimal("0.10")
    assert booked >= Decimal("0.099"), "it can be used to the end"
    # What was cut off is booked at its worst case, and nothing else differs from the bill.
    assert booked - billed <= Decimal(total.assumed) / 10**9
    assert not list(tmp_path.iterdir())


def test_the_compose_file_has_what_the_page_says() -> None:
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    assert {"db", "upgrade", "gateway", "worker", "sandbox"} == services.keys()
    for name in ("upgrade", "gateway", "worker"):
        assert services[name]["environment"]["BEHEST_STORE"].startswith("postgresql+psycopg://")
    assert "http://sandbox:8089/v1" in (HERE / "behest.toml").read_text()
