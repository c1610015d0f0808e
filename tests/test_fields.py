"""Fields and bodies in both directions, and the bounds on them, through a real gunicorn."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from .support.relay import Relay
from .support.service import RawClient, Service, call, forward
from .support.upstream import EVENT_STREAM, Connection, Request, Upstream, chunk, head, respond

EVENT = b"data: x\n\n"

#: What a client may name and no upstream may see.
NEVER_SENT: dict[str, Any] = {
    "Connection": "close, X-Named",
    "X-Named": "by Connection",
    "Content-Length": "1",
    "Transfer-Encoding": "chunked",
    "TE": "trailers",
    "Trailer": "X-Later",
    "Upgrade": "websocket",
    "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
    "Keep-Alive": "timeout=99",
    "Expect": "100-continue",
    "Proxy-Authorization": "Basic eDp5",
    "Proxy-Connection": "keep-alive",
    "Proxy-Anything": "x",
}

#: The same with other letters, and as CGI spells it.
OTHER_SPELLINGS = ["content-length", "CONTENT-LENGTH", "Content_Length", "transfer-ENCODING", "Transfer_Encoding"]

#: What an upstream may not say to a browser under our origin.
NEVER_PASSED = [
    "Set-Cookie: session=theirs; Path=/",
    "Set-Cookie2: session=theirs",
    "Access-Control-Allow-Origin: https://evil.example",
    "Access-Control-Allow-Credentials: true",
    "Access-Control-Expose-Headers: *",
    "Access-Control-Allow-Private-Network: true",
    "Location: https://evil.example/",
    "Refresh: 0; url=https://evil.example/",
    "Link: <https://evil.example/x.js>; rel=preload",
    'Clear-Site-Data: "*"',
    "Service-Worker-Allowed: /",
    "Content-Security-Policy: default-src *",
    "Content-Disposition: attachment; filename=x.exe",
    "Strict-Transport-Security: max-age=0",
    'Alt-Svc: h3=":443"',
    "Proxy-Authenticate: Basic",
    "NEL: {}",
    "Report-To: {}",
    "SourceMap: /x",
    "X-Frame-Options: ALLOWALL",
    "X-Accel-Redirect: /etc/passwd",
    "X-Sendfile: /etc/passwd",
    "X-Accel-Buffering: yes",
    "Cache-Control: public, max-age=31536000",
    "Expires: Thu, 01 Dec 2099 16:00:00 GMT",
    "ETag: x",
    "Vary: *",
    "Server: theirs",
    "Via: 1.1 theirs",
    "Upgrade: h2c",
    "Keep-Alive: timeout=99",
    "Trailer: X-Later",
    "X-Anything: x",
]

PASSED = ["Retry-After: 7", "X-Request-ID: theirs", "x-ratelimit-remaining-tokens: 99"]

#: Types that a browser would run or show as a page of the gateway's, or takes for one, and lists that hide them.
UNSAFE_TYPES = [
    "text/html",
    "TEXT/HTML; charset=utf-8",
    "text/html;",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/xml",
    "application/xml",
    "text/javascript",
    "application/javascript",
    "application/ecmascript",
    "application/wasm",
    "text/css",
    "text/cache-manifest",
    "application/pdf",
    "application/x-shockwave-flash",
    "multipart/x-mixed-replace; boundary=x",
    "message/rfc822",
    "application/octet-stream",
    "image/png",
    "*/*",
    "text",
    "",
    "text/plain, text/html",
    "text/event-stream,text/html",
    "text/event-stream; x=,text/html",
    "text/event-streamx",
    "xtext/event-stream",
]

SAFE_TYPES = [
    "text/event-stream",
    "text/event-stream; charset=utf-8",
    "Text/Event-Stream;charset=UTF-8",
    "application/json",
    "application/vnd.api+json",
    "application/x-ndjson",
    "text/plain; charset=utf-8",
]


def sent(relay: Relay, header: object, **options: Any) -> Request:
    """Forward with that `header`, and return what the upstream got."""
    client = relay.forward(respond(EVENT), header=header, **options)
    assert client.read_body() == EVENT, client.body
    return relay.upstream.requests[-1]


def refusal(client: RawClient) -> tuple[int, str, str]:
    """Return status, code and detail of a refusal."""
    with client:
        status = client.read_head().status
        problem = client.json()
    return status, problem["code"], problem["detail"]


def test_a_content_length_in_header_cannot_smuggle_a_request(relay: Relay) -> None:
    """`header: {"Content-Length": "1"}` went out on a shared keep-alive connection, and the rest of the body became the
    beginning of the next caller's request, whose token was captured."""
    smuggled = "x" + "POST /v1/steal HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
    for name, value in [
        ("Content-Length", "1"),
        ("Content-Length", 1),
        ("content-length", ["1"]),
        ("Content_Length", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Transfer_Encoding", "chunked"),
        ("TE", "chunked"),
        ("Content-Length\t", "1"),
        (" Content-Length", "1"),
        ("Content-Length:", "1"),
        ("X\r\nContent-Length", "1"),
    ]:
        relay.forward(respond(EVENT), body=smuggled, header={name: value}).read_body()
    relay.forward(respond(EVENT), "/victim", body="secret", header={"Authorization": "Bearer victim"}).read_body()
    for request in relay.upstream.requests:
        assert request.field("Content-Length") == str(len(request.body))
        # What reads fields as CGI does takes Content_Length for Content-Length.
        framing = {name.lower() for name, _ in request.fields} & {
            "content_length",
            "transfer-encoding",
            "transfer_encoding",
        }
        assert not framing
    # All on one connection, so nothing of it was left for anybody else.
    assert {request.connection for request in relay.upstream.requests} == {0}
    assert [request.target for request in relay.upstream.requests] == ["/"] * 7 + ["/victim"]
    assert relay.upstream.requests[-1].body == b"secret"


def test_hop_by_hop_fields_of_the_json_do_not_pass(relay: Relay) -> None:
    request = sent(
        relay, {**NEVER_SENT, **dict.fromkeys(OTHER_SPELLINGS, "9"), "Host": "evil.example", "X-Passed": "1"}
    )
    names = {name.lower() for name, _ in request.fields}
    assert not names & {name.lower() for name in NEVER_SENT} - {"connection", "content-length"}
    assert not {name for name in names if "_" in name}
    assert request.field("Connection") in (None, "keep-alive")
    assert request.field("Content-Length") in (None, "0")
    assert request.field("Host") == f"127.0.0.1:{relay.upstream.port}"
    assert request.field("X-Passed") == "1"


def test_hop_by_hop_fields_of_the_request_do_not_pass(relay: Relay) -> None:
    fields = {name: value for name, value in NEVER_SENT.items() if name not in ("Content-Length", "Transfer-Encoding")}
    fields |= {
        "Connection": "X-Named",
        "X-Passcode": "ours",
        "X-Passed": "1",
        "Cookie": "ours=1",
        "Last-Event-ID": "41",
    }
    del fields["Expect"]
    client = relay.call(respond(EVENT), "POST", "x", fields=fields, body=b"body")
    assert client.read_body() == EVENT
    request = relay.upstream.requests[0]
    names = {name.lower() for name, _ in request.fields}
    assert not names & ({name.lower() for name in NEVER_SENT} - {"connection", "content-length"})
    assert not names & {"cookie", "x-passcode"}
    assert (request.field("X-Passed"), request.field("Last-Event-ID")) == ("1", "41")
    assert (request.body, request.field("Content-Length")) == (b"body", "4")


TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "userId=Am%C3%A9lie,server=DF%2028;ttl=30",
}


@pytest.mark.parametrize("how", ["upstream", "forward", "json"])
def test_a_trace_goes_on_unchanged(relay: Relay, how: str) -> None:
    if how == "upstream":
        client = relay.call(respond(EVENT), "GET", fields=TRACE)
    else:
        options: dict[str, Any] = {"http_fields" if how == "forward" else "header": TRACE}
        client = relay.forward(respond(EVENT), **options)
    assert client.read_body() == EVENT
    seen = relay.upstream.requests[-1]
    assert {name: seen.field(name) for name in TRACE} == TRACE


def test_the_gateway_sets_what_is_its_own(relay: Relay) -> None:
    request = sent(
        relay, {"Accept": "text/html", "Accept-Encoding": "gzip, br", "accept-encoding": "zstd"}, body={"a": 1}
    )
    assert request.values("Accept") == ["text/event-stream"]
    assert request.values("Accept-Encoding") == ["identity"]
    assert request.values("Content-Type") == ["application/json"]
    assert request.body == b'{"a":1}'


def test_fields_of_all_allowed_forms_pass(relay: Relay) -> None:
    request = sent(relay, {"A": "text", "B": 7, "C": 1.5, "D": ["one", 2], "E": "\u00e9", "F": "", "G": " padded\t"})
    values = {name: request.values(name) for name in "ABCDEFG"}
    assert values == {
        "A": ["text"],
        "B": ["7"],
        "C": ["1.5"],
        "D": ["one", "2"],
        "E": ["\u00e9"],
        "F": [""],
        "G": ["padded"],
    }
    assert sent(relay, json.dumps({"A": "from a string"})).field("A") == "from a string"
    assert sent(relay, "{}").field("A") is None


REFUSED_HEADERS = [
    {"X": "a\r\nInjected: 1"},
    {"X": "a\nInjected: 1"},
    {"X": "a\rInjected: 1"},
    {"X": "\r\n"},
    {"X": "a\0b"},
    {"X": "a\x01b"},
    {"X": "a\x1bb"},
    {"X": "a\x7fb"},
    {"X": "\u20ac"},
    {"X": "\u4f60"},
    {"X": "\U0001f600"},
    {"X": "\u010d\u010a"},
    {"X": ["fine", "a\nb"]},
    {"X": None},
    {"X": True},
    {"X": {}},
    {"X": [[]]},
    {"X": [None]},
    {"X": [{"a": 1}]},
    {"": "x"},
    {" ": "x"},
    {"X Y": "x"},
    {"X:": "x"},
    {":authority": "x"},
    {"X\r\nInjected": "x"},
    {"X\0": "x"},
    {"\u00dc": "x"},
    {"(X)": "x"},
    [],
    ["X"],
    [["X", "y"]],
    7,
    True,
    None,
    "X: y",
    "[]",
    '"X"',
    "null",
    "7",
    "{",
    '{"X": null}',
    '{"X": "a\\nb"}',
    "[" * 100_000,
    {f"X-{number}": "x" for number in range(101)},
    {"X": ["x"] * 101},
    {"X": "x" * 33_000},
]


@pytest.mark.parametrize("header", REFUSED_HEADERS, ids=lambda header: repr(header)[:30])
def test_a_header_that_is_none_is_refused(relay: Relay, header: object) -> None:
    status, code, detail = refusal(forward(relay.service, relay.upstream.url, header=header))
    assert (status, code) == (400, "invalid_request")
    assert "header" in detail or "fields" in detail
    assert not relay.upstream.requests


def test_only_listed_response_fields_pass(relay: Relay) -> None:
    for status in (200, 404, 500):
        relay.settle()
        script = respond(
            EVENT,
            status=status,
            fields=[EVENT_STREAM, *NEVER_PASSED, *PASSED, "Connection: X-Ratelimit-Hop", "X-Ratelimit-Hop: 1"],
        )
        with closing(relay.forward(script, http_fields={"Origin": "https://site.example"})) as client:
            found = client.read_head()
            assert client.read_body() == EVENT
        assert found.status == status
        for line in NEVER_PASSED:
            name, _, value = line.partition(": ")
            assert value not in found.values(name), line
        assert found.field("Access-Control-Allow-Origin") == "*"
        assert found.field("Access-Control-Allow-Credentials") is None
        assert found.field("X-Ratelimit-Hop") is None
        assert (found.field("Retry-After"), found.field("x-ratelimit-remaining-tokens")) == ("7", "99")
        assert found.field("Cache-Control") == "no-cache, no-transform"
        assert found.field("X-Accel-Buffering") == "no"
        assert found.field("Server") == "gunicorn"


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("content_type", UNSAFE_TYPES)
def test_nothing_comes_out_that_a_browser_runs(relay: Relay, content_type: str, status: int) -> None:
    body = b"<script>alert(document.domain)</script>"
    fields = [f"Content-Type: {content_type}"] if content_type else []
    client = relay.forward(respond(body, status=status, fields=fields))
    found = client.read_head()
    assert found.values("Content-Type") == ["application/octet-stream"]
    assert found.values("X-Content-Type-Options") == ["nosniff"]
    assert client.read_body() == body


@pytest.mark.parametrize("content_type", SAFE_TYPES)
def test_a_safe_type_stays(relay: Relay, content_type: str) -> None:
    client = relay.forward(respond(EVENT, fields=[f"Content-Type: {content_type}"]))
    assert client.read_head().values("Content-Type") == [content_type]
    assert client.head is not None and client.head.values("X-Content-Type-Options") == ["nosniff"]


def test_two_types_are_none(relay: Relay) -> None:
    client = relay.forward(respond(EVENT, fields=[EVENT_STREAM, "Content-Type: text/html"]))
    assert client.read_head().values("Content-Type") == ["application/octet-stream"]


# Bounds of the request.


@pytest.fixture(scope="module")
def narrow() -> Iterator[Relay]:
    """A service with narrow bounds: 1000 bytes of body, two seconds to send it."""
    with Upstream() as upstream:
        settings: dict[str, Any] = {"SSE_MAX_BODY": 1000, "SSE_SEND_TIMEOUT": 2, "SSE_THROTTLE": ""}
        with Service(SSE_UPSTREAMS={"test": upstream.url}, **settings) as service:
            yield Relay(service, upstream)


JSON: dict[str, Any] = {"Content-Type": "application/json"}


def test_a_body_beyond_the_bound_is_too_large(narrow: Relay) -> None:
    narrow.upstream.script = respond(EVENT)
    frame = len(json.dumps({"targetUrl": narrow.upstream.url, "body": ""}))
    with forward(narrow.service, narrow.upstream.url, body="x" * (1000 - frame)) as client:
        assert client.read_body() == EVENT
    assert refusal(forward(narrow.service, narrow.upstream.url, body="x" * (1001 - frame)))[:2] == (413, "too_large")
    with call(narrow.service, "POST", "/upstream/test/", body=b"x" * 1000) as client:
        assert client.read_body() == EVENT
    assert refusal(call(narrow.service, "POST", "/upstream/test/", body=b"x" * 1001))[:2] == (413, "too_large")


@pytest.mark.parametrize("target", ["/forward-sse", "/upstream/test/"])
def test_a_body_without_a_length_is_bounded_too(narrow: Relay, target: str) -> None:
    client = RawClient(narrow.service.host, narrow.service.port)
    client.request("POST", target, {**JSON, "Transfer-Encoding": "chunked"})
    client.send(chunk(b"x" * 600) * 2)
    assert refusal(client)[:2] == (413, "too_large")


def test_a_length_that_promises_too_much_is_refused_at_once(narrow: Relay) -> None:
    client = RawClient(narrow.service.host, narrow.service.port)
    client.request("POST", "/forward-sse", {**JSON, "Content-Length": str(10**15)})
    assert refusal(client)[:2] == (413, "too_large")


BAD_DOCUMENTS: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"null",
    b"[]",
    b'"x"',
    b"7",
    b"\xff\xfe{}",
    b'{"targetUrl": "\xff"}',
    b"{'targetUrl': 'x'}",
    b'{"targetUrl": 7}',
    b'{"targetUrl": null}',
    b'{"targetUrl": ["x"]}',
    b"{}",
    b'{"targetUrl": "http://x/", "method": "put"}',
    b'{"targetUrl": "http://x/", "method": 7}',
    b'{"targetUrl": "http://x/", "method": "GET\\r\\nX: y"}',
    b'{"targetUrl": "http://x/", "body": 7}',
    b'{"targetUrl": "http://x/", "body": true}',
    b'{"targetUrl": "http://x/", "passcode": 7}',
    b'{"targetUrl": "http://x/", "body": ' + b"[" * 65 + b"]" * 65 + b"}",
    b'{"targetUrl": "http://x/", "body": ' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
    b'{"targetUrl": "http://x/", "ignored": ' + b"[" * 65 + b"]" * 65 + b"}",
    b"[" * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"a":' * 200_000,
    b'{"targetUrl": ' + b"9" * 100_000 + b"}",
    b'{"targetUrl": "http://127.0.0.1/", "body": {"a": NaN}}',
    b'{"targetUrl": "http://127.0.0.1/", "body": [-Infinity]}',
]


@pytest.mark.parametrize("document", BAD_DOCUMENTS, ids=lambda document: repr(document[:40]))
def test_a_document_that_makes_no_sense_is_refused(relay: Relay, document: bytes) -> None:
    assert refusal(call(relay.service, "POST", "/forward-sse", JSON, document))[:2] == (400, "invalid_request")


def test_a_refusal_names_the_wrong_field_without_its_value(relay: Relay) -> None:
    document = {"targetUrl": relay.upstream.url, "method": "secret-put"}
    detail = refusal(call(relay.service, "POST", "/forward-sse", JSON, json.dumps(document).encode()))[2]
    assert "method" in detail and "secret" not in detail


def test_nested_as_deep_as_it_may_be_passes(relay: Relay) -> None:
    body: Any = []
    for _ in range(60):
        body = [body]
    request = sent(relay, {}, body=body)
    assert request.body == b"[" * 61 + b"]" * 61


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"],
)
def test_another_media_type_than_json_is_refused(relay: Relay, content_type: str) -> None:
    """What a page of another origin can send without a preflight is not taken for a request."""
    document = json.dumps({"targetUrl": relay.upstream.url}).encode()
    found = refusal(call(relay.service, "POST", "/forward-sse", {"Content-Type": content_type}, document))
    assert found[:2] == (415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_method_than_post_is_refused(relay: Relay, method: str) -> None:
    with call(relay.service, method, "/forward-sse") as client:
        found = client.read_head()
        assert (found.status, client.json()["code"], found.field("Allow")) == (
            405,
            "method_not_allowed",
            "POST, OPTIONS",
        )


@pytest.mark.parametrize("target", ["/forward-sse", "/upstream/test/"])
def test_a_body_that_drips_is_ended_while_other_streams_go_on(narrow: Relay, target: str) -> None:
    """One byte now and then holds a connection for ever; the whole body has SSE_SEND_TIMEOUT."""
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT))
        connection.wait_for(go_on)
        connection.send(chunk(b"data: still here\n\n") + b"0\r\n\r\n")

    narrow.upstream.settle()
    narrow.upstream.script = script
    with forward(narrow.service, narrow.upstream.url) as stream:
        stream.read_until(EVENT)
        slow = RawClient(narrow.service.host, narrow.service.port)
        slow.request("POST", target, {**JSON, "Content-Length": "900"})
        stopped = threading.Event()
        dripping = threading.Thread(target=_drip, args=(slow, stopped))
        dripping.start()
        try:
            status, code, _ = refusal(slow)
        finally:
            stopped.set()
            dripping.join()
        assert (status, code) == (400, "invalid_request")
        go_on.set()
        assert stream.read_body() == EVENT + b"data: still here\n\n"
        assert stream.is_complete
    narrow.upstream.settle()


def _drip(client: RawClient, stopped: threading.Event) -> None:
    """Send a byte a tenth of a second until it is stopped, or until no peer takes it."""
    try:
        while not stopped.wait(0.1):
            client.send(b" ")
    except OSError:
        return
