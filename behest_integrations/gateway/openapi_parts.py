"""Parts of the OpenAPI document that its subjects share: answers, errors, parameters."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

ERRORS = {
    "400": "The request cannot be used as it is (`validation_error`, `unknown_price`, `unbounded`).",
    "401": "No key or token, or not a valid one (`invalid_token`). Never retry it as it is.",
    "402": "A budget is used up (`quota_exceeded`). Do not retry: `details` says which, and when it resets.",
    "403": "The key or token may not do that (`forbidden`), or the session goes round in circles "
    "(`loop_detected`).",
    "404": "No such model or response (`model_not_found`, `not_found`).",
    "408": "The body came too slowly.",
    "413": "The body is too large (`payload_too_large`).",
    "415": "The body is not JSON (`unsupported_media_type`).",
    "429": "A rate is used up, or calls in flight hold what is left (`rate_limited`): retry after "
    "`Retry-After` if `x-should-retry` is `true`.",
    "501": "The ledger that is used here cannot do that.",
    "502": "The provider failed, or cannot be reached (`server_error`).",
    "503": "The gateway or its ledger cannot take the call now: retry after `Retry-After`. Or the tenant's "
    "own key at the provider cannot be read (`provider_key_unusable`).",
    "504": "The provider did not answer in time.",
    "default": "Another error: what the provider says of the request.",
}
BUDGET_HEADERS = {
    "X-Budget": "The budget with the least left of those that the call is in, as text (percent-encoded).",
    "X-Budget-Limit": "Its limit, e.g. `$5` or `10 calls`.",
    "X-Budget-Left": "What of it is neither spent nor held by calls in flight.",
    "X-Budget-Reset": "When it resets, in seconds since 1970; absent if it never does.",
    "X-Model-Asked": "The model that was asked for, where a cheaper one has answered (percent-encoded).",
}


def ref(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema, where the document has it."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def answers(
    ok: type[BaseModel], errors: tuple[str, ...], *, streams: bool = False, budgets: bool = True
) -> dict[str, Any]:
    """What an operation may be answered: a success, and errors by their status."""
    headers = {"X-Trace-Id": {"$ref": "#/components/headers/X-Trace-Id"}}
    if budgets:
        headers["X-Tier"] = {"$ref": "#/components/headers/X-Tier"}
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in BUDGET_HEADERS}
    content: dict[str, Any] = {"application/json": {"schema": ref(ok)}}
    if streams:
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": "Events, if `stream` is true; each `data:` is JSON."}
        }
    found: dict[str, Any] = {"200": {"description": "As asked.", "headers": headers, "content": content}}
    for status in errors:
        found[status] = error(status)
    return found


def get(
    id: str, summary: str, tag: str, answers: dict[str, Any], *parameters: dict[str, Any], open: bool = False
) -> dict[str, Any]:
    """An operation, under `get`. `open`: it needs no key."""
    operation: dict[str, Any] = {
        "operationId": id,
        "summary": summary,
        "tags": [tag],
        "parameters": list(parameters),
        "responses": answers,
    }
    if open:
        operation["security"] = []
    return {"get": operation}


def query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A parameter of the address; of text, if no schema says otherwise."""
    return {
        "name": name, "in": "query", "description": description, "schema": schema or {"type": "string"},
    }  # fmt: skip


def error(status: str) -> dict[str, Any]:
    """The answer to an error, where the document has it."""
    return {"$ref": f"#/components/responses/Error{status.title()}"}
