"""What the endpoints take and answer, as OpenAPI 3.1 at `/openapi.json`, and a page that shows it at `/docs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Blueprint, Response, current_app, jsonify, request, send_from_directory
from pydantic.json_schema import models_json_schema

from ..errors import (
    AtCapacity,
    CrossSite,
    Draining,
    InvalidRequest,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    SSEError,
    TargetNotAllowed,
    Throttled,
    TooLarge,
    TooManyStreams,
    Unauthenticated,
    UnsupportedMediaType,
    UpgradeRequired,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from .model import ForwardRequest, Problem
from .page import STATIC, protect
from .state import State, current_state

#: Version of what the document describes; a change that breaks a client changes the first number.
VERSION = "1.0"

#: Swagger UI's own files; the package is nothing but them and a blueprint, whose page has inline script.
ASSETS = Path(flask_swagger_ui.__file__).parent / "dist"

#: What any relayed call may be refused with.
RELAY_REFUSALS = (
    InvalidRequest,
    Unauthenticated,
    TargetNotAllowed,
    CrossSite,
    MethodNotAllowed,
    LengthRequired,
    TooLarge,
    Throttled,
    TooManyStreams,
    UpstreamUnreachable,
    UpstreamBadResponse,
    AtCapacity,
    Draining,
    UpstreamTimeout,
)

# Without a type, for readers of OpenAPI 3.1 disagree whether the whole is meant, or an event.
_STREAM = {
    "text/event-stream": {
        "schema": {"description": "events, as they come (WHATWG HTML, section 9.2)"},
        "example": 'id: 1\ndata: {"text": "Hello"}\n\n',
    }
}
# What protocol/field.py lets out; any other type becomes application/octet-stream.
_UPSTREAM_CONTENT: dict[str, Any] = {
    **_STREAM,
    "application/json": {},
    "application/x-ndjson": {},
    "text/plain": {},
    "application/octet-stream": {},
}

_DESCRIPTION = """Streams an upstream's `text/event-stream` to browsers: safely, unchanged, at once.

What an upstream answers comes unchanged: status, bytes, and of its fields those that are safe; its errors carry
`X-Upstream-Status`. Refusals of the gateway's own are `application/problem+json` with a stable `code`."""

_FORWARD = """Calls what the JSON describes, and answers with what comes, as it comes. The passcode may stand in the
JSON as well as in a field of the request."""

_UPSTREAM = """Passes the request itself on: method, path, query, body and end-to-end fields, so the gateway can be the
base URL of an SDK. The path may have many segments. Where a passcode is wanted, `Authorization: Bearer` is the
gateway's and goes no further."""

_TICKS = "An event every 200 ms, with ids that count from 1, or from `Last-Event-ID`. It does not end."


def docs_blueprint() -> Blueprint:
    """Return the document and the page."""
    blueprint = Blueprint("sse_docs", __name__)
    blueprint.add_url_rule("/openapi.json", view_func=document)
    blueprint.add_url_rule("/docs", view_func=page)
    blueprint.add_url_rule("/docs/<name>", view_func=asset)
    blueprint.after_request(protect)
    return blueprint


def document() -> Response:
    """Serve the document."""
    base = request.script_root + request.path.removesuffix("/openapi.json")
    return jsonify(openapi(current_state(), current_app.view_functions, base=base or "/"))


def page() -> Response:
    """Serve the page."""
    return send_from_directory(STATIC, "docs.html")


def asset(name: str) -> Response:
    """Serve what the page needs."""
    return send_from_directory(STATIC if name == "docs.js" else ASSETS, name)


def openapi(state: State, endpoints: Iterable[str], *, base: str) -> dict[str, Any]:
    """Return the document of one app.

    :param endpoints: Flask's names of what is registered; the rest is left out.
    :param base: the path below which everything is served.
    """
    paths = {
        "sse_relay.forward": ("/forward-sse", _forward(state)),
        "sse_relay.upstream": ("/upstream/{name}/{path}", _upstream(state)),
        "sse_ticker.ticks": ("/sse", _ticks()),
        "sse_metrics.metrics": ("/metrics", _metrics()),
    }
    _, schemas = models_json_schema(
        [(ForwardRequest, "validation"), (Problem, "serialization")], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "flask-sse-relay", "version": VERSION, "description": _DESCRIPTION},
        "servers": [{"url": base}],
        "paths": dict(path for endpoint, path in paths.items() if endpoint in endpoints),
        "components": {
            "schemas": schemas["$defs"],
            "headers": _HEADERS,
            "securitySchemes": _SECURITY_SCHEMES if state.settings.passcodes else {},
        },
    }


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the passcode, as an SDK sends its API key"},
    "field": {"type": "apiKey", "in": "header", "name": "X-Passcode", "description": "the passcode, in its own field"},
}


def _header(description: str, type_: str = "string", *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": type_}}


_HEADERS = {
    "X-Request-Id": _header("as in the gateway's log", required=True),
    "X-Upstream-Request-Id": _header("the X-Request-Id that the upstream gave"),
    "X-Upstream-Status": _header("the upstream said it, not the gateway", "integer"),
    "Retry-After": _header("seconds after which the same request would be let in; an upstream may give a date"),
    "X-RateLimit-Limit": _header("calls in the window, unless the upstream speaks of its own"),
    "X-RateLimit-Remaining": _header("calls that are left in it"),
    "X-RateLimit-Reset": _header("seconds until there is one more"),
    "WWW-Authenticate": _header("how to say who you are"),
    "Allow": _header("the methods there are"),
}

_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "1 to 128 of A-Z a-z 0-9 . _ -, else a new one is made; it goes to the upstream and into the log",
    "schema": {"type": "string"},
}
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "id of the last event that was seen, as EventSource sends it when it comes back",
    "schema": {"type": "string"},
}


def _forward(state: State) -> dict[str, Any]:
    security = _security(state)
    return {
        "post": {
            "operationId": "forward",
            "summary": "Call an upstream by its URL",
            "description": _FORWARD,
            "parameters": [_REQUEST_ID],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ForwardRequest"}}},
            },
            "responses": _relayed(state, (*RELAY_REFUSALS, UnsupportedMediaType)),
            # The last way is the `passcode` of the JSON, for which OpenAPI has no scheme.
            "security": [*security, {}] if security else [],
        }
    }


def _upstream(state: State) -> dict[str, Any]:
    names = {"enum": list(state.table.names)} if state.table.names else {}
    operations = {}
    for method in ("get", "head", "post", "put", "patch", "delete"):
        operations[method] = {
            "operationId": f"upstream_{method}",
            "summary": "Call an upstream by its name",
            "description": _UPSTREAM,
            "parameters": [_REQUEST_ID, *([_LAST_EVENT_ID] if method == "get" else [])],
            **({} if method in ("get", "head") else {"requestBody": {"content": {"application/json": {}, "*/*": {}}}}),
            "responses": _relayed(state, (*RELAY_REFUSALS, NotFound, UpgradeRequired)),
            "security": _security(state),
        }
    return {
        "parameters": [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string", **names}},
            {"name": "path", "in": "path", "required": True, "schema": {"type": "string"}},
        ],
        **operations,
    }


def _ticks() -> dict[str, Any]:
    operation = {
        "summary": "A stream to try things with",
        "description": _TICKS,
        "parameters": [
            _REQUEST_ID,
            _LAST_EVENT_ID,
            {
                "name": "lastEventId",
                "in": "query",
                "description": "the same, for a first connection",
                "schema": {"type": "string"},
            },
        ],
        "responses": {
            "200": {"description": "the events", "headers": _refer("X-Request-Id"), "content": _STREAM},
            **_refused((MethodNotAllowed,)),
        },
        "security": [],
    }
    return {method: {"operationId": f"ticks_{method}", **operation} for method in ("get", "head")}


def _metrics() -> dict[str, Any]:
    return {
        "get": {
            "operationId": "metrics",
            "summary": "What Prometheus reads",
            "responses": {"200": {"description": "what was counted", "content": {"text/plain": {}}}},
            "security": [],
        }
    }


def _security(state: State) -> list[dict[str, list[str]]]:
    return [{name: []} for name in _SECURITY_SCHEMES] if state.settings.passcodes else []


def _refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _relayed(state: State, refusals: Iterable[type[SSEError]]) -> dict[str, Any]:
    """Return the responses of a relayed call: an upstream may answer with any status, also with one of ours."""
    if state.access.is_open:
        refusals = [refusal for refusal in refusals if refusal is not Unauthenticated]
    common = (
        "X-Request-Id",
        "X-Upstream-Request-Id",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
    )
    theirs = {"headers": _refer(*common, "X-Upstream-Status", "Retry-After"), "content": _UPSTREAM_CONTENT}
    ours = _refused(refusals)
    for response in ours.values():
        response["headers"] = {**_refer(*common, "X-Upstream-Status", "Retry-After"), **response["headers"]}
        response["content"] = {**response["content"], **_UPSTREAM_CONTENT}
    return {
        "2XX": {"description": "what the upstream answers", **theirs, "headers": _refer(*common)},
        "304": {"description": "the upstream says that nothing has changed", "headers": _refer(*common)},
        **ours,
        "4XX": {"description": "the upstream's own error", **theirs},
        "5XX": {"description": "the upstream's own error", **theirs},
    }


#: Fields that a refusal has beside the usual ones.
_FIELDS_OF_REFUSALS: Mapping[type[SSEError], str] = {Unauthenticated: "WWW-Authenticate", MethodNotAllowed: "Allow"}


def _refused(refusals: Iterable[type[SSEError]]) -> dict[str, Any]:
    """Return the responses of our own refusals by their status, which several may share."""
    by_status: dict[int, list[type[SSEError]]] = {}
    for refusal in refusals:
        by_status.setdefault(refusal.status, []).append(refusal)
    return {str(status): _problem(shared) for status, shared in sorted(by_status.items())}


def _problem(refusals: list[type[SSEError]]) -> dict[str, Any]:
    """Return the response of refusals that share a status."""
    codes = [refusal.code for refusal in refusals]
    known = {"properties": {"status": {"const": refusals[0].status}, "code": {"enum": codes}}}
    fields = [_FIELDS_OF_REFUSALS[refusal] for refusal in refusals if refusal in _FIELDS_OF_REFUSALS]
    if refusals[0].status in (429, 503):
        fields.append("Retry-After")
    return {
        "description": "; ".join(f"`{refusal.code}`: {refusal.title}" for refusal in refusals),
        "headers": _refer("X-Request-Id", *fields),
        "content": {
            "application/problem+json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, known]}}
        },
    }
