"""What frameworks call a model, its URL and its output limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...prices import provider_for_url, provider_named
from ...rules.errors import ConfigError
from ...wire.fields import CONTAINERS, framework_fields, put_into_request

LIMIT_NAMES = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
    "max_new_tokens",
    "max_tokens_to_sample",
    "maxOutputTokens",
)
"""What frameworks' model classes call their output limit."""

ASKED = (
    "tools", "functions", "response_format", "web_search_options", "modalities", "prediction", "audio", "n",
    "service_tier", "previous_response_id", "conversation", "reasoning", "reasoning_effort", "thinking",
    "thinking_budget", "thinking_level",
)  # fmt: skip
"""Settings, by their usual names, that change what a request may come to."""

_MODEL_NAMES = ("model", "model_name", "model_id", "deployment_name", "azure_deployment", "repo_id")
_DEPLOYMENTS = ("deployment_name", "azure_deployment", "engine", "repo_id")
_URL_NAMES = ("openai_api_base", "base_url", "anthropic_api_url", "api_base", "endpoint", "api_url")


def fields_asked(settings: Mapping[str, Any], sent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields that a model's settings put into its request, but for the model, what it is asked
    and its output limit.

    Args:
        settings: the model object's own and the call's; most names are for the framework.
        sent: the keywords of the one call, all of which go into the request.
    """
    found = framework_fields(settings, sent)
    for name in _ELSEWHERE.intersection(found):
        del found[name]
    for name in _ASKED.intersection(settings):
        if settings[name] is not None:
            found[name] = settings[name]
    return found


_ELSEWHERE = frozenset(
    {"model", "messages", "prompt", "input", "stream", "stream_options", "stop", *LIMIT_NAMES}
)
_ASKED = frozenset(ASKED)
_LIMIT_NAMES = frozenset(LIMIT_NAMES)


def model_in(settings: Mapping[str, Any]) -> str | None:
    """The model that settings name, whatever they call it."""
    return next((m for n in _MODEL_NAMES if isinstance(m := settings.get(n), str) and m), None)


def model_field_of(model: Any, name: str, sent: Mapping[str, Any]) -> str | None:
    """The field of a pydantic object that names the model it asks for; None where another would not be asked
    if that said so: a deployment is part of an address.

    Args:
        name: the model that it asks for.
        sent: the keywords of the one call.
    """
    if not name or any(sent.get(n) is not None for n in _MODEL_NAMES):
        return None
    if any(getattr(model, n, None) for n in _DEPLOYMENTS):
        return None
    fields = type(model).model_fields
    return next((n for n in _MODEL_NAMES if n in fields and getattr(model, n, None) == name), None)


def provider_of(settings: Mapping[str, Any], maker: str) -> str | None:
    """The price list's id of the provider that a model object will call.

    Args:
        settings: its base URL, if it has one, whatever they call it.
        maker: the package or framework's name for the provider. OpenAI's classes are used for
            any compatible server, so that their name alone does not speak against the URL.
    """
    url = url_in(settings)
    if not url:
        return provider_named(maker)
    return provider_for_url(url) or (None if maker in ("", "openai") else provider_named(maker))


def url_in(settings: Mapping[str, Any]) -> str:
    """The base URL that settings name, whatever they call it; "" if none."""
    return next((u for n in _URL_NAMES if isinstance(u := settings.get(n), str) and u), "")


def output_limit(*sources: Mapping[str, Any]) -> int | None:
    """The output limit that settings carry, whatever they call it; the largest, None if none.

    What they put into the request as it is (`extra_body`) may carry one too.
    """
    limits = [
        value
        for source in (*sources, *(inner for source in sources for inner in put_into_request(source)))
        for name in _LIMIT_NAMES.intersection(source)
        if isinstance(value := source[name], int) and not isinstance(value, bool) and value > 0
    ]
    return max(limits) if limits else None


def lowered(values: Mapping[str, Any], limit: int, names: Collection[str] = _LIMIT_NAMES) -> dict[str, Any]:
    """`values` with no output limit in them above `limit`, also in what goes into the request as it is: a
    server may read any of them."""
    changed = {}
    for name, value in values.items():
        if name in names and value is not None:
            value = _at_most(limit, value)
        elif name in _AS_IT_IS and isinstance(value, Mapping):
            value = lowered(value, limit, names)
        changed[name] = value
    return changed


_AS_IT_IS = frozenset((*CONTAINERS, "extra_args"))


def _at_most(limit: int, own: Any) -> int:
    """A limit of the caller's own that is lower stays; what says "no limit" does not."""
    whole = isinstance(own, int) and not isinstance(own, bool)
    return own if whole and 0 < own < limit else limit


def schema_sent(asked: Any) -> Any:
    """What goes into a request for a `response_format` that is a pydantic class: its schema, made strict.

    https://platform.openai.com/docs/guides/structured-outputs
    """
    if not (isinstance(asked, type) and hasattr(asked, "model_json_schema")):
        return asked
    schema = {"name": asked.__name__, "schema": _strict(asked.model_json_schema()), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {name: _strict(inner) for name, inner in schema.items()}
    if isinstance(made.get("properties"), dict):
        made |= {"additionalProperties": False, "required": [*made["properties"]]}
    return made


def limit_field_of(base: Any, said: str | None) -> str | None:
    """The field of a pydantic class for its output limit; None if it has none.

    Args:
        said: which it is; default: the first of the usual names.

    Raises:
        ConfigError: it has no such field.
    """
    if said is None:
        return next((name for name in LIMIT_NAMES if name in base.model_fields), None)
    if said not in base.model_fields:
        raise ConfigError(f"{base.__name__} has no field {said!r}")
    return said
