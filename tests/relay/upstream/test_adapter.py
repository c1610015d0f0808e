"""Every way a response can be framed, cut and kept, without a service in between."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests

from sse.errors import (
    ClientGone,
    SSEError,
    TargetNotAllowed,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sse.protocol.http1.head import MAX_HEAD
from sse.protocol.target.parse import Target, parse_target
from sse.relay.exchange import Side, Stage
from sse.relay.stream.end import EndReason
from sse.relay.stream.source import TruncatedBody
from sse.relay.upstream.client import UpstreamClient
from sse.relay.upstream.connection import StaleConnection
from sse.relay.upstream.dial import Dialer
from sse.relay.upstream.pool import Pool, tls_context
from sse.relay.upstream.request import UpstreamRequest
from sse.relay.upstream.response import UpstreamResponse
from sse.relay.upstream.transport import TLSTransport, Transport

from ...support.source import pieces
from ...support.upstream import (
    EVENT_STREAM,
    LAST_CHUNK,
    PATIENCE,
    Connection,
    Script,
    Upstream,
    chunk,
    head,
    in_turn,
    respond,
)

EVENT = b"data: a\n\n"
FRAMINGS = ("chunked", "length", "close", "http/1.0")


class Relaying:
    """The relay ring by itself: `open` sends a request to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        dialer = Dialer(allows=lambda host, address: True, lists=lambda host: True, timeout=PATIENCE)
        self.upstreams = UpstreamClient(Pool(dialer, tls_context(upstream.ca_file), size=10))
        self.side = Side(Stage.OPEN)

    def open(
        self,
        script: Script,
        *,
        method: str = "GET",
        body: bytes | None = None,
        fields: Sequence[tuple[str, str]] = (("Accept", "*/*"),),
    ) -> UpstreamResponse:
        self.upstream.script = script
        target: Target = parse_target(self.upstream.url + "/path?query")
        self.side = Side(Stage.OPEN)
        wanted = UpstreamRequest(method=method, target=target, fields=fields, body=body)
        return self.upstreams.open(wanted, self.side)

    def read(self, script: Script) -> bytes:
        with self.open(script) as response:
            return b"".join(pieces(response))


@pytest.fixture
def plain(upstream: Callable[..., Upstream]) -> Relaying:
    return Relaying(upstream())


@pytest.fixture
def tls(upstream: Callable[..., Upstream]) -> Relaying:
    return Relaying(upstream(tls=True))


def framed(body: bytes, framing: str) -> bytes:
    """Return a whole response."""
    version = "HTTP/1.0" if framing == "http/1.0" else "HTTP/1.1"
    line = {"chunked": ["Transfer-Encoding: chunked"], "length": [f"Content-Length: {len(body)}"]}.get(framing, [])
    rest = chunk(body[:3]) + chunk(body[3:]) + LAST_CHUNK if framing == "chunked" else body
    return head(200, EVENT_STREAM, *line, version=version) + rest


def in_two(data: bytes, cut: int, go: threading.Event) -> Script:
    """Return a script that sends all but what is behind `cut`, and the rest when it may."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data[:cut])
        connection.wait_for(go)
        connection.send(data[cut:])

    return script


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_response_split_in_every_place_is_whole(plain: Relaying, framing: str) -> None:
    body = "id: 1\r\ndata: ä€😀\r\n\r\n".encode()
    data = framed(body, framing)
    go = threading.Event()
    go.set()
    for cut in range(1, len(data)):
        assert plain.read(in_two(data, cut, go)) == body


@pytest.mark.parametrize("relaying", ["plain", "tls"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_piece_does_not_wait_for_the_next(framing: str, relaying: str, request: pytest.FixtureRequest) -> None:
    go = threading.Event()
    data = framed(EVENT + EVENT, framing)
    script = in_two(data, data.index(b"a\n\n") + 3, go)
    with request.getfixturevalue(relaying).open(script) as response:
        rest = pieces(response)
        first = b""
        while not first.endswith(b"a\n\n"):
            first += next(rest)
        assert not go.is_set()
        go.set()
        assert first + b"".join(rest) == EVENT + EVENT


@pytest.mark.parametrize("relaying", ["plain", "tls"])
def test_a_source_gives_none_while_nothing_comes(relaying: str, request: pytest.FixtureRequest) -> None:
    go = threading.Event()
    data = framed(EVENT, "chunked")
    with request.getfixturevalue(relaying).open(in_two(data, len(data) - 9, go)) as response:
        got = b""
        while len(got) < len(EVENT[:-2]):
            got += response.read() or b""
        # Twice: neither the read nor the wait may take something away, or wait for ever.
        for _ in range(2):
            response.wait(0.02)
            assert response.read() is None
        go.set()
        assert got + b"".join(pieces(response)) == EVENT
        assert response.read() == response.read() == b""


def test_the_bytes_pass_through_requests(plain: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    """`requests.Response.iter_content` is the way by which bytes are taken, None included."""
    taken: list[bytes | None] = []
    iter_content = requests.Response.iter_content

    def spy(self: requests.Response, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for piece in iter_content(self, *args, **kwargs):
            taken.append(piece)
            yield piece

    monkeypatch.setattr(requests.Response, "iter_content", spy)
    assert plain.read(respond(EVENT)) == EVENT
    assert b"".join(piece or b"" for piece in taken) == EVENT


def test_one_read_of_the_socket_is_one_piece(plain: Relaying) -> None:
    go = threading.Event()
    data = head(200, EVENT_STREAM, "Transfer-Encoding: chunked")
    with plain.open(in_two(data + chunk(EVENT) * 50 + LAST_CHUNK, len(data), go)) as response:
        go.set()
        assert list(pieces(response)) == [EVENT * 50]


@pytest.mark.parametrize(
    ("turn", "most"),
    [
        pytest.param(3600.0, 16, id="many reads"),
        # Chunks of a byte or two at full speed delayed other streams by 300 ms.
        pytest.param(0.0, 1, id="slow reads"),
    ],
)
def test_a_large_body_gives_way(plain: Relaying, monkeypatch: pytest.MonkeyPatch, turn: float, most: int) -> None:
    """Where there is always something to read, nothing else would run."""
    monkeypatch.setattr("sse.relay.upstream.response.TURN", turn)

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 20000000") + bytes(20_000_000))

    with plain.open(script) as response:
        longest = reads = 0
        while (piece := response.read()) != b"":
            reads = reads + 1 if piece else 0
            longest = max(longest, reads)
            if piece is None:
                response.wait(None)
    assert longest <= most


@pytest.mark.parametrize("relaying", ["plain", "tls"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_response_that_ends_early_is_truncated(framing: str, relaying: str, request: pytest.FixtureRequest) -> None:
    data = framed(EVENT, framing)
    start = data.index(b"\r\n\r\n") + 4
    for cut in range(start, len(data)):

        def script(connection: Connection, cut: int = cut) -> None:
            connection.read_request()
            connection.send(data[:cut])

        with request.getfixturevalue(relaying).open(script) as response, pytest.raises(TruncatedBody):
            for piece in pieces(response):
                assert piece in EVENT
        with pytest.raises(TruncatedBody):
            response.read()


@pytest.mark.parametrize("relaying", ["plain", "tls"])
def test_cancelling_wakes_a_blocked_read(relaying: str, request: pytest.FixtureRequest) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 100"))
        connection.wait_closed()

    ring = request.getfixturevalue(relaying)
    with ring.open(script) as response:
        timer = threading.Timer(0.05, ring.side.cancel, [EndReason.CLIENT_GONE])
        timer.start()
        with pytest.raises(TruncatedBody):
            list(pieces(response))
        timer.join()


@pytest.mark.parametrize("relaying", ["plain", "tls"])
@pytest.mark.parametrize("framing", ["close", "length", "chunked"])
def test_a_cancelled_body_never_looks_complete(relaying: str, framing: str, request: pytest.FixtureRequest) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(framed(EVENT, framing)[:-1])
        connection.wait_closed()

    with request.getfixturevalue(relaying).open(script) as response:
        timer = threading.Timer(0.05, response.cancel)
        timer.start()
        with pytest.raises(TruncatedBody):
            list(pieces(response))
        timer.join()
        response.cancel()


@pytest.mark.parametrize(
    ("reason", "error"), [(EndReason.CLIENT_GONE, ClientGone), (EndReason.UPSTREAM_TIMEOUT, UpstreamTimeout)]
)
@pytest.mark.parametrize("relaying", ["plain", "tls"])
def test_cancelling_ends_the_wait_for_a_head(
    relaying: str, reason: EndReason, error: type[SSEError], request: pytest.FixtureRequest
) -> None:
    ring = request.getfixturevalue(relaying)

    def script(connection: Connection) -> None:
        connection.read_request()
        ring.side.cancel(reason)
        connection.wait_closed()

    with pytest.raises(error):
        ring.open(script)


def test_a_connection_is_kept_after_a_complete_response(plain: Relaying) -> None:
    go = threading.Event()

    def script(connection: Connection) -> None:
        answered = framed(EVENT, "chunked")
        connection.read_request()
        connection.send(answered)
        connection.read_request()
        connection.send(answered[:-20])
        connection.wait_for(go)
        connection.send(answered[-20:])

    assert plain.read(script) == EVENT
    before = plain.side
    with plain.open(script) as response:
        # The side of the exchange before has nothing to do with this one, although the connection is the same.
        before.cancel(EndReason.CLIENT_GONE)
        go.set()
        assert b"".join(pieces(response)) == EVENT
    assert [request.connection for request in plain.upstream.requests] == [0, 0]


@pytest.mark.parametrize(
    ("value", "connections"),
    [
        pytest.param("Bearer x", 1, id="bearer"),
        pytest.param("NTLM TlRMTVNTUAAB", 2, id="ntlm"),
        pytest.param("negotiate YII", 2, id="negotiate"),
    ],
)
def test_a_connection_that_is_logged_in_is_not_kept(plain: Relaying, value: str, connections: int) -> None:
    """NTLM and Negotiate log in the connection: the next client would have been logged in with it."""
    for _ in range(2):
        with plain.open(respond(EVENT), fields=[("Authorization", value)]) as response:
            assert b"".join(pieces(response)) == EVENT
    assert len(plain.upstream.connections) == connections


@pytest.mark.parametrize("count", [0, 1])
def test_closing_an_unfinished_response_closes_its_connection(plain: Relaying, count: int) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 18") + EVENT)
        connection.wait_closed()

    with plain.open(script) as response:
        rest = pieces(response)
        for _ in range(count):
            next(rest)
    plain.upstream.wait_connection().wait_closed()


@pytest.mark.parametrize(
    ("method", "status"),
    [pytest.param("HEAD", 200, id="head"), pytest.param("GET", 204, id="204"), pytest.param("GET", 304, id="304")],
)
def test_a_bodiless_response_releases_its_connection_at_once(plain: Relaying, method: str, status: int) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(head(status))

    first, second = plain.open(script, method=method), plain.open(script, method=method)
    assert list(pieces(first)) == list(pieces(second)) == []
    first.close()
    second.close()
    assert [request.connection for request in plain.upstream.requests] == [0, 0]


def breaking(monkeypatch: pytest.MonkeyPatch, *, after: int) -> list[bytes]:
    """Let the relay's next send break after so many bytes; return where that is noted."""
    refused: list[bytes] = []
    send = Transport.send

    def broken(self: Transport, data: Any) -> int:
        if len(refused) > 1 or (refused and not after):
            return send(self, data)
        refused.append(bytes(data))
        if not after:
            raise BrokenPipeError
        if len(refused) == 1:
            return send(self, data[:after])
        self.cancel()
        raise ConnectionResetError

    monkeypatch.setattr(Transport, "send", broken)
    return refused


def test_a_post_is_retried_if_nothing_was_sent(plain: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain.read(respond(EVENT)) == EVENT
    refused = breaking(monkeypatch, after=0)
    with plain.open(respond(EVENT), method="POST", body=b"once") as response:
        assert b"".join(pieces(response)) == EVENT
    assert refused
    assert [request.body for request in plain.upstream.requests] == [b"", b"once"]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_partly_sent_request_is_retried_only_if_idempotent(
    plain: Relaying, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A request was taken for unsent until its last byte was out."""
    kept: list[Connection] = []

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(framed(EVENT, "length"))
        if not kept:
            kept.append(connection)
            connection.wait_closed()

    assert plain.read(script) == EVENT
    refused = breaking(monkeypatch, after=10)
    if method == "POST":
        with pytest.raises(UpstreamBadResponse):
            plain.open(script, method=method, body=b"once")
    else:
        with plain.open(script, method=method) as response:
            assert b"".join(pieces(response)) == EVENT
    assert refused


@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
def test_an_early_refusal_of_the_upstream_is_its_response(plain: Relaying, is_kept: bool) -> None:
    """On a kept connection it was taken for one that had been closed."""

    def script(connection: Connection) -> None:
        if is_kept:
            connection.read_request()
            connection.send(framed(EVENT, "length"))
        connection.read_until(b"\r\n\r\n")
        connection.send(head(413, "Content-Length: 3", "Connection: close") + b"big")
        # What has not been read makes it a reset.
        connection.close()

    if is_kept:
        assert plain.read(script) == EVENT
    with plain.open(script, method="POST", body=bytes(8_000_000)) as response:
        assert response.status == 413
    assert len(plain.upstream.connections) == 1


@pytest.mark.parametrize("ring", ["plain", "tls"])
def test_bytes_on_an_idle_connection_are_no_response(ring: str, request: pytest.FixtureRequest) -> None:
    """TLS had it in the system's hands, where it was not looked for."""
    stray = threading.Event()
    has_read = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(framed(EVENT, "length"))
        if not connection.index:
            connection.wait_for(has_read)
            connection.send(head(200, "Content-Length: 4") + b"evil")
            stray.set()
            connection.wait_closed()

    relaying: Relaying = request.getfixturevalue(ring)
    assert relaying.read(script) == EVENT
    has_read.set()
    assert stray.wait(PATIENCE)
    assert relaying.read(script) == EVENT


def test_it_is_retried_once_and_over_a_new_connection(plain: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several kept connections, the upstream may have closed all."""
    may_reuse: list[bool] = []

    def send(self: object, request: Any, **_: object) -> object:
        may_reuse.append(request.may_reuse)
        raise StaleConnection(nothing_sent=True)

    monkeypatch.setattr(UpstreamClient, "send", send)
    with pytest.raises(SSEError):
        plain.open(respond())
    assert may_reuse == [True, False]


def test_a_refused_address_is_reported_as_refused(upstream: Callable[..., Upstream]) -> None:
    target = upstream()
    refusing = Dialer(allows=lambda host, address: False, lists=lambda host: True, timeout=PATIENCE)
    wanted = UpstreamRequest(method="GET", target=parse_target(target.url + "/"), fields=[])
    with pytest.raises(TargetNotAllowed):
        UpstreamClient(Pool(refusing, tls_context(), size=1)).open(wanted, Side(Stage.OPEN))
    assert not target.connections


def test_a_kept_connection_has_no_other_owner(upstream: Callable[..., Upstream], plain: Relaying) -> None:
    other = upstream(respond(b"data: other\n\n"))
    assert plain.read(respond(EVENT)) == EVENT
    plain.upstream, first = other, plain.upstream
    assert plain.read(respond(b"data: other\n\n")) == b"data: other\n\n"
    assert (len(first.connections), len(other.connections)) == (1, 1)


def test_tls_with_a_plain_server_is_unreachable(upstream: Callable[..., Upstream]) -> None:
    def script(connection: Connection) -> None:
        connection.send(b"220 smtp.example ESMTP\r\n")
        connection.wait_closed()

    ring = Relaying(upstream(script))
    ring.upstream.url = ring.upstream.url.replace("http:", "https:")
    with pytest.raises(UpstreamUnreachable):
        ring.open(script)
    assert ring.side.stage is Stage.OPEN


def test_the_cause_of_a_failed_handshake_is_its_first_error() -> None:
    """Sending the alert to a peer that had gone hid why."""
    ours, peer = socket.socketpair()
    with peer:
        transport = TLSTransport(ours, tls_context(), "localhost")
        ours.setblocking(False)

        def respond() -> None:
            peer.recv(65536)
            peer.shutdown(socket.SHUT_RD)
            # A ServerHello without content, which is an alert's matter.
            peer.sendall(bytes.fromhex("16 0303 0004 02 000000"))

        thread = threading.Thread(target=respond)
        thread.start()
        with pytest.raises(ssl.SSLError):
            transport.handshake()
        thread.join()
    transport.close()


def test_the_head_is_bounded(plain: Relaying) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n")
        connection.flood(b"X-Field: " + b"y" * 1000 + b"\r\n")

    with pytest.raises(UpstreamBadResponse):
        plain.open(script)


def test_a_head_just_within_the_bound_passes(plain: Relaying) -> None:
    fields = [f"X-Field-{number}: {'y' * 600}" for number in range(MAX_HEAD // 700)]

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Content-Length: 9", *fields) + EVENT)

    with plain.open(script) as response:
        assert len(response.fields) == len(fields) + 2
        assert b"".join(pieces(response)) == EVENT


def test_repeated_fields_stay_apart(plain: Relaying) -> None:
    with plain.open(respond(EVENT, fields=["X-A: 1", "X-A: 2", "x-a: 3"])) as response:
        assert [value for name, value in response.fields if name.lower() == "x-a"] == ["1", "2", "3"]


def test_the_request_is_what_was_judged(plain: Relaying) -> None:
    plain.read(in_turn(respond(EVENT)))
    request = plain.upstream.requests[0]
    assert request.target == "/path?query"
    assert request.field("Host") == f"127.0.0.1:{plain.upstream.port}"
    assert request.field("Accept") == "*/*"


@pytest.mark.parametrize("path", ["/a%2Bb", "/%C3%A4", "/a%20b", "/a;b=c", "/~x", "/a%25b", "/?a=%20&b=/?"])
def test_nothing_parses_the_target_again(plain: Relaying, path: str) -> None:
    """urllib3 and requests each have an opinion on what a URL should be."""
    plain.upstream.script = respond(EVENT)
    target = parse_target(plain.upstream.url + path)
    with plain.upstreams.open(UpstreamRequest(method="GET", target=target, fields=[]), Side(Stage.OPEN)) as got:
        list(pieces(got))
    assert plain.upstream.requests[0].target == target.request_target


def test_a_body_outlives_other_references_to_its_connection(plain: Relaying) -> None:
    """http.client closes its socket as soon as it has read a head that says close."""
    go = threading.Event()
    data = head(200, EVENT_STREAM, "Content-Length: 9", "Connection: close")
    with plain.open(in_two(data + EVENT, len(data), go)) as response:
        go.set()
        assert b"".join(pieces(response)) == EVENT
