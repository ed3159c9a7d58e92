"""The real LiteLLM proxy, held to budgets by a line of its config: the truth is what the sandbox billed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from refusal_table import Found, as_documented, name_of
from support import entries

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

if find_spec("litellm") is None or find_spec("fastapi_sso") is None:
    pytest.skip("litellm[proxy] is not installed", allow_module_level=True)
import httpx
import openai

CAP = Decimal("0.001")
CONFIG = """
model_list:
  - model_name: small
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "{url}", api_key: none, max_tokens: 64}}
  - model_name: spare
    litellm_params: {{model: anthropic/claude-haiku-4-5, api_base: "{claude}", api_key: none}}
router_settings: {{num_retries: 3, fallbacks: [{{small: [spare]}}]}}
litellm_settings:
  callbacks: behest_integrations.gateway.litellm_proxy.budgets
"""
SETTINGS = f"""
store = "sqlite:///proxy.db"
budgets = ["${CAP} per user", "2 calls/minute for user hasty"]
"""


@pytest.fixture
def proxy(sandbox: Sandbox, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "behest.toml").write_text(SETTINGS)
    (tmp_path / "config.yaml").write_text(CONFIG.format(url=sandbox.base_url, claude=sandbox.url))
    program = Path(sys.executable).parent / "litellm"
    env = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    said = tmp_path / "said"
    with said.open("w") as out:
        running = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                assert running.poll() is None, said.read_text()[-3000:]
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=2)
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait()


def test_the_proxy_is_held_to_its_budgets(proxy: str, sandbox: Sandbox, tmp_path: Path) -> None:
    def ask(user: str, **fields: Any) -> httpx.Response:
        body = {"model": "small", "user": user, "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx.post(f"{proxy}/v1/chat/completions", json=body, timeout=60)

    def until_refused(number: int) -> httpx.Response:
        for _ in range(60):
            answer = ask(("ada", "bob")[number % 2], stream=number % 3 == 0)
            if answer.status_code != 200:
                return answer
        raise AssertionError("never refused")

    with ThreadPoolExecutor(16) as pool:
        refused = list(pool.map(until_refused, range(16)))
    assert {answer.status_code for answer in refused} == {402}
    assert all("refused the call before it reached the provider" in answer.text for answer in refused)
    assert {answer.headers["x-should-retry"] for answer in refused} == {"false"}
    billed = sandbox.bill.by_user()
    assert set(billed) == {"ada", "bob"}  # and nothing of the model that could have stood in
    assert all(CAP * 95 / 100 <= spent <= CAP for spent in billed.values()), billed
    before = sandbox.requests
    with pytest.raises(openai.APIStatusError) as caught:
        openai.OpenAI(base_url=f"{proxy}/v1", api_key="none").chat.completions.create(
            model="small", user="ada", messages=[{"role": "user", "content": "hello"}]
        )
    assert caught.value.status_code == 402
    assert f"limit ${CAP}, spent $0.00" in caught.value.message
    how = f"{name_of(openai.APIStatusError)}, `status_code` 402"
    found = Found(how, "in `error.message`", 0, sandbox.requests - before)
    as_documented("LiteLLM's proxy", {"OpenAI SDK": found})
    # A rate is another thing: it passes.
    answers = [ask("hasty") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) <= 60
    with Meter(f"sqlite:///{tmp_path}/proxy.db") as meter:
        booked = [e for e in entries(meter) if e.status != "refused"]
        assert {e.status for e in booked} == {"settled"}
        for user, spent in sandbox.bill.by_user().items():
            assert sum(e.cost or 0 for e in booked if e.user_id == user) == int(spent * 10**9)
