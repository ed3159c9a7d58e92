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
from . import admin_shapes, openapi_admin, shapes
from .openapi_parts import BUDGET_HEADERS, ERRORS, answers, error, get, query, ref
from .problems import JSON

_CALL_ERRORS = tuple(status for status in ERRORS if status != "501")
_ACCOUNT_ERRORS = ("400", "401", "403", "503")


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


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
            "requestBody": {"required": True, "content": {"application/json": {"schema": ref(request)}}},
            "responses": answers(reply, _CALL_ERRORS, streams=streams),
        }
    }


_MOMENT = {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}


def _plain(description: str) -> dict[str, Any]:
    return {
        "200": {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}},
        "404": {"$ref": "#/components/responses/Error404"},
    }


def _paths() -> dict[str, Any]:
    window = (
        query(
            "from", "A date or time (UTC if it names no zone); default: the first of this month.", **_MOMENT
        ),
        query("to", "The same, not included; default: now.", **_MOMENT),
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
        "/v1/models": get(
            "listModels", "The models there are", "Calls", answers(shapes.ModelList, ("401", "403", "503"))
        ),
        "/v1/models/{id}": get(
            "getModel",
            "One model",
            "Calls",
            answers(shapes.Model, ("400", "401", "403", "404", "503")),
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
        ),
        **_threads(),
        **openapi_admin.paths(),
        "/v1/usage": get(
            "getUsage",
            "What was spent, over time",
            "Spending",
            answers(shapes.Usage, _ACCOUNT_ERRORS),
            *window,
            query("user_id", "Only this end user's. A token is told its own user's."),
            query("granularity", "How finely.", type="string", enum=["hour", "day", "month"], default="day"),
        ),
        "/v1/billing/usage": get(
            "getBillingUsage",
            "What was spent, by model",
            "Spending",
            answers(shapes.BillingUsage, _ACCOUNT_ERRORS),
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
                    "content": {"application/json": {"schema": ref(shapes.MintRequest)}},
                },
                "responses": answers(
                    shapes.MintedToken, (*_ACCOUNT_ERRORS, "408", "413", "415"), budgets=False
                ),
            }
        },
        "/": get(
            "getIndex", "Where things are", "Operation", answers(shapes.Index, (), budgets=False), open=True
        ),
        "/.well-known/jwks.json": get(
            "getPublishedKeys",
            "The keys with which tokens can be checked",
            "Access",
            answers(shapes.PublishedKeys, (), budgets=False),
            open=True,
        ),
        "/healthz": get(
            "getHealth", "Whether it runs", "Operation", answers(shapes.Health, (), budgets=False), open=True
        ),
        "/readyz": get(
            "getReadiness",
            "Whether it can take calls",
            "Operation",
            answers(shapes.Health, ("503",), budgets=False),
            open=True,
        ),
        "/metrics": get(
            "getMetrics",
            "Counts, for Prometheus",
            "Operation",
            _plain("Prometheus's text format."),
            open=True,
        ),
    }


def _messages() -> dict[str, Any]:
    """Anthropic's own API: the same, in its words; errors in its shape, too."""
    shape = {"anyOf": [ref(shapes.MessagesError), ref(shapes.Error)]}
    errors = {
        status: {
            "description": ERRORS[status],
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
    whose = query("user_id", "Only this end user's. A token is told its own user's.")
    most = query("limit", "At most so many.", type="integer", minimum=1, maximum=1000, default=100)
    about, errors = "Sessions", (*_ACCOUNT_ERRORS, "404")
    thread = functools.partial(answers, shapes.Thread, errors, budgets=False)
    forget = get("forgetThread", "Forget a session", about, thread(), id)
    gone = {"description": "Its ids are replaced by others; what its calls cost stays."}
    forget["get"]["responses"] = {**forget["get"]["responses"], "204": gone, "501": error("501")}
    del forget["get"]["responses"]["200"]
    one = get("getThread", "One session", about, thread(), id)
    said = answers(shapes.ThreadMessages, errors, budgets=False)
    return {
        "/v1/threads": get(
            "listThreads",
            "The sessions there are",
            about,
            answers(shapes.Threads, _ACCOUNT_ERRORS, budgets=False),
            whose,
            most,
        ),
        "/v1/threads/{id}": {**one, "delete": forget["get"]},
        "/v1/threads/{id}/messages": get("listMessages", "That messages are not kept", about, said, id),
    }


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
        for m in (*vars(shapes).values(), *vars(admin_shapes).values())
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
                **{name: _header(text) for name, text in BUDGET_HEADERS.items()},
            },
            "responses": {
                f"Error{status.title()}": {
                    "description": text,
                    "headers": {"X-Trace-Id": {"$ref": "#/components/headers/X-Trace-Id"}},
                    "content": {"application/json": {"schema": ref(shapes.Error)}},
                }
                for status, text in ERRORS.items()
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
