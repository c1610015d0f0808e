"""An upstream that stalls, resets or lies, at every stage: when it is over, nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..support.crowd import descriptors
from ..support.ending import EVENT, STREAM, eventually, raw
from ..support.relay import Relay
from ..support.service import Service
from ..support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, Upstream, chunk, head, respond


@pytest.fixture(scope="module")
def narrow_relay() -> Iterator[Relay]:
    """A service in which a client may have one stream, and times are short."""
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 1}
    times: dict[str, Any] = {"SSE_RESPONSE_TIMEOUT": 0.5, "SSE_IDLE_TIMEOUT": 0.5}
    with Upstream() as upstream, Service(SSE_UPSTREAMS={"test": upstream.url}, **settings, **times) as service:
        yield Relay(service, upstream)


@pytest.fixture
def narrow(narrow_relay: Relay) -> Iterator[Relay]:
    yield narrow_relay
    narrow_relay.settle()


#: What an upstream has sent when it stalls or resets.
STAGES = {
    "before the head": b"",
    "half a status line": b"HTTP/1.1 2",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "after the head": STREAM,
    "half a chunk": STREAM + b"ff\r\n" + EVENT,
    "half a chunk's size": STREAM + chunk(EVENT) + b"f",
    "half an event": STREAM + chunk(EVENT + b"data: be"),
    "before the last chunk": STREAM + chunk(EVENT),
}

LIES = {
    "a length too long": head(200, EVENT_STREAM, "Content-Length: 99") + EVENT,
    "a length too short": head(200, EVENT_STREAM, "Content-Length: 3") + EVENT,
    "two lengths": head(200, EVENT_STREAM, "Content-Length: 3", "Content-Length: 9") + EVENT,
    "a length and chunks": head(200, EVENT_STREAM, "Content-Length: 3", "Transfer-Encoding: chunked") + chunk(EVENT),
    "a chunk longer than it says": STREAM + b"3\r\n" + EVENT + b"\r\n" + LAST_CHUNK,
    "a chunk size that is none": STREAM + b"xyz\r\n" + EVENT,
    "a status that is none": b"HTTP/1.1 OK 200\r\n\r\n",
    "no status line": b"\x15\x03\x03\x00\x02\x02\x46",
}


def stalling(data: bytes) -> Script:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data)
        connection.wait_closed()

    return script


def resetting(data: bytes) -> Script:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data)
        connection.reset()

    return script


HOSTILE = [
    *(
        pytest.param(make(sent), id=f"{make.__name__} {stage}")
        for make in (stalling, resetting)
        for stage, sent in STAGES.items()
    ),
    *(pytest.param(stalling(sent), id=what) for what, sent in LIES.items()),
    pytest.param(lambda connection: connection.wait_closed(), id="reads nothing"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nX-Endless: ", again=b"x" * 10_000), id="an endless field"),
    pytest.param(raw(b"", again=head(100) * 1000), id="endless interim heads"),
]


@pytest.fixture(scope="module")
def at_rest(narrow_relay: Relay) -> int:
    """How many descriptors the worker has open when it has served, and no client is there."""
    narrow_relay.forward(respond(EVENT, framing="close")).read_body()
    narrow_relay.settle()
    counts: list[int] = []

    def is_stable() -> bool:
        counts.append(descriptors(narrow_relay.service.worker_pids()[0]))
        return counts[-20:] == [counts[-1]] * 20

    eventually(is_stable, "descriptors come and go")
    return counts[-1]


@pytest.mark.parametrize("script", HOSTILE)
def test_nothing_is_left_of_it(script: Script, narrow: Relay, at_rest: int) -> None:
    with narrow.forward(script) as client:
        client.read_body()
        assert client.head is not None
        # The one that sends too much has sent all it promised; what comes after that belongs to no request.
        assert client.head.status in (502, 504) or client.ending == "aborted" or client.body == EVENT[:3]
    # Its one lease is there for the next one.
    with narrow.forward(respond(EVENT, framing="close")) as client:
        assert (client.read_head().status, client.read_body(), client.ending) == (200, EVENT, "complete")
    [pid] = narrow.service.worker_pids()
    eventually(lambda: descriptors(pid) == at_rest, "descriptors are left")
    assert "Traceback" not in narrow.service.log()
    assert "internal_error" not in narrow.service.log()
