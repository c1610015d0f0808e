"""`GET /sse`: the demonstration event stream."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Response, request

from ...protocol.event import ServerSentEvent
from ..own import EventSourceResponse, last_event_id
from .refusal import check_method

ALLOWED = ("GET", "HEAD", "OPTIONS")

#: Seconds between two events.
INTERVAL = 0.2


def ticks() -> Response:
    """Stream numbered events, from the one after the last that the client has seen."""
    if (options := check_method(request.method, ALLOWED)) is not None:
        return options
    last = last_event_id()
    # An id may be any text; one that is not such a number begins anew.
    return EventSourceResponse(_tick(int(last) if last.isascii() and last.isdecimal() and len(last) < 16 else 0))


def _tick(last: int) -> Iterator[ServerSentEvent]:
    while True:
        time.sleep(INTERVAL)
        last += 1
        yield ServerSentEvent(id=str(last), data=f"Message {last - 1}")
