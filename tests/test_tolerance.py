"""What upstreams send that breaks a rule: read where every client reads it alike, refused with its cause otherwise."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .support.ending import eventually
from .support.relay import Relay
from .support.service import Service, call, forward
from .support.upstream import (
    EVENT_STREAM,
    PATIENCE,
    Connection,
    Script,
    SilentListener,
    Upstream,
    head,
    respond,
)

EVENT = b"data: a\n\n"
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 9\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IDENTITY = b"Transfer-Encoding: identity\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n"


def raw(data: bytes) -> Script:
    """Return a script that responses a request with these bytes, and closes."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data)

    return script


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(STREAM + b"X-A : b\r\nContent-Length\t: 9\r\n\r\n" + EVENT, id="blank-before-colon"),
        pytest.param(STREAM + IDENTITY + b"\r\n" + EVENT, id="identity"),
        pytest.param(STREAM + IDENTITY + LENGTH + b"\r\n" + EVENT, id="identity-length"),
        pytest.param(STREAM + CHUNKED * 2 + b"\r\n9  \r\n" + EVENT + b"\r\n0 \r\n\r\n", id="chunked-twice"),
        pytest.param(STREAM + LENGTH * 2 + b"\r\n" + EVENT, id="length-twice"),
        pytest.param(STREAM + b"content-type: text/event-stream\r\nContent-Length: 9\r\n\r\n" + EVENT, id="type-twice"),
    ],
)
def test_what_every_client_reads_alike_is_read(relay: Relay, data: bytes) -> None:
    with relay.forward(raw(data)) as client:
        answered = client.read_head()
        assert (answered.status, answered.field("Content-Type")) == (200, "text/event-stream")
        assert client.read_body() == EVENT
        assert client.is_complete


BAD = [
    pytest.param(raw(b"HTTP/1.1 OK\r\n\r\n"), "bad status line", id="status-line"),
    pytest.param(raw(b"HTTP/1.1 600 Odd\r\n\r\n"), "status 600 is outside 100 to 599", id="status"),
    pytest.param(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "does not speak HTTP/1", id="no-http"),
    pytest.param(raw(OK + b"no colon\r\n\r\n"), "malformed field line", id="field-line"),
    pytest.param(raw(OK + b"A: b\r\n" * 101 + b"\r\n"), "more than 100 fields", id="fields"),
    pytest.param(raw(OK + b"A: " + b"b" * 66_000), "larger than 65536 bytes", id="head"),
    pytest.param(raw(OK + b"A: b\r\n"), "the head is truncated", id="truncated"),
    pytest.param(raw(b""), "closed the connection without a response", id="closed"),
    pytest.param(raw(OK + LENGTH + b"Content-Length: 2\r\n\r\n"), "contradicting Content-Length", id="lengths"),
    pytest.param(raw(OK + b"Content-Length: +1\r\n\r\n"), "invalid Content-Length '+1'", id="length"),
    pytest.param(raw(OK + b"Transfer-Encoding: gzip\r\n\r\n"), "unsupported Transfer-Encoding 'gzip'", id="coding"),
    pytest.param(raw(head(101, "Upgrade: x")), "switches protocols", id="switch"),
    pytest.param(
        raw(head(302, "Location: https://u:canary@other.example.org/login?canary=1#canary", "Content-Length: 0")),
        "redirects (302 to https://other.example.org/login)",
        id="redirect",
    ),
    pytest.param(raw(head(308, "Location: /v1/chat/", "Content-Length: 0")), "redirects (308 to /v1/chat/)", id="path"),
    # An expression once took minutes for it, in which nothing else ran.
    pytest.param(raw(head(302, f"Location: //{'a' * 60_000} b", "Content-Length: 0")), "redirects (302)", id="long"),
    pytest.param(raw(head(301, "Content-Length: 0")), "redirects (301)", id="redirect-nowhere"),
]


@pytest.mark.parametrize(("script", "cause"), BAD)
def test_a_refusal_names_its_cause(relay: Relay, script: Script, cause: str) -> None:
    """Eleven different faults were one and the same line."""
    start = len(relay.service.log())
    with relay.forward(script) as client:
        answered = client.read_head()
        problem = client.json()
    assert (answered.status, problem["code"]) == (502, "upstream_bad_response")
    assert cause in problem["detail"]
    line = relay.service.wait_log(r"^.*code=upstream_bad_response.*$", start=start)[0]
    assert re.search(f'cause="[^"]*{re.escape(cause)}', line)
    assert "canary" not in line + problem["detail"]
    # An SDK would ask, and pay, again.
    assert answered.field("X-Should-Retry") == "false"


def unreachable(upstream: Callable[..., Upstream], service: Callable[..., Service], **options: Any) -> tuple[Any, str]:
    """Return the refusal of a request to an upstream with TLS, and its log line."""
    server = upstream(tls=True, **options)
    url = server.url.replace("127.0.0.1", "localhost")
    relay = service(SSE_UPSTREAMS={"test": url}, SSE_CA_FILE=server.ca_file)
    with forward(relay, url) as client:
        answered, problem = client.read_head(), client.json()
    assert (answered.status, answered.field("X-Should-Retry")) == (502, None)
    return problem, relay.wait_log(r"^.*code=upstream_unreachable.*$")[0]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        pytest.param({"names": ("other.example.org",)}, "TLS failed: Hostname mismatch", id="another-name"),
        # RFC 9525 has no CN any more; OpenSSL takes one where a certificate has no other host name.
        pytest.param(
            {"names": ("someone@example.org",), "common_name": "localhost"},
            "TLS failed: Hostname mismatch",
            id="name-in-the-cn-alone",
        ),
    ],
)
def test_a_wrong_certificate_is_refused_with_its_cause(
    upstream: Callable[..., Upstream], service: Callable[..., Service], options: dict[str, Any], cause: str
) -> None:
    problem, line = unreachable(upstream, service, **options)
    assert problem["detail"].startswith(cause)
    assert f'cause="{cause}' in line


def test_a_refused_connection_is_named(relay: Relay, upstream: Callable[..., Upstream]) -> None:
    gone = upstream()
    gone.refuse()
    with Service(SSE_UPSTREAMS={"gone": gone.url}) as service, forward(service, gone.url) as client:
        answered = client.read_head()
        assert (answered.status, client.json()["detail"]) == (502, "no connection: connection refused")
        # Nothing was sent, so a client may try again.
        assert answered.field("X-Should-Retry") is None


def test_no_sdk_repeats_a_request_that_timed_out(upstream: Callable[..., Upstream]) -> None:
    def thinks(connection: Connection) -> None:
        connection.read_request()
        connection.wait_closed()

    server = upstream(thinks)
    times: dict[str, Any] = {"SSE_RESPONSE_TIMEOUT": 0.3, "SSE_CONNECT_TIMEOUT": 0.3}
    with SilentListener() as silent, Service(SSE_UPSTREAMS={"a": server.url, "b": silent.url}, **times) as service:
        for url, should_retry, detail in [
            (server.url, "false", "no response head in time"),
            (silent.url, None, "no connection in time"),
        ]:
            with forward(service, url) as client:
                answered = client.read_head()
                assert (answered.status, answered.field("X-Should-Retry")) == (504, should_retry)
                assert client.json()["detail"] == detail


@contextlib.contextmanager
def slow_reader(size: int, *, seconds: float) -> Iterator[str]:
    """Run a server that takes so many seconds to read so many bytes, and then responds; give its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    def serve() -> None:
        with listener.accept()[0] as connection:
            left = size
            while left > 0 and (piece := connection.recv(65536)):
                left -= len(piece)
                # What is slow here is the subject.
                time.sleep(seconds * len(piece) / size)
            connection.sendall(head(200, EVENT_STREAM, "Content-Length: 9") + EVENT)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(PATIENCE)


def test_the_head_clock_starts_after_the_request_is_sent() -> None:
    """A large body over a slow line was cut while it made progress."""
    size = 8_000_000
    with (
        slow_reader(size, seconds=6) as url,
        Service(SSE_UPSTREAMS={"test": url}, SSE_RESPONSE_TIMEOUT=2) as service,
        call(service, "POST", "/upstream/test/", {"Content-Type": "text/plain"}, bytes(size)) as client,
    ):
        assert client.read_body() == EVENT


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_an_empty_body_gets_no_type(relay: Relay, method: str) -> None:
    """Fastify refuses an empty body that is called JSON."""
    with relay.call(respond(EVENT), method, fields={"Content-Length": "0"}) as client:
        assert client.read_body() == EVENT
    request = relay.upstream.wait_request()
    assert (request.field("Content-Type"), request.field("Content-Length"), request.body) == (None, "0", b"")


def test_an_early_response_is_the_response(relay: Relay) -> None:
    """What the upstream responds before it has the whole request: it was not read until everything was sent."""

    def script(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        connection.send(head(401, "Content-Length: 3") + b"key")
        connection.wait_closed()

    with relay.call(script, "POST", fields={"Content-Type": "text/plain"}, body=bytes(8_000_000)) as client:
        assert client.read_head().status == 401
        assert client.read_body() == b"key"


def has_keep_alive(near: int, far: int) -> bool:
    """Return whether the system probes the connection between two ports, as seen by the first (proc(5), net/tcp)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = line.split()
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (near, far):
            return timer.startswith("02:")
    raise LookupError(f"no connection between the ports {near} and {far}")


def test_both_connections_of_a_silent_stream_are_probed(relay: Relay) -> None:
    """NATs forget a silent connection after minutes, and neither end notices."""

    def silent(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM))
        connection.wait_closed()

    with relay.forward(silent) as client:
        client.read_head()
        ports = {
            (int(far.split(":")[1], 16), int(near.split(":")[1], 16))
            for _, far, near, state, *_ in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
            if state == "01" and int(near.split(":")[1], 16) == relay.upstream.port
        }
        ports.add((relay.service.port, client.sock.getsockname()[1]))
        assert len(ports) > 1
        # What was sent has its own timer until it is acknowledged.
        eventually(lambda: all(has_keep_alive(near, far) for near, far in ports), "a connection is not probed")
