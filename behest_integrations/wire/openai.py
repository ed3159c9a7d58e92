"""OpenAI's requests: what is asked for, and how large it can get.

It reads and rewrites plain JSON values; it makes no calls and knows no SDK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from .bounds import RequestBound
from .counting import AROUND_KNOWN, USUAL, InputCounter
from .fields import (
    NO_EFFECTS,
    NO_FIELDS,
    FieldEffects,
    Table,
    model_names,
    positive,
    read_fields,
    table_of,
)
from .sizes import size_of
from .tokens import bound_json, exact_counter

# ── operations ─────────────────────────────────────────────────────────────────────────

PATHS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/embeddings": "embeddings",
}
# Not billed by the call: https://platform.openai.com/docs/pricing. What is only described (an assistant,
# a thread and its messages, an evaluation) is billed when it runs, and what ends a run bills nothing more.
# Traces are those that the Agents SDK exports: https://openai.github.io/openai-agents-python/tracing.
_FREE = re.compile(
    r"/(?:files|uploads|models|moderations|conversations|webhooks|organization|traces)(?:/|$)"
    r"|/(?:projects|webhook_endpoints|vaults|skills|assistants)(?:/|$)"
    r"|/(?:threads|evals)(?:/(?!runs$)[^/]+)?$|/threads/[^/]+/messages(?:/|$)|/threads/[^/]+/runs/[^/]+$"
    r"|/responses/input_tokens$|/fine_tuning/alpha/graders/validate$"
    r"|/.+/(?:cancel|pause|close|hangup|reject)$"
    r"|/chat/completions/[^/]+$"
)


def operation_of(method: str, path: str) -> str | None:
    """What a request does: ``chat``, ``completions``, ``responses``, ``embeddings``; the
    family of another billable endpoint (``images``, ``audio``, …); None if it is free.

    An endpoint that is not known is taken for billable.
    """
    if method.upper() in ("GET", "DELETE", "HEAD", "OPTIONS"):
        return None
    path = "/" + path.split("?", 1)[0].strip("/")
    if path in PATHS:
        return PATHS[path]
    if _FREE.match(path):
        return None
    family = path.strip("/").split("/")
    if family[0] in _OF_TWO:
        return ".".join(family[:2]) if len(family) > 1 else f"{family[0]}.other"
    return family[0]


METERED_OPERATIONS = frozenset(PATHS.values())
_OF_TWO = METERED_OPERATIONS
"""What is beside these, and is none of them, is known by two parts of its path (``chat.moderations``)."""
_LEGACY_MAX_TOKENS = 16  # https://platform.openai.com/docs/api-reference/completions/create


# ── requests ───────────────────────────────────────────────────────────────────────────


def bound_request(
    operation: str,
    body: Mapping[str, Any],
    *,
    prefer_max_tokens: bool = False,
    provider: str | None = None,
    allowed: frozenset[str] = NO_FIELDS,
) -> RequestBound:
    """See `wires.bound_request`; of OpenAI's operations.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    named = body.get("model")
    if operation == "chat" and type(named) is str:
        usual = _usual_chat(body, named, provider, prefer_max_tokens)
        if usual is not None:
            return usual
    others: tuple[str, ...] = ()
    if isinstance(named, str):
        model = named
    else:
        names = model_names(named) if named else None
        model, others = (names[0], tuple(names[1:])) if names else (str(named or ""), ())
    table = table_of(operation, provider)
    plain = table.plain.issuperset(body)
    effects = NO_EFFECTS if plain else read_fields(operation, body, provider, allowed)
    counter = InputCounter(model)
    if operation == "chat":
        bound = _bound_chat(body, counter, table, effects, prefer_max_tokens)
    elif operation == "responses":
        bound = _bound_responses(body, counter, table, effects)
    elif operation == "completions":
        bound = _bound_completions(body, counter, table, effects)
    else:
        _prompt(counter, body.get("input"))
        _count_others(counter, effects)
        bound = RequestBound(
            counter.tokens, output_limit=0, features=counter.features, slack=counter.slack + USUAL
        )
    if effects is not NO_EFFECTS or others:
        bound = bound._replace(
            service_tier=effects.tier,
            multiplier=effects.multiplier,
            tier_multiplier=effects.tier_multiplier,
            models=(*others, *effects.models),
            below_limit=effects.below,
            least_output=effects.least_output,
        )
    if bound.slack and not counter.exact and operation != "embeddings":
        bound = bound._replace(slack=0)  # what surrounds the texts of others is as likely there as not
    return bound


def _usual_chat(
    body: Mapping[str, Any], model: str, provider: str | None, prefer_max_tokens: bool
) -> RequestBound | None:
    """The bound of a chat as most are: texts, limits and settings that do nothing to the bill, for a
    model whose tokenizer is known. None for any other; it says the same as the long way.

    All but the number of tokens is worked out once for such requests.
    """
    messages = body.get("messages")
    table = table_of("chat", provider)
    if type(messages) is not list or not table.usual.issuperset(body):
        return None
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), body.get("n"))
    for limit in limits:
        if limit is not None and (type(limit) is not int or limit < 1):
            return None
    count = exact_counter(model)
    if count is None:
        return None
    tokens = 0
    for message in messages:
        if type(message) is not dict:
            return None
        for key, value in message.items():
            if key != "role":
                if type(value) is not str or key == "audio":
                    return None
                tokens += count(value)
    bound = _usual_bound(model, provider, prefer_max_tokens, *limits)
    many = len(messages)
    return bound._replace(
        input_tokens=tokens + AROUND_KNOWN.request + AROUND_KNOWN.message * many,
        slack=AROUND_KNOWN.request - USUAL + (AROUND_KNOWN.message - USUAL) * many,
    )


@lru_cache(maxsize=1024)
def _usual_bound(
    model: str,
    provider: str | None,
    prefer_max_tokens: bool,
    newer: int | None,
    older: int | None,
    choices: int | None,
) -> RequestBound:
    body = {"max_completion_tokens": newer, "max_tokens": older, "n": choices}
    return _bound_chat(body, InputCounter(model), table_of("chat", provider), NO_EFFECTS, prefer_max_tokens)


def _count_others(counter: InputCounter, effects: FieldEffects) -> None:
    """Count what other fields than the usual add to the prompt, and take over what they ask for."""
    if effects is NO_EFFECTS:
        return
    counter.tokens += effects.extra_input
    for value in effects.counted:
        counter.tokens += counter.around
        counter.slack += counter.around
        if isinstance(value, str):
            counter.text(value)
        else:
            counter.json(value)
    counter.features.update(effects.features)


def _more_output(counter: InputCounter, effects: FieldEffects, choices: int) -> int:
    """Output tokens that no limit bounds."""
    if effects is NO_EFFECTS:
        return 0
    # With echo the prompt comes back as part of each completion.
    more = effects.extra_output + (counter.tokens if effects.echo else 0)
    return more * choices + sum(bound_json(value, counter.model) for value in effects.predictions)


class _Limit(NamedTuple):
    """The output limit, and where it is: see `RequestBound`."""

    limit: int | None
    fields: tuple[str, ...]
    send: bool = False
    replaced: tuple[str, ...] = ()


def _limit(
    usual: tuple[str, ...], sent: dict[str, int], default: str, readable: Iterable[str], effects: FieldEffects
) -> _Limit:
    """The limit that a request has.

    Args:
        usual: the fields that are never "no limit".
        sent: those of them that were sent.
        default: the field to send a limit in.
        readable: the fields that the server is known to read.
    """
    if effects is NO_EFFECTS and not sent:
        return _Limit(None, (default,))
    values = [*sent.values(), *effects.limits.values()]
    paths = (*sent, *effects.limits)
    if not paths:
        return _Limit(None, (default, *effects.lowered))
    limits = [value for value in values if value is not None]
    # One field that says "no limit" may be the one that is read.
    limit = max(*limits, effects.least_output) if len(limits) == len(values) else None
    if not any(path in readable for path in paths):
        replaced = tuple(path for path in usual if path in sent and path != default)
        kept = tuple(path for path in paths if path not in replaced)
        return _Limit(limit, (*kept, default, *effects.lowered), True, replaced)
    return _Limit(limit, (*paths, *effects.lowered))


def _bound_chat(
    body: Mapping[str, Any],
    counter: InputCounter,
    table: Table,
    effects: FieldEffects,
    prefer_max_tokens: bool,
) -> RequestBound:
    counter.messages(body.get("messages") or ())
    if (tools := body.get("tools")) is not None:
        counter.tools(tools)
    counter.json(body.get("functions"))
    before = counter.tokens
    counter.json(body.get("response_format"))
    _count_others(counter, effects)
    size = None
    if not counter.exact and not effects.stored:
        size = size_of(body, counter.model, counter.tokens - before)
    if size is not None:
        counter.tokens = size.total
    sent = {name: positive(name, value) for name in _CHAT_LIMITS if (value := body.get(name)) is not None}
    newer = _takes_newer_limit(counter.model)
    default = _chat_limit_field(counter.model, prefer_max_tokens)
    if table.limits and default not in table.limits:
        default = "max_tokens"
    readable: Iterable[str] = table.limits or (_CHAT_LIMITS if newer else _OLDER_LIMIT)
    limit = _limit(_CHAT_LIMITS, sent, default, readable, effects)
    choices = 1 if (n := body.get("n")) is None else positive("n", n)
    choices = max(choices, effects.choices)
    return RequestBound(
        None if effects.stored else counter.tokens,
        counter.tokens if effects.stored else 0,
        choices,
        _more_output(counter, effects, choices),
        limit.limit,
        limit.fields,
        None,
        counter.audio,
        effects.output_audio,
        counter.features,
        None,
        counter.slack,
        search_context=_search_context(body),
        send_limit=limit.send,
        replaced=limit.replaced,
        size=size,
    )


def _search_context(body: Mapping[str, Any]) -> str | None:
    options = body.get("web_search_options")
    size = options.get("search_context_size") if isinstance(options, Mapping) else None
    return size if isinstance(size, str) else None


_CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
_OLDER_LIMIT = ("max_tokens",)
_REASONING = ("o1", "o3", "o4", "gpt-5")


def _chat_limit_field(model: str, prefer_max_tokens: bool) -> str:
    """OpenAI's reasoning models reject `max_tokens`, through whatever proxy they are reached."""
    if prefer_max_tokens and not model.startswith(_REASONING):
        return "max_tokens"
    return "max_completion_tokens"


@lru_cache(maxsize=1024)
def _takes_newer_limit(model: str) -> bool:
    """Whether a model is by its name OpenAI's, so that its server reads `max_completion_tokens`.

    Servers of other models may not: Ollama and TGI pass over it without a word.
    """
    name = model.rsplit("/", 1)[-1].removeprefix("ft:")
    return name.startswith((*_REASONING, "gpt-", "chatgpt-")) and not name.startswith("gpt-oss")


def _bound_responses(
    body: Mapping[str, Any], counter: InputCounter, table: Table, effects: FieldEffects
) -> RequestBound:
    given = body.get("input")
    if isinstance(given, str):
        counter.messages(({"content": given},))
    else:
        for item in given or ():
            counter.item(item)
    counter.json(body.get("instructions"))
    counter.tools(body.get("tools"))
    counter.json(body.get("text"))
    _count_others(counter, effects)
    # `previous_response_id` alone may be a response whose size is remembered.
    previous = body.get("previous_response_id")
    elsewhere = counter.stored or body.get("conversation") is not None or body.get("prompt") is not None
    usual = ("max_output_tokens",)
    sent = {name: positive(name, value) for name in usual if (value := body.get(name)) is not None}
    limit = _limit(usual, sent, usual[0], usual, effects)
    return RequestBound(
        input_tokens=None if previous or elsewhere or effects.stored else counter.tokens,
        extra_input=counter.tokens,
        choices=effects.choices,
        extra_output=_more_output(counter, effects, effects.choices),
        output_limit=limit.limit,
        limit_fields=limit.fields,
        input_audio=counter.audio,
        output_audio=effects.output_audio,
        features=counter.features,
        previous=previous if previous and not elsewhere else None,
        slack=counter.slack,
        send_limit=limit.send,
        replaced=limit.replaced,
    )


def _bound_completions(
    body: Mapping[str, Any], counter: InputCounter, table: Table, effects: FieldEffects
) -> RequestBound:
    prompts = _prompt(counter, body.get("prompt"))
    _count_others(counter, effects)
    sent = {name: positive(name, value) for name in _OLDER_LIMIT if (value := body.get(name)) is not None}
    limit = _limit(_OLDER_LIMIT, sent, "max_tokens", table.limits or _OLDER_LIMIT, effects)
    if not sent and not effects.limits and _takes_newer_limit(counter.model):
        # Other servers go on without an end: https://github.com/ggml-org/llama.cpp, n_predict -1.
        limit = limit._replace(limit=max(_LEGACY_MAX_TOKENS, effects.least_output))
    each = max(1 if (n := body.get("n")) is None else positive("n", n), effects.choices)
    return RequestBound(
        input_tokens=counter.tokens,
        choices=each * prompts,
        extra_output=_more_output(counter, effects, each),
        output_limit=limit.limit,
        limit_fields=limit.fields,
        features=counter.features,
        slack=counter.slack + USUAL,
        send_limit=limit.send,
        replaced=limit.replaced,
    )


def _prompt(counter: InputCounter, prompt: Any) -> int:
    """Count a prompt that is text, texts, token ids or lists of them; how many prompts."""
    if isinstance(prompt, str):
        counter.text(prompt)
        return 1
    if not isinstance(prompt, (list, tuple)):
        counter.json(prompt)
        return 1
    if prompt and all(isinstance(p, int) for p in prompt):
        counter.tokens += len(prompt)
        return 1
    for item in prompt:
        counter.tokens += counter.around
        counter.slack += counter.around
        if isinstance(item, str):
            counter.text(item)
        elif isinstance(item, (list, tuple)) and all(isinstance(p, int) for p in item):
            counter.tokens += len(item)
        else:
            counter.json(item)
    return max(1, len(prompt))


STORED_CONTEXT = (
    "stored_context",
    "The request continues context that is stored at the provider (previous_response_id, conversation, "
    "prompt or item_reference), whose size is not known here",
)
"""The feature and the reason, where a request cannot be bounded by what is in it."""
