"""Own streams: any iterable of events becomes an event stream, which ends as a relayed one does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from flask import Request, current_app, request

from ..protocol.event import ServerSentEvent
from ..relay.exchange import Exchange, Limits
from ..relay.stream.end import StreamEnd
from ..relay.stream.producer import Producer, ThreadProducer
from ..relay.stream.pump import Pump
from .call import Call, current_call
from .report import StreamReport
from .response import STREAM_FIELDS, PumpResponse
from .state import State, current_state

#: What an iterable may yield: an event, or the data of one, as text or as what becomes JSON.
Event = ServerSentEvent | str | dict[str, Any] | list[Any]


class EventSourceResponse(PumpResponse):
    """An event stream of the site's own; it needs `SSE(app)`.

    The iterable runs when the view has returned. A generator that uses `request` is wrapped in Flask's
    `stream_with_context`. While it is silent, `SSE_HEARTBEAT` sends comments; it then runs in a thread of its own, a
    greenlet where threads are patched, one item ahead of the client at most. It is closed when the client leaves: under
    gevent at once, also while it waits for something; in a thread as soon as what it waits for is there.

    :param events: what is streamed; closed in the end if it can be closed.
    :param status: 204 tells an EventSource not to come back.
    :param headers: more response fields.
    """

    def __init__(self, events: Iterable[Event], *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        call = current_call()
        super().__init__(_pump(request, call, events, status, current_state()), status=status, headers=headers)
        self.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        for name, value in (*STREAM_FIELDS, ("X-Request-Id", call.id)):
            self.headers.setdefault(name, value)


def last_event_id() -> str:
    """Return the id of the last event that the client has seen, "" if it has seen none.

    An EventSource sends it when it comes back; one that is new may give it as `lastEventId` in the query.
    """
    # WHATWG HTML, section 9.2.4: "(`Last-Event-ID`, lastEventIDValue)" with the value "encoded as UTF-8"; WSGI shows
    # fields as latin-1.
    field = request.headers.get("Last-Event-ID", "").encode("latin-1").decode("utf-8", "replace")
    return field or request.args.get("lastEventId", "")


def client_socket(request: Request) -> socket.socket | None:
    """Return a request's connection where the server shows it: gunicorn and werkzeug do."""
    client: socket.socket | None = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
    return client


def _pump(request: Request, call: Call, events: Iterable[Event], status: int, state: State) -> Pump:
    settings = state.settings
    exchange = Exchange(client_socket(request), Limits(send=settings.send_timeout, duration=settings.max_duration))
    call.upstream = f"own:{request.endpoint}"
    report, stack = StreamReport(call, state.metrics), ExitStack()

    def on_start(producer: Producer) -> None:
        report.begin(exchange)
        stack.callback(report.finish)
        exchange.upstream.attach(producer)
        state.monitor.add(exchange)
        exchange.watch_client()

    def on_end(end: StreamEnd) -> None:
        stack.close()
        state.monitor.discard(exchange)
        report.tell(end)

    # A heartbeat is sent while the iterable is silent, which is noticed beside it only.
    kind = ThreadProducer if settings.heartbeat else Producer
    return Pump(
        kind(events, _encoder(), on_start=on_start),
        exchange,
        status=status,
        is_event_stream=True,
        heartbeat=settings.heartbeat,
        has_body=request.method != "HEAD" and status not in (204, 304),
        is_framed=request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0",
        on_end=on_end,
    )


def _encoder() -> Callable[[Event], bytes]:
    """Return what makes the bytes of an event; JSON as the app writes it, which knows dates and the like."""
    dumps = current_app.json.dumps

    def encode(event: Event) -> bytes:
        if isinstance(event, dict | list):
            event = dumps(event)
        if isinstance(event, str):
            event = ServerSentEvent(data=event)
        if not isinstance(event, ServerSentEvent):
            raise TypeError(f"an event is a ServerSentEvent, str, dict or list, not {type(event).__name__}")
        return event.encode()

    return encode
