"""Who calls, how often, and from which page, through a real gunicorn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from app import create_app
from sse.web.access.limit_storage import KEPT_KEYS, Memory

from .support.service import Head, RawClient, Service, call
from .support.upstream import Upstream, respond

EVENT = b"data: x\n\n"
JSON = {"Content-Type": "application/json"}

#: Of all kinds of letters; one begins as another does.
PASSCODES = {"alice": "alice-passcode", "bob": "alice-passcode-2", "carl": "пароль €", "dora": "Größe"}


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[Upstream]:
    with Upstream(respond(EVENT)) as upstream:
        yield upstream


@pytest.fixture
def upstream_(shared_upstream: Upstream) -> Iterator[Upstream]:
    """The module's upstream, with nothing left of the test before."""
    yield shared_upstream
    shared_upstream.settle()


@pytest.fixture(scope="module")
def locked(shared_upstream: Upstream) -> Iterator[Service]:
    """A service with passcodes, and a throttle that many tests of one client do not reach."""
    settings: dict[str, Any] = {"SSE_PASSCODES": PASSCODES, "SSE_THROTTLE": "10000 per 10 second"}
    with Service(SSE_UPSTREAMS={"test": shared_upstream.url}, **settings) as service:
        yield service


def start(upstream: Upstream, **settings: Any) -> Service:
    return Service(SSE_UPSTREAMS={"test": upstream.url}, **settings)


def ask(
    service: Service,
    upstream: Upstream,
    fields: Mapping[str, str] | None = None,
    *,
    query: str = "",
    raw: bytes | None = None,
    **document: Any,
) -> tuple[Head, Any]:
    """Forward to the upstream, and return the head and the problem, None if it was let in."""
    body = raw if raw is not None else json.dumps({"targetUrl": upstream.url, **document}).encode()
    with call(service, "POST", f"/forward-sse{query}", {**JSON, **(fields or {})}, body) as client:
        return outcome(client)


def outcome(client: RawClient) -> tuple[Head, Any]:
    head = client.read_head()
    if head.status == 200:
        assert client.read_body() == EVENT
        return head, None
    return head, client.json()


REFUSED: list[dict[str, Any]] = [
    {},
    {"passcode": ""},
    {"passcode": None},
    {"passcode": " "},
    {"passcode": "wrong"},
    {"passcode": "alice"},
    {"passcode": "alice-passcod"},
    {"passcode": "alice-passcode-"},
    {"passcode": "alice-passcode "},
    {"passcode": "ALICE-PASSCODE"},
    {"passcode": "alice-passcode\0"},
    {"passcode": "пароль"},
    {"passcode": "\ud800"},
    {"passcode": "x" * 100_000},
    {"passcode": "wrong", "fields": {"X-Passcode": "alice-passcode"}},
    {"fields": {"X-Passcode": "wrong"}},
    {"fields": {"X-Passcode": ""}},
    {"fields": {"X-Passcode": "Bearer alice-passcode"}},
    {"fields": {"X-Pass": "alice-passcode"}},
    {"fields": {"Authorization": "alice-passcode"}},
    {"fields": {"Authorization": "Bearer"}},
    {"fields": {"Authorization": "Bearer "}},
    {"fields": {"Authorization": "Bearer wrong"}},
    {"fields": {"Authorization": "Beareralice-passcode"}},
    {"fields": {"Authorization": "Basic YWxpY2U6YWxpY2UtcGFzc2NvZGU="}},
    {"fields": {"Authorization": "Token alice-passcode"}},
    {"fields": {"Cookie": "passcode=alice-passcode"}},
    {"header": {"X-Passcode": "alice-passcode", "Authorization": "Bearer alice-passcode"}},
    {"query": "?passcode=alice-passcode"},
    {"query": "?access_token=alice-passcode"},
    {"query": "?X-Passcode=alice-passcode&api_key=alice-passcode&token=alice-passcode"},
]

ADMITTED: list[dict[str, Any]] = [
    {"passcode": "alice-passcode"},
    {"passcode": "alice-passcode-2"},
    {"passcode": "пароль €"},
    {"passcode": "Größe"},
    {"fields": {"X-Passcode": "alice-passcode"}},
    {"fields": {"X-Passcode": "пароль €".encode().decode("latin-1")}},
    {"fields": {"X-Passcode": "Größe"}},
    {"fields": {"X-Passcode": "Größe".encode().decode("latin-1")}},
    {"fields": {"Authorization": "Bearer alice-passcode"}},
    {"fields": {"Authorization": "bearer  alice-passcode"}},
    {"passcode": "", "fields": {"Authorization": "Bearer alice-passcode"}},
]


@pytest.mark.parametrize("credential", REFUSED, ids=lambda credential: repr(credential)[:50])
def test_no_client_enters_without_a_passcode(locked: Service, upstream_: Upstream, credential: dict[str, Any]) -> None:
    head, problem = ask(locked, upstream_, **credential)
    assert (head.status, problem["code"]) == (401, "unauthenticated")
    # RFC 9110, section 15.5.2: "MUST send a WWW-Authenticate header field".
    assert head.field("WWW-Authenticate") == 'Bearer realm="sse"'
    assert not upstream_.requests


@pytest.mark.parametrize("credential", ADMITTED, ids=lambda credential: repr(credential)[:50])
def test_a_passcode_is_taken_in_three_places(locked: Service, upstream_: Upstream, credential: dict[str, Any]) -> None:
    assert ask(locked, upstream_, **credential)[0].status == 200


def test_the_other_endpoints_require_it_too(locked: Service) -> None:
    for fields, status in [
        ({}, 401),
        ({"X-Passcode": "wrong"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"X-Passcode": "alice-passcode"}, 200),
        ({"Authorization": "Bearer alice-passcode"}, 200),
    ]:
        for method in ("GET", "POST"):
            with call(locked, method, "/upstream/test/x", fields) as client:
                assert outcome(client)[0].status == status, (fields, method)
    with call(locked, "GET", "/upstream/test/x?passcode=alice-passcode") as client:
        assert outcome(client)[0].status == 401
    # A client that may not come in does not see what there is.
    with call(locked, "GET", "/upstream/other/x") as client:
        assert outcome(client)[0].status == 401


def test_the_gateways_credential_does_not_reach_the_upstream(locked: Service, upstream_: Upstream) -> None:
    ask(locked, upstream_, {"Authorization": "Bearer alice-passcode"}, header={"Authorization": "Bearer theirs"})
    ask(locked, upstream_, {"X-Passcode": "alice-passcode"}, passcode="alice-passcode")
    both = {"X-Passcode": "alice-passcode", "Authorization": "Bearer theirs"}
    for fields in ({"Authorization": "Bearer alice-passcode"}, both):
        with call(locked, "GET", "/upstream/test/x", fields) as client:
            assert outcome(client)[0].status == 200
    requests = upstream_.requests[-4:]
    assert not [request for request in requests if b"alice" in request.head + request.body]
    assert [request.field("Authorization") for request in requests] == ["Bearer theirs", None, None, "Bearer theirs"]


# How often.


def statuses(service: Service, upstream: Upstream, count: int, *args: Any, **options: Any) -> list[int]:
    return [ask(service, upstream, *args, **options)[0].status for _ in range(count)]


def test_sixty_calls_in_ten_seconds_and_not_one_more(upstream_: Upstream) -> None:
    with start(upstream_) as service:
        began = time.monotonic()
        assert statuses(service, upstream_, 60) == [200] * 60
        head, problem = ask(service, upstream_)
        assert time.monotonic() - began < 9, "too slow to judge"
        assert (head.status, problem["code"]) == (429, "throttled")
        assert 1 <= int(head.field("Retry-After") or 0) <= 10
        assert (head.field("X-RateLimit-Limit"), head.field("X-RateLimit-Remaining")) == ("60", "0")
        assert head.field("X-RateLimit-Reset") == head.field("Retry-After")
        # Each endpoint has its own sixty.
        with call(service, "GET", "/upstream/test/x") as client:
            assert outcome(client)[0].field("X-RateLimit-Remaining") == "59"
        # The page and its health are not throttled.
        with call(service, "GET", "/healthz") as client:
            assert client.read_head().status == 200


def test_retry_after_is_true_although_refused_calls_go_on(upstream_: Upstream) -> None:
    """In the reference, refused calls counted, which shut a steady caller out for good, and Retry-After was wrong."""
    with start(upstream_, SSE_THROTTLE="3 per 1 second") as service:
        assert statuses(service, upstream_, 3) == [200] * 3
        head, _ = ask(service, upstream_)
        promised = time.monotonic() + int(head.field("Retry-After") or 0)
        refused = 0
        while time.monotonic() < promised - 0.5:
            refused += ask(service, upstream_)[0].status == 429
        assert refused
        # This is the wait that was promised to be long enough; there is no event to wait for.
        time.sleep(max(promised - time.monotonic(), 0))
        assert ask(service, upstream_)[0].status == 200


def test_the_window_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed window lets twice as many in around its edge: 119 within 0.2 s."""
    now = time.time()
    for clock in ("time", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: now)
    client = create_app({"SSE_UPSTREAMS": {"test": "http://127.0.0.1:1/"}}).test_client()

    def admitted(calls: int) -> int:
        found = [client.post("/forward-sse", json={"targetUrl": "http://10.0.0.1/"}).status_code for _ in range(calls)]
        assert set(found) <= {403, 429}
        return found.count(403)

    assert admitted(1) == 1
    now += 9.9
    assert admitted(60) == 59
    # The one of the beginning is forgotten, and nothing else.
    now += 0.2
    assert admitted(60) == 1
    now += 9.7
    assert admitted(60) == 0
    now += 0.2
    assert admitted(60) == 59


def test_retry_after_is_that_of_the_longest_exhausted_limit(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="2 per 1 second; 2 per 1 hour") as service:
        assert statuses(service, upstream_, 2) == [200] * 2
        assert int(ask(service, upstream_)[0].field("Retry-After") or 0) > 3500


MALFORMED: list[dict[str, Any]] = [
    {"raw": b"{"},
    {"raw": b""},
    {"raw": b"[]"},
    {"fields": {"Content-Type": "text/plain"}},
    {"header": {"X": "a\nb"}},
    {"method": "put"},
    {"targetUrl": "http://169.254.169.254/"},
    {"targetUrl": ""},
]


def test_malformed_calls_count(upstream_: Upstream) -> None:
    """In the reference, malformed JSON did not count."""
    with start(upstream_, SSE_THROTTLE=f"{len(MALFORMED)} per minute") as service:
        for call_ in MALFORMED:
            assert ask(service, upstream_, **call_)[0].status in (400, 403, 415)
        for call_ in [{}, *MALFORMED]:
            assert ask(service, upstream_, **call_)[0].status == 429


def test_without_a_throttle_there_is_none(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="") as service:
        head, _ = ask(service, upstream_)
        assert not [name for name, _ in head.fields if name.lower().startswith("x-ratelimit")]
        assert statuses(service, upstream_, 70) == [200] * 70


SPOOFS = [
    {},
    {"X-Forwarded-For": "198.51.100.7"},
    {"X-Forwarded-For": "198.51.100.8, 198.51.100.9"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "not an address"},
    {"X-Forwarded-For": ","},
    {"Forwarded": "for=198.51.100.10"},
    {"X-Real-IP": "198.51.100.11"},
    {"X-Client-IP": "198.51.100.12"},
    {"True-Client-IP": "198.51.100.13"},
    {"CF-Connecting-IP": "198.51.100.14"},
    {"X-Request-Id": "another"},
    {"User-Agent": "another"},
    {"Origin": "https://another.example"},
    {"Cookie": "session=another"},
]


def test_nothing_that_a_client_writes_makes_it_another_one(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="1 per minute") as service:
        assert ask(service, upstream_)[0].status == 200
        for fields in SPOOFS:
            assert ask(service, upstream_, fields)[0].status == 429, fields


def test_behind_one_proxy_only_its_own_entry_counts(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="1 per minute", SSE_TRUSTED_PROXIES=1) as service:

        def status(forwarded: str) -> int:
            return ask(service, upstream_, {"X-Forwarded-For": forwarded})[0].status

        assert status("192.0.2.1") == 200
        for spoof in ("192.0.2.9", "192.0.2.8, 192.0.2.7", "127.0.0.1", "x", "", ","):
            assert status(f"{spoof}, 192.0.2.1") == 429, spoof
        for same in ("192.0.2.1:4711", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:4711"):
            assert status(same) == 429, same
        assert status("192.0.2.2") == 200
        # An IPv6 network prefix has 2^64 addresses.
        assert [status(text) for text in ("2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1")] == [200, 429, 200]
        # Who comes past the proxy is whom the connection says.
        assert ask(service, upstream_)[0].status == 200
        for text in ("", "unknown", "_hidden", "unix:"):
            assert status(text) == 429, text


def test_a_client_is_counted_by_its_name_wherever_it_calls_from(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="1 per minute", SSE_PASSCODES=PASSCODES, SSE_TRUSTED_PROXIES=1) as service:
        for number, (client, status) in enumerate([("alice", 200), ("bob", 200), ("alice", 429), ("bob", 429)]):
            fields = {"X-Forwarded-For": f"192.0.2.{number}"}
            assert ask(service, upstream_, fields, passcode=PASSCODES[client])[0].status == status


def test_failed_logins_lock_their_address_out(upstream_: Upstream) -> None:
    settings = {"SSE_THROTTLE": "3 per 1 second", "SSE_PASSCODES": PASSCODES, "SSE_TRUSTED_PROXIES": 1}
    with start(upstream_, **settings) as service:
        here, there = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        # Not to have a credential is no guess: it shuts no client out.
        assert statuses(service, upstream_, 5, here) == [401, 401, 401, 429, 429]
        assert ask(service, upstream_, here, passcode=PASSCODES["alice"])[0].status == 200
        # On whatever endpoint, in whatever place.
        assert ask(service, upstream_, here, passcode="guess 1")[0].status == 401
        assert ask(service, upstream_, {**here, "X-Passcode": "guess 2"})[0].status == 401
        with call(service, "GET", "/upstream/test/x", {**here, "Authorization": "Bearer guess-3"}) as client:
            assert outcome(client)[0].status == 401
        head, problem = ask(service, upstream_, here, passcode="guess 4")
        assert (head.status, problem["code"]) == (429, "throttled")
        assert ask(service, upstream_, here, passcode=PASSCODES["alice"])[0].status == 429
        assert ask(service, upstream_, there, passcode=PASSCODES["alice"])[0].status == 200
        # The wait that was promised to be long enough.
        time.sleep(int(head.field("Retry-After") or 0))
        assert ask(service, upstream_, here, passcode=PASSCODES["alice"])[0].status == 200


def test_failed_logins_are_throttled_where_nothing_else_is(upstream_: Upstream) -> None:
    with start(upstream_, SSE_THROTTLE="", SSE_PASSCODES=PASSCODES) as service:
        assert statuses(service, upstream_, 61, passcode="guess") == [401] * 60 + [429]


def test_addresses_that_called_once_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """limits keeps every key it ever saw: 20,001 after all had expired."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    memory = Memory()
    for number in range(10_000):
        assert memory.acquire_entry(f"address {number}", 1, 10)
        now += 0.1
    # A hundred of them are within the ten seconds.
    assert len(memory.ends) <= KEPT_KEYS
    # Those in use are kept, however many they are.
    for number in range(3 * KEPT_KEYS):
        assert memory.acquire_entry(f"busy {number}", 1, 10)
    assert not [number for number in range(3 * KEPT_KEYS) if memory.acquire_entry(f"busy {number}", 1, 10)]


# Which pages.

EXPOSED = {"retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-request-id"}


def exposed(head: Head) -> set[str]:
    return {name.strip().lower() for name in (head.field("Access-Control-Expose-Headers") or "").split(",")}


def preflight(service: Service, target: str, origin: str, fields: str = "content-type") -> Head:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": fields}
    with call(service, "OPTIONS", target, asked) as client:
        return client.read_head()


@pytest.mark.parametrize("target", ["/forward-sse", "/upstream/test/v1/chat/completions"])
def test_any_page_may_call_without_credentials(locked: Service, target: str) -> None:
    head = preflight(locked, target, "https://site.example", "authorization,content-type,last-event-id,x-passcode")
    assert head.status in (200, 204)
    assert head.field("Access-Control-Allow-Origin") == "*"
    assert head.field("Access-Control-Allow-Credentials") is None
    assert "POST" in (head.field("Access-Control-Allow-Methods") or "")
    allowed = (head.field("Access-Control-Allow-Headers") or "").lower()
    assert {name.strip() for name in allowed.split(",")} >= {
        "authorization",
        "content-type",
        "last-event-id",
        "x-passcode",
    }
    assert int(head.field("Access-Control-Max-Age") or 0) > 0


def test_a_page_may_read_every_response_and_its_limits(upstream_: Upstream) -> None:
    origin = {"Origin": "https://site.example"}
    with start(upstream_, SSE_THROTTLE="6 per minute", SSE_PASSCODES=PASSCODES) as service:
        seen = set()
        passcode = {"passcode": PASSCODES["alice"]}
        calls: list[dict[str, Any]] = [
            passcode,
            {},
            {"raw": b"{", "fields": {"X-Passcode": passcode["passcode"]}},
            {"targetUrl": "http://10.0.0.1/", **passcode},
            {"header": [], **passcode},
            {"fields": {"Content-Type": "x/y", "X-Passcode": passcode["passcode"]}},
            *[passcode] * 2,
        ]
        for call_ in calls:
            head, _ = ask(service, upstream_, {**origin, **call_.pop("fields", {})}, **call_)
            seen.add(head.status)
            assert head.field("Access-Control-Allow-Origin") == "*", head
            assert exposed(head) >= EXPOSED
            assert head.field("X-Request-Id")
        assert seen == {200, 400, 401, 403, 415, 429}
        for method, target in [("GET", "/forward-sse"), ("POST", "/sse"), ("GET", "/upstream/other/")]:
            with call(service, method, target, {**origin, "X-Passcode": PASSCODES["bob"]}) as client:
                head = client.read_head()
            assert head.status in (404, 405)
            assert head.field("Access-Control-Allow-Origin") == "*"


FOREIGN = """
    https://evil.example https://site.example.evil.example https://evilsite.example http://site.example
    https://site.example:444 https://sub.site.example https://SITE.example.com null file:// https://site.exampl
    https://siteXexample https://localhost:80800
""".split()


def test_with_a_list_only_its_pages_may_read(upstream_: Upstream) -> None:
    listed = ["https://site.example", "http://localhost:8080"]
    with start(upstream_, SSE_CORS_ORIGINS=listed, SSE_THROTTLE="") as service:
        for origin in FOREIGN:
            assert preflight(service, "/forward-sse", origin).field("Access-Control-Allow-Origin") is None, origin
            assert ask(service, upstream_, {"Origin": origin})[0].field("Access-Control-Allow-Origin") is None, origin
        for origin in listed:
            for head in (preflight(service, "/forward-sse", origin), ask(service, upstream_, {"Origin": origin})[0]):
                assert head.field("Access-Control-Allow-Origin") == origin
                assert head.field("Access-Control-Allow-Credentials") is None
                # A cache must not give the response for one page to another.
                assert "Origin" in (head.field("Vary") or "")


def test_with_an_empty_list_no_other_page_may_read(upstream_: Upstream) -> None:
    with start(upstream_, SSE_CORS_ORIGINS=[], SSE_THROTTLE="") as service:
        head, _ = ask(service, upstream_, {"Origin": "https://site.example"})
        assert not [name for name, _ in head.fields if name.lower().startswith("access-control-")]


def test_an_unavailable_store_admits_no_client_and_is_no_failure(
    redis_server: Any, upstream_: Upstream, service: Callable[..., Service]
) -> None:
    """Flask-Limiter answers 500 where its store is away, or lets everybody in."""
    settings = {"SSE_THROTTLE": "3 per minute", "SSE_STORAGE_URI": redis_server.url}
    one = ("--workers", "1")
    relay, other = (service(*one, SSE_UPSTREAMS={"test": upstream_.url}, **settings) for _ in range(2))
    # Where there is one, all that use it count together.
    assert [ask(each, upstream_)[0].status for each in (relay, other, relay, other, relay)] == [200] * 3 + [429] * 2
    redis_server.stop()
    began = time.monotonic()
    assert statuses(relay, upstream_, 4) == [200] * 3 + [429]
    assert time.monotonic() - began < 5
