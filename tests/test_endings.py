"""One reason for each ending, and everything released at once: through a real gunicorn, seen from both sides."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .support.ending import (
    EVENT,
    STREAM,
    ending,
    error_event,
    eventually,
    flooding,
    headless,
    inside,
    new_mark,
    raw,
    silent,
)
from .support.relay import Relay
from .support.service import PATIENCE, RawClient, Service, call, forward
from .support.upstream import (
    EVENT_STREAM,
    LAST_CHUNK,
    Connection,
    PeerClosed,
    Script,
    SilentListener,
    Upstream,
    chunk,
    head,
    in_turn,
    respond,
)


def leave_by_fin(client: RawClient) -> None:
    # A close with bytes unread would be a reset; this is a FIN even while the upstream floods.
    client.half_close()
    client.sock.settimeout(PATIENCE)
    try:
        while client.sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    client.close()


def leave_by_close(client: RawClient) -> None:
    client.close()


def leave_by_reset(client: RawClient) -> None:
    client.reset()


LEAVING = [
    pytest.param(leave_by_fin, id="fin"),
    pytest.param(leave_by_close, id="close"),
    pytest.param(leave_by_reset, id="rst"),
]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("script", [silent, flooding, headless, inside])
def test_a_leaving_client_closes_its_upstream_connection(
    relay: Relay, script: Script, leave: Callable[[RawClient], None]
) -> None:
    mark = new_mark()
    client = relay.forward(script, **mark)
    if script is headless:
        relay.upstream.wait_request()
    else:
        client.read_until(EVENT)
    leave(client)
    relay.upstream.wait_connection().wait_closed()
    assert ending(relay.service, mark) == "client_gone"


@pytest.mark.parametrize("script", [silent, flooding, headless])
def test_an_upstream_is_let_go_within_a_tenth_of_a_second(relay: Relay, script: Script) -> None:
    """The median of several, so that one that a busy machine delays does not count."""
    delays = []
    for number in range(1, 10):
        client = relay.forward(script)
        relay.upstream.wait_request(number)
        if script is not headless:
            client.read_until(EVENT)
        left = time.monotonic()
        client.reset()
        delays.append(relay.upstream.wait_connection(number).wait_closed() - left)
    median = statistics.median(delays)
    print(f"{script.__name__}: released after {median * 1000:.1f} ms, at worst {max(delays) * 1000:.1f}")
    assert median < 0.1


def test_a_client_that_half_closes_has_left(relay: Relay) -> None:
    """On the wire it looks like one that closed, and what it gets is that the stream is not whole."""
    mark = new_mark()
    client = relay.forward(silent, **mark)
    client.read_until(EVENT)
    client.half_close()
    relay.upstream.wait_connection().wait_closed()
    assert ending(relay.service, mark) == "client_gone"
    client.read_body()
    assert client.ending == "aborted"


def pipelined(relay: Relay) -> bytes:
    return f"GET /healthz HTTP/1.1\r\nHost: {relay.service.host}\r\n\r\n".encode()


def test_pipelined_bytes_are_no_hang_up(relay: Relay) -> None:
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(go)
        connection.send(chunk(b"data: b\n\n") + LAST_CHUNK)

    client = relay.forward(script)
    client.read_until(EVENT)
    client.send(pipelined(relay))
    # Three looks at the clocks: a hang-up that is not one would have been taken for one by now.
    assert not threading.Event().wait(0.75)
    go.set()
    assert client.read_body() == EVENT + b"data: b\n\n"
    assert client.is_complete
    client.method = "GET"
    assert client.read_head().status == 200


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("script", [silent, headless])
def test_leaving_after_pipelining_is_noticed(relay: Relay, script: Script, leave: Callable[[RawClient], None]) -> None:
    """Bytes that are not read hide the FIN behind them."""
    mark = new_mark()
    client = relay.forward(script, **mark)
    relay.upstream.wait_request()
    if script is silent:
        client.read_until(EVENT)
    client.send(pipelined(relay))
    # The worker is one thread: when it has answered this, it has seen those bytes, and not the FIN.
    with call(relay.service, "GET", "/healthz") as other:
        other.read_head()
    leave(client)
    relay.upstream.wait_connection().wait_closed()
    assert ending(relay.service, mark) == "client_gone"


def with_end(data: bytes, end: str, *, response_head: bytes = STREAM) -> Callable[[threading.Event], Script]:
    """Return what makes a script that sends `data`, waits until the client has it, and ends: "fin", "rst", or bytes."""

    def make(seen: threading.Event) -> Script:
        def script(connection: Connection) -> None:
            connection.read_request()
            connection.send(response_head + data)
            connection.wait_for(seen)
            if end == "rst":
                connection.reset()
                return
            if end == "fin":
                connection.half_close()
            else:
                connection.send(end.encode())
            connection.wait_closed()

        return script

    return make


SIZED = head(200, EVENT_STREAM, "Content-Length: 1000")
CLOSE = head(200, EVENT_STREAM)

TRUNCATIONS = [
    pytest.param(with_end(b"ff\r\n" + EVENT, "fin"), EVENT, True, id="fin in a chunk, between events"),
    pytest.param(with_end(b"ff\r\ndata: a", "fin"), b"data: a", False, id="fin in a chunk, in an event"),
    pytest.param(with_end(chunk(EVENT), "fin"), EVENT, True, id="no last chunk"),
    pytest.param(with_end(chunk(EVENT) + b"f", "fin"), EVENT, True, id="fin in a chunk's size"),
    pytest.param(with_end(chunk(b"data: a\n"), "fin"), b"data: a\n", False, id="no last chunk, in an event"),
    pytest.param(with_end(chunk(b"data: a\r\n\r"), "fin"), b"data: a\r\n\r", True, id="no last chunk, after cr"),
    pytest.param(with_end(b"", "fin"), b"", True, id="nothing but the head"),
    pytest.param(with_end(chunk(EVENT) + b"0\r\n", "fin"), EVENT, True, id="no end of the trailers"),
    pytest.param(with_end(EVENT, "fin", response_head=SIZED), EVENT, True, id="short content-length"),
    pytest.param(with_end(b"data", "fin", response_head=SIZED), b"data", False, id="short content-length, in an event"),
    pytest.param(with_end(chunk(EVENT), "rst"), EVENT, True, id="rst"),
    pytest.param(with_end(EVENT, "rst", response_head=SIZED), EVENT, True, id="rst, content-length"),
    pytest.param(with_end(EVENT, "rst", response_head=CLOSE), EVENT, True, id="rst, until close"),
    pytest.param(with_end(b"ff\r\ndata: a", "rst"), b"data: a", False, id="rst, in an event"),
    pytest.param(with_end(chunk(EVENT), "zz\r\n"), EVENT, True, id="malformed chunk"),
    pytest.param(with_end(chunk(EVENT), "-1\r\n"), EVENT, True, id="negative chunk"),
    pytest.param(with_end(chunk(EVENT), "4\r\nabcdXX"), EVENT + b"abcd", False, id="a chunk longer than it says"),
    pytest.param(with_end(chunk(EVENT), "5;" + "x" * 70_000), EVENT, True, id="endless chunk extension"),
    pytest.param(with_end(chunk(EVENT), "0\r\n" + "a: b\r\n" * 20_000), EVENT, True, id="endless trailers"),
]


@pytest.mark.parametrize(("make", "came", "is_boundary"), TRUNCATIONS)
def test_what_is_truncated_never_looks_complete(
    relay: Relay, make: Callable[[threading.Event], Script], came: bytes, is_boundary: bool
) -> None:
    """The reference left the client hanging; iter_content ends cleanly on a short Content-Length."""
    mark = new_mark()
    seen = threading.Event()
    client = relay.forward(make(seen), **mark)
    client.read_head()
    if came and not came.endswith(b"abcd"):
        client.read_until(came)
    seen.set()
    error = error_event("upstream_truncated") if is_boundary else b""
    assert client.read_body() == came + error
    assert client.ending == "aborted"
    assert ending(relay.service, mark) == "upstream_truncated"
    connection = relay.upstream.wait_connection()
    # It has closed by itself, or is closed from our side.
    eventually(lambda: connection._is_closed or connection.closed_at is not None, "the upstream was not released")


def test_nothing_is_put_into_what_is_no_event_stream(relay: Relay) -> None:
    fields = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    client = relay.forward(with_end(chunk(b"{}\n\n"), "fin", response_head=head(200, *fields))(_set()))
    assert client.read_body() == b"{}\n\n"
    assert client.ending == "aborted"


def test_nothing_is_put_into_a_compressed_stream(relay: Relay) -> None:
    fields = (EVENT_STREAM, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    client = relay.forward(with_end(chunk(b"\x1f\x8b\n\n"), "fin", response_head=head(200, *fields))(_set()))
    assert client.read_body() == b"\x1f\x8b\n\n"
    assert client.ending == "aborted"


def test_a_truncated_error_does_not_look_complete(relay: Relay) -> None:
    fields = ("Content-Type: application/json", "Content-Length: 100")
    client = relay.forward(with_end(b'{"error":', "fin", response_head=head(500, *fields))(_set()))
    assert client.read_body() == b'{"error":'
    assert client.ending == "aborted"


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def forward_http_1_0(relay: Relay, script: Script, *, http_fields: Mapping[str, str] | None = None) -> RawClient:
    relay.upstream.script = script
    client = RawClient(relay.service.host, relay.service.port)
    relay._clients.append(client)
    body = json.dumps({"targetUrl": relay.upstream.url + "/"}).encode()
    client.method = "POST"
    lines = ["Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (http_fields or {}).items()]
    fields = "\r\n".join([*lines, "", ""])
    client.send(f"POST /forward-sse HTTP/1.0\r\n{fields}".encode() + body)
    return client


def test_to_an_http_1_0_client_a_truncated_stream_is_a_reset(relay: Relay) -> None:
    """Its body ends with the connection, so a FIN would make any part of it look whole."""
    mark = new_mark()
    big = b"data: " + b"x" * 1_000_000 + b"\n\n"
    client = forward_http_1_0(relay, with_end(chunk(big), "fin")(_set()), **mark)
    assert client.read_head().field("Transfer-Encoding") is None
    assert client.read_body() == big + error_event("upstream_truncated")
    assert client.ending == "aborted"
    assert ending(relay.service, mark) == "upstream_truncated"


def test_to_an_http_1_0_client_a_whole_stream_is_whole(relay: Relay) -> None:
    client = forward_http_1_0(relay, respond(EVENT, EVENT))
    assert client.read_body() == EVENT + EVENT
    assert client.is_complete


def test_an_end_without_a_closure_alert_is_a_truncation(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """RFC 9112, section 9.8: anybody on the way can send a FIN; only the upstream can send the alert."""
    seen = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM) + EVENT)
        connection.wait_for(seen)
        # Below TLS, which therefore says no goodbye.
        super(type(connection._sock), connection._sock).shutdown(socket.SHUT_WR)
        connection.wait_closed()

    target = upstream(script, tls=True)
    trusting = service(SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", SSE_CA_FILE=target.ca_file)
    mark = new_mark()
    with forward(trusting, target.url + "/", **mark) as client:
        client.read_until(EVENT)
        seen.set()
        client.read_body()
        assert client.ending == "aborted"
    assert ending(trusting, mark) == "upstream_truncated"
    # And the client that leaves is noticed also while the upstream is silent behind TLS.
    target.script = silent
    with forward(trusting, target.url + "/") as client:
        client.read_until(EVENT)
    target.wait_connection(2).wait_closed()


class Impatient:
    """A service whose every time is short, two upstreams, and one address without a response."""

    def __init__(self, service: Service, upstream: Upstream, silent: SilentListener) -> None:
        self.service = service
        self.upstream = upstream
        self.silent = silent

    def forward(self, script: Script, **options: Any) -> RawClient:
        self.upstream.script = script
        return forward(self.service, self.upstream.url + "/", **options)


TIMES: dict[str, Any] = {
    "SSE_CONNECT_TIMEOUT": 0.3,
    "SSE_RESPONSE_TIMEOUT": 0.5,
    "SSE_IDLE_TIMEOUT": 0.5,
    "SSE_SEND_TIMEOUT": 0.5,
    "SSE_MAX_DURATION": 2,
    "SSE_THROTTLE": "",
}


@pytest.fixture(scope="module")
def impatient_service() -> Iterator[Impatient]:
    with Upstream() as upstream, SilentListener() as silent:
        table = {"test": upstream.url, "silent": silent.url}
        with Service(SSE_UPSTREAMS=table, **TIMES) as service:
            yield Impatient(service, upstream, silent)


@pytest.fixture
def impatient(impatient_service: Impatient) -> Iterator[Impatient]:
    yield impatient_service
    impatient_service.upstream.settle()


def is_refused(client: RawClient, status: int, code: str) -> None:
    answered = client.read_head()
    assert answered.field("Content-Type") == "application/problem+json"
    problem = client.json()
    assert (answered.status, problem["status"], problem["code"]) == (status, status, code)


def test_the_connection_has_a_time_limit(impatient: Impatient) -> None:
    mark = new_mark()
    began = time.monotonic()
    with forward(impatient.service, impatient.silent.url + "/", **mark) as client:
        is_refused(client, 504, "upstream_timeout")
    assert 0.2 < time.monotonic() - began < 3
    assert ending(impatient.service, mark) == "upstream_failed"


def test_a_client_that_leaves_ends_the_wait_for_a_connection(
    service: Callable[..., Service],
) -> None:
    with SilentListener() as nothing:
        patient = service(SSE_UPSTREAMS={"silent": nothing.url}, SSE_THROTTLE="", SSE_CONNECT_TIMEOUT=60)
        mark = new_mark()
        with forward(patient, nothing.url + "/", **mark):
            eventually(lambda: _is_connecting(patient, nothing.port), "no connection is tried")
        assert ending(patient, mark) == "client_gone"
        eventually(lambda: not _is_connecting(patient, nothing.port), "it is still tried")


def _is_connecting(service: Service, port: int) -> bool:
    """Return whether a process of the service waits for a connection to that port (Linux): 02 is SYN_SENT."""
    inodes = {
        match[1]
        for pid in service.worker_pids()
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if (match := re.match(r"socket:\[(\d+)\]", _link(fd)))
    }
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(line[2].endswith(f":{port:04X}") and line[3] == "02" and line[9] in inodes for line in lines)


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # closed in the meantime
        return ""


def tls_hello_never(connection: Connection) -> None:
    connection.wait_closed()


def dripping_head(connection: Connection) -> None:
    connection.read_request()
    drip(connection, b"HTTP/1.1 200 OK\r\nX-Drip: " + b"x" * 1000)


def dripping_interim(connection: Connection) -> None:
    connection.read_request()
    drip(connection, head(100) * 50)


def drip(connection: Connection, data: bytes) -> None:
    """Send a byte every few milliseconds, so that there is never silence."""
    try:
        for offset in range(len(data)):
            connection.send(data[offset : offset + 1])
            if connection.closed_at is not None:
                return
            time.sleep(0.02)
    except PeerClosed:
        return


@pytest.mark.parametrize("script", [headless, dripping_head, dripping_interim])
def test_the_head_has_a_time_limit_as_a_whole(impatient: Impatient, script: Script) -> None:
    """requests counts each read anew: a dripping head took 36 s under a limit of 2."""
    mark = new_mark()
    began = time.monotonic()
    with impatient.forward(script, **mark) as client:
        is_refused(client, 504, "upstream_timeout")
    assert 0.4 < time.monotonic() - began < 3
    assert ending(impatient.service, mark) == "upstream_failed"
    impatient.upstream.wait_connection().wait_closed()


def test_a_missing_tls_hello_meets_the_connect_timeout(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    target = upstream(tls_hello_never)
    url = target.url.replace("http:", "https:")
    waiting = service(SSE_UPSTREAMS={"test": url}, SSE_THROTTLE="", SSE_CONNECT_TIMEOUT=0.3)
    with forward(waiting, url + "/") as client:
        is_refused(client, 504, "upstream_timeout")
    target.wait_connection().wait_closed()
    # The same wait ends when the client leaves.
    mark = new_mark()
    with forward(waiting, url + "/", **mark):
        target.wait_connection(2)
    target.wait_connection(2).wait_closed()
    assert ending(waiting, mark) in ("client_gone", "upstream_failed")


def idle_in_chunk_size(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    drip(connection, b"5;" + b"x" * 1000)


def idle_in_trailers(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    drip(connection, b"0\r\nX-Trailer: " + b"x" * 1000)


@pytest.mark.parametrize("script", [silent, idle_in_chunk_size, idle_in_trailers])
def test_silence_has_a_time_limit(impatient: Impatient, script: Script) -> None:
    mark = new_mark()
    with impatient.forward(script, **mark) as client:
        assert client.read_body() == EVENT + error_event("idle_timeout")
        assert client.ending == "aborted"
    assert ending(impatient.service, mark) == "idle_timeout"
    impatient.upstream.wait_connection().wait_closed()


def test_silence_inside_an_event_ends_without_a_word(impatient: Impatient) -> None:
    with impatient.forward(inside) as client:
        assert client.read_body() == EVENT + b"data: be"
        assert client.ending == "aborted"


def test_a_stream_has_a_time_limit(impatient: Impatient) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM)
        drip(connection, chunk(EVENT) * 100)
        connection.wait_closed()

    mark = new_mark()
    with impatient.forward(script, **mark) as client:
        body = client.read_body()
        assert client.ending == "aborted"
    assert ending(impatient.service, mark) == "max_duration"
    impatient.upstream.wait_connection().wait_closed()
    events, error, _ = body.partition(b"event: error\n")
    assert not error or events.endswith(b"\n\n")


def test_a_client_that_does_not_read_is_disconnected(impatient: Impatient) -> None:
    mark = new_mark()
    with impatient.forward(flooding, **mark, receive_buffer=4096):
        impatient.upstream.wait_connection().wait_closed()
        assert ending(impatient.service, mark) == "send_timeout"


def test_a_client_that_reads_slowly_is_not_disconnected(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    """What counts is that bytes are acknowledged, also while all buffers on the way are full."""
    target = upstream(flooding)
    short = service(SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", SSE_SEND_TIMEOUT=2)
    pause = threading.Event()
    with RawClient(short.host, short.port) as client, socket.socket() as narrow:
        # A large buffer is acknowledged in steps that take longer on loopback.
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect((short.host, short.port))
        client.sock, unused = narrow, client.sock
        unused.close()
        client.request("GET", "/upstream/test/")
        client.read_until(EVENT)
        # 8 kB/s, for four times as long.
        for _ in range(80):
            assert client.sock.recv(800)
            pause.wait(0.1)
        assert "send_timeout" not in short.log()


def test_what_came_while_the_process_was_stopped_counts(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    """The first look at the clocks after it went on found silence, and cut streams whose bytes waited in the socket."""
    go, number = threading.Event(), 30

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(go)
        connection.send(chunk(b"data: b\n\n"))
        connection.wait_closed()

    target = upstream(script)
    paused = service(SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", SSE_IDLE_TIMEOUT=1.5)
    with ExitStack() as stack:
        clients = [stack.enter_context(forward(paused, target.url + "/")) for _ in range(number)]
        for client in clients:
            client.read_until(EVENT)
        (worker,) = paused.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        go.set()
        assert not threading.Event().wait(2.5)
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            client.read_until(b"data: b\n\n")
        # And silence is silence again.
        for client in clients:
            assert b"idle_timeout" in client.read_body()


def test_a_cancelled_stream_of_a_stalled_client_is_closed(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    """The first reason stays, but the report of it blocked for ever."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM)
        connection.flood()

    target = upstream(script)
    short = service(
        SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", SSE_MAX_DURATION=0.5, SSE_SEND_TIMEOUT=1, SSE_MAX_STREAMS=1
    )
    start = len(short.log())
    with forward(short, target.url + "/", receive_buffer=4096):
        assert short.wait_log(r"stream end=(\w+) ", start=start)[1] in ("max_duration", "send_timeout")


def test_a_request_body_that_never_comes_has_a_time_limit(impatient: Impatient) -> None:
    with RawClient(impatient.service.host, impatient.service.port) as client:
        client.method = "POST"
        fields = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        client.send(f"POST /forward-sse HTTP/1.1\r\n{fields}{{".encode())
        is_refused(client, 400, "invalid_request")


def fds(service: Service) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.worker_pids())


@pytest.fixture(scope="module")
def single_pair() -> Iterator[Relay]:
    """A service that has room for one stream, so that a lease that is lost closes it."""
    with Upstream() as upstream:
        table = {"test": upstream.url, "closed": "http://127.0.0.1:9/"}
        with Service(SSE_UPSTREAMS=table, SSE_THROTTLE="", SSE_MAX_STREAMS=1) as service:
            yield Relay(service, upstream)


@pytest.fixture
def single(single_pair: Relay) -> Iterator[Relay]:
    yield single_pair
    single_pair.settle()


def head_request(relay: Relay) -> None:
    client = relay.call(head_alone, "HEAD")
    assert client.read_head().status == 200
    client.close()


def head_alone(connection: Connection) -> None:
    """Answer HEAD as RFC 9110, section 9.3.2 has it: with the fields of a GET."""
    while True:
        request = connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 9"))
        if request.method != "HEAD":
            connection.send(EVENT)


def options_request(relay: Relay) -> None:
    fields = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    client = relay.call(headless, "OPTIONS", fields=fields)
    assert client.read_head().status < 300
    client.close()
    assert not relay.upstream.connections


def wrong_method(relay: Relay) -> None:
    client = call(relay.service, "HEAD", "/forward-sse")
    assert client.read_head().status == 405
    client.close()


def never_started(relay: Relay) -> None:
    """Leave in the moment the request is sent, so that the head meets no client."""
    client = relay.forward(respond(EVENT))
    client.reset()


def left_silent(relay: Relay) -> None:
    client = relay.forward(silent)
    client.read_until(EVENT)
    client.close()


def left_headless(relay: Relay) -> None:
    before = len(relay.upstream.requests)
    client = relay.forward(headless)
    relay.upstream.wait_request(before + 1)
    client.close()


def refused(relay: Relay) -> None:
    client = forward(relay.service, "http://127.0.0.1:9/")
    is_refused(client, 502, "upstream_unreachable")
    client.close()


def truncated(relay: Relay) -> None:
    relay.forward(with_end(chunk(EVENT), "fin")(_set())).read_body()


def redirected(relay: Relay) -> None:
    relay.forward(respond(b"", status=302, fields=["Location: /x"])).read_body()


def failed(relay: Relay) -> None:
    relay.forward(respond(b"e" * 100_000, status=500)).read_body()


def completed(relay: Relay) -> None:
    relay.forward(respond(EVENT)).read_body()


@pytest.mark.parametrize(
    "once",
    [
        head_request,
        options_request,
        wrong_method,
        never_started,
        left_silent,
        left_headless,
        refused,
        truncated,
        redirected,
        failed,
        completed,
    ],
)
def test_no_ending_leaks(single: Relay, once: Callable[[Relay], None]) -> None:
    """Neither a lease, nor a connection, nor a descriptor; a generator that never starts runs no `finally`."""
    before = fds(single.service)
    for _ in range(5):
        once(single)
        eventually(lambda: _gets_in(single), "the lease was not released")
        single.settle()
    # One connection of each side may be kept.
    eventually(lambda: fds(single.service) <= before + 1, f"{before} descriptors became {fds(single.service)}")


def _gets_in(relay: Relay) -> bool:
    client = relay.forward(respond(EVENT))
    status = client.read_head().status
    client.read_body()
    client.close()
    assert status in (200, 503)
    return status == 200


def test_the_last_lease_is_refused_and_given_again(single: Relay) -> None:
    first = single.forward(silent)
    first.read_until(EVENT)
    second = single.forward(silent)
    is_refused(second, 503, "at_capacity")
    assert second.head is not None and second.head.field("Retry-After")
    first.close()
    eventually(lambda: _gets_in(single), "the lease was not released")


def test_memory_is_flat_with_stalled_clients_and_a_flood(relay: Relay) -> None:
    with RawClient(relay.service.host, relay.service.port) as warm:
        warm.request("GET", "/healthz")
        warm.read_head()
    relay.forward(respond(EVENT)).read_body()
    before = relay.service.rss()
    clients = [relay.forward(flooding, receive_buffer=4096) for _ in range(20)]
    for number in range(2, 22):
        relay.upstream.wait_request(number)

    def stalled() -> bool:
        sent = sum(connection.sent for connection in relay.upstream.connections)
        time.sleep(0.1)
        return sum(connection.sent for connection in relay.upstream.connections) == sent

    eventually(stalled, "a client still takes bytes")
    after = relay.service.rss()
    sent = sum(connection.sent for connection in relay.upstream.connections)
    print(f"20 stalled streams: {before / 2**20:.1f} MB became {after / 2**20:.1f}; {sent / 2**20:.1f} MB were sent")
    # A piece of 64 KiB each way and the stream's own 50 kB; without backpressure it would be all that was sent.
    assert after - before < 20 * 512 * 1024
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(respond(EVENT), id="chunked"),
        pytest.param(respond(EVENT, framing="length"), id="length"),
        pytest.param(respond(b'{"e":1}', status=429, framing="length"), id="a whole error"),
        pytest.param(respond(b"", framing="length"), id="no body"),
    ],
)
def test_a_connection_is_used_again_after_a_whole_response(relay: Relay, first: Script) -> None:
    for _ in range(3):
        relay.forward(first).read_body()
    assert [request.connection for request in relay.upstream.requests] == [0, 0, 0]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(STREAM + chunk(EVENT) + LAST_CHUNK + b"HTTP/1.1 200 OK\r\n", id="bytes after the end"),
        pytest.param(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT + b"x", id="more than content-length"),
        pytest.param(head(204) + b"x", id="a body where there is none"),
        pytest.param(head(200, EVENT_STREAM, "Content-Length: 9", "Connection: close") + EVENT, id="connection: close"),
        pytest.param(head(200, EVENT_STREAM, "Content-Length: 9", version="HTTP/1.0") + EVENT, id="http/1.0"),
        pytest.param(
            head(200, EVENT_STREAM, "Content-Length: 9", "Transfer-Encoding: chunked") + chunk(EVENT) + LAST_CHUNK,
            id="two framings",
        ),
        pytest.param(head(302, "Location: /x", "Content-Length: 1") + b"x", id="a redirect"),
        pytest.param(head(500, "Content-Length: 100000") + b"e" * 100_000, id="a cut error body"),
        pytest.param(head(200, "Content-Length: 1", "Content-Length: 2") + b"ab", id="two lengths"),
    ],
)
def test_a_connection_is_never_used_again_after_any_other(relay: Relay, raw: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(raw)
        connection.wait_closed()

    relay.forward(script).read_body()
    relay.upstream.wait_connection().wait_closed()
    assert relay.forward(respond(EVENT)).read_body() == EVENT
    assert [request.connection for request in relay.upstream.requests] == [0, 1]


def test_bytes_on_an_idle_connection_are_no_response(relay: Relay) -> None:
    planted = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT)
        connection.wait_for(planted)
        connection.send(head(200, EVENT_STREAM, "Content-Length: 6") + b"poison")
        connection.wait_closed()

    assert relay.forward(in_turn(script, respond(EVENT))).read_body() == EVENT
    planted.set()
    eventually(lambda: relay.upstream.connections[0].sent > 120, "not planted")
    assert relay.forward(in_turn(script, respond(EVENT))).read_body() == EVENT


def stale(connection: Connection) -> None:
    """Answer once; read the second request and close without a byte."""
    connection.read_request()
    connection.send(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT)
    connection.read_request()


def test_a_stale_connection_is_retried_once_for_get(relay: Relay) -> None:
    script = in_turn(stale, respond(EVENT))
    for _ in range(2):
        client = relay.forward(script, method="get")
        assert client.read_head().status == 200
        assert client.read_body() == EVENT
    assert [request.connection for request in relay.upstream.requests] == [0, 0, 1]


def test_a_fresh_connection_is_not_retried(relay: Relay) -> None:
    client = relay.forward(lambda connection: connection.read_request(), method="get")
    is_refused(client, 502, "upstream_bad_response")
    assert len(relay.upstream.requests) == 1


def test_a_stale_connection_is_not_retried_for_post(relay: Relay) -> None:
    """It may have been processed: RFC 9110, section 9.2.2."""
    relay.forward(in_turn(stale, respond(EVENT)), body="x").read_body()
    is_refused(relay.forward(in_turn(stale, respond(EVENT)), body="x"), 502, "upstream_bad_response")
    assert [request.connection for request in relay.upstream.requests] == [0, 0]


def test_a_connection_that_returned_bytes_is_not_retried(relay: Relay) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT)
        connection.read_request()
        connection.send(head(100))
        connection.reset()

    relay.forward(script, method="get").read_body()
    is_refused(relay.forward(script, method="get"), 502, "upstream_bad_response")
    assert len(relay.upstream.requests) == 2


def test_a_connection_that_its_upstream_has_closed_is_not_used(relay: Relay) -> None:
    def once(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT)

    for _ in range(2):
        assert relay.forward(once, body="x").read_body() == EVENT
        assert relay.upstream.connections[-1].closed.wait(PATIENCE), "the upstream has not closed"
    assert [request.connection for request in relay.upstream.requests] == [0, 1]


def test_no_cookie_is_kept(relay: Relay) -> None:
    """A shared Session gave one user's cookies to the next."""
    for _ in range(2):
        relay.forward(respond(EVENT, fields=[EVENT_STREAM, "Set-Cookie: session=secret"])).read_body()
    assert relay.upstream.requests[1].field("Cookie") is None


def test_neither_netrc_nor_proxies_of_the_environment_are_used(
    upstream: Callable[..., Upstream], service: Callable[..., Service], tmp_path: Path
) -> None:
    """netrc replaced the caller's Authorization, and a proxy saw everything."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password secret\n")
    netrc.chmod(0o600)
    target, proxy = upstream(respond(EVENT)), upstream(respond(b"data: from the proxy\n\n"))
    names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy")
    env = {"NETRC": str(netrc), "HOME": str(tmp_path), **dict.fromkeys(names, proxy.url)}
    behind = service(SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", env=env)
    with forward(behind, target.url + "/") as client:
        assert client.read_body() == EVENT
    assert target.requests[0].field("Authorization") is None
    assert not proxy.connections


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_a_redirect_is_a_bad_response(relay: Relay, status: int) -> None:
    fields = [f"Location: {relay.upstream.url}/elsewhere", EVENT_STREAM]
    client = relay.forward(respond(b"data: moved\n\n", status=status, fields=fields))
    is_refused(client, 502, "upstream_bad_response")
    assert client.head is not None and client.head.field("Location") is None
    assert [request.target for request in relay.upstream.requests] == ["/"]


def test_the_body_of_a_redirect_is_not_read(relay: Relay) -> None:
    """requests reads it whole, even with allow_redirects=False: a bomb in a 302 took 550 MB."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(302, "Location: /x", "Transfer-Encoding: chunked"))
        connection.flood()

    is_refused(relay.forward(script), 502, "upstream_bad_response")
    connection = relay.upstream.wait_connection()
    connection.wait_closed()
    # What fits into the kernel's buffers on the way, and not more.
    assert connection.sent < 16 * 2**20


HOSTILE_HEADS = [
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nX-Endless: ", again=b"x" * 10_000), id="endless field"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\n", again=b"X-Field: y\r\n" * 1000), id="endless fields"),
    pytest.param(raw(b"", again=b"x" * 10_000), id="endless status line"),
    pytest.param(raw(b"", again=head(100) * 1000), id="endless 100 continue"),
    pytest.param(raw(b"", again=head(103, "Link: </a>") * 1000), id="endless early hints"),
    pytest.param(raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"), id="101"),
    pytest.param(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), id="not http"),
    pytest.param(raw(b"HTTP/2.0 200 OK\r\n\r\n"), id="another version"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), id="no colon"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\nContent-Length: 6\r\n\r\na"), id="blank, two lengths"),
    pytest.param(raw(b"HTTP/1.1 600 Odd\r\nContent-Length: 5\r\n\r\nabcde"), id="status above 599"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\n folded: 5\r\n\r\n"), id="folded first line"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde"), id="signed length"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nabcde"), id="two lengths"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"), id="another coding"),
    pytest.param(raw(b"HTTP/1.1 99 Odd\r\n\r\n"), id="status 99"),
]


@pytest.mark.parametrize("script", HOSTILE_HEADS)
def test_a_hostile_head_is_a_bad_response_and_nothing_else(relay: Relay, script: Script) -> None:
    """http.client reads 100 Continue without limit and never yields: one upstream froze the whole process."""
    go = threading.Event()

    def other(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(go)
        connection.send(chunk(EVENT) + LAST_CHUNK)

    beside = relay.forward(other)
    beside.read_until(EVENT)
    is_refused(relay.forward(script), 502, "upstream_bad_response")
    relay.upstream.wait_connection(2).wait_closed()
    go.set()
    assert beside.read_body() == EVENT + EVENT
    assert beside.is_complete


def test_a_flood_leaves_others_their_turn(relay: Relay) -> None:
    """A read that never has to wait never lets another stream run."""
    floods = [relay.forward(flooding) for _ in range(2)]
    stop = threading.Event()

    def drain(client: RawClient) -> None:
        while not stop.is_set():
            client.sock.recv(1 << 20)

    readers = [threading.Thread(target=drain, args=(client,)) for client in floods]
    for reader in readers:
        reader.start()
    try:
        relay.upstream.wait_request(2)
        delays = []
        for _ in range(10):
            began = time.monotonic()
            with call(relay.service, "GET", "/healthz") as other:
                assert other.read_head().status == 200
            delays.append(time.monotonic() - began)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    for client in floods:
        client.close()
    print(f"beside two floods: {statistics.median(delays) * 1000:.1f} ms, at worst {max(delays) * 1000:.1f}")
    assert statistics.median(delays) < 1


def test_a_huge_chunk_is_passed_in_pieces(relay: Relay) -> None:
    """iter_content holds a whole chunk in memory."""
    before = relay.service.rss()
    size = 100 * 2**20

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + b"%x\r\n" % size)
        piece = b"x" * 2**20
        for _ in range(100):
            connection.send(piece)
        connection.send(b"\r\n" + LAST_CHUNK)

    client = relay.forward(script)
    client.read_head()
    total, peak = 0, 0
    while total < size - 2**20:
        data = client.sock.recv(1 << 20)
        assert data, "the stream ended"
        if total // 2**23 != (total + len(data)) // 2**23:
            peak = max(peak, relay.service.rss())
        total += len(data)
    client.close()
    print(f"a chunk of 100 MB: {before / 2**20:.1f} MB became {peak / 2**20:.1f}")
    assert peak - before < 20 * 2**20


def test_a_stream_s_log_line_counts_what_went_through(relay: Relay) -> None:
    mark = new_mark()
    client = relay.forward(respond(EVENT, EVENT + b"data: \xe2\x82\xac\n\n"), **mark)
    client.read_body()
    line = relay.service.wait_log(rf"stream end=.*{mark['http_fields']['X-Request-Id']}$")[0]
    values: Mapping[str, str] = dict(pair.split("=", 1) for pair in line.removeprefix("stream ").split())
    assert (values["end"], values["status"], values["upstream"]) == ("complete", "200", "test")
    assert (values["events"], values["bytes"]) == ("3", str(len(client.body)))
    assert client.head is not None and values["request_id"] == client.head.field("X-Request-Id")


def test_no_ending_is_a_fault_in_the_log(shared_relay: Relay) -> None:
    """Runs last in this file: of all those clients and upstreams, none may have left a traceback."""
    assert "Traceback" not in shared_relay.service.log()
    assert "[ERROR]" not in shared_relay.service.log()


@pytest.mark.parametrize("cut", [1, 12, 17, 40, 60])
def test_a_truncated_head_is_no_response(relay: Relay, cut: int) -> None:
    """http.client takes the end of the connection for the end of the head, and half a field for a whole one."""

    def truncated_head(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "X-Request-Id: whole")[:cut])

    with relay.forward(truncated_head) as client:
        is_refused(client, 502, "upstream_bad_response")
