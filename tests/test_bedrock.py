"""Clients of `bedrock-runtime` that boto3 makes: entry = bill, limits that hold, refusals as they are."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from support import HELLO, assert_agrees, assert_sound, entries, until_exhausted

from behest_integrations import BudgetExceeded, ConfigError, Meter, PolicyRefused, Unbounded
from behest_integrations.sandbox import Sandbox

boto3 = pytest.importorskip("boto3")
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError  # noqa: E402

MODEL = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
ASK: Any = [{"role": "user", "content": [{"text": "hello there"}]}]
KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}


def client(sandbox: Sandbox, *, attempts: int = 1, **config: Any) -> Any:
    config = {"max_pool_connections": 64, **config, "retries": {"max_attempts": attempts - 1}}
    return boto3.client("bedrock-runtime", endpoint_url=sandbox.url, config=Config(**config), **KEYS)


def asked(limit: int | None = None, **more: Any) -> dict[str, Any]:
    limited = {} if limit is None else {"inferenceConfig": {"maxTokens": limit}}
    return {"modelId": MODEL, "messages": ASK, **limited, **more}


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter("memory://", budgets=["$1 per session"]) as made:
        yield made


def test_an_entry_is_the_bill_streamed_or_not(meter: Meter) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 20, "anthropic_version": "bedrock-2023-05-31"})
    with Sandbox(chunk_tokens=4) as sandbox:
        bedrock = meter.bedrock(client(sandbox))
        with meter.session("s", user="u"):
            said = bedrock.converse(**asked(30))
            assert said["usage"]["outputTokens"] == 30
            assert said["output"]["message"]["content"][0]["text"]
            events = list(bedrock.converse_stream(**asked(30))["stream"])
            assert "messageStop" in events[-2]
            assert events[-1]["metadata"]["usage"]["outputTokens"] == 30
        invoked = bedrock.invoke_model(modelId=MODEL, body=body)
        assert json.loads(invoked["body"].read())["usage"]["output_tokens"] == 20
        assert len(list(bedrock.invoke_model_with_response_stream(modelId=MODEL, body=body)["body"])) > 3
        profile = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{MODEL}"
        sandbox.bill.aliases = {profile: MODEL}
        bedrock.converse(**asked(30, modelId=profile))
        found = [(e.status, e.operation, e.session_id, e.output_tokens, e.provider) for e in entries(meter)]
        assert found == [
            ("settled", "converse", "s", 30, "aws"),
            ("settled", "converse", "s", 30, "aws"),
            ("settled", "messages", None, 20, "aws"),
            ("settled", "messages", None, 20, "aws"),
            ("settled", "converse", None, 30, "aws"),
        ]
        assert sandbox.requests == 5
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_threads_use_up_a_budget_and_pass_it_never() -> None:
    cap = Decimal("0.05")
    with (
        Sandbox(latency=0.01, output_tokens=400, chunk_tokens=50) as sandbox,
        Meter("memory://", budgets=[f"${cap}"]) as meter,
    ):
        bedrock, numbers = meter.bedrock(client(sandbox)), iter(range(10**6))

        def call() -> None:
            kind = next(numbers) % 4
            if kind == 0:
                bedrock.converse(**asked(400))
                return
            stream = bedrock.converse_stream(**asked(None if kind == 1 else 400))["stream"]
            for _ in stream:
                if kind == 2:
                    break  # and is forgotten
                if kind == 3:
                    stream.close()
                    break

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda _: until_exhausted(call), range(32)))
        gc.collect()
        meter.flush()
        assert cap * 99 / 100 <= sandbox.bill.total() <= cap
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_refusal_comes_out_as_it_is_and_is_not_repeated() -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["1 tokens"]) as meter:
        bedrock = meter.bedrock(client(sandbox, attempts=4))
        for call in (bedrock.converse, bedrock.converse_stream):
            with pytest.raises(BudgetExceeded) as refused:
                call(**asked(30))
            assert refused.value.budget == "1 tokens"
        guarded = {"guardrailIdentifier": "g", "guardrailVersion": "1"}
        with pytest.raises(Unbounded, match="guardrailConfig"):
            bedrock.converse(**asked(9, guardrailConfig=guarded))
        with pytest.raises(Unbounded, match="guardrail"):
            bedrock.apply_guardrail(**guarded, source="INPUT", content=[{"text": {"text": "a"}}])
        assert sandbox.requests == 0
        assert entries(meter) == []


def test_what_is_signed_is_what_is_sent() -> None:
    """The limit is in before the signature is made, which covers the body."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    sent: list[Any] = []
    with Sandbox() as sandbox, Meter("memory://", budgets=["$0.003"]) as meter:
        bedrock = meter.bedrock(client(sandbox))
        bedrock.meta.events.register("before-send.bedrock-runtime", lambda request, **_: sent.append(request))
        bedrock.converse(**asked())
        (request,) = sent
        assert 0 < json.loads(request.body)["inferenceConfig"]["maxTokens"] < 600
        again = AWSRequest(request.method, request.url, data=request.body)
        again.headers["Content-Type"] = request.headers["Content-Type"].decode()
        again.headers["X-Amz-Date"] = request.headers["X-Amz-Date"].decode()
        again.context["timestamp"] = again.headers["X-Amz-Date"]
        signer = SigV4Auth(bedrock._request_signer._credentials, "bedrock", "us-east-1")
        headers = str(request.headers["Authorization"]).split("SignedHeaders=")[1]
        signed = headers.split(",")[0].split(";")
        for name in signed:
            if name not in again.headers and name != "host":
                again.headers[name] = request.headers[name].decode()
        text = signer.string_to_sign(again, signer.canonical_request(again))
        assert signer.signature(text, again) in str(request.headers["Authorization"])


def test_retries_are_calls_of_their_own(meter: Meter) -> None:
    with Sandbox() as sandbox:
        bedrock = meter.bedrock(client(sandbox, attempts=3, read_timeout=0.3))
        sandbox.fault("status", status=429)
        bedrock.converse(**asked(30))
        assert [e.status for e in entries(meter)] == ["failed", "settled"]
        sandbox.fault("timeout", seconds=1.0)
        bedrock.converse(**asked(30))
        assert [e.status for e in entries(meter)][2:] == ["assumed", "settled"]
        assert sandbox.requests == 4
        sandbox.fault("status", status=400)
        with pytest.raises(ClientError, match="ValidationException"):
            bedrock.converse(**asked(30))
        impatient = meter.bedrock(client(sandbox, read_timeout=0.2))
        sandbox.fault("timeout", seconds=1.0)
        with pytest.raises(ReadTimeoutError):
            impatient.converse(**asked(30))
        assert [e.status for e in entries(meter)][4:] == ["failed", "assumed"]
        assert sum(e.cost or 0 for e in entries(meter)) >= sandbox.bill.total() * 10**9
        assert_sound(meter)


def test_what_is_never_sent_costs_nothing(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with Sandbox() as sandbox:
        nobody = boto3.Session().client("bedrock-runtime", endpoint_url=sandbox.url, region_name="us-east-1")
        with pytest.raises(NoCredentialsError):
            meter.bedrock(nobody).converse(**asked(30))
        assert sandbox.requests == 0
        assert not any(e.cost for e in entries(meter))
        assert_sound(meter)


def test_streams_that_break_off_and_those_that_nobody_reads(meter: Meter) -> None:
    with Sandbox(chunk_tokens=2) as sandbox:
        bedrock = meter.bedrock(client(sandbox))
        sandbox.fault("cut")
        with pytest.raises(Exception, match=r"(?i)broken|incomplete|prematurely"):
            list(bedrock.converse_stream(**asked(60))["stream"])
        assert [e.status for e in entries(meter)] == ["assumed"]
        bedrock.converse_stream(**asked(60))
        gc.collect()
        # It is billed all the same, and read on for its usage.
        assert [(e.status, e.flags) for e in entries(meter)][1:] == [("settled", "drained")]
        assert_sound(meter)


def test_every_client_that_is_made_is_metered(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"], hosts=[f"{sandbox.host}:{sandbox.port}"]) as meter:
        before = client(sandbox)
        with meter.instrument():
            client(sandbox).converse(**asked(20))
            again = boto3.Session().client("bedrock-runtime", endpoint_url=sandbox.url, **KEYS)
            list(again.converse_stream(**asked(20))["stream"])
            assert not meter.unmetered
            boto3.client("s3", **KEYS)
            with pytest.raises(ConfigError, match="metered already"):
                meter.bedrock(again)
        client(sandbox).converse(**asked(20))
        before.converse(**asked(20))
        assert (len(entries(meter)), sandbox.requests) == (2, 4)
        for wrong in (object(), boto3.client("s3", **KEYS)):
            with pytest.raises(ConfigError, match="bedrock-runtime"):
                meter.bedrock(wrong)


def test_a_policy_reads_it() -> None:
    with Sandbox() as sandbox, Meter("memory://", policy={"models": ["amazon.*"]}) as meter:
        bedrock = meter.bedrock(client(sandbox))
        for call in (bedrock.converse, bedrock.converse_stream):
            with pytest.raises(PolicyRefused):
                call(**asked(9))
        assert sandbox.requests == 0


def test_what_is_touched_of_botocore_is_there() -> None:
    from botocore.client import BaseClient, ClientCreator
    from botocore.endpoint import Endpoint

    seen: list[str] = []
    with Sandbox() as sandbox:
        plain = client(sandbox)
        for event in ("request-created", "before-parse", "response-received"):
            plain.meta.events.register(
                f"{event}.bedrock-runtime", lambda event_name, **_: seen.append(event_name.split(".")[0])
            )
        plain.converse(**asked(5))
    assert seen == ["request-created", "before-parse", "response-received"]
    assert callable(ClientCreator.create_client)
    assert callable(BaseClient._make_api_call)
    assert callable(Endpoint.create_request)
