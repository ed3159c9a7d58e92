"""The bill is at most what was held, and the entry is the bill: for every dialect, over every field.

The servers of `provider_rules` bill by their providers' published rules, as dearly as those allow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from openai import APIStatusError, OpenAI
from provider_rules import RULES, Bill, Draw, Rules, put, reply, streamed
from support import assert_sound

from behest_integrations import ConfigError, Meter, Price, Unbounded, UnknownPrice
from behest_integrations.ledger.book import Entry
from behest_integrations.wire.dialects import DIALECTS, Dialect
from behest_integrations.wire.fields import Row, rows_of

BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
NAMES = [rules.dialect for rules in RULES]
PROMPT = [{"role": "system", "content": "You help."}, {"role": "user", "content": "Why is the sky blue?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it's like <outside> & \u00fcberall",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
REFUSED = {"fee", "fee_here", "plugins", "search", "stored"}
"""Effects of which a budget in dollars cannot bound the cost, unless a price is said for them."""


class House:
    """A provider of one dialect, in this process, behind the real SDK and a meter."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.draw = Draw()
        self.bills: list[tuple[Bill, dict[str, int]]] = []
        """What was billed, and what had been held as the request arrived."""
        prices: dict[str, Any] = {}
        for name, rates in {rules.model: rules.rates, **rules.other_rates}.items():
            if rules.own:
                prices[name] = Price(input=rates.input, output=rates.output, cached_input=rates.cached)
        self.meter = Meter("memory://", budgets=["$1000000", "10G tokens"], prices=prices)
        http = httpx.Client(transport=httpx.MockTransport(self._answer))
        plain = OpenAI(
            base_url=f"http://{rules.provider}.test/v1", api_key="none", max_retries=0, http_client=http
        )
        self.client = self.meter.openai(plain, provider=rules.provider)

    def _answer(self, request: Any) -> Any:
        body = json.loads(request.content)
        (hold,) = self.rows().holds.values()
        try:
            bill = self.rules.bill(body, self.draw)
        except Exception as error:
            return httpx.Response(400, json={"error": {"message": str(error), "param": "some"}})
        self.bills.append((bill, hold.call["held"]))
        if body.get("stream"):
            content = streamed(body, bill, self.draw.running, self.rules.unasked)
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)
        return httpx.Response(200, json=reply(body, bill))

    def rows(self) -> Any:
        """The books themselves: a snapshot of them for each request would take longer than all else."""
        return self.meter.ledger.submit(lambda rows: rows)

    def entries(self) -> list[Entry]:
        return self.rows().entries  # type: ignore[no-any-return]

    def ask(self, fields: Mapping[str, Any], draw: Draw, messages: Any = PROMPT) -> str:
        """One request: ``served``, ``refused`` by the meter, or ``rejected`` by the provider.

        It holds the bill against the hold, and the entry against the bill.
        """
        self.draw = draw
        before = len(self.entries())
        asked = {"model": self.rules.model, "messages": messages, **fields}
        stream = bool(asked.get("stream"))
        # A server has one template and one tokenizer.
        server = f"http://{draw.per}-{draw.request}-{draw.message}.{self.rules.provider}.test/v1"
        try:
            made: Any = self.client.with_options(base_url=server).chat.completions.create(
                model=asked.pop("model"), messages=asked.pop("messages"), extra_body=asked
            )
            if stream:
                list(made)
        except (Unbounded, UnknownPrice, ConfigError) as error:
            assert len(self.entries()) == before, "a refusal is no call"
            return f"refused: {error}"
        except APIStatusError as error:
            assert [e.status for e in self.entries()[before:]] == ["failed"]
            return f"rejected: {error}"
        (entry,) = self.entries()[before:]
        bill, held = self.bills[-1]
        assert bill.nano <= held["usd"], f"billed {bill.nano}, held {held['usd']}"
        assert bill.tokens <= held["tokens"], f"billed {bill.tokens} tokens, held {held['tokens']}"
        assert entry.status == "settled"
        assert entry.cost == bill.nano
        assert entry.input_tokens + entry.output_tokens == bill.tokens
        assert entry.model == bill.model
        assert "over_bound" not in entry.flags
        return "served"


@pytest.fixture(scope="module")
def houses() -> Iterator[dict[str, House]]:
    made = {rules.dialect: House(rules) for rules in RULES}
    yield made
    for house in made.values():
        assert_sound(house.meter)


def test_every_dialect_that_is_a_server_has_its_rules() -> None:
    chats = {dialect.name for dialect in DIALECTS if dialect.providers and (dialect.both or dialect.chat)}
    assert chats == set(NAMES)  # what is of another wire alone is in test_wires.py


# ── values ─────────────────────────────────────────────────────────────────────────────

ANYTHING = st.one_of(
    st.booleans(),
    st.integers(-5, 5_000),
    st.text(max_size=20),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=5), st.booleans(), max_size=2),
)
WORDS = st.text(max_size=60)
LIMITS = st.integers(1, 3_000)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "nothing": ANYTHING,
    "limit": LIMITS,
    "floor": st.integers(1, 200),
    "thoughts": st.integers(1, 2_000),
    "thoughts_more": st.integers(1, 2_000),
    "answers": st.integers(1, 4),
    "echo": st.booleans(),
    "echo_last": st.integers(1, 50),
    "prediction": st.builds(lambda text: {"type": "content", "content": text}, WORDS),
    "prompt": st.one_of(WORDS, st.lists(st.builds(lambda t: {"text": t}, WORDS), max_size=3)),
    "safety": st.booleans(),
    "models": st.lists(st.sampled_from(("dear", "cheap")), max_size=2),
    "modalities": st.just(["text"]),
    "audio": st.just(None),
}
OF_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "tools": st.lists(st.just(TOOL), max_size=2),
    "functions": st.lists(st.just(TOOL["function"]), max_size=2),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "prompt": st.just(None),  # a chat has messages
    "stream": st.booleans(),
    "stream_options": st.sampled_from([{}, {"include_usage": True}, {"include_usage": False}]),
    "model": st.just(None),
    "messages": st.just(None),
    "input_ids": st.lists(st.integers(0, 9), max_size=5),
    # The SDK itself reads these of a request.
    "extra_body": st.just(None),
    "timeout": st.just(None),
}


def value_of(path: str, rows: list[Row]) -> st.SearchStrategy[Any]:
    """Values of a field that are its own."""
    if path in OF_FIELD:
        return OF_FIELD[path]
    effects = {row.effect: row.arg for row in rows}
    if "values" in effects:
        known = {"speed": ("standard", "fast"), "geo": ("global", "us"), "mode": ("standard",)}
        return st.sampled_from(known[effects["values"]])
    if "tier" in effects:
        return st.sampled_from(("auto", "default", "priority"))
    if effects.keys() & REFUSED:
        return st.sampled_from(([{"id": "x"}], {"a": 1}, True, "x"))
    (effect, *_) = sorted(effects, key=lambda e: e == "nothing")
    return VALUES[effect]


SANE: dict[str, Any] = {
    "nothing": True, "limit": 60, "floor": 7, "thoughts": 100, "thoughts_more": 100, "answers": 2,
    "echo": True, "echo_last": 9, "prediction": {"type": "content", "content": "blue"}, "prompt": "be brief",
    "safety": True, "models": ["cheap"], "modalities": ["text"], "tier": "default",
}  # fmt: skip
ONE_OF_FIELD: dict[str, list[Any]] = {
    "tools": [[TOOL]], "functions": [[TOOL["function"]]], "response_format": [{"type": "json_object"}],
    "stream_options": [{"include_usage": True}], "input_ids": [[1, 2]],
    "speed": ["standard", "fast"], "inference_geo": ["global", "us"],
    **{name: [] for name in ("prompt", "model", "messages", "extra_body", "timeout")},
}  # fmt: skip
"""Values that they have in ordinary programs."""


def fields_of(dialect: Dialect) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for path, row in rows_of(dialect, "chat"):
        found.setdefault(path, []).append(row)
    return found


def merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in other.items():
        mine = one.get(name)
        one[name] = merged(mine, value) if isinstance(mine, dict) and isinstance(value, Mapping) else value
    return one


@st.composite
def bodies(draw: st.DrawFn, dialect: Dialect) -> dict[str, Any]:
    """Fields of requests, whose cost can be bounded."""
    known = fields_of(dialect)
    names = [p for p, rows in known.items() if not {r.effect for r in rows} & REFUSED]
    body: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(sorted(names)), unique=True, max_size=8)):
        value = draw(value_of(path, known[path]))
        if value is not None:
            merged(body, put(path, value))
    return body


# Bytes a token, tokens a request and a message: the most of the templates that were measured
# (`wire/sizes.py`).
TEMPLATES = st.tuples(st.integers(1, 6), st.integers(0, 174), st.integers(0, 30))
ANSWERS = st.builds(
    Draw,
    length=st.one_of(st.integers(1, 50), st.integers(1, 10_000), st.just(100_000)),
    thought=st.one_of(st.just(0), st.integers(0, 5_000)),
    cached=st.integers(0, 100),
    pick=st.integers(0, 5),
    running=st.booleans(),
)
MESSAGES = st.lists(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(("user", "assistant")), WORDS
    ),
    min_size=1,
    max_size=8,
)


# To make an example smaller takes minutes, and says little: each of its fields is named.
HASTE = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


# ── the proofs ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_no_bill_is_over_its_hold_and_every_entry_is_its_bill(name: str, houses: dict[str, House]) -> None:
    house, dialect = houses[name], BY_NAME[name]
    answers: dict[str, int] = {}

    @settings(HASTE, max_examples=30)
    @given(
        template=TEMPLATES,
        calls=st.lists(st.tuples(bodies(dialect), ANSWERS, MESSAGES), min_size=1, max_size=4),
    )
    def ask(template: tuple[int, int, int], calls: list[tuple[Any, Draw, Any]]) -> None:
        for body, draw, messages in calls:
            told = house.ask(body, draw.by(template), messages)
            event(told.partition(":")[0])
            answers[told.partition(":")[0]] = answers.get(told.partition(":")[0], 0) + 1
            assert not told.startswith("refused"), told

    ask()
    assert answers.get("served", 0) >= 15, answers


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_bounded_is_refused_and_the_rest_is_served(
    name: str, houses: dict[str, House]
) -> None:
    """Every field of the table, alone."""
    house = houses[name]
    for path, rows in fields_of(BY_NAME[name]).items():
        effects = {row.effect for row in rows}
        if effects & REFUSED:
            value: Any = [{"id": "x"}] if "plugins" in effects else {"a": 1}
            told = house.ask({"max_tokens": 50, **put(path, value)}, Draw(length=10))
            # What is stored at the provider is bounded by the model's context window, if that is known.
            assert told.startswith("refused") or effects == {"stored"}, (path, told)
        else:
            values = (
                ONE_OF_FIELD[path]
                if path in ONE_OF_FIELD
                else [SANE[effect] for effect in sorted(effects) if effect in SANE]
            )
            for value in values:
                told = house.ask(merged({"max_tokens": 2_500}, put(path, value)), Draw(length=10))
                assert told == "served" or told.startswith("rejected"), (path, value, told)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_nobody_knows_is_refused_by_its_name(name: str, houses: dict[str, House]) -> None:
    told = houses[name].ask({"max_tokens": 50, "no_such_field": 3}, Draw(length=10))
    assert told.startswith("refused")
    assert "no_such_field" in told


@pytest.mark.parametrize("rules", RULES, ids=NAMES)
def test_a_server_that_is_not_known_is_bounded_as_the_worst_of_all(rules: Rules) -> None:
    """The same rules, where the meter is not told whose they are."""
    known = replace(rules, provider=f"nobody-{rules.provider}", own=True, tiers={})
    house, dialect = House(known), BY_NAME[rules.dialect]
    served = 0

    @settings(HASTE, max_examples=8)
    @given(
        template=TEMPLATES,
        calls=st.lists(st.tuples(bodies(dialect), ANSWERS, MESSAGES), min_size=1, max_size=4),
    )
    def ask(template: tuple[int, int, int], calls: list[tuple[Any, Draw, Any]]) -> None:
        nonlocal served
        for body, draw, messages in calls:
            served += house.ask(body, draw.by(template), messages) == "served"

    ask()
    assert served
    assert_sound(house.meter)
    house.meter.close()
