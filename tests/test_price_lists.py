"""A newer price list: read and compared before it replaces anything, used where it is configured."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from behest_integrations import ConfigError, Meter, UnknownPrice, Usage
from behest_integrations.cli import main
from behest_integrations.prices import Pricing, lists
from behest_integrations.reports.audit import decisions
from behest_integrations.reports.shown import Asked
from behest_integrations.rules.budgets import to_nano
from behest_integrations.wire import RequestBound


def model(name: str, input: str = "2", output: str = "8") -> dict[str, Any]:
    return {"id": name, "match": {"equals": name}, "prices": {"input_mtok": input, "output_mtok": output}}


def providers(*models: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": "openai", "name": "OpenAI", "api_pattern": "api.openai.com", "models": list(models)}]


LIST = providers(model("gpt-4o", "5", "20"), model("brand-new"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)
    return tmp_path


def ask(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, args)
    assert done.exit_code == code, done.output
    return done.output


def put(path: Path, said: Any) -> str:
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return str(path)


@pytest.fixture
def address(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server of this machine, and what it has by path."""
    there: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in there else 404)
            self.end_headers()
            self.wfile.write(there.get(self.path, b""))

        def log_message(self, *said: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", there
    server.shutdown()
    server.server_close()


def test_a_meter_uses_the_list_that_it_is_given_and_no_other_does(folder: Path) -> None:
    path = put(folder / "prices.json", LIST)
    with Meter("memory://", budgets=["$9"], price_list=path) as meter, Meter("memory://") as plain:
        for name, cost in (("brand-new", "0.00001"), ("gpt-4o", "0.000025")):
            hold = meter.reserve(meter.plan("chat", name, RequestBound(1, output_limit=1)))
            hold.settle(Usage(1, 1))
            assert meter.ledger.snapshot()[2][-1].cost == to_nano(cost)
        with pytest.raises(UnknownPrice):  # it is not in the list, whatever the installed one has
            meter.plan("chat", "gpt-4o-mini", RequestBound(1))
        with pytest.raises(UnknownPrice):
            plain.pricing.find("brand-new")
        assert plain.pricing.find("gpt-4o-mini")
    own = Meter("memory://", price_list=path, aliases={"mine": "brand-new"})
    assert own.pricing.find("mine").standard == own.pricing.find("brand-new").standard


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("{}", "not a list of providers"),
        ([], "not a list of providers"),
        ([{"id": "openai"}], "does not know"),
        (providers(model("gpt-4o", "cheap")), "does not know"),
        (providers(), "no models"),
    ],
)
def test_a_wrong_list_is_refused_and_loses_nothing(wrong: Any, says: str, folder: Path) -> None:
    new, kept = folder / "new.json", folder / "prices.json"
    if wrong is not None:
        put(new, wrong)
    with pytest.raises(ConfigError, match=says):
        Meter("memory://", price_list=new)
    put(kept, LIST)
    (folder / "behest.toml").write_text('price_list = "prices.json"\n')
    told = ask("prices", "--update", str(new), "--force", code=1)
    assert says in told.replace("cannot read", "cannot be read")
    assert json.loads(kept.read_text()) == LIST
    assert sorted(os.listdir(folder)) == sorted(
        {"behest.toml", "prices.json", *(["new.json"] if wrong is not None else [])}
    )


def test_it_is_kept_used_shown_and_in_the_audit(folder: Path, address: tuple[str, dict[str, bytes]]) -> None:
    url, there = address
    (folder / "behest.toml").write_text('store = "sqlite:///l.db"\nprice_list = "prices.json"\n')
    Meter("sqlite:///l.db").close()
    there["/data.json"] = json.dumps(LIST).encode()
    told = ask("prices", "--update", f"{url}/data.json", code=1)
    assert "has 2 models" in told
    assert "Nothing was changed" in told
    assert not (folder / "prices.json").exists()
    ask("prices", "--update", f"{url}/data.json", "--force")
    assert f"{url}/data.json; 2 models; fetched 20" in ask("prices")
    assert "kept in prices.json" in ask("prices", "brand-new")
    with Meter.from_toml(folder / "behest.toml") as meter:
        assert meter.pricing.find("brand-new")
        (record,) = decisions(meter.ledger, Asked(), kinds=["admin"])
    assert record["actor"].startswith("cli:")
    assert record["details"]["source"] == f"{url}/data.json"
    assert record["details"]["sha256"] == Pricing(price_list=folder / "prices.json").listed.digest

    # Dearer is used, and told; to less than a tenth is not, unless somebody says so.
    there["/dear.json"] = json.dumps(providers(model("gpt-4o", "6", "20"), model("brand-new"))).encode()
    assert "dearer: gpt-4o (openai)" in ask("prices", "--update", f"{url}/dear.json")
    there["/free.json"] = json.dumps(providers(model("gpt-4o", "6", "0.02"), model("brand-new"))).encode()
    assert "the price of gpt-4o (openai) falls" in ask("prices", "--update", f"{url}/free.json", code=1)
    assert "cheaper: gpt-4o" in ask("prices", "--update", f"{url}/free.json", "--force")


def test_only_what_can_be_trusted_is_fetched(folder: Path, address: tuple[str, dict[str, bytes]]) -> None:
    url, _ = address
    assert "without https" in ask("prices", "--update", "http://prices.example.com/data.json", code=1)
    assert "cannot fetch" in ask("prices", "--update", f"{url}/nothing.json", code=1)
    assert not (folder / "prices.json").exists()
    for wrong in (("gpt-4o", "--update", "x"), ("--force",), ("--provider", "openai")):
        ask("prices", *wrong, code=2)


def test_a_list_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = folder / "prices.json"
    put(kept, LIST)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(ConfigError, match="No space left"):
        lists.keep(kept, json.dumps(LIST).encode(), "here")
    assert json.loads(kept.read_text()) == LIST
    assert os.listdir(folder) == ["prices.json"]
