"""What operators of LLM gateways need: refusals that SDKs read, usage, clients of a file, quotas, several targets."""

from __future__ import annotations

from collections.abc import Callable

from .support.relay import Relay
from .support.service import Service, call
from .support.upstream import EVENT_STREAM, Connection, head

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
        with call(relay, "GET", "/upstream/nobody/") as client:
            heads.append(client.read_head())
    assert [each.status for each in heads] == [404, 429]
    assert int(heads[1].field("Retry-After") or 0) > 60
    assert [each.field("X-Should-Retry") for each in heads] == [None, "false"]


def test_no_sdk_repeats_a_stream_that_breaks_before_its_head(relay: Relay) -> None:
    client = relay.call(lambda connection: connection.read_request(), "POST", body=b"{}")
    assert (client.read_head().status, client.head and client.head.field("X-Should-Retry")) == (502, "false")
    assert client.json()["error"]["type"] == "api_error"
