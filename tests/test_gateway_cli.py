"""`behest serve` and `behest keys`: what they say, and what they refuse to begin with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import older_ledger

from behest_integrations.cli import main
from behest_integrations.gateway import GatewaySettings
from behest_integrations.gateway.keys import PREFIX


def behest(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)
    return tmp_path


# ── keys ───────────────────────────────────────────────────────────────────────────────


def test_a_key_is_shown_once_and_kept_as_a_hash(folder: Path) -> None:
    said = behest("keys", "create", "--tenant", "acme", "--project", "support", "--name", "the shop's")
    key = said.strip().splitlines()[-1]
    assert re.fullmatch(PREFIX + r"[a-z2-9]{12}_[\w-]{43}", key)
    files = b"".join(path.read_bytes() for path in folder.glob("behest.db*"))
    assert b"acme" in files
    assert key.encode() not in files
    assert key[-43:].encode() not in files
    listed = behest("keys", "list")
    assert key not in listed
    for words in ("acme", "support", "the shop's", "in use", key[len(PREFIX) :][:12]):
        assert words in listed


def test_a_key_is_revoked_once() -> None:
    behest("keys", "create", "--tenant", "acme", "--project", "support", "--tier", "free", "--no-end-users")
    (key,) = json.loads(behest("keys", "list", "--json"))
    assert (key["tier"], key["end_users"], key["revoked"]) == ("free", False, None)
    assert "at once" in behest("keys", "revoke", key["id"])
    assert "revoked" in behest("keys", "list")
    assert "is revoked already" in behest("keys", "revoke", key["id"], code=1)
    assert "no key 'nobody'" in behest("keys", "revoke", "nobody", code=1)


def test_there_are_no_keys_yet() -> None:
    assert "No keys yet" in behest("keys", "list")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--tenant", "", "--project", "p"), "the tenant is empty"),
        (("--tenant", "a\nb", "--project", "p"), "control character"),
        (("--tenant", "t", "--project", "p", "--tier", "platinum"), "known: free, pro, max"),
        (("--tenant", "t", "--project", "p", "--store", "memory://"), "memory"),
    ],
)
def test_a_key_that_cannot_be_made(args: tuple[str, ...], said: str) -> None:
    assert said in behest("keys", "create", *args, code=1)


def test_a_ledger_of_before_there_were_keys_is_brought_up_to_date(folder: Path) -> None:
    older_ledger(folder / "behest.db", "0001")
    behest("keys", "create", "--tenant", "acme", "--project", "support")
    assert "acme" in behest("keys", "list")


# ── serving ────────────────────────────────────────────────────────────────────────────

PROVIDER = '[gateway.providers.one]\nbase_url = "http://127.0.0.1:9/v1"\n'


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[gateway]\nprovider = 1", "gateway.provider"),
        (PROVIDER + "key = 'sk-secret'", "providers.one.key"),
        (PROVIDER.replace("http:", "ftp:"), "providers.one.base_url"),
        (PROVIDER + 'api_key_env = "NO_SUCH_KEY"', "NO_SUCH_KEY"),
        (
            PROVIDER + "[[gateway.routes]]\nmodels = ['*']\nprovider = 'two'",
            "routes to 'two'; configured: one",
        ),
        (PROVIDER + PROVIDER.replace("one", "two"), "several providers"),
        (PROVIDER + "[[gateway.routes]]\nmodels = []\nprovider = 'one'", "routes.0.models"),
        ("[gateway.tiers]\nmine = ['5 dollars']", "5 dollars"),
        ("[gateway]\ndefault_tier = 'mine'", "default_tier 'mine' is not a tier"),
        ("[gateway.tokens]\nalgorithm = 'none'", "tokens.algorithm"),
        ("[gateway.limits]\nmax_body = 0", "limits.max_body"),
        ("store = 'memory://'", "a store in memory has none"),
    ],
)
def test_settings_that_cannot_be_used(folder: Path, toml: str, said: str) -> None:
    (folder / "behest.toml").write_text(toml)
    output = behest("serve", code=1).replace("[gateway] cannot be used: ", "gateway.")
    assert said in output
    assert "sk-secret" not in output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--keyless", "--host", "0.0.0.0"), "listens on loopback alone"),
        (("--keyless", "--store", "memory://", "--workers", "2"), "a ledger that they share"),
        (("--config", "nowhere.toml"), "does not exist"),
        (("--workers", "0"), "0 is not in the range"),
    ],
)
def test_what_is_not_served(args: tuple[str, ...], said: str) -> None:
    output = behest("serve", *args, code=2 if "range" in said or "exist" in said else 1)
    assert said in output


def test_a_secret_that_is_too_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from behest_integrations.gateway.tokens import Tokens
    from behest_integrations.rules.errors import ConfigError

    monkeypatch.setenv("BEHEST_TOKEN_SECRET", "short")
    with pytest.raises(ConfigError, match="5 bytes"):
        Tokens(GatewaySettings().tokens)


def test_the_tiers_are_behests_own_and_can_be_others() -> None:
    texts = [str(budget) for budget in GatewaySettings.of({}).tier_budgets()]
    assert "10 calls/minute per project and user for tag tier=free" in texts
    assert "50k tokens/day per project and user for tag tier=free" in texts
    assert "20M tokens/day per project and user for tag tier=max" in texts
    own = GatewaySettings.of({"tiers": {"free": ["$1 per user"], "trial": ["5 calls per user"]}})
    texts = [str(budget) for budget in own.tier_budgets()]
    assert "$1 per user for tag tier=free" in texts
    assert "5 calls per user for tag tier=trial" in texts
    assert not any("minute" in text and "tier=free" in text for text in texts)
