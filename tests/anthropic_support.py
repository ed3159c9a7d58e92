"""Helpers for tests of Anthropic's API: clients of a sandbox, and a call of a known size."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic, AsyncAnthropic

from behest_integrations.sandbox import Sandbox

HELLO: Any = [{"role": "user", "content": "hello there"}]
# Answers of 1,200 tokens cost $0.024; held at 1.1 times that, since where it runs is not said.
MODEL, ANSWER = "claude-opus-5-5", 1200
SMALL = "claude-haiku-4-5"


def client(sandbox: Sandbox, **options: Any) -> Anthropic:
    return Anthropic(base_url=sandbox.url, api_key="none", **{"max_retries": 0, **options})


def aclient(sandbox: Sandbox, **options: Any) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=sandbox.url, api_key="none", **{"max_retries": 0, **options})


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": SMALL, "max_tokens": 100, "messages": HELLO, **fields}
