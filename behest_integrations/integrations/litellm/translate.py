"""From LiteLLM's words to the engine's: what is asked, who asks, what came back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...prices import provider_for_url, provider_named
from ...rules.attribution import NOBODY, USER_HEADER, Attribution
from ...wire.usage_shapes import find_usage, read_usage
from ..kit.call import folding
from ..kit.generation import Heard, texts_in
from ..kit.naming import id_in, said_in
from ..kit.settings import ASKED, LIMIT_NAMES, lowered, output_limit, schema_sent
from .internals import OWN

_NOT_SENT = OWN - frozenset(ASKED) | {
    "timeout", "base_url", "deployment_id", "functions_unsupported_model", "extra_headers", "extra_query",
    "drop_params", "shared_session", "enable_json_schema_validation", "stream", "stream_options",
    "max_retries", "organization", "model_list", "encoding_format", "aresponses", "atext_completion",
    "acompletion", "aembedding", "specific_deployment", "original_function", "litellm_params",
    # Whose account is called, and where: https://docs.litellm.ai/docs/providers/bedrock,
    # https://docs.litellm.ai/docs/providers/vertex
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region_name", "aws_session_name",
    "aws_session_tags", "aws_profile_name", "aws_role_name", "aws_web_identity_token", "aws_sts_endpoint",
    "aws_bedrock_runtime_endpoint", "aws_external_id", "vertex_project", "vertex_location",
    "vertex_credentials",
}  # fmt: skip
_LIMITS = frozenset(LIMIT_NAMES)


def request_as_wire(operation: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request that a function was asked to make.

    Args:
        operation: the function's name.
        asked: its arguments, by their names.
    """
    wire = {n: v for n, v in asked.items() if v is not None and n not in _NOT_SENT and n not in _LIMITS}
    extra = wire.pop("extra_body", None)
    if "response_format" in wire:
        wire["response_format"] = schema_sent(wire["response_format"])
    wire["model"] = str(asked.get("model") or "")
    if isinstance(extra, Mapping):
        wire |= extra  # it is put over the request, the model too
    if operation == "embedding":
        return {
            name: value for name, value in wire.items() if name in ("model", "input", "dimensions", "user")
        }
    if operation == "responses":
        given = wire.pop("input", "")
        instructions = wire.pop("instructions", None)
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        wire["messages"] = [{"role": "system", "content": instructions}] * bool(instructions) + messages
        if "text" in wire:
            wire["response_format"] = wire.pop("text")
        for name in ("include", "truncation"):
            wire.pop(name, None)
    limit = output_limit(asked, extra if isinstance(extra, Mapping) else {})
    if limit is not None:
        wire["max_tokens"] = limit
    return wire


def limited(operation: str, asked: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The keywords to send in the place of the caller's own, so that no limit in them is above this one."""
    own = lowered({n: asked[n] for n in (*LIMIT_NAMES, "extra_body") if asked.get(n) is not None}, limit)
    if not _LIMITS.isdisjoint(own):
        return own
    return {**own, "max_output_tokens" if operation == "responses" else "max_tokens": limit}


COMPATIBLE = ("openai", "custom_openai", "text-completion-openai")
"""LiteLLM's names for OpenAI's API at any address."""


def price_provider(name: str, url: str) -> str | None:
    """Whose prices apply, by LiteLLM's name of a provider and the address."""
    by_url = provider_for_url(url) if url else None
    if by_url is not None or (url and name in COMPATIBLE):
        return by_url
    return provider_named(name)


# ── who ────────────────────────────────────────────────────────────────────────────────


def attribution_of(asked: Mapping[str, Any]) -> tuple[Attribution, Attribution]:
    """(said on the call itself, LiteLLM's own ids) of a call; those that its proxy has put there too.

    Raises:
        ConfigError: something in the call's metadata cannot be an id.
    """
    metadata = _metadata(asked)
    said = said_in(metadata)
    own = Attribution(
        session_id=id_in({**metadata, **asked}, "litellm_session_id"),
        user_id=id_in(metadata, "user_api_key_end_user_id", "user_api_key_user_id"),
        project=id_in(metadata, "user_api_key_team_id"),
        tenant=id_in(metadata, "user_api_key_org_id"),
    )
    if _PROXY in metadata:
        # What a client of the proxy says of itself comes after what its key says, and what others pay for
        # is not its to name.
        return own.over(Attribution(session_id=said.session_id, user_id=said.user_id)), NOBODY
    return said, own


def renamed(asked: Mapping[str, Any], user: str | None) -> dict[str, Any]:
    """Headers without those by which a client of the proxy names another end user than its key does.

    Args:
        user: whom the call is for, as `attribution_of` says it.
    """
    if user is None or _PROXY not in _metadata(asked):
        return {}
    return {
        name: {n: v for n, v in asked[name].items() if str(n).lower() != USER_HEADER.lower()}
        for name in ("extra_headers", "headers")
        if isinstance(asked.get(name), Mapping)
    }


def _metadata(asked: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    given = [asked[n] for n in ("litellm_metadata", "metadata") if isinstance(asked.get(n), Mapping)]
    for one in sorted(given, key=lambda one: _PROXY in one):
        metadata |= one
    return metadata


_PROXY = "user_api_key_hash"
"""What its proxy puts into each call, and takes out of what clients send."""


# ── what came back ─────────────────────────────────────────────────────────────────────


def hear(response: Any) -> Heard:
    """What an answer says of its cost."""
    body = _plain(response)
    if not body:
        return Heard()
    usage, text = read_usage(find_usage(body)), texts_in(body.get("choices") or body.get("output"), _NO_TEXT)
    return Heard.of(
        usage,
        text,
        model=_str(body, "model"),
        service_tier=_str(body, "service_tier"),
        provider_id=_str(body, "id"),
    )


class Chunks:
    """What the chunks of a stream have said so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.said: dict[str, Any] = {}

    def add(self, chunk: Any) -> None:
        """Take in a chunk, or an event of a response."""
        body = _plain(chunk)
        whole = _plain(body.get("response"))
        for source in (body, whole):
            for name in ("model", "id", "service_tier", "usage"):
                if source.get(name) is not None:
                    self.said[name] = source[name]
        delta = body.get("delta")
        self.text.append(delta if isinstance(delta, str) else texts_in(body.get("choices"), _NO_TEXT))

    def heard(self, usage: Any) -> Heard:
        """What they say of its cost; `usage` is what LiteLLM was told beside them."""
        said = self.said.get("usage") or usage
        return hear({**self.said, "usage": _plain(said) or None, "choices": ["".join(self.text)]})


fold = folding(Chunks)


def _plain(value: Any) -> Mapping[str, Any]:
    """An object of LiteLLM's as JSON; it does not keep to its own types, and pydantic would warn of that."""
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    found = dump(warnings=False) if callable(dump) else None
    return found if isinstance(found, Mapping) else {}


_NO_TEXT = (
    "id", "type", "role", "status", "call_id", "finish_reason", "logprobs", "annotations", "index",
    "provider_specific_fields",
)  # fmt: skip


def _str(source: Mapping[str, Any], name: str) -> str | None:
    value = source.get(name)
    return value if isinstance(value, str) and value else None
