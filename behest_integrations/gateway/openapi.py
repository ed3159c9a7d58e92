"""The OpenAPI 3.1 document of the gateway, and a page that shows it without any other host."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from .. import __version__
from ..rules.attribution import MAX_ID
from . import shapes
from .problems import JSON

_ERRORS = {
    "400": "The request cannot be used as it is (`validation_error`, `unknown_price`, `unbounded`).",
    "401": "No key or token, or not a valid one (`invalid_token`). Never retry it as it is.",
    "402": "A budget is used up (`quota_exceeded`). Do not retry: `details` says which, and when it resets.",
    "403": "The key or token may not do that (`forbidden`).",
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
_CALL_ERRORS = tuple(status for status in _ERRORS if status != "501")
_ACCOUNT_ERRORS = ("400", "401", "403", "503")
_BUDGET_HEADERS = {
    "X-Budget": "The budget with the least left of those that the call is in, as text (percent-encoded).",
    "X-Budget-Limit": "Its limit, e.g. `$5` or `10 calls`.",
    "X-Budget-Left": "What of it is neither spent nor held by calls in flight.",
    "X-Budget-Reset": "When it resets, in seconds since 1970; absent if it never does.",
    "X-Model-Asked": "The model that was asked for, where a cheaper one has answered (percent-encoded).",
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _answers(
    ok: type[BaseModel], errors: tuple[str, ...], *, streams: bool = False, budgets: bool = True
) -> dict[str, Any]:
    headers = {"X-Trace-Id": {"$ref": "#/components/headers/X-Trace-Id"}}
    if budgets:
        headers["X-Tier"] = {"$ref": "#/components/headers/X-Tier"}
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in _BUDGET_HEADERS}
    content: dict[str, Any] = {"application/json": {"schema": _ref(ok)}}
    if streams:
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": "Events, if `stream` is true; each `data:` is JSON."}
        }
    answers: dict[str, Any] = {"200": {"description": "As asked.", "headers": headers, "content": content}}
    for status in errors:
        answers[status] = _error(status)
    return answers


def _call(
    id: str, summary: str, request: type[BaseModel], reply: type[BaseModel], *, streams: bool
) -> dict[str, Any]:
    return {
        "post": {
            "operationId": id,
            "summary": summary,
            "description": (
                "Checked, held to its budgets, and sent on; fields that are not listed go to the provider "
                f"untouched. In OpenAI's own words: {(request.__doc__ or '').strip()}"
            ),
            "tags": ["Calls"],
            "parameters": [
                {"$ref": "#/components/parameters/X-End-User-Id"},
                {"$ref": "#/components/parameters/X-Session-Id"},
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
            "responses": _answers(reply, _CALL_ERRORS, streams=streams),
        }
    }


def _get(
    id: str, summary: str, tag: str, answers: dict[str, Any], *parameters: dict[str, Any], open: bool = False
) -> dict[str, Any]:
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


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name, "in": "query", "description": description, "schema": schema or {"type": "string"},
    }  # fmt: skip


_MOMENT = {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}


def _plain(description: str) -> dict[str, Any]:
    return {
        "200": {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}},
        "404": {"$ref": "#/components/responses/Error404"},
    }


def _paths() -> dict[str, Any]:
    window = (
        _query(
            "from", "A date or time (UTC if it names no zone); default: the first of this month.", **_MOMENT
        ),
        _query("to", "The same, not included; default: now.", **_MOMENT),
    )
    return {
        "/v1/chat/completions": _call(
            "createChatCompletion",
            "A chat completion",
            shapes.ChatCompletionRequest,
            shapes.ChatCompletion,
            streams=True,
        ),
        "/v1/completions": _call(
            "createCompletion", "A completion", shapes.CompletionRequest, shapes.Completion, streams=True
        ),
        "/v1/responses": _call(
            "createResponse", "A response", shapes.ResponseRequest, shapes.Response, streams=True
        ),
        "/v1/embeddings": _call(
            "createEmbedding", "Embeddings", shapes.EmbeddingRequest, shapes.Embeddings, streams=False
        ),
        **_messages(),
        "/v1/models": _get(
            "listModels", "The models there are", "Calls", _answers(shapes.ModelList, ("401", "403", "503"))
        ),
        "/v1/models/{id}": _get(
            "getModel",
            "One model",
            "Calls",
            _answers(shapes.Model, ("400", "401", "403", "404", "503")),
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
        ),
        **_threads(),
        **_admin(),
        "/v1/usage": _get(
            "getUsage",
            "What was spent, over time",
            "Spending",
            _answers(shapes.Usage, _ACCOUNT_ERRORS),
            *window,
            _query("user_id", "Only this end user's. A token is told its own user's."),
            _query("granularity", "How finely.", type="string", enum=["hour", "day", "month"], default="day"),
        ),
        "/v1/billing/usage": _get(
            "getBillingUsage",
            "What was spent, by model",
            "Spending",
            _answers(shapes.BillingUsage, _ACCOUNT_ERRORS),
            *window,
        ),
        "/v1/auth/mint": {
            "post": {
                "operationId": "mintToken",
                "summary": "A token with which one end user can call",
                "description": "For an API key that may speak for end users. It binds its user and session.",
                "tags": ["Access"],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref(shapes.MintRequest)}},
                },
                "responses": _answers(
                    shapes.MintedToken, (*_ACCOUNT_ERRORS, "408", "413", "415"), budgets=False
                ),
            }
        },
        "/": _get(
            "getIndex", "Where things are", "Operation", _answers(shapes.Index, (), budgets=False), open=True
        ),
        "/.well-known/jwks.json": _get(
            "getPublishedKeys",
            "The keys with which tokens can be checked",
            "Access",
            _answers(shapes.PublishedKeys, (), budgets=False),
            open=True,
        ),
        "/healthz": _get(
            "getHealth", "Whether it runs", "Operation", _answers(shapes.Health, (), budgets=False), open=True
        ),
        "/readyz": _get(
            "getReadiness",
            "Whether it can take calls",
            "Operation",
            _answers(shapes.Health, ("503",), budgets=False),
            open=True,
        ),
        "/metrics": _get(
            "getMetrics",
            "Counts, for Prometheus",
            "Operation",
            _plain("Prometheus's text format."),
            open=True,
        ),
    }


def _messages() -> dict[str, Any]:
    """Anthropic's own API: the same, in its words; errors in its shape, too."""
    shape = {"anyOf": [_ref(shapes.MessagesError), _ref(shapes.Error)]}
    errors = {
        status: {
            "description": _ERRORS[status],
            "headers": {"X-Trace-Id": {"$ref": "#/components/headers/X-Trace-Id"}},
            "content": {"application/json": {"schema": shape}},
        }
        for status in _CALL_ERRORS
    }
    asked = shapes.MessagesRequest
    made = _call("createMessage", "A message, by Anthropic's API", asked, shapes.MessageReply, streams=True)
    counted = _call(
        "countTokens", "How many tokens a message would have; free", asked, shapes.TokenCount, streams=False
    )
    for path in (made, counted):
        path["post"]["responses"].update(errors)
        path["post"]["description"] = path["post"]["description"].replace("OpenAI's", "Anthropic's")
    return {"/v1/messages": made, "/v1/messages/count_tokens": counted}


def _threads() -> dict[str, Any]:
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    whose = _query("user_id", "Only this end user's. A token is told its own user's.")
    most = _query("limit", "At most so many.", type="integer", minimum=1, maximum=1000, default=100)
    about, errors = "Sessions", (*_ACCOUNT_ERRORS, "404")
    thread = functools.partial(_answers, shapes.Thread, errors, budgets=False)
    forget = _get("forgetThread", "Forget a session", about, thread(), id)
    gone = {"description": "Its ids are replaced by others; what its calls cost stays."}
    forget["get"]["responses"] = {**forget["get"]["responses"], "204": gone, "501": _error("501")}
    del forget["get"]["responses"]["200"]
    one = _get("getThread", "One session", about, thread(), id)
    said = _answers(shapes.ThreadMessages, errors, budgets=False)
    return {
        "/v1/threads": _get(
            "listThreads",
            "The sessions there are",
            about,
            _answers(shapes.Threads, _ACCOUNT_ERRORS, budgets=False),
            whose,
            most,
        ),
        "/v1/threads/{id}": {**one, "delete": forget["get"]},
        "/v1/threads/{id}/messages": _get("listMessages", "That messages are not kept", about, said, id),
    }


_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NAME = {**_ID, "name": "name"}


def _listed(id: str, summary: str, told: type[BaseModel]) -> dict[str, Any]:
    answers = _answers(told, ("401", "403", "503"), budgets=False)
    return _get(id, summary, "Administration", answers)["get"]  # type: ignore[no-any-return]


def _change(
    id: str,
    summary: str,
    asked: type[BaseModel] | None,
    told: type[BaseModel],
    *parameters: dict[str, Any],
    status: str = "200",
) -> dict[str, Any]:
    errors: tuple[str, ...] = ("400", "401", "403", "503")
    errors += (("404",) if parameters else ()) + (("408", "413", "415") if asked is not None else ())
    answers = _answers(told, errors, budgets=False)
    answers[status] = answers.pop("200")
    made = _get(id, summary, "Administration", answers, *parameters)["get"]
    if asked is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(asked)}}}
    return made  # type: ignore[no-any-return]


def _admin() -> dict[str, Any]:
    keys, own = "/admin/v1/keys", "/admin/v1/byok"
    key, new, own_key = shapes.AdminKey, shapes.NewKey, shapes.OwnKey
    return {
        keys: {
            "get": _listed("listKeys", "All keys, without the keys", shapes.AdminKeys),
            "post": _change("createKey", "Make a key; it is told once", shapes.KeyRequest, new, status="201"),
        },
        keys + "/{id}": {"delete": _change("revokeKey", "End a key at once", None, key, _ID)},
        keys + "/{id}/rotate": {
            "post": _change(
                "rotateKey", "Another key in its place", shapes.RotateRequest, new, _ID, status="201"
            )
        },
        keys + "/{id}/expire": {
            "post": _change("expireKey", "Let a key end", shapes.ExpireRequest, key, _ID)
        },
        own: {
            "get": _listed("listOwnKeys", "Tenants' own keys at providers", shapes.OwnKeys),
            "post": _change(
                "setOwnKey",
                "Make a tenant's calls with its own key",
                shapes.OwnKeyRequest,
                own_key,
                status="201",
            ),
        },
        own + "/{id}": {
            "delete": _change("removeOwnKey", "Make them with the gateway's again", None, own_key, _ID)
        },
    }


def _error(status: str) -> dict[str, Any]:
    return {"$ref": f"#/components/responses/Error{status.title()}"}


def _id_header(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string", "maxLength": MAX_ID},
    }


@functools.lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The whole document."""
    models = [
        m
        for m in vars(shapes).values()
        if isinstance(m, type) and issubclass(m, BaseModel) and m is not BaseModel and m.__name__[0] != "_"
    ]
    _, definitions = models_json_schema(
        [(m, "validation") for m in models],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Behest gateway",
            "version": __version__,
            "description": (
                "An OpenAI-compatible endpoint that attributes every call and holds it to hard budgets. "
                "Every answer has `X-Trace-Id`; errors have one shape, which OpenAI's SDKs read too."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This gateway"}],
        "security": [{"bearer": []}],
        "tags": [
            {"name": n} for n in ("Calls", "Sessions", "Spending", "Access", "Administration", "Operation")
        ],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key of `behest keys create`, or a token of `/v1/auth/mint`.",
                }
            },
            "parameters": {
                "X-End-User-Id": _id_header("X-End-User-Id", "The end user that the call is for."),
                "X-Session-Id": _id_header("X-Session-Id", "The session that the call belongs to."),
            },
            "headers": {
                "X-Trace-Id": _header("Names this answer: in the ledger it is the tag `trace`."),
                "X-Tier": _header("The caller's tier, if it has one."),
                **{name: _header(text) for name, text in _BUDGET_HEADERS.items()},
            },
            "responses": {
                f"Error{status.title()}": {
                    "description": text,
                    "headers": {"X-Trace-Id": {"$ref": "#/components/headers/X-Trace-Id"}},
                    "content": {"application/json": {"schema": _ref(shapes.Error)}},
                }
                for status, text in _ERRORS.items()
            },
            "schemas": definitions.get("$defs", {}),
        },
    }


# ── the page ───────────────────────────────────────────────────────────────────────────

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Behest gateway</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
});
"""
_OWN_HOST_ALONE = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
)


async def _document(request: Request) -> Response:
    return JSON(document())


async def _page(request: Request) -> Response:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _OWN_HOST_ALONE})


async def _start(request: Request) -> Response:
    return Response(_START, media_type="text/javascript")


def routes() -> list[BaseRoute]:
    """`/openapi.json`, and `/docs` with the files of Swagger UI (as packaged by fastapi-offline)."""
    found: list[BaseRoute] = [
        Route("/openapi.json", _document),
        Route("/docs", _page),
        Route("/docs/start.js", _start),
    ]
    # Found, and not imported: what is wanted are two files, not the framework around them.
    spec = find_spec("fastapi_offline")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
            path = Path(folder) / "static" / name

            async def file(request: Request, path: Path = path) -> Response:
                return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

            found.append(Route(f"/docs/{name}", file))
    return found
