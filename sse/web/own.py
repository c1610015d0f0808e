"""Own streams: any iterable of events becomes an event stream, which ends as a relayed one does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping

from flask import current_app, request

from ..protocol.event import ServerSentEvent
from ..relay.exchange import Limits
from ..relay.stream.producer import make_producer
from ..relay.stream.pump import Pump
from .call import Call, current_call
from .response import PumpResponse, set_event_stream_fields
from .state import State, current_state
from .stream import ClientStream

#: What an iterable may yield: an event; bytes, which are whole events already; or the data of one event, as text or as
#: anything that the app writes as JSON.
Event = object


class EventSourceResponse(PumpResponse):
    """An event stream of the site's own; it needs `SSE(app)`.

    The iterable runs when the view has returned. A generator that uses `request` is wrapped in Flask's
    `stream_with_context`. It is closed when the client leaves: under gevent at once, also while it waits for something;
    in a thread as soon as what it waits for is there.

    With a heartbeat the iterable runs in a thread of its own, a greenlet where threads are patched, one item ahead of
    the client at most. Without one it runs where the server sends the response, which is the thread of the view.

    :param events: what is streamed; closed in the end if it can be closed.
    :param status: 204 keeps an EventSource from reconnecting.
    :param headers: more response fields.
    :param heartbeat: seconds of silence after which a comment is sent, 0 for none; None: `SSE_HEARTBEAT`.
    :raises TypeError: if `events` is no iterable of events.
    """

    def __init__(
        self,
        events: Iterable[Event],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        heartbeat: float | None = None,
    ) -> None:
        check_events(events)
        call, state = current_call(), current_state()
        if heartbeat is None:
            heartbeat = state.settings.heartbeat
        if heartbeat < 0:
            raise ValueError(f"heartbeat must not be negative, got {heartbeat!r}")
        super().__init__(_pump(call, events, status, heartbeat, state), status=status, headers=headers)
        set_event_stream_fields(self, call)


def last_event_id() -> str:
    """Return the id of the last event that the client has seen, "" if it has seen none.

    An EventSource sends it when it comes back; one that is new may give it as `lastEventId` in the query.
    """
    # WHATWG HTML, section 9.2.4: "(`Last-Event-ID`, lastEventIDValue)" with the value "encoded as UTF-8"; WSGI shows
    # fields as latin-1.
    field = request.headers.get("Last-Event-ID", "").encode("latin-1").decode("utf-8", "replace")
    return field or request.args.get("lastEventId", "")


#: How text begins and ends that is an event already.
_FIELD = re.compile(r"(data|event|id|retry)?:")
_BLANK_LINES = ("\n\n", "\r\r", "\r\n\r\n")
_BLANK_LINES_OF_BYTES = tuple(map(str.encode, _BLANK_LINES))


def check_events(events: object) -> None:
    """Check what can be known of an iterable before it runs.

    :raises TypeError: if it is no iterable of events; the message names what to pass instead.
    """
    if isinstance(events, str | bytes | Mapping | ServerSentEvent):
        raise TypeError(f"events must be an iterable of events, not one {type(events).__name__}; use a list of it")
    if hasattr(events, "__aiter__") or inspect.iscoroutine(events):
        raise TypeError("events must be an iterable, not an asynchronous one, which a WSGI server cannot run")
    if not hasattr(events, "__iter__"):
        hint = "; call it" if callable(events) else ""
        raise TypeError(f"events must be an iterable of events, not a {type(events).__name__}{hint}")
    for event in events if isinstance(events, list | tuple) else ():
        check_event(event)
        if not isinstance(event, ServerSentEvent | str | bytes):
            current_app.json.dumps(event)


def check_event(event: object) -> None:
    """Check one event.

    :raises TypeError: if it is none, is text that has an event's fields and blank line already, or bytes that do not
        end with a blank line.
    """
    if isinstance(event, bytes):
        if not event.endswith(_BLANK_LINES_OF_BYTES):
            raise TypeError("bytes are whole events, which end with a blank line; for the data of one, use str")
    elif isinstance(event, str):
        if _FIELD.match(event) and event.endswith(_BLANK_LINES):
            raise TypeError(
                "an event's text is its data alone, without field names and blank line; use ServerSentEvent, or bytes"
            )


def _pump(call: Call, events: Iterable[Event], status: int, heartbeat: float, state: State) -> Pump:
    call.upstream = f"own:{request.endpoint}"
    limits = Limits(send=state.settings.send_timeout, duration=state.settings.max_duration)
    stream = ClientStream(request, call, state, limits)
    return stream.pump(
        make_producer(events, _encoder(), heartbeat=heartbeat, on_start=stream.begin),
        status=status,
        heartbeat=heartbeat,
        has_opening=True,
    )


def _encoder() -> Callable[[Event], bytes]:
    """Return what makes the bytes of an event; JSON as the app writes it, which encodes dates and the like."""
    dumps = current_app.json.dumps
    is_first = True

    def encode(event: Event) -> bytes:
        nonlocal is_first
        if is_first:
            # The later ones may be text of other people's, which is not to end a stream.
            check_event(event)
            is_first = False
        if isinstance(event, bytes):
            check_event(event)
            return event
        if not isinstance(event, ServerSentEvent):
            event = ServerSentEvent(data=event if isinstance(event, str) else dumps(event))
        return event.encode()

    return encode
