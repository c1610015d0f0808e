"""Paths, fields and refusals as they are on the wire of a real gunicorn, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .support.relay import Relay
from .support.service import RawClient, Service, call
from .support.upstream import Upstream, respond

JSON = "Content-Type: application/json"
#: Each test has an upstream connection of its own, and so its own script.
CLOSE = "Connection: close"
OK = respond(b"{}", fields=[JSON, CLOSE])
PAGE = {"Origin": "https://app.example"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Relay]:
    """An open gateway whose upstream `test` has a list of fields that pass."""
    with Upstream(OK) as upstream:
        entry = {"url": upstream.url, "response_headers": ["X-Goog-Upload-URL", "x-amzn-kind"]}
        settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_TRUSTED_PROXIES": 1, "SSE_UPSTREAMS": {"test": entry}}
        with Service(SSE_CORS_ORIGINS=["*", "https://app.example", "tauri://localhost"], **settings) as service:
            yield Relay(service, upstream)


# Paths


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/upstream/test", "/"),
        ("/upstream/test?a=b", "/?a=b"),
        ("/upstream/test/", "/"),
        ("/upstream/test/v1/", "/v1/"),
        ("/upstream/test/v1//chat", "/v1//chat"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_slash_is_added_or_removed(gateway: Relay, path: str, target: str, method: str) -> None:
    with call(gateway.service, method, path) as client:
        assert client.read_head().status == 200
    assert gateway.upstream.requests[-1].target == target


@pytest.mark.parametrize("path", ["/upstream/test", "/upstream/test//v1", "/upstream//test/v1", "/upstream/unused//x"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_nothing_is_redirected(gateway: Relay, path: str, method: str) -> None:
    fields = {**PAGE, "Access-Control-Request-Method": "POST"}
    with call(gateway.service, method, path, fields) as client:
        head = client.read_head()
    assert not 300 <= head.status < 400
    assert head.field("Location") is None
    assert head.field("Access-Control-Allow-Origin") == "*"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/upstream//test", 404), ("/healthz", 405)])
def test_a_routing_error_is_a_problem_that_scripts_may_read(gateway: Relay, path: str, status: int) -> None:
    with call(gateway.service, "POST", path, PAGE) as client:
        head = client.read_head()
        assert (head.status, head.field("Content-Type")) == (status, "application/problem+json")
        assert head.field("Access-Control-Allow-Origin") == "*"
        assert client.json()["status"] == status


def test_a_request_line_of_8190_bytes_passes(gateway: Relay) -> None:
    path = "/upstream/test/chat?q="
    path += "%E8" * ((8190 - len(f"GET {path} HTTP/1.1")) // 3)
    with call(gateway.service, "GET", path, PAGE) as client:
        assert client.read_head().status == 200
    assert gateway.upstream.requests[-1].target == path.removeprefix("/upstream/test")


@pytest.mark.parametrize(
    ("path", "fields", "status", "code"),
    [
        pytest.param("/upstream/test/?q=" + "a" * 9000, {}, 414, "uri_too_long", id="line"),
        pytest.param("/upstream/test/?q=" + "a" * 100_000, {}, 414, "uri_too_long", id="a longer line"),
        pytest.param("/upstream/test/", {"X-A": "a" * 9000}, 431, "fields_too_large", id="field"),
        pytest.param("/upstream/test/", {f"X-{n}": "a" for n in range(120)}, 431, "fields_too_large", id="many fields"),
    ],
)
def test_a_long_head_is_a_problem_that_scripts_may_read(
    gateway: Relay, path: str, fields: dict[str, str], status: int, code: str
) -> None:
    """It was a page in HTML that no script of another origin could read: a network error."""
    with call(gateway.service, "GET", path, {**PAGE, **fields}) as client:
        head = client.read_head()
        assert (head.status, head.field("Content-Type")) == (status, "application/problem+json")
        assert head.field("Access-Control-Allow-Origin") == "*"
        assert (client.json()["code"], client.json()["request_id"]) == (code, head.field("X-Request-Id"))


def test_a_long_head_is_for_no_script_where_no_origin_is_allowed() -> None:
    with Service(SSE_CORS_ORIGINS=[]) as service, call(service, "GET", "/?" + "a" * 9000, PAGE) as client:
        head = client.read_head()
        assert head.status == 414
        assert not [name for name, _ in head.fields if name.lower().startswith("access-control-")]


def test_a_websocket_gets_the_status_on_which_clients_fall_back(gateway: Relay) -> None:
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AA==",
        "Sec-WebSocket-Version": "13",
    }
    with call(gateway.service, "GET", "/upstream/test/v1/responses", fields) as client:
        assert (client.read_head().status, client.json()["code"]) == (426, "websocket_not_supported")


# Fields of requests

OF_PROXIES = """
    Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Port X-Forwarded-Client-Cert X-Real-IP
    True-Client-IP CF-Connecting-IP CF-IPCountry CF-Visitor CF-Ray CDN-Loop Via x_forwarded_for X_Real_IP
""".split()


@pytest.mark.parametrize("name", OF_PROXIES)
def test_what_proxies_say_of_the_client_stays_here(gateway: Relay, name: str) -> None:
    with call(gateway.service, "GET", "/upstream/test/", {name: "192.0.2.1", "X-Plain": "1"}) as client:
        assert client.read_head().status == 200
    sent = gateway.upstream.requests[-1]
    assert (sent.field(name), sent.field("X-Plain")) == (None, "1")


def test_names_with_underscores_pass(gateway: Relay) -> None:
    """gunicorn drops them; Codex sends session_id."""
    fields = {"session_id": "1", "Conversation_ID": "2", "session-id": "3"}
    with call(gateway.service, "GET", "/upstream/test/", fields) as client:
        assert client.read_head().status == 200
    sent = gateway.upstream.requests[-1]
    assert [sent.field(name) for name in fields] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["X_Forwarded_For", "x_forwarded-for", "X_Passcode", "CONTENT_LENGTH"])
def test_a_name_with_an_underscore_is_no_other_name(
    service: Callable[..., Service], upstream: Callable[..., Upstream], name: str
) -> None:
    """In environ, X_Forwarded_For would be X-Forwarded-For, whose last value a proxy vouches for."""
    there = upstream(OK)
    settings = {"SSE_PASSCODES": {"me": "9"}, "SSE_THROTTLE": "1 per hour", "SSE_TRUSTED_PROXIES": 1}
    gateway = service(SSE_UPSTREAMS={"test": there.url}, **settings)
    statuses = []
    for value in ("9", "192.0.2.2"):
        with call(gateway, "GET", "/upstream/test/", {"X-Forwarded-For": "192.0.2.1", name: value}) as client:
            statuses.append(client.read_head().status)
    # The second is counted with the first.
    assert statuses == [401, 429]
    assert not there.requests


@pytest.mark.parametrize("name", ["Authorization", "User-Agent", "X-Api-Key", "Last-Event-ID"])
def test_a_field_of_one_value_that_occurs_twice_is_refused(gateway: Relay, name: str) -> None:
    request = f"GET /upstream/test/ HTTP/1.1\r\nHost: a\r\n{name}: a\r\n{name.lower()}: b\r\n\r\n"
    with RawClient(gateway.service.host, gateway.service.port) as client:
        client.method = "GET"
        client.send(request.encode())
        assert (client.read_head().status, client.json()["code"]) == (400, "invalid_request")
        assert name.lower() in client.json()["detail"]
    document = json.dumps({"targetUrl": gateway.upstream.url, "header": {name: "a", name.lower() + "": ["a", "b"]}})
    fields = {"Content-Type": "application/json"}
    with call(gateway.service, "POST", "/forward-sse", fields, document.encode()) as client:
        assert (client.read_head().status, client.json()["code"]) == (400, "invalid_request")


def test_a_list_that_occurs_twice_passes(gateway: Relay) -> None:
    request = b"GET /upstream/test/ HTTP/1.1\r\nHost: a\r\nX-List: a\r\nX-List: b\r\n\r\n"
    with RawClient(gateway.service.host, gateway.service.port) as client:
        client.method = "GET"
        client.send(request)
        assert client.read_head().status == 200
    assert gateway.upstream.requests[-1].values("X-List") == ["a", "b"]


def test_a_proxys_password_goes_no_further(gateway: Relay) -> None:
    """Where no passcode is set, Authorization is the upstream's; but Basic is what a browser adds for a proxy."""
    for value, sent in [("Basic YTpi", None), ("basic YTpi", None), ("Bearer theirs", "Bearer theirs")]:
        with call(gateway.service, "GET", "/upstream/test/", {"Authorization": value}) as client:
            assert client.read_head().status == 200
        assert gateway.upstream.requests[-1].field("Authorization") == sent


# Fields of responses

PASSED = {
    "Mcp-Session-Id": "1",
    "Retry-After-Ms": "1",
    "Request-Id": "1",
    "X-Ratelimit-Remaining-Tokens": "1",
    "Openai-Processing-Ms": "1",
    "WWW-Authenticate": 'Bearer resource_metadata="https://a.example/"',
    "X-Goog-Upload-URL": "https://a.example/",
    "X-Amzn-Kind": "1",
    "X-Vercel-AI-UI-Message-Stream": "v1",
}


@pytest.mark.parametrize("origin", ["https://app.example", "https://other.example"])
def test_what_passes_may_be_read(gateway: Relay, origin: str) -> None:
    gateway.upstream.script = respond(
        b"{}", fields=[JSON, CLOSE, *(f"{name}: {value}" for name, value in PASSED.items())]
    )
    with call(gateway.service, "GET", "/upstream/test/", {"Origin": origin}) as client:
        head = client.read_head()
    names = {name.strip().lower() for name in (head.field("Access-Control-Expose-Headers") or "").split(",")}
    assert {name: head.field(name) for name in PASSED} == PASSED
    assert names >= {name.lower() for name in PASSED}


@pytest.mark.parametrize("length", ["1234", "1234, 1234", "1234 ,1234"])
def test_the_length_of_a_head_passes(gateway: Relay, length: str) -> None:
    """One that a proxy had repeated was a 500 of gunicorn's."""
    gateway.upstream.script = respond(fields=[JSON, f"Content-Length: {length}"], framing="close")
    with call(gateway.service, "HEAD", "/upstream/test/") as client:
        head = client.read_head()
    assert (head.status, head.field("Content-Length")) == (200, "1234")


# Origins


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("https://app.example", "true"), ("tauri://localhost", "true"), ("https://other.example", None)],
)
def test_a_private_network_is_opened_to_named_origins_alone(gateway: Relay, origin: str, allowed: str | None) -> None:
    fields = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    with call(gateway.service, "OPTIONS", "/upstream/test/v1", fields) as client:
        head = client.read_head()
    assert head.field("Access-Control-Allow-Origin") == "*"
    assert head.field("Access-Control-Allow-Private-Network") == allowed
