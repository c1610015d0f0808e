"""The endpoints: `POST /forward-sse`, `ANY /upstream/<name>/<path>` and `GET /sse`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from flask import Blueprint, Request, Response

from ..errors import ClientGone, Draining, MethodNotAllowed, NotFound, SSEError
from ..protocol.event import ServerSentEvent
from ..protocol.field import encode_request_fields, is_event_stream, parse_fields, response_fields, with_trace
from ..protocol.target.parse import parse_target
from ..relay.drain import Phase
from ..relay.exchange import Exchange
from ..relay.linger import discard
from ..relay.stream.end import EndReason, StreamEnd
from ..relay.stream.pump import Pump
from ..relay.upstream.adapter import UpstreamRequest
from ..relay.upstream.client import RETRY_AFTER, UpstreamResponse
from .own import EventSourceResponse, client_socket, last_event_id
from .parsing import client_fields, parse_call, raw_path, read_body, read_document
from .report import PUBLIC, StreamReport, note_unopened, note_upstream, report_refusal
from .response import problem, request_id, stream_response
from .state import State, current_request, current_state

#: Bytes of an upstream's error answer that are passed on.
MAX_ERROR_BODY = 64 * 1024
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
    # Front ends that were written for this stream call `/hackathon/sse` and `/forward-sse` below one base URL.
    for path in ("/sse", "/hackathon/sse"):
        blueprint.add_url_rule(path, view_func=ticks, methods=(*METHODS, "OPTIONS"))
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def refuse(error: SSEError) -> Response:
    request = current_request()
    report_refusal(error)
    response = problem(error)
    if request.content_length or "chunked" in request.headers.get("Transfer-Encoding", ""):
        response.call_on_close(partial(discard, request.environ["wsgi.input"], client_socket(request)))
    if error.retry_after is not None or error.status < 500:
        response.headers.extend(current_state().access.rate_limit_fields(request))
    if isinstance(error, MethodNotAllowed):
        # RFC 9110, section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        response.headers["Allow"] = ", ".join(ALLOWED[str(request.endpoint)])
    return response


def answer_options(request: Request) -> Response:
    """Answer OPTIONS with what is allowed: Flask itself would name all methods that get an answer, be it a refusal."""
    return Response(headers={"Allow": ", ".join(ALLOWED[str(request.endpoint)])})


def forward() -> Response:
    """Relay what the JSON of the request describes."""
    request = current_request()
    if request.method == "OPTIONS":
        return answer_options(request)
    if request.method != "POST":
        raise MethodNotAllowed
    state = current_state()
    with ExitStack() as stack:
        exchange = _exchange(request, state, stack)
        document, failure = read_document(request, state, exchange)
        passcode = document.get("passcode") if isinstance(document, dict) else None
        # A request that makes no sense counts too, so who calls and how often comes first.
        client = state.access.admit(request, passcode if isinstance(passcode, str) else None)
        if failure is not None:
            raise failure
        asked = parse_call(document)
        target = parse_target(asked.targetUrl)
        upstream = state.table.match(target)
        note_upstream(request, upstream.name if upstream else PUBLIC)
        body = asked.encode_body()
        fields = encode_request_fields(
            with_trace(parse_fields(asked.header), request.headers.get),
            replace=(*(upstream.headers if upstream else ()), ("X-Request-Id", request_id(request))),
            has_body=bool(body),
        )
        wanted = UpstreamRequest(method=asked.method, target=target, fields=fields, body=body, client=client)
        return _relay(request, state, stack, exchange, wanted, client=client)


def upstream(name: str, path: str = "") -> Response:
    """Relay the request itself to an upstream of the table."""
    request, state = current_request(), current_state()
    with ExitStack() as stack:
        exchange = _exchange(request, state, stack)
        client = state.access.admit(request, None)
        entry = state.table.get(name)
        if entry is None:
            raise NotFound(f"there is no upstream {name!r}")
        note_upstream(request, name)
        body = read_body(request, state, exchange)
        target = state.table.join(entry, raw_path(request, name), request.query_string.decode("latin-1"))
        wanted = UpstreamRequest(
            method=request.method,
            target=target,
            fields=encode_request_fields(
                client_fields(request, state),
                replace=(*entry.headers, ("X-Request-Id", request_id(request))),
                has_body=bool(body),
                accept=None,
            ),
            body=body,
            client=client,
        )
        return _relay(request, state, stack, exchange, wanted, client=client)


def _exchange(request: Request, state: State, stack: ExitStack) -> Exchange:
    if state.drain.phase() >= Phase.FINISHING:
        raise Draining(retry_after=RETRY_AFTER)
    exchange = Exchange(client_socket(request), state.limits)
    state.monitor.add(exchange)
    stack.callback(state.monitor.discard, exchange)
    return exchange


def _relay(
    request: Request, state: State, stack: ExitStack, exchange: Exchange, wanted: UpstreamRequest, *, client: str
) -> Response:
    """Open the upstream and answer with what it says; `stack` holds what is given back at the end."""
    report = StreamReport(request, state.metrics)
    stack.callback(state.leases.take(client))
    report.begin()
    stack.callback(report.finish)
    if state.demonstration is not None:
        state.demonstration.ensure_started()
    exchange.watch_client()
    try:
        answer = state.upstreams.open(wanted, exchange.upstream)
    except SSEError as error:
        note_unopened(request, _not_opened(error, exchange))
        raise
    report.answer(answer.status)

    def on_end(end: StreamEnd) -> None:
        cleanup.close()
        report.tell(end)

    response = _answer(request, state, exchange, answer, on_end)
    cleanup = stack.pop_all()
    return response


def _answer(
    request: Request, state: State, exchange: Exchange, answer: UpstreamResponse, on_end: Callable[[StreamEnd], None]
) -> Response:
    fields = response_fields(answer.fields)
    named = {name.lower(): value for name, value in fields}
    is_error = answer.status >= 400
    pump = Pump(
        answer,
        exchange,
        status=answer.status,
        # Nothing can be put between the events of a stream that is compressed.
        is_event_stream=not is_error and is_event_stream(named["content-type"]) and "content-encoding" not in named,
        heartbeat=state.settings.relay_heartbeat,
        limit=MAX_ERROR_BODY if is_error else 0,
        has_body=request.method != "HEAD" and answer.status not in (204, 304),
        is_framed=request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0",
        on_end=on_end,
    )
    if is_error:
        # So that nobody takes it for one of ours.
        fields.append(("X-Upstream-Status", str(answer.status)))
    # What our throttle says, unless the upstream speaks of its own under the same names.
    fields.extend(field for field in state.access.rate_limit_fields(request) if field[0].lower() not in named)
    fields.extend(state.shared_fields)
    return stream_response(pump, status=answer.status, fields=fields, request_id=request_id(request))


def _not_opened(error: SSEError, exchange: Exchange) -> StreamEnd:
    ours = {ClientGone: EndReason.CLIENT_GONE, Draining: EndReason.DRAINING}
    reason = ours.get(type(error), EndReason.UPSTREAM_FAILED)
    elapsed = time.monotonic() - exchange.started
    return StreamEnd(
        reason=reason,
        status=error.status,
        events=0,
        bytes=0,
        head=elapsed,
        first_byte=None,
        longest_gap=None,
        total=elapsed,
    )


def ticks() -> Response:
    """Stream the demonstration events of the seed, from where the client left off."""
    request = current_request()
    if request.method == "OPTIONS":
        return answer_options(request)
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
