"""What operators of LLM gateways need: refusals that SDKs read, usage, clients of a file, quotas, several targets."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app import create_app
from sse.web.access.jwt import LEEWAY

from .support.ending import error_event, silent
from .support.recording import Paced
from .support.relay import Relay
from .support.service import RawClient, Service, call, forward, start_refused
from .support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head, respond

EVENT = b"data: a\n\n"
STREAM = head(200, EVENT_STREAM, "Transfer-Encoding: chunked")

# Refusals


def test_claude_codes_contract_for_gateways_is_kept(relay: Relay) -> None:
    """Error bodies unmodified, field lists open in both directions, and what says when to retry."""
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow  down"},"request_id":"req_1"}'
    fields = {
        "Anthropic-Ratelimit-Unified-Status": "rejected",
        "Anthropic-Ratelimit-Unified-Reset": "1792000000",
        "Request-Id": "req_1",
        "Retry-After": "7",
        "X-Should-Retry": "true",
    }

    def script(connection: Connection) -> None:
        connection.read_request()
        lines = [f"{name}: {value}" for name, value in fields.items()]
        connection.send(head(429, "Content-Type: application/json", f"Content-Length: {len(body)}", *lines) + body)

    sent = {
        "Anthropic-Beta": "a-2026-01-01,b-2027-02-02",
        "Anthropic-Version": "2023-06-01",
        "Anthropic-Of-Tomorrow": "x",
        "X-Claude-Code-Session-Id": "s1",
        "Content-Type": "application/json",
    }
    client = relay.call(script, "POST", "v1/messages/count_tokens?beta=true", fields=sent, body=b'{"model": "m"}')
    answered = client.read_head()
    assert (answered.status, client.read_body()) == (429, body)
    assert {name: answered.field(name) for name in fields} == fields
    request = relay.upstream.wait_request()
    assert request.target == "/v1/messages/count_tokens?beta=true"
    assert {name: request.field(name) for name in sent} == sent
    assert request.body == b'{"model": "m"}'


def test_a_long_wait_is_not_repeated_by_sdks(service: Callable[..., Service]) -> None:
    relay = service(SSE_THROTTLE="1 per 2 minute")
    heads = []
    for _ in range(2):
        with call(relay, "GET", "/upstream/unused/") as client:
            heads.append(client.read_head())
    assert [each.status for each in heads] == [404, 429]
    assert int(heads[1].field("Retry-After") or 0) > 60
    assert [each.field("X-Should-Retry") for each in heads] == [None, "false"]


def test_no_sdk_repeats_a_stream_that_breaks_before_its_head(relay: Relay) -> None:
    client = relay.call(lambda connection: connection.read_request(), "POST", body=b"{}")
    assert (client.read_head().status, client.head and client.head.field("X-Should-Retry")) == (502, "false")
    assert client.json()["error"]["type"] == "api_error"


# Usage

USAGE = b'"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}'
CHAT = [
    b": OPENROUTER PROCESSING\n\n",
    b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}\n\n',
    b'data: {"model":"m","choices":[],' + USAGE + b"}\n\ndata: [DONE]\n\n",
]


@pytest.fixture
def upstream_of_chats(upstream: Callable[..., Upstream]) -> Upstream:
    return upstream(respond(*CHAT))


def post(
    relay: Service,
    body: bytes = b'{"model":"m"}',
    path: str = "v1/chat/completions",
    *,
    fields: Mapping[str, str] | None = None,
    timeout: float = 10,
) -> RawClient:
    sent = {"Content-Type": "application/json", **(fields or {})}
    return call(relay, "POST", f"/upstream/test/{path}", sent, body, timeout=timeout)


def test_usage_is_logged_and_counted_and_changes_no_byte(
    service: Callable[..., Service], upstream_of_chats: Upstream
) -> None:
    bodies = []
    for usage in (False, True):
        relay = service(SSE_UPSTREAMS={"test": upstream_of_chats.url}, SSE_USAGE=usage, SSE_METRICS=True)
        with post(relay) as client:
            bodies.append((client.read_head().fields[0], client.read_body()))
        line = relay.wait_log("stream end=complete .*")[0]
        with call(relay, "GET", "/metrics") as client:
            counted = client.read_body().decode()
        assert ("usage=" in line, "sse_tokens_total{" in counted) == (usage, usage)
    assert bodies[0][1] == bodies[1][1] == b"".join(CHAT)
    assert " usage=final model=m input_tokens=20 output_tokens=9 " in line
    assert 'sse_tokens_total{type="input",upstream="test"} 20.0' in counted
    assert 'sse_usage_total{state="final",upstream="test"} 1.0' in counted
    assert 'sse_first_event_seconds_count{upstream="test"} 1.0' in counted


def test_usage_of_a_client_that_leaves_is_partial_or_none(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    def script(connection: Connection) -> None:
        usage = connection.read_request().target.endswith("/shown")
        connection.send(STREAM + chunk(b'data: {"choices":[],' + USAGE + b"}\n\n" if usage else EVENT))
        connection.wait_closed()

    relay = service(SSE_UPSTREAMS={"test": upstream(script).url}, SSE_USAGE=True)
    for path, state in {"shown": "partial", "unshown": "none"}.items():
        with post(relay, path=path, fields={"X-Request-Id": path}) as client:
            client.read_until(b"\n\n")
        assert f" usage={state} " in relay.wait_log(f"stream end=client_gone .*request_id={path}")[0]


def test_nothing_is_guessed_of_a_coded_body(service: Callable[..., Service], upstream: Callable[..., Upstream]) -> None:
    coded = upstream(respond(b"\x1f\x8b" + CHAT[2], fields=[EVENT_STREAM, "Content-Encoding: gzip"]))
    relay = service(SSE_UPSTREAMS={"test": coded.url}, SSE_USAGE=True)
    with post(relay) as client:
        client.read_body()
    assert " usage=encoded request_id" in relay.wait_log("stream end=complete .*")[0]


# Clients


def entry(name: str, passcode: str, *lines: str) -> str:
    digest = hashlib.sha256(passcode.encode()).hexdigest()
    return "\n".join([f"[{name}]", f'sha256 = "{digest}"', *lines, ""])


@pytest.mark.parametrize(
    ("passcode", "path", "body", "expected"),
    [
        pytest.param("open", "v1/chat/completions", b'{"model":"any"}', "200", id="free"),
        pytest.param("wrong", "v1/chat/completions", b'{"model":"any"}', "401 unauthenticated", id="wrong"),
        pytest.param("old", "v1/chat/completions", b'{"model":"any"}', "401 unauthenticated", id="expired"),
        pytest.param("bound", "v1/chat/completions", b'{"model":"qwen-max"}', "200", id="allowed"),
        pytest.param("bound", "v1/chat/completions/x", b'{"model":"qwen-max"}', "200", id="below"),
        pytest.param("bound", "v1/chat/completionsx", b'{"model":"qwen-max"}', "403 route_not_allowed", id="segment"),
        pytest.param("bound", "v1/%63hat/completions", b'{"model":"qwen-max"}', "200", id="escaped"),
        pytest.param("bound", "v1/files", b'{"model":"qwen-max"}', "403 route_not_allowed", id="route"),
        pytest.param("bound", "v1/chat/completions", b'{"model":"gpt"}', "403 model_not_allowed", id="model"),
        pytest.param("bound", "v1/chat/completions", b"{}", "403 model_not_allowed", id="no-model"),
        pytest.param(
            "bound", "v1/chat/completions", b'{"model":"qwen-a","model":"gpt"}', "403 model_not_allowed", id="twice"
        ),
        pytest.param("away", "v1/chat/completions", b'{"model":"any"}', "403 target_not_allowed", id="upstream"),
        pytest.param("open", "admin/keys", b'{"model":"any"}', "403 route_not_allowed", id="of-the-table"),
    ],
)
def test_a_client_may_do_what_its_file_says(
    clients: tuple[Service, Upstream], passcode: str, path: str, body: bytes, expected: str
) -> None:
    with post(clients[0], body, path, fields={"X-Passcode": passcode}) as client:
        status = client.read_head().status
        assert (f"{status}" if status == 200 else f"{status} {client.json()['code']}") == expected


STREAM_OF_CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({}, 400, id="not-asked-for"),
        pytest.param({"stream_options": None}, 400, id="null"),
        pytest.param({"stream_options": []}, 400, id="a-list"),
        pytest.param({"stream_options": {"include_usage": False}}, 400, id="false"),
        pytest.param({"stream_options": {"include_usage": 1}}, 400, id="a-number"),
        pytest.param({"stream_options": {"include_usage": True}}, 200, id="asked-for"),
        pytest.param({"stream": False}, 200, id="a-whole-answer"),
        pytest.param({"messages": None, "input": "Hi"}, 200, id="another-dialect"),
    ],
)
@pytest.mark.parametrize("way", ["upstream", "forward"])
def test_an_upstream_may_require_that_usage_is_asked_for(
    clients: tuple[Service, Upstream], way: str, change: dict[str, Any], expected: int
) -> None:
    service, upstream = clients
    document = {name: value for name, value in {**STREAM_OF_CHAT, **change}.items() if name != "messages" or value}
    before = len(upstream.requests)
    if way == "upstream":
        fields = {"X-Passcode": "open", "Content-Type": "application/json"}
        client = call(service, "POST", "/upstream/paid/v1/chat", fields, json.dumps(document).encode())
    else:
        client = forward(service, f"{upstream.url}/paid/v1/chat", body=document, passcode="open")
    with client:
        assert client.read_head().status == expected
        if expected == 400:
            refusal = client.json()
            assert refusal["code"] == "invalid_request" and '{"include_usage": true}' in refusal["detail"]
        else:
            client.read_body()
            assert json.loads(upstream.requests[-1].body) == document
    # What is refused has cost nothing, and nothing is added to what passes.
    assert len(upstream.requests) == before + (expected == 200)


def test_a_clients_quota_is_its_own(clients: tuple[Service, Upstream]) -> None:
    statuses = []
    for name in ("poor", "open", "poor", "open"):
        with post(clients[0], fields={"X-Passcode": name}) as client:
            statuses.append((name, client.read_head().status))
            client.read_body()
    assert statuses == [("poor", 200), ("open", 200), ("poor", 429), ("open", 200)]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    path = tmp_path_factory.mktemp("clients") / "clients.toml"
    path.write_text(
        entry("open", "open")
        + entry("old", "old", "expires = 2020-01-01T00:00:00Z")
        + entry("bound", "bound", 'allow = ["POST v1/chat/completions"]', 'models = ["qwen-*"]')
        + entry("away", "away", 'upstreams = ["other"]')
        + entry("poor", "poor", 'quota = "29 per 1 day"')
    )
    with Upstream(respond(*CHAT, framing="close")) as upstream:
        table = {
            "test": {"url": upstream.url, "allow": ["POST v1", "GET v1"]},
            "paid": {"url": f"{upstream.url}/paid/", "require_usage": True},
        }
        with Service(SSE_UPSTREAMS=table, SSE_CLIENTS_FILE=str(path), SSE_THROTTLE="") as service:
            yield service, upstream


def test_a_client_has_limits_of_its_own(
    service: Callable[..., Service], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(
        entry("often", "often", 'throttle = "2 per 1 minute"') + entry("few", "few", "max_streams = 1", 'throttle = ""')
    )

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_closed()

    relay = service(SSE_UPSTREAMS={"test": upstream(script).url}, SSE_CLIENTS_FILE=str(path), SSE_THROTTLE="1 per hour")
    with ExitStack() as stack:
        codes: dict[str, list[int]] = {"often": [], "few": []}
        for name in ("often", "often", "often", "few", "few"):
            client = stack.enter_context(post(relay, fields={"X-Passcode": name}))
            codes[name].append(client.read_head().status)
        assert codes == {"often": [200, 200, 429], "few": [200, 429]}
        assert client.json()["code"] == "too_many_streams"


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_a_silent_stream_ends_with_its_credential(
    service: Callable[..., Service], upstream: Callable[..., Upstream], tmp_path: Path, how: str
) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(entry("a", "a"))

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_closed(30)

    source = upstream(script)
    relay = service(SSE_UPSTREAMS={"test": source.url}, SSE_CLIENTS_FILE=str(path))
    with post(relay, fields={"X-Passcode": "a"}, timeout=20) as client:
        client.read_until(EVENT)
        if how == "revoked":
            (tmp_path / "half-written").write_text(entry("b", "b") + "[c")
            (tmp_path / "half-written").replace(path)
            relay.wait_log("SSE_CLIENTS_FILE: is not TOML .*; the clients before stay")
            assert client.ending is None
            path.write_text(entry("b", "b"))
        else:
            soon = datetime.now(UTC) + timedelta(seconds=6)
            path.write_text(entry("a", "a", f"expires = {soon.isoformat()}"))
        assert client.read_body() == EVENT + error_event("credential_expired")
    relay.wait_log("stream end=credential_expired ")
    with post(relay, fields={"X-Passcode": "a"}) as client:
        assert client.read_head().status == 401


@pytest.mark.parametrize(
    ("kind", "begun", "rest"),
    [
        pytest.param("text/event-stream", b"data: b", b"b\n\n", id="events"),
        pytest.param("text/plain", b"half", b"", id="text"),
    ],
)
def test_a_recording_ends_with_its_credential(
    service: Callable[..., Service],
    upstream: Callable[..., Upstream],
    tmp_path: Path,
    kind: str,
    begun: bytes,
    rest: bytes,
) -> None:
    """It went on, at the expense of a client that was not one any more, and so did those that read it."""
    path, script = tmp_path / "clients.toml", Paced(fields=(f"Content-Type: {kind}",))
    path.write_text(entry("a", "one"))
    relay = service(SSE_UPSTREAMS={"test": upstream(script).url}, SSE_CLIENTS_FILE=str(path))
    with post(relay, fields={"X-Passcode": "one", "Stream-TTL": "60"}, timeout=20) as client:
        place = client.read_head().field("Location") or ""
        script.send(EVENT + begun)
        client.read_until(EVENT + begun)
        with call(relay, "GET", f"{place}?live=tail", {"X-Passcode": "one"}, timeout=20) as reader:
            reader.read_until(EVENT + begun)
            # The same client with another passcode.
            path.write_text(entry("a", "two"))
            assert (reader.read_body(), reader.ending) == (EVENT + begun, "aborted")
        if rest:
            script.send(rest + b"data: c\n\n")
        script.wait_closed(20)
        assert (client.read_body(), client.ending) == (EVENT + begun + rest, "aborted")
    relay.wait_log("recording end=credential_expired ")
    assert len(re.findall("^.* stream end=credential_expired ", relay.log(), re.MULTILINE)) == 2
    with call(relay, "GET", place, {"X-Passcode": "one"}) as client:
        assert client.read_head().status == 401
    with call(relay, "GET", f"{place}?offset={len(EVENT + begun + rest)}", {"X-Passcode": "two"}) as client:
        assert (client.read_head().status, client.head and client.head.field("Stream-End")) == (
            410,
            "credential_expired",
        )


def test_a_clients_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(entry("a", "a", "max_streams = -1"))
    assert "SSE_CLIENTS_FILE: a.max_streams" in start_refused(SSE_CLIENTS_FILE=str(path))
    assert "SSE_QUOTA: " in start_refused(SSE_QUOTA="many")
    assert "SSE_JWT: " in start_refused(SSE_JWT={"keys": str(path), "issuer": "i", "audience": "a"})
    assert "SSE_JWT: algorithms" in start_refused(
        SSE_JWT={"keys": str(path), "issuer": "i", "audience": "a", "algorithms": ["HS256"]}
    )


def test_the_passcode_that_the_command_makes_is_valid(tmp_path: Path, service: Callable[..., Service]) -> None:
    made = (
        create_app({"SSE_UPSTREAMS": {"x": "http://127.0.0.1:9/"}})
        .test_cli_runner()
        .invoke(args=["sse", "passcode", "my-app"])
    )
    assert made.exit_code == 0
    (tmp_path / "clients.toml").write_text(made.output)
    passcode = made.output.partition("passcode: ")[2].partition("\n")[0]
    relay = service(SSE_CLIENTS_FILE=str(tmp_path / "clients.toml"), SSE_UPSTREAMS={"test": "http://127.0.0.1:9/"})
    with post(relay, fields={"X-Passcode": passcode}) as client:
        assert client.read_head().status == 502
    assert passcode not in relay.log()


def test_a_token_of_an_issuer_is_a_credential(
    service: Callable[..., Service], upstream: Callable[..., Upstream], upstream_of_chats: Upstream
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    document = {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k1", "use": "sig"}
    keys = upstream(respond(json.dumps({"keys": [document]}).encode(), fields=["Content-Type: application/json"]))
    said = {"keys": f"{keys.url}/jwks.json", "issuer": "https://site.example", "audience": "gateway"}
    relay = service(SSE_UPSTREAMS={"test": upstream_of_chats.url}, SSE_JWT=said)
    claims = {"iss": "https://site.example", "aud": "gateway", "sub": "ann", "exp": int(time.time()) + 60}
    changes: list[dict[str, Any]] = [{}, {"aud": "other"}, {"exp": int(time.time()) - 60}]
    for change in changes:
        token = jwt.encode({**claims, **change}, key, algorithm="RS256", headers={"kid": "k1"})
        with post(relay, fields={"Authorization": f"Bearer {token}"}) as client:
            assert client.read_head().status == (401 if change else 200)
            client.read_body()
        assert token not in relay.log()
    relay.wait_log("stream end=complete .* client=ann ")
    assert [request.target for request in keys.requests] == ["/jwks.json"]


Sign = Callable[..., str]


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream, Sign]]:
    """A service that takes tokens alone, its upstream, and what makes a token that ends after so many seconds."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps({"keys": [jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)]}))

    def sign(seconds: float) -> str:
        claims = {"iss": "site", "aud": "gateway", "sub": "ann", "exp": int(time.time() + seconds)}
        return jwt.encode(claims, key, algorithm="RS256")

    said = {"keys": str(path), "issuer": "site", "audience": "gateway"}
    with (
        Upstream(silent) as upstream,
        Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_JWT=said, SSE_THROTTLE="5 per 1 minute") as service,
    ):
        yield service, upstream, sign


def test_a_stream_ends_with_its_token(by_token: tuple[Service, Upstream, Sign]) -> None:
    service, _, sign = by_token
    # As if it had been given out long ago: what is left is what clocks may differ by.
    with post(service, fields={"Authorization": f"Bearer {sign(3 - LEEWAY)}"}) as client:
        assert client.read_until(EVENT) == EVENT and client.ending is None
        assert client.read_body() == EVENT + error_event("credential_expired")
    service.wait_log("stream end=credential_expired .* client=ann ")


def test_wrong_tokens_count_as_failed_logins(by_token: tuple[Service, Upstream, Sign]) -> None:
    service, _, sign = by_token
    good = sign(600)
    with post(service, fields={"Authorization": f"Bearer {good}"}) as client:
        assert client.read_head().status == 200
    statuses = []
    for number in range(6):
        with post(service, fields={"Authorization": f"Bearer {good}{number}"}) as client:
            statuses.append(client.read_head().status)
    assert statuses == [401] * 5 + [429]
    # While locked out, a good one is refused too.
    with post(service, fields={"Authorization": f"Bearer {good}"}) as client:
        assert client.read_head().status == 429


# Quotas


@pytest.mark.parametrize(
    ("kind", "spent"),
    [
        pytest.param("reported", 29, id="what-is-reported"),
        pytest.param("silent", 3 + 400 // 4, id="an-estimate-where-nothing-is"),
        pytest.param("cut", 1 + 400 // 4, id="an-estimate-where-a-part-is"),
        pytest.param("error", 0, id="nothing-for-an-error"),
        pytest.param("get", 0, id="nothing-for-a-get"),
    ],
)
def test_a_quota_is_charged_at_the_end(
    service: Callable[..., Service], upstream: Callable[..., Upstream], kind: str, spent: int
) -> None:
    def cut(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(b"data: {" + USAGE + b"}\n\n"))

    events = respond(EVENT, EVENT, EVENT)
    bodies = {
        "reported": respond(*CHAT),
        "silent": events,
        "cut": cut,
        "error": respond(b"{}", status=500),
        "get": events,
    }
    method = "GET" if kind == "get" else "POST"
    relay = service(SSE_UPSTREAMS={"test": upstream(bodies[kind]).url}, SSE_QUOTA=f"{spent or 1} per 1 day")
    statuses = []
    for _ in range(2):
        with call(relay, method, "/upstream/test/", {}, b" " * 400) as client:
            refusal = client.read_head()
            statuses.append(refusal.status)
            client.read_body()
        relay.wait_log(r"stream end=|code=quota_exceeded")
    assert statuses == ([200, 429] if spent else [500, 500] if kind == "error" else [200, 200])
    assert ("charged=estimated" in relay.log()) == (kind in ("silent", "cut"))
    if spent:
        assert 0 < int(refusal.field("Retry-After") or 0) <= 86400
        assert (client.json()["code"], client.json()["error"]["type"]) == ("quota_exceeded", "insufficient_quota")


def test_a_quota_holds_over_workers(
    service: Callable[..., Service], upstream: Callable[..., Upstream], redis_server: Any
) -> None:
    """50 calls at once of 29 tokens each spend at most as much too much as the client may have streams."""
    relay = service(
        "--workers",
        "2",
        SSE_UPSTREAMS={"test": upstream(respond(*CHAT, framing="close")).url},
        SSE_QUOTA="145 per 1 day",
        SSE_THROTTLE="",
        SSE_MAX_STREAMS_PER_CLIENT=4,
        SSE_STORAGE_URI=redis_server.url,
    )

    def one(_: int) -> str:
        while True:
            with post(relay) as client:
                if client.read_head().status == 200:
                    client.read_body()
                    return "relayed"
                if (code := client.json()["code"]) != "too_many_streams":
                    return str(code)

    with ThreadPoolExecutor(50) as pool:
        seen = Counter(pool.map(one, range(50)))
    assert seen.keys() == {"relayed", "quota_exceeded"}
    assert 5 <= seen["relayed"] <= 5 + 4
    with redis_server.client() as store:
        spent = [store.hget(key, "spent") for key in store.scan_iter("sse:{quota:*") if store.type(key) == b"hash"]
    assert [int(each) for each in spent] == [29 * seen["relayed"]]
