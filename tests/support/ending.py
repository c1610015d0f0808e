"""What tests of endings share: an event, scripts that stop at a stage, and waiting for a stream's log line."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from sse.relay.stream.end import EndReason
from sse.relay.stream.pump import encode_error

from .service import PATIENCE, Service
from .upstream import EVENT_STREAM, Connection, Script, chunk, head

STREAM = head(200, EVENT_STREAM, "Transfer-Encoding: chunked")
EVENT = b"data: a\n\n"
#: What a stream that the gateway ends while draining ends with.
LAST_WORDS = re.compile(rb'event: error\nretry: \d{4}\ndata: {"code": "draining", "error": {[^{}\n]*}}\n\n$')


def error_event(reason: EndReason | str, id: str | None = None) -> bytes:
    """Return the event that precedes the abort, whose bytes test_pump.py checks."""
    return encode_error(EndReason(reason), id)


def new_mark() -> dict[str, Any]:
    """Return options of `forward` that distinguish the stream's log line from those of all others."""
    return {"http_fields": {"X-Request-Id": uuid.uuid4().hex}}


def ending(service: Service, mark: Mapping[str, Any]) -> str:
    """Wait for the one log line of a marked stream, and return its end reason."""
    line = rf"stream end=(\w+) .*request_id={mark['http_fields']['X-Request-Id']}$"
    reason = service.wait_log(line)[1]
    assert len(re.findall(line, service.log(), re.MULTILINE)) == 1
    return reason


def eventually(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that nothing reports."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def silent(connection: Connection) -> None:
    """Send one event and nothing more."""
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    connection.wait_closed()


def flooding(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    connection.flood()


def headless(connection: Connection) -> None:
    connection.read_request()
    connection.wait_closed()


def inside(connection: Connection) -> None:
    """Stop inside a chunk, inside an event."""
    connection.read_request()
    connection.send(STREAM + b"ff\r\n" + EVENT + b"data: be")
    connection.wait_closed()


def raw(data: bytes, *, again: bytes = b"") -> Script:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data)
        if again:
            connection.flood(again)
        else:
            connection.wait_closed()

    return script
