"""The endpoints' requests and responses, as OpenAPI 3.1 at `/openapi.json`, and a page that shows it at `/docs`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, abort, current_app, jsonify, request, send_from_directory
from jinja2 import Environment
from markupsafe import Markup, escape
from pydantic.json_schema import models_json_schema

from ..errors import REFUSALS, MethodNotAllowed, OffsetExpired, SSEError, StreamInterrupted, Unauthenticated
from .model import ForwardRequest, Problem
from .page import STATIC, may_call, protect
from .state import State, current_state

#: Version of what the document describes; a change that breaks a client changes the first number.
VERSION = "1.0"

#: What the page at `/docs` loads.
ASSETS = ("docs.css", "playground.css")

#: The parts of the document, in the order of the page.
_TAGS = {
    "Relay": "Calls upstreams, and returns their responses as they arrive.",
    "Recordings": "Responses that were recorded, to go on with after a lost connection.",
    "Channels": "What the site publishes.",
    "Demonstration": "A stream to try a front end with.",
    "Operation": "For those who run the gateway.",
}

_BY_CODE = {refusal.code: refusal for refusal in REFUSALS}


def _refusals(codes: str) -> tuple[type[SSEError], ...]:
    return tuple(_BY_CODE[code] for code in codes.split())


#: What any relayed call may be refused with.
RELAY_REFUSALS = _refusals(
    "invalid_request unauthenticated target_not_allowed cross_site_request method_not_allowed length_required "
    "too_large uri_too_long fields_too_large route_not_allowed model_not_allowed throttled too_many_streams "
    "quota_exceeded upstream_unreachable upstream_bad_response at_capacity draining "
    "ended_by_operator upstream_timeout idempotency_key_reused offset_expired store_unavailable"
)
_FORWARD_REFUSALS = (*RELAY_REFUSALS, *_refusals("unsupported_media_type"))
_UPSTREAM_REFUSALS = (*RELAY_REFUSALS, *_refusals("not_found websocket_not_supported"))
#: What any request for a recording may be refused with, and one that reads it.
RECORDING_REFUSALS = _refusals(
    "invalid_request unauthenticated not_found stream_not_found method_not_allowed stream_expired throttled "
    "store_unavailable"
)
_READING_REFUSALS = _refusals("invalid_offset stream_interrupted offset_expired too_many_streams draining")
#: What a request for channels may be refused with.
CHANNEL_REFUSALS = _refusals(
    "invalid_request channel_not_allowed method_not_allowed too_many_streams at_capacity draining store_unavailable"
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

_DESCRIPTION = """Relays an upstream's `text/event-stream` to browsers: safely, unchanged, at once.

The upstream's response is returned unchanged: its status, its bytes, and those of its header fields that are safe;
an error of the upstream carries `X-Upstream-Status`. The gateway's own refusals are `application/problem+json` with a
stable `code`."""

_FORWARD = """Sends the request that the JSON describes, and returns the response as it arrives. The passcode may be in
the JSON or in a header field."""

_UPSTREAM = """Passes the request on: method, path, query, body and end-to-end header fields, so that the gateway can be
the base URL of an SDK. The path may have several segments. If the gateway requires a passcode, `Authorization: Bearer`
holds it and is not sent to the upstream."""

_TICKS = "Sends an event every 200 ms, with IDs that count from 1, or from `Last-Event-ID`. The stream has no end."

_CHANNELS = """Streams what is published to channels from now on, or behind the last event ID. `event: reset` comes
first if the history does not reach back to it. The site decides who may read which channel."""


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
    return jsonify(_document(may_see_names=may_call(current_state())))


def page() -> Response:
    """Serve the page: HTML without a script, made from the document."""
    description = _document(may_see_names=may_call(current_state()))
    html = _template().render(
        document=description,
        operations=list(_iter_operations(description)),
        has_page="sse_page.index" in current_app.view_functions,
    )
    return Response(html, content_type="text/html; charset=utf-8")


def asset(name: str) -> Response:
    """Serve what the page needs."""
    return send_from_directory(STATIC, name) if name in ASSETS else abort(404)


def _document(*, may_see_names: bool) -> dict[str, Any]:
    base = re.sub("/(openapi.json|docs)$", "", request.script_root + request.path)
    root = request.host_url.rstrip("/")
    return openapi(
        current_state(), current_app.view_functions, base=base or "/", root=root, may_see_names=may_see_names
    )


def _template() -> Any:
    # An environment of its own: the site's may have other delimiters, filters and globals.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _mark_code
    return environment.from_string((STATIC / "docs.html").read_text())


def _mark_code(text: str | None) -> Markup:
    """Return a text of the document as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text or ""))))


def _iter_operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the operations with what the page shows of each, those that succeed first among the responses."""
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            if method == "parameters":
                continue
            yield {
                **operation,
                "method": method,
                "path": path,
                "parameters": [*entry.get("parameters", ()), *operation.get("parameters", ())],
                "fields": list(_iter_fields(document, operation)),
                "responses": sorted(operation["responses"].items(), key=lambda entry: (entry[0][0] != "2", entry[0])),
            }


def _iter_fields(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the members of the JSON that an operation takes."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    model = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
    for name, member in model.get("properties", {}).items():
        required = name in model.get("required", ())
        yield {"default": None, **member, "name": name, "required": required}


def openapi(
    state: State, endpoints: Iterable[str], *, base: str, root: str = "", may_see_names: bool = True
) -> dict[str, Any]:
    """Return the document of one app.

    :param endpoints: Flask's names of what is registered; the rest is left out.
    :param base: the path below which everything is served.
    :param root: scheme, host and port, for the examples.
    :param may_see_names: whether the upstreams are named.
    """
    url = root + base.rstrip("/")
    names = state.table.names if may_see_names else ()
    paths = {
        "sse_relay.forward": ("/forward-sse", _forward(state, url)),
        "sse_relay.upstream": ("/upstream/{name}/{path}", _upstream(state, url, names)),
        "sse_relay.stream": ("/streams/{id}", _streams(state, url)),
        "sse_channels.channels": ("/channels", _channels(url)),
        "sse_ticker.ticks": ("/sse", _ticks(url)),
        "sse_metrics.metrics": ("/metrics", _metrics(url)),
    }
    served = dict(path for endpoint, path in paths.items() if endpoint in endpoints)
    tags = {
        tag
        for entry in served.values()
        for method, operation in entry.items()
        if method != "parameters"
        for tag in operation["tags"]
    }
    _, schemas = models_json_schema(
        [(ForwardRequest, "validation"), (Problem, "serialization")], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "flask-sse-relay", "version": VERSION, "description": _DESCRIPTION},
        "servers": [{"url": base}],
        "tags": [{"name": tag, "description": _TAGS[tag]} for tag in _TAGS if tag in tags],
        "paths": served,
        "components": {
            "schemas": schemas["$defs"],
            "headers": _HEADERS,
            "securitySchemes": _SECURITY_SCHEMES if state.settings.has_credentials else {},
        },
    }


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the passcode, as an SDK sends its API key"},
    "field": {"type": "apiKey", "in": "header", "name": "X-Passcode", "description": "the passcode, in its own field"},
}


def _header(description: str, type_: str = "string", *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": type_}}


_HEADERS = {
    "X-Request-Id": _header("the request's ID, which the gateway's log line has too", required=True),
    "X-Upstream-Request-Id": _header("the `X-Request-Id` of the upstream's response"),
    "X-Upstream-Status": _header(
        "the upstream's status: the refusal comes from the upstream, not from the gateway", "integer"
    ),
    "Retry-After": _header("seconds until the same request can be accepted; an upstream may send a date"),
    "X-RateLimit-Limit": _header("requests allowed in the window; the upstream's own limit, if it sent one"),
    "X-RateLimit-Remaining": _header("requests left in the window"),
    "X-RateLimit-Reset": _header("seconds until one more request is allowed"),
    "Location": _header("where the response is recorded, if it is"),
    "Stream-TTL": _header("seconds for which it is kept after its end", "integer"),
    "Stream-Next-Offset": _header("position of the next byte, 16 digits; in a stream, of its first one"),
    "Stream-Up-To-Date": _header("`true` at the end of what is there"),
    "Stream-Closed": _header("`true` at the end of a complete recording"),
    "Stream-End": _header("why a recording ended that is not complete"),
    "Stream-Start-Offset": _header("position of the first byte that is kept"),
    "WWW-Authenticate": _header("how to authenticate"),
    "Allow": _header("the methods that the path supports"),
}


def _parameter(
    name: str, description: str, schema: Mapping[str, Any] | None = None, *, where: str = "header"
) -> dict[str, Any]:
    """Return a parameter; one of the path is required, as OpenAPI has it."""
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, **required, "description": description, "schema": schema or {"type": "string"}}


_REQUEST_ID = _parameter(
    "X-Request-Id",
    "1 to 128 of A-Z a-z 0-9 . _ -; another one is generated otherwise; sent to the upstream and logged",
)
_LAST_EVENT_ID = _parameter(
    "Last-Event-ID", "ID of the last event that was received, as EventSource sends it when it reconnects"
)
_LAST_EVENT_ID_QUERY = _parameter(
    "lastEventId", "the same, for a first connection: EventSource cannot set a header field", where="query"
)
_SECONDS = {"type": "integer", "maximum": 10**9 - 1}
_RECORDING = [
    _parameter(
        "Stream-TTL", "record the response, and keep it for so many seconds after its end", {**_SECONDS, "minimum": 1}
    ),
    _parameter(
        "Stream-Leave",
        "seconds for which it is received without any reader; 0 cancels it when the last one leaves",
        {**_SECONDS, "minimum": 0},
    ),
    _parameter(
        "Idempotency-Key",
        "the same request with the same key gets the recording instead of being run again",
        {"type": "string", "pattern": "^[!-~]{16,255}$"},
    ),
]

_STREAMS = """Returns a response that was recorded, from any position. `live` selects the view: without it, what is
there; `long-poll` waits for the first byte; `tail` streams to the end; `events` is for EventSource."""

#: The body of the examples.
_QUESTION = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


def _curl(url: str, *options: str, state: State | None = None, body: object = None) -> str:
    """Return a call for a shell that shows events as they come.

    :param state: of a gateway that may want a passcode; None: the path wants none.
    :param body: sent as JSON, if any.
    """
    fields = [] if body is None else ["Content-Type: application/json"]
    if state is not None and not state.access.is_open:
        fields.append("X-Passcode: YOUR_PASSCODE")
    lines = [" ".join(["curl", "-N", *options, shlex.quote(url)]), *(f"-H {shlex.quote(field)}" for field in fields)]
    if body is not None:
        lines.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(lines)


def _operation(
    tag: str, summary: str, description: str, responses: dict[str, Any], *parameters: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Return an operation but for what differs between the methods of a path.

    :param more: its other members; `security` is none unless it is given.
    """
    known = {"tags": [tag], "summary": summary, "description": description, "parameters": [*parameters]}
    return {**{name: value for name, value in known.items() if value}, "responses": responses, "security": [], **more}


def _methods(prefix: str, operation: dict[str, Any], examples: Mapping[str, str]) -> dict[str, Any]:
    """Return an operation under each of its methods, with its example."""
    return {
        method: {"operationId": f"{prefix}_{method}", **operation, "x-example": example}
        for method, example in examples.items()
    }


def _forward(state: State, url: str) -> dict[str, Any]:
    security = _security(state)
    demonstration = state.demonstration
    host = demonstration.url if demonstration is not None else "https://api.example.com/"
    example = {"targetUrl": f"{host}v1/chat/completions", "body": _QUESTION}
    content = {"schema": {"$ref": "#/components/schemas/ForwardRequest"}, "example": example}
    operation = _operation(
        "Relay",
        "Call an upstream by its URL",
        _FORWARD,
        _relayed(state, _FORWARD_REFUSALS),
        _REQUEST_ID,
        *_RECORDING,
        operationId="forward",
        requestBody={"required": True, "content": {"application/json": content}},
        # The last way is the `passcode` of the JSON, for which OpenAPI has no scheme.
        security=[*security, {}] if security else [],
    )
    example_call = _curl(f"{url}/forward-sse", state=state, body=example)
    return {"post": {**operation, "x-example": example_call, "x-try": "openai"}}


def _upstream(state: State, url: str, names: Iterable[str]) -> dict[str, Any]:
    known = list(names)
    base = f"{url}/upstream/{known[0] if known else 'NAME'}"
    operation = _operation(
        "Relay",
        "Call an upstream by its name",
        _UPSTREAM,
        _relayed(state, _UPSTREAM_REFUSALS),
        _REQUEST_ID,
        *_RECORDING,
        security=_security(state),
    )
    with_body = {**operation, "requestBody": {"content": {"application/json": {}, "*/*": {}}}}
    thing = f"{base}/v1/things/1"
    operations = {
        **_methods("upstream", operation, {"get": _curl(f"{base}/v1/models", state=state)}),
        **_methods("upstream", operation, {"head": _curl(f"{base}/v1/models", "-I", state=state)}),
        **_methods(
            "upstream",
            with_body,
            {
                "post": _curl(f"{base}/v1/chat/completions", state=state, body=_QUESTION),
                "put": _curl(thing, "-X", "PUT", state=state, body={}),
                "patch": _curl(thing, "-X", "PATCH", state=state, body={}),
                "delete": _curl(thing, "-X", "DELETE", state=state),
            },
        ),
    }
    operations["get"]["parameters"] = [*operation["parameters"], _LAST_EVENT_ID]
    operations["post"]["x-try"] = "openai"
    name = {"type": "string", **({"enum": known} if known else {})}
    path = "the rest of the upstream's URL; it may have several segments"
    return {
        "parameters": [
            _parameter("name", "the upstream's name in `SSE_UPSTREAMS`", name, where="path"),
            _parameter("path", path, where="path"),
        ],
        **operations,
    }


def _streams(state: State, url: str) -> dict[str, Any]:
    """Return what can be done with a recording."""
    refusals = [r for r in RECORDING_REFUSALS if r is not Unauthenticated or not state.access.is_open]
    position = _refer("X-Request-Id", "Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed")
    offset = {"type": "string", "pattern": "^([0-9]{1,20}|-1|now)$"}
    place, security = f"{url}/streams/ID", _security(state)
    reading = _operation(
        "Recordings",
        "Read a recording",
        _STREAMS,
        {
            "200": {"description": "the bytes", "headers": position, "content": _UPSTREAM_CONTENT},
            "204": {"description": "nothing follows, or nothing yet", "headers": position},
            **_refused((*refusals, *_READING_REFUSALS)),
        },
        _REQUEST_ID,
        _LAST_EVENT_ID,
        _parameter("lastEventId", "the same, for a first connection", where="query"),
        _parameter("offset", "a number of bytes, `-1` (the beginning) or `now` (the end)", offset, where="query"),
        _parameter("live", "the view", {"enum": ["long-poll", "tail", "events"]}, where="query"),
        security=security,
    )
    ended = {"204": {"description": "the recording has ended"}, **_refused(refusals)}
    action = {**_parameter("action", "what to do", {"const": "abort"}, where="query"), "required": True}
    stop = _operation(
        "Recordings", "Stop the upstream and keep what has come", "", ended, _REQUEST_ID, action, security=security
    )
    erase = _operation(
        "Recordings", "Stop the upstream and erase the recording", "", ended, _REQUEST_ID, security=security
    )
    reads = {"get": _curl(f"{place}?offset=0&live=tail", state=state), "head": _curl(place, "-I", state=state)}
    return {
        "parameters": [_parameter("id", "from `Location`", where="path")],
        **_methods("stream", reading, reads),
        "patch": {
            **stop,
            "operationId": "stream_stop",
            "x-example": _curl(f"{place}?action=abort", "-X", "PATCH", state=state),
        },
        "delete": {
            **erase,
            "operationId": "stream_erase",
            "x-example": _curl(place, "-X", "DELETE", state=state),
        },
    }


def _event_stream(refusals: Iterable[type[SSEError]], **responses: Any) -> dict[str, Any]:
    """Return the responses of an event stream of the site's own."""
    events = {"description": "the events", "headers": _refer("X-Request-Id"), "content": _STREAM}
    return {"200": events, **responses, **_refused(refusals)}


def _channels(url: str) -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    channel = {
        **_parameter("channel", "the name of a channel; up to 16 of them", names, where="query"),
        "required": True,
    }
    closed = {"description": "the channels are closed, and nothing follows", "headers": _refer("X-Request-Id")}
    responses = _event_stream(CHANNEL_REFUSALS, **{"204": closed})
    parameters = {**channel, "required": True}, _REQUEST_ID, _LAST_EVENT_ID, _LAST_EVENT_ID_QUERY
    operation = _operation("Channels", "Read channels", _CHANNELS, responses, *parameters)
    place = f"{url}/channels?channel=NAME"
    return _methods("channels", operation, {"get": _curl(place), "head": _curl(place, "-I")})


def _ticks(url: str) -> dict[str, Any]:
    parameters = _REQUEST_ID, _LAST_EVENT_ID, _LAST_EVENT_ID_QUERY
    responses = _event_stream((MethodNotAllowed,))
    operation = _operation("Demonstration", "Read a demonstration stream", _TICKS, responses, *parameters)
    examples = {"get": _curl(f"{url}/sse", "--max-time 3"), "head": _curl(f"{url}/sse", "-I")}
    return _methods("ticks", {**operation, "x-try": "ticks"}, examples)


def _metrics(url: str) -> dict[str, Any]:
    description = "Counters and histograms, in Prometheus' text format."
    responses = {"200": {"description": "the metrics", "content": {"text/plain": {}}}}
    operation = _operation("Operation", "Return the metrics for Prometheus", description, responses)
    return {"get": {**operation, "operationId": "metrics", "x-example": _curl(f"{url}/metrics")}}


def _security(state: State) -> list[dict[str, list[str]]]:
    return [{name: []} for name in _SECURITY_SCHEMES] if state.settings.has_credentials else []


def _refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _relayed(state: State, refusals: Iterable[type[SSEError]]) -> dict[str, Any]:
    """Return the responses of a relayed call: an upstream may send any status, also one that the gateway sends."""
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
        "2XX": {
            "description": "the upstream's response",
            **theirs,
            "headers": _refer(*common, "Location", "Stream-Next-Offset", "Stream-TTL"),
        },
        "304": {"description": "the upstream's response: nothing has changed", "headers": _refer(*common)},
        **ours,
        "4XX": {"description": "the upstream's own error", **theirs},
        "5XX": {"description": "the upstream's own error", **theirs},
    }


#: Fields that a refusal has beside the usual ones.
_FIELDS_OF_REFUSALS: Mapping[type[SSEError], str] = {
    Unauthenticated: "WWW-Authenticate",
    MethodNotAllowed: "Allow",
    StreamInterrupted: "Stream-End",
    OffsetExpired: "Stream-Start-Offset",
}


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
