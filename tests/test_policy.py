"""What a policy allows: the same through every door, before anything is reserved or sent."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_support import Gateway, chat
from support import HELLO, aclient, arun, assert_sound, client, entries

from behest_integrations import ConfigError, Meter, PolicyRefused
from behest_integrations.config import load
from behest_integrations.policy import Policy, Rule
from behest_integrations.policy.places import region_of_host
from behest_integrations.sandbox import Sandbox

ALLOWED: dict[str, Any] = {"models": ["gpt-4o*", "text-embedding-3-*"]}


def ask(meter: Meter, sandbox: Sandbox, **fields: Any) -> Any:
    asked: Any = {"model": "gpt-4o", "messages": HELLO, **fields}
    return meter.openai(client(sandbox)).chat.completions.create(**asked)


def refused(policy: Any, sandbox: Sandbox, call: Callable[[Meter], Any]) -> PolicyRefused:
    """What the policy says; the provider is not asked, and nothing is held or booked."""
    before = sandbox.requests
    with Meter("memory://", budgets=["$1"], policy=policy) as meter:
        with pytest.raises(PolicyRefused) as caught:
            call(meter)
        assert entries(meter) == []
        assert_sound(meter)
    assert sandbox.requests == before
    return caught.value


# ── through every door ─────────────────────────────────────────────────────────────────


def openai_sync(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    return ask(meter, sandbox, model=model, max_tokens=9)


def openai_stream(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    return list(ask(meter, sandbox, model=model, max_tokens=9, stream=True))


def openai_async(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    metered: Any = meter.openai(aclient(sandbox))
    return arun(metered.chat.completions.create(model=model, messages=HELLO, max_tokens=9))


def openai_responses(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    return meter.openai(client(sandbox)).responses.create(model=model, input="hello", max_output_tokens=16)


def openai_images(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    return meter.openai(client(sandbox)).images.generate(model=model, prompt="a house")


def langchain(way: str) -> Callable[[Meter, Sandbox, str], Any]:
    def call(meter: Meter, sandbox: Sandbox, model: str) -> Any:
        pytest.importorskip("langchain_openai")
        from langchain_support import WAYS
        from langchain_support import chat as model_of

        return WAYS[way](meter, model_of(sandbox, model=model, max_tokens=9)).invoke("hello")

    return call


def langchain_async(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    pytest.importorskip("langchain_openai")
    from langchain_support import chat as model_of

    async def stream() -> None:
        async for _ in meter.langchain_model(model_of(sandbox, model=model, max_tokens=9)).astream("hello"):
            pass

    return arun(stream())


def langchain_embeddings(meter: Meter, sandbox: Sandbox, model: str) -> Any:
    pytest.importorskip("langchain_openai")
    from langchain_support import embedder

    if model == "gpt-4o":
        model = "text-embedding-3-small"
    plain = embedder(sandbox).model_copy(update={"model": model})
    return meter.langchain_embeddings(plain).embed_query("hello")


def llama_index(way: str) -> Callable[[Meter, Sandbox, str], Any]:
    def call(meter: Meter, sandbox: Sandbox, model: str) -> Any:
        pytest.importorskip("llama_index.llms.openai")
        from llama_index_support import HELLO as ASKED
        from llama_index_support import llm, opened

        with opened(way, meter, llm(sandbox, model=model, max_tokens=9)) as metered:
            return metered.chat(ASKED)

    return call


DOORS: dict[str, Callable[[Meter, Sandbox, str], Any]] = {
    "openai": openai_sync,
    "openai stream": openai_stream,
    "openai async": openai_async,
    "openai responses": openai_responses,
    "langchain callback": langchain("callback"),
    "langchain wrapper": langchain("wrapper"),
    "langchain both": langchain("both"),
    "langchain middleware": langchain("middleware"),
    "langchain async stream": langchain_async,
    "langchain embeddings": langchain_embeddings,
    "llama_index wrapper": llama_index("wrapper"),
    "llama_index handler": llama_index("handler"),
    "llama_index both": llama_index("both"),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_model_that_is_not_allowed_is_refused_at_every_door(door: str, sandbox: Sandbox) -> None:
    said = refused(ALLOWED, sandbox, lambda meter: DOORS[door](meter, sandbox, "gpt-4"))
    assert (said.rule, said.kind, said.code) == ("policy", "models", "policy_refused")
    assert "'gpt-4' is not one of those allowed" in str(said)
    with Meter("memory://", budgets=["$1"], policy=ALLOWED) as meter:
        DOORS[door](meter, sandbox, "gpt-4o")
        assert len(entries(meter)) == 1
        assert_sound(meter)


@pytest.mark.parametrize(
    "fallbacks", [["o1-pro"], [{"gpt-4o": ["o1-pro"]}], [{"model": "o1-pro", "seed": 1}]]
)
def test_models_that_may_answer_besides_are_asked_about(sandbox: Sandbox, fallbacks: Any) -> None:
    """LiteLLM's: https://docs.litellm.ai/docs/proxy/reliability"""

    def ask(meter: Meter) -> Any:
        metered = meter.openai(client(sandbox))
        extra = {"fallbacks": fallbacks}
        return metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=9, extra_body=extra)

    for policy in (ALLOWED, {"deny_models": ["o1*"]}):
        assert refused(policy, sandbox, ask).kind == "models"


def test_other_endpoints_are_asked_about_too(sandbox: Sandbox) -> None:
    refused(ALLOWED, sandbox, lambda meter: openai_images(meter, sandbox, "gpt-image-1"))


def test_the_gateway_answers_403_with_the_rule(sandbox: Sandbox, tmp_path: Path) -> None:
    top = '[policy]\nmodels = ["gpt-4o*"]\n'
    top += '[[policy.rules]]\nname = "short"\ntier = "tr*"\nmax_output_tokens = 9\n'
    more = '[gateway.tiers]\ntrial = ["$1 per user"]\n'
    with Gateway(tmp_path, sandbox, top=top, more=more) as gateway:
        with gateway.http(gateway.key()) as http:
            said = http.post("/chat/completions", json=chat(model="gpt-4"))
            assert said.status_code == 403
            error = said.json()["error"]
            assert error["code"] == "policy_refused"
            assert error["details"] == {"rule": "policy", "kind": "models", "found": {}}
            assert said.headers["x-should-retry"] == "false"
            assert http.post("/chat/completions", json=chat(max_tokens=50)).status_code == 200
        with gateway.http(gateway.key(tier="trial")) as http:
            said = http.post("/chat/completions", json=chat(max_tokens=50))
            assert said.json()["error"]["details"]["rule"] == "short"
            answer = http.post("/chat/completions", json=chat()).json()
            assert answer["usage"]["completion_tokens"] == 9


# ── the terms ──────────────────────────────────────────────────────────────────────────


LONG = [{"role": "user", "content": "one two three four five six"}]


@pytest.mark.parametrize(
    ("policy", "fields", "kind"),
    [
        ({"deny_models": ["gpt-4o-mini"]}, {"model": "openai/GPT-4o-mini-2024-07-18"}, "models"),
        ({"deny_models": ["*"]}, {"model": "our-own"}, "models"),
        ({"models": []}, {}, "models"),
        ({"models": ["gpt-4o"]}, {"extra_body": {"models": ["gpt-4"]}}, "models"),
        ({"providers": ["anthropic"]}, {}, "providers"),
        ({"deny_providers": ["127.*"]}, {}, "providers"),
        ({"regions": ["eu"]}, {}, "regions"),
        ({"max_output_tokens": 10}, {"max_tokens": 11}, "output"),
        ({"max_output_tokens": 10}, {"extra_body": {"n": 2}, "max_completion_tokens": 11}, "output"),
        ({"max_input_tokens": 5}, {"messages": LONG}, "context"),
        ({"priced": True}, {"model": "our-own"}, "price"),
        ({"rules": [{"user": "ada", "models": []}]}, {}, "models"),
        ({"rules": [{"tags": {"feature": "sup*"}, "models": []}]}, {}, "models"),
    ],
)  # fmt: skip
def test_each_of_the_terms_refuses(policy: Any, fields: Any, kind: str, sandbox: Sandbox) -> None:
    def call(meter: Meter) -> None:
        with meter.session("s", user="ada", tenant="acme", tags={"feature": "support"}):
            ask(meter, sandbox, **fields)

    said = refused(policy, sandbox, call)
    assert said.kind == kind
    again = pickle.loads(pickle.dumps(said))
    assert (str(again), again.rule, again.kind, again.found) == (str(said), said.rule, kind, {})


@pytest.mark.parametrize(
    "policy",
    [
        {"models": ["GPT-4*"], "deny_models": ["gpt-4"], "providers": ["127.0.0.1"], "regions": ["local"]},
        {"max_output_tokens": 50, "max_input_tokens": 50, "priced": True},
        {"regions": ["eu"], "places": {"127.*": "eu-west-9"}},
        {"rules": [{"user": "bob", "models": []}, {"tenant": "no", "models": []}]},
        Policy(rules=(Rule(session="another", models=()),)),
        [Rule(user="ad*", models=())],  # an id is taken as it is
    ],
)  # fmt: skip
def test_what_they_allow_goes_ahead(policy: Any, sandbox: Sandbox) -> None:
    with Meter("memory://", policy=policy) as meter, meter.session("s", user="ada", tenant="acme"):
        answer = ask(meter, sandbox, max_tokens=50)
        assert answer.usage.completion_tokens == 50


def test_an_alias_is_known_by_what_it_stands_for() -> None:
    aliases = {"ours": "gpt-4o"}
    with Sandbox(prices={"ours": ("1", "1")}) as sandbox:
        with Meter("memory://", policy={"models": ["gpt-4o"]}, aliases=aliases) as meter:
            ask(meter, sandbox, model="ours")
        denied = {"deny_models": ["gpt-4o"]}
        with Meter("memory://", policy=denied, aliases=aliases) as meter, pytest.raises(PolicyRefused):
            ask(meter, sandbox, model="ours")


@pytest.mark.parametrize("budgets", [[], ["$1"]])
def test_a_call_without_a_limit_is_sent_with_the_ceiling(budgets: list[str], sandbox: Sandbox) -> None:
    policy = {"max_output_tokens": 40, "rules": [{"tenant": "acme", "max_output_tokens": 12}]}
    with Meter("memory://", budgets=budgets, policy=policy) as meter:
        assert ask(meter, sandbox).usage.completion_tokens == 40
        with meter.session("s", tenant="acme"):
            assert ask(meter, sandbox).usage.completion_tokens == 12
        assert_sound(meter)


def test_a_callback_cannot_send_the_ceiling_and_says_so(sandbox: Sandbox) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_support import by_callback, by_wrapper
    from langchain_support import chat as model_of

    unlimited = model_of(sandbox, max_tokens=None)
    policy = {"max_output_tokens": 12}
    said = refused(policy, sandbox, lambda meter: by_callback(meter, unlimited).invoke("hello"))
    assert "wrap the model itself" in str(said)
    with Meter("memory://", policy=policy) as meter:
        answer = by_wrapper(meter, unlimited).invoke("hello")
        assert answer.usage_metadata["output_tokens"] == 12


def test_hosts_that_say_where_they_are() -> None:
    hosts = {
        "bedrock-runtime.eu-west-1.amazonaws.com": "eu-west-1",
        "europe-west4-aiplatform.googleapis.com": "europe-west4",
        "eu.api.openai.com": "eu",
        "api.openai.com": None,
        "bedrock-runtime.eu-west-1.amazonaws.com.evil.example": None,
    }
    assert {host: region_of_host(host) for host in hosts} == hosts


# ── settings ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"model": ["gpt-4o"]}, "did you mean models"),
        ({"models": "gpt-4o"}, "write it as a list"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"rules": [{"tenant": "a\nb"}]}, "control character"),
        ({"rules": [{"name": "x"}, {"name": "x"}]}, "two rules named 'x'"),
        (7, "a policy is"),
    ],
)
def test_bad_settings_are_said_at_once(policy: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Meter("memory://", policy=policy)


def test_a_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "behest.toml"
    file.write_text('[policy]\nmodels = ["gpt-4o"]\n[[policy.rules]]\ntenant = "acme"\npriced = true\n')
    with Meter("memory://", **load(file).arguments()) as meter:
        assert meter.policy is not None
        assert [name for name, _, _ in meter.policy.policy.named()] == ["policy", "for tenant acme"]
    file.write_text("[policy]\nmodel = 3\n")
    with pytest.raises(ConfigError, match="did you mean models"):
        Meter("memory://", **load(file).arguments())
