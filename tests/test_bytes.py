"""Every byte, at once, unchanged: what an upstream sends and what a client gets, through a real gunicorn."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from .support.relay import Relay
from .support.service import RawClient, Service, forward
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, Upstream, chunk, head, respond

FRAMINGS = ("chunked", "length", "close", "http/1.0")

EVENTS = (b"id: 1\ndata: one\n\n", b": comment\n\n", "data: zwei €\n\n".encode(), b"data: three\ndata: lines\n\n")


def response_head(framing: str, length: int, *fields: str) -> bytes:
    """Return the head of a response in that framing."""
    line = {"chunked": ["Transfer-Encoding: chunked"], "length": [f"Content-Length: {length}"]}.get(framing, [])
    return head(200, *(fields or (EVENT_STREAM,)), *line, version="HTTP/1.0" if framing == "http/1.0" else "HTTP/1.1")


def paced(pieces: tuple[bytes, ...], framing: str, seen: list[threading.Event]) -> Script:
    """Return a script that sends each piece only after the client has seen the one before."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head(framing, sum(map(len, pieces))))
        for piece, event in zip(pieces, seen, strict=True):
            connection.wait_for(event)
            connection.send(chunk(piece) if framing == "chunked" else piece)
        if framing == "chunked":
            connection.send(LAST_CHUNK)

    return script


def follow(client: RawClient, pieces: tuple[bytes, ...], seen: list[threading.Event]) -> None:
    """Read the head before any piece is sent, and each piece before the next one is."""
    assert client.read_head().status == 200
    for piece, event in zip(pieces, seen, strict=True):
        event.set()
        got = client.read_piece()
        assert got is not None and got.data == piece
    assert client.read_piece() is None
    assert client.is_complete


@pytest.mark.parametrize("framing", FRAMINGS)
def test_head_and_pieces_arrive_before_the_upstream_goes_on(relay: Relay, framing: str) -> None:
    """`iter_content` of requests held back everything until the end, unless the response was chunked."""
    seen = [threading.Event() for _ in EVENTS]
    follow(relay.forward(paced(EVENTS, framing, seen)), EVENTS, seen)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_head_and_pieces_arrive_at_once_over_tls(tls: TLSRelay, framing: str) -> None:
    seen = [threading.Event() for _ in EVENTS]
    with tls.forward(paced(EVENTS, framing, seen)) as client:
        follow(client, EVENTS, seen)


class TLSRelay:
    """A service that trusts the tests' authority, and an upstream that speaks TLS."""

    def __init__(self, service: Service, upstream: Upstream) -> None:
        self.service = service
        self.upstream = upstream

    def forward(self, script: Script) -> RawClient:
        self.upstream.script = script
        return forward(self.service, self.upstream.url + "/")


@pytest.fixture(scope="module")
def tls_pair() -> Iterator[TLSRelay]:
    with Upstream(tls=True) as upstream:
        settings: dict[str, Any] = {
            "SSE_UPSTREAMS": {"test": upstream.url},
            "SSE_THROTTLE": "",
            "SSE_CA_FILE": upstream.ca_file,
        }
        with Service(**settings) as service:
            yield TLSRelay(service, upstream)


@pytest.fixture
def tls(tls_pair: TLSRelay) -> Iterator[TLSRelay]:
    yield tls_pair
    tls_pair.upstream.settle()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", id="crlf"),
        pytest.param(b"data: a\r\rdata: b\r\r", id="cr"),
        pytest.param(b"data: a\n\ndata: b\n\n", id="lf"),
        pytest.param(b"data: a\r\n\rdata: b\n\r\n", id="mixed line ends"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", id="byte order mark"),
        pytest.param(b":\n:\n: a comment\n\n", id="comments"),
        pytest.param(b"data: a\n\ndata: b", id="no final blank line"),
        pytest.param(b"\n\n\n", id="blank lines"),
        pytest.param(b"data: \xff\xfe\x00\x80\n\n", id="not utf-8"),
        pytest.param(b"", id="empty body"),
        pytest.param(b"0\r\n\r\n", id="what looks like a last chunk"),
    ],
)
def test_the_body_is_unchanged(relay: Relay, framing: str, body: bytes) -> None:
    client = relay.forward(respond(body, framing=framing))
    assert client.read_body() == body
    assert client.is_complete


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_event_of_five_megabytes_is_unchanged(relay: Relay, framing: str) -> None:
    body = b"data: " + b"0123456789abcdef" * (5 * 65536) + b"\n\n"
    client = relay.forward(respond(body, framing=framing))
    assert hashlib.sha256(client.read_body()).digest() == hashlib.sha256(body).digest()
    assert client.is_complete


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_body_of_one_byte_per_segment_is_unchanged(relay: Relay, framing: str) -> None:
    body = "id: 7\r\ndata: ä€😀\r\n\r\n: x\rdata: y\r\r".encode()

    def script(connection: Connection) -> None:
        connection.read_request()
        whole = chunk(body[:9]) + chunk(body[9:]) + LAST_CHUNK if framing == "chunked" else body
        connection.send_each(response_head(framing, len(body)) + whole)

    client = relay.forward(script)
    assert client.read_body() == body
    assert client.is_complete


def test_utf_8_split_in_every_place_is_unchanged(relay: Relay) -> None:
    body = "data: ä€😀\n\n".encode()
    for cut in range(1, len(body)):
        client = relay.forward(respond(body[:cut], body[cut:]))
        assert client.read_body() == body


def test_a_hundred_thousand_events_are_unchanged(relay: Relay) -> None:
    body = b"".join(b"id: %d\ndata: event %d\n\n" % (number, number) for number in range(100_000))
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    client = relay.forward(respond(*pieces))
    assert client.read_body() == body
    relay.service.wait_log(rf"end=complete .* events=100000 bytes={len(body)} ")


def test_several_chunks_in_one_read_become_one_piece(relay: Relay) -> None:
    """urllib3 yields a piece for each chunk, and each costs a write of its own."""
    events = [b"data: %d\n\n" % number for number in range(50)]
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head("chunked", 0))
        connection.wait_for(go)
        connection.send(b"".join(map(chunk, events)))
        connection.send(LAST_CHUNK)

    client = relay.forward(script)
    client.read_head()
    go.set()
    client.read_body()
    assert [piece.data for piece in client.pieces] == [b"".join(events)]


def test_a_part_of_a_chunk_does_not_wait_for_the_rest(relay: Relay) -> None:
    rest = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head("chunked", 0))
        connection.send(b"100000\r\ndata: begun")
        connection.wait_for(rest)
        connection.send(b"x" * (0x100000 - 11) + b"\r\n" + LAST_CHUNK)

    client = relay.forward(script)
    assert client.read_until(b"data: begun") == b"data: begun"
    rest.set()
    assert len(client.read_body()) == 0x100000


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"9\r\ndata: a\n\n\r\n0\r\nX-Trailer: yes\r\nX-More: 1\r\n\r\n", id="trailers"),
        pytest.param(b'9;name=value;q="a b"\r\ndata: a\n\n\r\n0;last\r\n\r\n', id="chunk extensions"),
        pytest.param(b"0000000009\r\ndata: a\n\n\r\n000\r\n\r\n", id="leading zeros"),
    ],
)
def test_the_chunked_coding_is_understood(relay: Relay, raw: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head("chunked", 0) + raw)

    client = relay.forward(script)
    assert client.read_body() == b"data: a\n\n"
    assert client.is_complete
    assert client.head is not None and client.head.field("X-Trailer") is None


def test_early_hints_and_continue_are_not_the_response(relay: Relay) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(103, "Link: </a.css>; rel=preload") + head(100) + head(102))
        respond(b"data: a\n\n")(Replayed(connection))  # type: ignore[arg-type]  # has what the script uses

    client = relay.forward(script)
    assert client.read_head().status == 200
    assert client.head is not None and client.head.field("Link") is None
    assert client.read_body() == b"data: a\n\n"


class Replayed:
    """A connection whose request has been read already: lets `answer` answer it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = 0

    def read_request(self) -> object:
        self._reads += 1
        return self._connection.read_request() if self._reads > 1 else None

    def send(self, data: bytes) -> None:
        self._connection.send(data)


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_a_body_ends_with_its_head(relay: Relay, status: int) -> None:
    start = len(relay.service.log())

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(head(status))

    for _ in range(2):
        client = relay.call(script, "GET")
        assert client.read_head().status == status
        assert client.read_body() == b""
        assert client.is_complete
    relay.service.wait_log(rf"end=complete status={status} (.|\n)*end=complete status={status} ", start=start)
    assert len(relay.upstream.connections) == 1


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "gzip, br"])
def test_compressed_bodies_pass_with_their_content_encoding(relay: Relay, coding: str) -> None:
    """requests decoded the body while the field still said gzip."""
    body = gzip.compress(b"data: a\n\n" * 100)
    client = relay.forward(respond(body[:30], body[30:], fields=[EVENT_STREAM, f"Content-Encoding: {coding}"]))
    assert client.read_head().field("Content-Encoding") == coding
    assert client.read_body() == body
    assert client.is_complete
    assert relay.upstream.requests[0].field("Accept-Encoding") == "identity"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_response_over_tls_is_unchanged(tls: TLSRelay, framing: str) -> None:
    body = b"data: a\r\n\r\n" + b"data: " + b"x" * 200_000 + b"\n\n"
    with tls.forward(respond(body[:7], body[7:], framing=framing)) as client:
        assert client.read_body() == body
        assert client.is_complete


def test_a_connection_over_tls_is_used_again(tls: TLSRelay) -> None:
    for _ in range(2):
        with tls.forward(respond(b"data: a\n\n")) as client:
            assert client.read_body() == b"data: a\n\n"
    assert [request.connection for request in tls.upstream.requests] == [0, 0]


def test_a_certificate_for_another_name_is_refused(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    wrong = upstream(tls=True, names=("other.example",))
    right = upstream(tls=True)
    untrusting = service(SSE_UPSTREAMS={"right": right.url}, SSE_THROTTLE="")
    trusting = service(SSE_UPSTREAMS={"wrong": wrong.url}, SSE_THROTTLE="", SSE_CA_FILE=wrong.ca_file)
    for which, target in ((trusting, wrong), (untrusting, right)):
        with forward(which, target.url + "/") as client:
            assert client.read_head().status == 502
            assert client.json()["code"] == "upstream_unreachable"
        assert not target.requests


def test_request_bodies_are_utf_8_bytes_with_their_length(relay: Relay) -> None:
    """Strings went out as latin-1, or with the length of their characters."""
    for body, sent in (("ä€😀\r\n", "ä€😀\r\n"), ({"a": "ä€"}, '{"a":"ä€"}'), ([1, "x"], '[1,"x"]')):
        client = relay.forward(respond(b"data: a\n\n"), body=body)
        client.read_body()
        request = relay.upstream.requests[-1]
        assert request.body == sent.encode()
        assert request.field("Content-Length") == str(len(sent.encode()))
        assert request.field("Transfer-Encoding") is None


def test_request_bytes_pass_the_upstream_route_unchanged(relay: Relay) -> None:
    body = bytes(range(256)) * 10
    fields = {"Content-Type": "application/octet-stream", "Last-Event-ID": "41"}
    client = relay.call(respond(b"data: a\n\n"), "PUT", "a%20b/c?x=%C3%A4&y", fields=fields, body=body)
    assert client.read_body() == b"data: a\n\n"
    request = relay.upstream.requests[0]
    assert (request.method, request.target, request.body) == ("PUT", "/a%20b/c?x=%C3%A4&y", body)
    assert request.field("Last-Event-ID") == "41"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_error_of_the_upstream_passes(relay: Relay, status: int, framing: str) -> None:
    body = b'{"error": {"message": "no"}}'
    fields = ["Content-Type: application/json", "Retry-After: 17", "Set-Cookie: a=b"]
    client = relay.forward(respond(body, status=status, fields=fields, framing=framing))
    answered = client.read_head()
    assert (answered.status, answered.field("X-Upstream-Status")) == (status, str(status))
    assert answered.field("Retry-After") == "17"
    assert answered.field("Content-Type") == "application/json"
    assert answered.field("Set-Cookie") is None
    assert client.read_body() == body
    assert client.is_complete


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_error_body_beyond_64_kib_is_truncated_visibly(relay: Relay, framing: str) -> None:
    """It once looked complete, such as JSON that no client could parse."""
    body = b"e" * 300_000
    client = relay.forward(
        lambda connection: respond(body, status=500, fields=["Content-Type: text/plain"], framing=framing)(connection)
    )
    assert client.read_body() == body[: 64 * 1024]
    assert not client.is_complete


def test_an_error_body_is_cancelled_when_the_client_leaves(relay: Relay) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(500, "Content-Type: text/plain", "Content-Length: 100") + b"begun")
        connection.wait_closed()

    client = relay.forward(script, http_fields={"X-Request-Id": "left-an-error"})
    assert client.read_until(b"begun") == b"begun"
    client.close()
    relay.upstream.wait_connection().wait_closed()
    # By its id: the line of the test before may come as late as this.
    assert relay.service.wait_log(r"stream end=(\w+) .*request_id=left-an-error")[1] == "client_gone"


def test_heartbeats_stand_between_events_only(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    inside, between = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        connection.send(chunk(b"data: a\n\n"))
        connection.wait_for(between)
        connection.send(chunk(b"data: be"))
        connection.wait_for(inside)
        connection.send(chunk(b"gun\n\n") + LAST_CHUNK)

    target = upstream(script)
    beating = service(SSE_UPSTREAMS={"test": target.url}, SSE_THROTTLE="", SSE_RELAY_HEARTBEAT=0.05)
    with forward(beating, target.url + "/") as client:
        client.read_until(b"data: a\n\n:\n:\n")
        between.set()
        client.read_until(b"data: be")
        # Ten times the heartbeat's interval: what was wrong would have come several times.
        assert not threading.Event().wait(0.5)
        inside.set()
        body = client.read_body()
        assert client.is_complete
    assert body.replace(b":\n", b"") == b"data: a\n\ndata: begun\n\n".replace(b":\n", b"")
    assert b"data: begun\n\n" in body


def test_pieces_arrive_within_milliseconds(relay: Relay) -> None:
    """The promise is order, not time; this is the one look at the clock, and a generous one."""
    sent: list[float] = []

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head("chunked", 0))
        for number in range(20):
            sent.append(time.monotonic())
            connection.send(chunk(b"data: %d\n\n" % number))
            threading.Event().wait(0.01)
        connection.send(LAST_CHUNK)

    client = relay.forward(script)
    client.read_body()
    assert len(client.pieces) == 20
    assert all(before.at < after.at for before, after in pairwise(client.pieces))
    late = sorted(piece.at - at for piece, at in zip(client.pieces, sent, strict=True))
    assert late[10] < 0.1


@pytest.mark.parametrize("receive_buffer", [None, 4096])
def test_every_byte_arrives_at_a_client_that_reads_in_fits(relay: Relay, receive_buffer: int | None) -> None:
    """A write that the system takes only a part of goes on with the rest."""
    data = b"".join(b"data: %d\n\n" % number for number in range(300_000))

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(response_head("chunked", 0))
        for start in range(0, len(data), 70_001):
            connection.send(chunk(data[start : start + 70_001]))
        connection.send(LAST_CHUNK)

    with relay.call(script, "GET", receive_buffer=receive_buffer) as client:
        full = threading.Event()
        client.read_head()
        for number, _ in enumerate(client.iter_pieces()):
            if number % 10 == 0:
                # Long enough for both buffers to fill; nothing would show it.
                full.wait(0.02)
        assert client.body == data
        assert client.is_complete
