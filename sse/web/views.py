"""The endpoints: `POST /forward-sse`, `ANY /upstream/<name>/<path>` and `GET /sse`."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pydantic
from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest, ClientDisconnected, RequestEntityTooLarge

from ..errors import (
    ClientGone,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    SSEError,
    TooLarge,
    UnsupportedMediaType,
)
from ..protocol.event import ServerSentEvent
from ..protocol.field import encode_request_fields, is_event_stream, parse_fields, response_fields
from ..protocol.table import Upstream
from ..protocol.target import parse_target
from ..relay.pump import Pump, StreamEnd
from ..relay.upstream import UpstreamRequest
from ..relay.watch import EndReason, Watch
from .model import ForwardRequest
from .report import reporter
from .response import problem, request_id, stream_response
from .state import State, current_state
from .stream import EventSourceResponse, client_socket, last_event_id

#: Bytes of an upstream's error answer that are passed on.
MAX_ERROR_BODY = 64 * 1024
#: Levels a JSON request body may be nested.
MAX_JSON_DEPTH = 64
#: Seconds between two events of the demonstration stream.
DEMONSTRATION_INTERVAL = 0.2

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
#: What the endpoints that take less allow.
ALLOWED = {"sse_relay.forward": ("POST", "OPTIONS"), "sse_ticker.ticks": ("GET", "HEAD", "OPTIONS")}


def relay_blueprint() -> Blueprint:
    """Return the relay's endpoints."""
    blueprint = Blueprint("sse_relay", __name__)
    # All methods come in, so that a wrong one gets an answer of ours, which scripts of other origins may read.
    blueprint.add_url_rule("/forward-sse", view_func=forward, methods=(*METHODS, "OPTIONS"))
    blueprint.add_url_rule("/upstream/<name>/", view_func=upstream, methods=METHODS)
    blueprint.add_url_rule("/upstream/<name>/<path:path>", view_func=upstream, methods=METHODS)
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def ticker_blueprint() -> Blueprint:
    """Return the demonstration event stream."""
    blueprint = Blueprint("sse_ticker", __name__)
    blueprint.add_url_rule("/sse", view_func=ticks, methods=(*METHODS, "OPTIONS"))
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def refuse(error: SSEError) -> Response:
    response = problem(error)
    if error.retry_after is not None or error.status < 500:
        response.headers.extend(current_state().access.rate_limit_fields())
    if isinstance(error, MethodNotAllowed):
        # RFC 9110, section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        response.headers["Allow"] = ", ".join(ALLOWED[str(request.endpoint)])
    return response


def answer_options() -> Response:
    """Answer OPTIONS with what is allowed: Flask itself would name all methods that get an answer, be it a refusal."""
    return Response(headers={"Allow": ", ".join(ALLOWED[str(request.endpoint)])})


def forward() -> Response:
    """Relay what the JSON of the request describes."""
    if request.method == "OPTIONS":
        return answer_options()
    if request.method != "POST":
        raise MethodNotAllowed
    state = current_state()
    with ExitStack() as stack:
        watch = _watch(state, stack)
        document, failure = _read_document(state)
        passcode = document.get("passcode") if isinstance(document, dict) else None
        # A request that makes no sense counts too, so who calls and how often comes first.
        client = state.access.admit(passcode if isinstance(passcode, str) else None)
        if failure is not None:
            raise failure
        asked = _validate(document)
        target = parse_target(asked.targetUrl)
        upstream = state.table.match(target)
        body = asked.encode_body()
        fields = encode_request_fields(
            parse_fields(asked.header),
            replace=(*(upstream.headers if upstream else ()), ("X-Request-Id", request_id())),
            has_body=body is not None,
        )
        wanted = UpstreamRequest(method=asked.method, target=target, fields=fields, body=body)
        return _relay(state, stack, watch, wanted, upstream=upstream, client=client)


def upstream(name: str, path: str = "") -> Response:
    """Relay the request itself to an upstream of the table."""
    state = current_state()
    with ExitStack() as stack:
        watch = _watch(state, stack)
        client = state.access.admit(None)
        entry = state.table.get(name)
        if entry is None:
            raise NotFound(f"there is no upstream {name!r}")
        body = _read_body(state)
        target = state.table.join(entry, _raw_path(name), request.query_string.decode("latin-1"))
        wanted = UpstreamRequest(
            method=request.method,
            target=target,
            fields=encode_request_fields(
                _client_fields(state),
                replace=(*entry.headers, ("X-Request-Id", request_id())),
                has_body=body is not None,
                accept=None,
            ),
            body=body,
        )
        return _relay(state, stack, watch, wanted, upstream=entry, client=client)


def _raw_path(name: str) -> str:
    """Return the path behind the upstream's name as the client wrote it: decoding it would change what is sent."""
    raw = str(request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or "").partition("?")[0]
    _, found, rest = raw.partition(f"/upstream/{name}/")
    if found:
        return rest
    # No server that keeps it, or a name written with escapes: then what was decoded is encoded again.
    decoded = str(request.environ["PATH_INFO"]).partition(f"/upstream/{name}/")[2].encode("latin-1")
    return urllib.parse.quote(decoded, safe="/:@!$&'()*+,;=~")


def _client_fields(state: State) -> list[tuple[str, str]]:
    """Return the request's fields less the gateway's own credential and what the browser says of its page."""
    own = {"x-passcode", "cookie", "origin", "referer", "x-request-id"}
    if not state.access.is_open and not request.headers.get("X-Passcode"):
        own.add("authorization")
    return [(name, value) for name, value in request.headers.items() if name.lower() not in own]


def _watch(state: State, stack: ExitStack) -> Watch:
    watch = Watch(client_socket(), state.limits)
    state.watches.add(watch)
    stack.callback(state.watches.discard, watch)
    return watch


def _read_body(state: State) -> bytes | None:
    """Return the request's body, None if it has none.

    :raises TooLarge: beyond SSE_MAX_BODY.
    :raises InvalidRequest: if it does not arrive.
    """
    most = state.settings.max_body
    # werkzeug gives the first so many bytes of a longer body as if they were all, so one more is asked for.
    request.max_content_length = most + 1
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise TooLarge(f"the request body is longer than {most} bytes") from error
    except (ClientDisconnected, BadRequest, OSError) as error:
        raise InvalidRequest("the request body did not arrive") from error
    if len(body) > most:
        raise TooLarge(f"the request body is longer than {most} bytes")
    # Nor does it mind a body that ends early, where the server says that it ends what it reads.
    if len(body) < (request.content_length or 0):
        raise InvalidRequest("the request body did not arrive whole")
    return body or (b"" if request.content_length == 0 and request.method not in ("GET", "HEAD") else None)


def _read_document(state: State) -> tuple[Any, SSEError | None]:
    """Return the JSON of the request, or why there is none."""
    try:
        if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
            raise UnsupportedMediaType("the request body must be application/json")
        return _parse_json(_read_body(state) or b""), None
    except SSEError as error:
        return None, error


def _parse_json(body: bytes) -> Any:
    try:
        document = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the request body is not JSON in UTF-8") from error
    if _depth(document) > MAX_JSON_DEPTH:
        raise InvalidRequest(f"the JSON is nested deeper than {MAX_JSON_DEPTH} levels")
    return document


def _refuse_constant(name: str) -> None:
    # RFC 8259, section 6: "Numeric values that cannot be represented in the grammar below (such as Infinity and NaN)
    # are not permitted."
    raise ValueError(name)


def _depth(document: Any) -> int:
    """Return how deep a document is nested, without recursion, so that no document can exhaust the stack."""
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def _validate(document: Any) -> ForwardRequest:
    try:
        return ForwardRequest.model_validate(document)
    except pydantic.ValidationError as error:
        # Not pydantic's text: it repeats the value, which may be a secret.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the request body"
        raise InvalidRequest(f"{where}: {first['msg']}") from error


def _relay(
    state: State,
    stack: ExitStack,
    watch: Watch,
    wanted: UpstreamRequest,
    *,
    upstream: Upstream | None,
    client: str,
) -> Response:
    """Open the upstream and answer with what it says; `stack` holds what is given back at the end."""
    stack.callback(state.leases.take(client))
    if state.demonstration is not None:
        state.demonstration.ensure_started()
    watch.watch_client()
    report = reporter(upstream.name if upstream else "public", client)
    try:
        answer = state.upstreams.open(wanted, watch)
    except SSEError as error:
        report(_not_opened(error, watch))
        raise
    fields = response_fields(answer.fields)
    is_error = answer.status >= 400
    cleanup = stack.pop_all()

    def on_end(end: StreamEnd) -> None:
        cleanup.close()
        report(end)

    pump = Pump(
        answer,
        watch,
        is_event_stream=_is_plain_event_stream(fields) and not is_error,
        heartbeat=state.settings.relay_heartbeat,
        limit=MAX_ERROR_BODY if is_error else 0,
        has_body=request.method != "HEAD" and answer.status not in (204, 304),
        is_framed=request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0",
        on_end=on_end,
    )
    if is_error:
        # So that nobody takes it for one of ours.
        fields = [*fields, ("X-Upstream-Status", str(answer.status))]
    response = stream_response(pump, status=answer.status, fields=_with_limits(state, fields))
    response.call_on_close(pump.close)
    return response


def _with_limits(state: State, fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields and what our throttle says, unless the upstream speaks of its own under the same names."""
    theirs = {name.lower() for name, _ in fields}
    return [*fields, *(field for field in state.access.rate_limit_fields() if field[0].lower() not in theirs)]


def _is_plain_event_stream(fields: Sequence[tuple[str, str]]) -> bool:
    # Nothing can be put between the events of a stream that is compressed.
    named = {name.lower(): value for name, value in fields}
    return is_event_stream(named.get("content-type", "")) and "content-encoding" not in named


def _not_opened(error: SSEError, watch: Watch) -> StreamEnd:
    reason = EndReason.CLIENT_GONE if isinstance(error, ClientGone) else EndReason.UPSTREAM_FAILED
    elapsed = time.monotonic() - watch.started
    return StreamEnd(
        reason=reason, status=error.status, events=0, bytes=0, head=elapsed, first_byte=None, total=elapsed
    )


def ticks() -> Response:
    """Stream the demonstration events of the seed, from where the client left off."""
    if request.method == "OPTIONS":
        return answer_options()
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed
    last = last_event_id()
    # An id may be any text; one that is not a number of ours starts the count over.
    return EventSourceResponse(_tick(int(last) if last.isascii() and last.isdecimal() and len(last) < 16 else 0))


def _tick(last: int) -> Iterator[ServerSentEvent]:
    while True:
        time.sleep(DEMONSTRATION_INTERVAL)
        last += 1
        yield ServerSentEvent(id=str(last), data=f"Message {last - 1}")
