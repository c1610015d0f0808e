"""What a request and an event take, in calls and system calls: counts, which no machine is too slow for.

Each bound is what the code takes today, calls with a little room; a change that makes it take less lowers the bound.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import pytest

from .support.service import Service, call
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head

EVENT = b"data: a\n\n"
#: As many as fit into one segment, and so come with one read.
MANY = 600

#: Calls of functions in `sse/` for one read of the upstream, whatever it brings, up to the system call of the write.
CALLS_PER_READ = 12
#: The same of a read that is recorded in memory.
RECORDED_CALLS_PER_READ = 16
#: Calls in `sse/` for a request over a kept connection, with a body and without an event.
CALLS_PER_REQUEST = 207
#: Bytes of memory for a stream that waits for its upstream; 6,500 and room for what a process rounds up.
MEMORY_PER_STREAM = 9_000
#: More of them if its upstream has two targets.
CALLS_FOR_TARGETS = 24
#: Writes to the upstream for the head and the body of a request.
UPSTREAM_SENDS = 1
#: Reads that look whether a kept connection is still good.
LOOK_RECEIVES = 1
#: Reads of the upstream's head: it is waited for first.
HEAD_RECEIVES = 1
#: Writes to the client besides those of the events: the head, the last chunk.
CLIENT_SENDS = 2


class Counting:
    """A service whose work is counted, and an upstream that it knows by name."""

    def __init__(self, service: Service, upstream: Upstream) -> None:
        self.upstream = upstream
        self._service = service
        self._may_end = threading.Event()
        upstream.script = self._answer

    def _answer(self, connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
            connection.wait_for(self._may_end)
            connection.send(LAST_CHUNK)

    def relay(
        self, *bursts: Sequence[bytes], fields: Mapping[str, str] | None = None, name: str = "test"
    ) -> Counter[str]:
        """Relay a stream, and return what that took.

        :param bursts: of events, a chunk each; a burst is sent at once, when the one before has arrived.
        :param fields: more of the request.
        :param name: of the upstream's entry.
        """
        fields = {"Content-Type": "application/json", **(fields or {})}
        start, number = len(self._service.log()), len(self.upstream.requests) + 1
        self._may_end = threading.Event()
        with call(self._service, "POST", f"/upstream/{name}/", fields, b"{}") as client:
            connection = self.upstream.connections[self.upstream.wait_request(number).connection]
            client.read_head()
            for burst in bursts:
                before = len(client.body)
                connection.send(b"".join(map(chunk, burst)))
                while len(client.body) < before + sum(map(len, burst)):
                    client.read_piece()
            self._may_end.set()
            assert client.read_body() == b"".join(event for burst in bursts for event in burst)
            assert client.is_complete
        return Counter(json.loads(self._service.wait_log("^costs (.*)$", start=start)[1]))

    def hold(self, count: int, stack: ExitStack) -> int:
        """Open streams that wait until the stack is closed, and return the bytes of memory that the service has."""
        self._may_end = threading.Event()
        stack.callback(self._may_end.set)
        body = json.dumps({"targetUrl": f"http://localhost:{self.upstream.port}/", "body": "x" * 1000}).encode()
        for _ in range(count):
            fields = {"Content-Type": "application/json"}
            stack.enter_context(call(self._service, "POST", "/forward-sse", fields, body)).read_head()
        return self._service.rss()


@pytest.fixture(scope="module")
def counting() -> Iterator[Counting]:
    """With a connection that is kept, and everything done that is done once."""
    with Upstream() as upstream:
        # By its name, for only names are looked up.
        url = f"http://localhost:{upstream.port}/"
        targets = [{"id": id, "headers": {"X-Key": id}} for id in ("a", "b")]
        upstreams = {"test": url, "targets": {"url": url, "targets": targets, "retry": [429]}}
        with Service(
            app="tests.apps.counted:app",
            SSE_UPSTREAMS=upstreams,
            SSE_OPEN=True,
            SSE_THROTTLE="1000 per second",
            SSE_MAX_STREAMS_PER_CLIENT=0,
        ) as service:
            found = Counting(service, upstream)
            first = found.relay([EVENT])
            assert first["look_ups"] == 1, "a new connection looks its name up, or look-ups are not counted"
            yield found


def test_an_event_is_one_read_and_one_write(counting: Counting) -> None:
    costs = counting.relay(*[[EVENT]] * 30)
    # And one of each for the last chunk.
    assert costs["body_receives"] == 30 + 1
    assert costs["client_sends"] == 30 + CLIENT_SENDS


def test_an_event_takes_few_calls(counting: Counting) -> None:
    few, more = counting.relay(*[[EVENT]] * 10), counting.relay(*[[EVENT]] * 30)
    assert 0 < (more["calls"] - few["calls"]) / 20 <= CALLS_PER_READ


def test_a_recorded_event_takes_few_calls_more(counting: Counting) -> None:
    recorded = {"Stream-TTL": "60", "Stream-Leave": "0"}
    few = counting.relay(*[[EVENT]] * 10, fields=recorded)
    more = counting.relay(*[[EVENT]] * 30, fields=recorded)
    assert 0 < (more["calls"] - few["calls"]) / 20 <= RECORDED_CALLS_PER_READ
    assert (more["client_sends"] - few["client_sends"]) / 20 == 1


def test_events_that_are_read_together_are_written_together(counting: Counting) -> None:
    costs = counting.relay([EVENT] * MANY)
    assert costs["body_receives"] == 1 + 1
    assert costs["client_sends"] == 1 + CLIENT_SENDS


def test_events_that_are_read_together_take_no_call_each(counting: Counting) -> None:
    one, many = counting.relay([EVENT]), counting.relay([EVENT] * MANY)
    assert many["calls"] - one["calls"] < CALLS_PER_READ


def test_a_request_takes_few_calls(counting: Counting) -> None:
    costs = counting.relay()
    assert 0 < costs["calls"] <= CALLS_PER_REQUEST


def test_several_targets_take_few_calls_more(counting: Counting) -> None:
    one, more = counting.relay(), counting.relay(name="targets")
    assert 0 < more["calls"] - one["calls"] <= CALLS_FOR_TARGETS
    assert more["upstream_sends"] == one["upstream_sends"]


def test_a_request_takes_few_reads_and_writes(counting: Counting) -> None:
    costs = counting.relay()
    assert 0 < costs["upstream_sends"] <= UPSTREAM_SENDS
    assert costs["look_receives"] == LOOK_RECEIVES
    assert costs["head_receives"] == HEAD_RECEIVES
    assert costs["client_sends"] == CLIENT_SENDS


def test_a_kept_connection_is_used_again(counting: Counting) -> None:
    for _ in range(5):
        counting.relay()
    assert len(counting.upstream.connections) == 1


def test_a_kept_connection_looks_nothing_up(counting: Counting) -> None:
    assert counting.relay()["look_ups"] == 0


def test_a_stream_that_waits_takes_little_memory(counting: Counting) -> None:
    """It kept the request, the response and their fields: 17 kB."""
    with ExitStack() as stack:
        before = counting.hold(100, stack)
        assert (counting.hold(300, stack) - before) / 300 < MEMORY_PER_STREAM
